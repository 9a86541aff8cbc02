"""`generate` is the base class's in every mode: without a span map, and with one that says causal."""

import pytest
import torch
from tiny import make_model, plain
from transformers import CompileConfig, Trainer, TrainingArguments, pipeline

from modeling_magnet.compat import CACHE, CACHE_NAMES

PROMPTS = torch.randint(3, 350, (2, 9), generator=torch.Generator().manual_seed(4))
PROMPT = PROMPTS[:1]
PADDED = torch.ones_like(PROMPTS)
PADDED[0, :3] = 0
ALL_OUTPUTS = {
    "return_dict_in_generate": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_logits": True,
    "output_scores": True,
}


def another(model):
    """A model of the same class with other weights, most of whose drafts are refused."""
    return type(model)(model.config).eval()


MODES = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_p": 0.9, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "left padding": {"attention_mask": PADDED},
    "left padding, beams": {"attention_mask": PADDED, "num_beams": 2},
    "positions": {"position_ids": torch.arange(5, 14).expand(2, -1)},
    "no cache": {"use_cache": False},
    "all logits": {"logits_to_keep": 0},
    "all outputs": ALL_OUTPUTS,
    "all outputs of beams": ALL_OUTPUTS | {"num_beams": 2},
    "static cache": {"cache_implementation": "static"},
    "static cache, left padding": {"cache_implementation": "static", "attention_mask": PADDED},
    "assisted by itself": lambda model: {"inputs": PROMPT, "assistant_model": model},
    "assisted by another": lambda model: {"inputs": PROMPT, "assistant_model": another(model)},
    "prompt lookup": {"inputs": PROMPT.repeat(1, 2), "prompt_lookup_num_tokens": 3},
    "embeddings": lambda model: {
        "inputs": None,
        "inputs_embeds": model.get_input_embeddings()(PROMPTS),
    },
    "embeddings and ids": lambda model: {
        "inputs_embeds": model.get_input_embeddings()(PROMPTS.flip(1))
    },
}
"""Arguments of `generate` for each way of decoding, or what makes them for a model."""

WITHOUT_MAP = {
    "guidance": {"guidance_scale": 1.5},
    "chunked prompt": {"prefill_chunk_size": 4},
    "no prompt": {"inputs": None},
}
"""Modes in which a span map is refused or has no meaning."""


def write(model, mode, with_map=False):
    given = (MODES | WITHOUT_MAP)[mode]
    given = {"inputs": PROMPTS, "max_new_tokens": 8} | (given(model) if callable(given) else given)
    if with_map:
        prompt = given["inputs"] if given["inputs"] is not None else given["inputs_embeds"]
        given["span_ids"] = torch.ones(prompt.shape[:2], dtype=torch.long)  # one span: causal
    torch.manual_seed(0)
    return model.generate(**given)


def tensors(output):
    """All tensors of an output in order, its cache's included."""
    if isinstance(output, torch.Tensor):
        return [output]
    if hasattr(output, "layers"):
        return [tensor for layer in output.layers for tensor in (layer.keys, layer.values)]
    inside = output.values() if isinstance(output, dict) else output or ()
    return [tensor for part in inside for tensor in tensors(part)]


@pytest.fixture(params=["llama", "gemma3_text"])
def pair(request):
    """A model and its base class; the second has a sliding window. Eager, to return attentions."""
    model = make_model(architecture=request.param, attn_implementation="eager")
    return model, plain(model)


@pytest.mark.parametrize("mode", MODES | WITHOUT_MAP)
def test_every_mode_writes_as_the_base_class_bit_for_bit(pair, mode):
    one, two = (tensors(write(model, mode)) for model in pair)
    assert len(one) == len(two) and all(map(torch.equal, one, two))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_with_a_map_of_one_span_writes_as_without(pair, mode):
    """The map says causal, so that its mask, built anew at each step, must change nothing."""
    model, base = pair
    one, two = tensors(write(model, mode, with_map=True)), tensors(write(base, mode))
    assert len(one) == len(two)
    for got, expected in zip(one, two):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize("with_map", [False, True])
def test_generating_on_from_a_returned_cache(tiny, name, with_map):
    """Under both names of the argument, as the base class under its own."""
    base, given = plain(tiny), {"do_sample": False, "return_dict_in_generate": True}
    whole = base.generate(PROMPTS, max_new_tokens=8, attention_mask=PADDED, **given)
    span_ids = {"span_ids": torch.ones_like(PROMPTS)} if with_map else {}
    half = tiny.generate(PROMPTS, max_new_tokens=5, attention_mask=PADDED, **given, **span_ids)
    attention_mask = torch.nn.functional.pad(PADDED, (0, 5), value=1)
    given |= {"attention_mask": attention_mask, name: half[CACHE]} | span_ids
    rest = tiny.generate(half.sequences, max_new_tokens=3, **given)
    assert torch.equal(rest.sequences, whole.sequences)
    assert rest[CACHE].get_seq_length() == whole[CACHE].get_seq_length()


@pytest.mark.parametrize("with_map", [False, True])
def test_a_static_cache_compiles_into_one_graph(tiny, with_map):
    settings = CompileConfig(backend="eager", fullgraph=True, dynamic=False)
    settings._compile_all_devices = True  # a CPU is left out otherwise
    given = {"cache_implementation": "static", "compile_config": settings}
    if with_map:
        given["span_ids"] = torch.ones_like(PROMPTS)
    torch.compiler.reset()
    written = tiny.generate(PROMPTS, max_new_tokens=8, do_sample=False, **given)
    assert hasattr(tiny, "_compiled_call")
    assert torch.equal(written, plain(tiny).generate(PROMPTS, max_new_tokens=8, do_sample=False))


def test_the_pipeline_and_the_trainer_know_what_the_class_is(tmp_path, any_tiny, capfd):
    """They look its name up; the trainer would not shift smoothed labels otherwise."""
    models = any_tiny, plain(any_tiny)
    for one in models:
        pipeline("text-generation", one, tokenizer=any_tiny.tokenizer)("a", max_new_tokens=1)
    assert "not supported" not in capfd.readouterr().err
    arguments = TrainingArguments(
        str(tmp_path), label_smoothing_factor=0.1, report_to=[], use_cpu=True
    )
    inputs = {"input_ids": PROMPTS, "labels": PROMPTS}
    losses = [Trainer(one, arguments).compute_loss(one, dict(inputs)) for one in models]
    assert torch.equal(*losses)
