"""Other architectures than Llama: which class a checkpoint gets, and what a sliding window means."""

import subprocess
import sys
from inspect import getsource
from pathlib import Path

import pytest
import torch
import transformers
from test_infilling import PREFIX, SUFFIX, in_place, made_endless
from tiny import ARCHITECTURES, SENTENCES, SLIDING, make_model, make_tokenizer, plain
from transformers import AutoConfig, BertConfig, BertModel, GPT2Config, Phi3ForCausalLM, StaticCache

import modeling_magnet
from modeling_magnet import MagnetLlamaForCausalLM, load_magnet, magnet_class_for
from modeling_magnet.masking import sliding_window
from modeling_magnet.training.base import load_base

ROOT = Path(__file__).parents[1]
LONG = " ".join(SENTENCES)


def tokens(count: int) -> torch.Tensor:
    return torch.randint(3, 350, (1, count), generator=torch.Generator().manual_seed(0))


def sliding_model(architecture: str, window: int = 32, **config):
    return make_model(architecture=architecture, sliding_window=window, **config)


# --- which class ----------------------------------------------------------------------------------


def test_every_class_is_found_by_its_model_type():
    assert {name.split()[0] for name in ARCHITECTURES} == set(modeling_magnet.ARCHITECTURES)
    for model_type, name in modeling_magnet.ARCHITECTURES.items():
        found = magnet_class_for(AutoConfig.for_model(model_type))
        assert found is getattr(modeling_magnet, name)
        assert found.config_class.model_type == model_type
    with pytest.raises(AttributeError, match="MagnetGPT2"):
        modeling_magnet.MagnetGPT2ForCausalLM  # noqa: B018


def test_an_architecture_is_imported_when_it_is_asked_for():
    code = (
        "import sys, modeling_magnet; "
        "assert not [m for m in sys.modules if 'torch' in m or 'magnet.arch' in m]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    found = modeling_magnet.__getattr__("MagnetQwen2ForCausalLM")
    assert found.config_class.model_type == "qwen2"


def test_another_architecture_s_folder_is_refused(tmp_path):
    make_model(architecture="qwen2").save_pretrained(tmp_path / "qwen2")
    with pytest.raises(
        ValueError,
        match="qwen2 has the architecture 'qwen2', but MagnetLlamaForCausalLM is for 'llama': load it "
        "with MagnetQwen2ForCausalLM, or with load_magnet",
    ):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path / "qwen2")
    assert load_base(str(tmp_path / "qwen2")).encode("a").shape == (48,)
    BertModel(
        BertConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=350)
    ).save_pretrained(tmp_path / "bert")
    supported = "'bert'; supported are gemma2, gemma3_text, llama, mistral, phi, phi3, qwen2, qwen3"
    for load in (MagnetLlamaForCausalLM.from_pretrained, load_magnet, load_base):
        with pytest.raises(ValueError, match=supported):
            load(str(tmp_path / "bert"))
    with pytest.raises(ValueError, match="the config has the architecture 'gpt2'; supported"):
        magnet_class_for(GPT2Config())
    with pytest.raises(OSError):
        load_magnet(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"config\.json"):
        load_magnet(tmp_path / "empty")


def test_flex_attention_gives_the_same(any_tiny):
    vectors, text = any_tiny.encode(SENTENCES[:2]), any_tiny.infill(PREFIX, SUFFIX, span_length=2)
    any_tiny.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):  # not every machine can compile it
        assert abs(any_tiny.encode(SENTENCES[:2]) - vectors).max() < 1e-5
        assert any_tiny.infill(PREFIX, SUFFIX, span_length=2) == text


# --- sliding windows ------------------------------------------------------------------------------


def test_the_window_of_a_model():
    for name in ARCHITECTURES:
        model = make_model(architecture=name)
        assert sliding_window(model.config) == (128 if name in SLIDING else None)
        assert model.magnet_settings.max_length == (128 if name in SLIDING else 256)
    config = AutoConfig.for_model("qwen2", sliding_window=32, use_sliding_window=False)
    assert sliding_window(config) is None


@pytest.mark.parametrize("architecture", SLIDING)
def test_within_the_window_it_changes_nothing(architecture):
    """32 columns, the last of them too: the same as a model without a window."""
    model, ids = sliding_model(architecture), tokens(32)
    wide = sliding_model(architecture, window=4096)
    wide.load_state_dict(model.state_dict())
    span_ids = torch.zeros_like(ids)
    span_ids[:, 10:20] = 1
    logits = (m(input_ids=ids, span_ids=span_ids).logits for m in (model, wide))
    assert torch.equal(*logits)


@pytest.mark.parametrize("architecture", SLIDING)
def test_beyond_the_window_a_map_is_refused_and_generation_goes_on(architecture):
    model, ids = made_endless(sliding_model(architecture)), tokens(33)
    message = "the span map has 33 columns, but the model's sliding window is 32"
    for value in (0, 1):
        with pytest.raises(ValueError, match=message):
            model(input_ids=ids, span_ids=torch.full_like(ids, value))
    with pytest.raises(ValueError, match=message):  # the first column behind the window
        model.generate(ids[:, :30], span_ids=torch.zeros_like(ids[:, :30]), max_new_tokens=8)
    with pytest.raises(ValueError, match=r"text 0 has \d+ tokens .*the limit is 30"):
        model.encode(LONG)
    with pytest.raises(ValueError, match=r"text 0 has \d+ positions .*the limit is 32"):
        model.infill(LONG, SUFFIX, span_length=4)
    with pytest.warns(UserWarning, match="cut to 30 tokens"):
        assert model.encode(LONG, prompt="", truncation=True).shape == (48,)
    base, written = plain(model), model.generate(ids, max_new_tokens=40, do_sample=False)
    assert torch.equal(written, base.generate(ids, max_new_tokens=40, do_sample=False))
    assert written.shape == (1, 73)
    model.config.magnet = {"max_length": 64}
    with pytest.raises(ValueError, match="max_length is 64, but the model's sliding window"):
        model.encode("a")


@pytest.mark.parametrize("architecture", SLIDING)
def test_gaps_that_fit_alone_but_not_in_one_batch(architecture):
    """A long context with a short gap beside a short context with a long gap."""
    model = made_endless(sliding_model(architecture, window=48))
    prefixes, suffixes, gaps = ["She", PREFIX], [" home.", SUFFIX], [30, 4]
    lengths = [len(model.tokenizer(p + s)["input_ids"]) for p, s in zip(prefixes, suffixes)]
    assert max(lengths) + 1 + max(gaps) > 48
    alone = [model.infill(p, s, span_length=n) for p, s, n in zip(prefixes, suffixes, gaps)]
    assert model.infill(prefixes, suffixes, span_length=gaps) == alone
    assert isinstance(model.infill("She", " home.", max_new_tokens=24), str)


@pytest.mark.parametrize("architecture", SLIDING)
def test_a_static_cache_that_is_longer_than_the_window(architecture):
    """Full layers then hold more columns than sliding ones, and need another mask."""
    model, ids = made_endless(sliding_model(architecture)), tokens(12)
    span_ids = torch.zeros_like(ids)
    expected = model.generate(ids, span_ids=span_ids, max_new_tokens=6, do_sample=False)
    for attention in ("sdpa", "eager") if model._supports_sdpa else ("eager",):
        model.set_attn_implementation(attention)
        cache = StaticCache(config=model.config, max_cache_len=80)
        written = model.generate(
            ids, span_ids=span_ids, max_new_tokens=6, do_sample=False, past_key_values=cache
        )
        assert torch.equal(written, expected)


# --- what else architectures bring ----------------------------------------------------------------


def longrope(**config):
    """A Phi-3 whose positions turn by other angles from 40 positions on."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 6,
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 40,
    }  # fmt: skip
    return make_model(
        architecture="phi3", rope_parameters=rope, original_max_position_embeddings=40, **config
    )


def test_longrope_keeps_encoding_and_infilling_below_its_switch():
    """Behind it the cache would hold other angles than the span is decoded with."""
    model = made_endless(longrope())
    assert model.magnet_settings.max_length == 40
    with pytest.raises(ValueError, match="the limit is 38"):
        model.encode(LONG)
    with pytest.raises(ValueError, match="the limit is 40"):
        model.infill(PREFIX, SUFFIX, span_length=20)
    model.double()
    expected, _ = in_place(model, ["The old", " boats"], [5], 0, 5)
    output = model.infill("The old", " boats", span_length=5, return_dict_in_generate=True)
    assert output.sequences.tolist() == [expected]


@pytest.mark.skipif(
    transformers.__version__.startswith("5.5."),
    reason="this transformers keeps the angles of the longest text that it has generated",
)
def test_dynamic_rope_keeps_a_vector_from_depending_on_other_texts():
    """Beyond `max_position_embeddings` the longest text of a batch sets the angles of all."""
    model = make_model(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        max_position_embeddings=40,
    )
    assert model.magnet_settings.max_length == 39
    with pytest.warns(UserWarning, match="cut"):
        alone = model.encode(LONG, truncation=True)
    model.generate(tokens(30), max_new_tokens=30, do_sample=False)  # leaves other angles behind
    with pytest.warns(UserWarning, match="cut"):
        assert abs(model.encode(LONG, truncation=True) - alone).max() < 1e-5
    model.config.magnet = {"max_length": 40}
    with pytest.raises(ValueError, match="max_length is 40, .* allows 39 positions"):
        model.encode(LONG)


@pytest.mark.skipif(
    "next_sequence_length" not in getsource(Phi3ForCausalLM.prepare_inputs_for_generation),
    reason="this transformers drops the cache and then reads the last token alone",
)
def test_generation_with_a_map_goes_over_longrope_s_switch():
    """Phi-3 drops its cache there and reads everything again."""
    model, ids = made_endless(longrope()).double(), tokens(36)
    written = ids
    for _ in range(10):
        span_ids = torch.ones_like(written)
        span_ids[:, :36] = 0
        logits = model(input_ids=written, span_ids=span_ids).logits[:, -1]
        written = torch.cat([written, logits.argmax(-1, keepdim=True)], 1)
    cached = model.generate(ids, span_ids=torch.zeros_like(ids), max_new_tokens=10, do_sample=False)
    assert torch.equal(cached, written)


def test_a_cap_on_the_scores_is_kept():
    """Gemma's `final_logit_softcapping`, which the output head alone does not know of."""
    model, ids = make_model(architecture="gemma3_text", final_logit_softcapping=2.0), tokens(8)
    output = model(input_ids=ids, output_hidden_states=True)
    scores = model._logits(output.hidden_states[-1])
    assert output.logits.abs().max() <= 2 and torch.allclose(scores, output.logits, atol=1e-6)


def test_gemma_2_is_not_computed_by_sdpa_which_drops_its_cap():
    capped, free = (
        make_model(architecture="gemma2", attn_logit_softcapping=cap) for cap in (1.0, None)
    )
    assert abs(capped.encode(SENTENCES[0]) - free.encode(SENTENCES[0])).max() > 0.01
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        capped.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        make_model(architecture="gemma2", attn_implementation="sdpa")


def test_a_class_of_one_s_own_is_a_few_lines(tmp_path):
    """The mixin holds nothing of an architecture: here on one that the package does not list."""
    from transformers import OlmoConfig, OlmoForCausalLM

    class MagnetOlmoForCausalLM(modeling_magnet.MagnetMixin, OlmoForCausalLM):
        pass

    config = OlmoConfig(
        vocab_size=350, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = made_endless(MagnetOlmoForCausalLM(config).eval())
    model.tokenizer = make_tokenizer()
    expected, _ = in_place(model, [PREFIX, SUFFIX], [4], 0, 4)
    output = model.infill(PREFIX, SUFFIX, span_length=4, return_dict_in_generate=True)
    assert output.sequences.tolist() == [expected]
    plain(model).save_pretrained(tmp_path)
    assert isinstance(MagnetOlmoForCausalLM.from_pretrained(tmp_path), MagnetOlmoForCausalLM)
