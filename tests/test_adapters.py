"""An adapter that is not merged: off for one thread, for all, and beside others."""

import asyncio
import copy
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import SENTENCES, make_model
from transformers import AutoModel

from modeling_magnet import MagnetLlamaForCausalLM, load_magnet

IDS = torch.randint(3, 350, (2, 8), generator=torch.Generator().manual_seed(1))
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"], "init_lora_weights": False}


def adapted(**lora):
    """A tiny model with a LoRA adapter whose weights are not zero."""
    model = make_model()
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(**(LORA | lora)))
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"trainable_token_indices": [5, 6, 7]},
    ],
    ids=["linear", "dora", "embeddings", "modules_to_save", "trainable_tokens"],
)
def test_without_its_adapter_a_model_is_its_base_bit_for_bit(tiny, lora):
    model = adapted(**lora)
    with torch.no_grad():  # what starts as a copy of the base, changed
        for name, weight in model.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                weight.add_(0.1)
    own = logits(model)
    with model.without_adapter():
        assert torch.equal(logits(model), logits(tiny))
        written = model.generate(IDS, max_new_tokens=4)
        assert torch.equal(written, tiny.generate(IDS, max_new_tokens=4))
        np.testing.assert_array_equal(model.encode(SENTENCES), tiny.encode(SENTENCES))
        early = tiny.encode(SENTENCES, num_layers=1)
        np.testing.assert_array_equal(model.encode(SENTENCES, num_layers=1), early)
        arguments = {"prefix": "The old", "suffix": " boats", "span_length": 4}
        assert model.infill(**arguments) == tiny.infill(**arguments)
    assert torch.equal(logits(model), own) and not torch.equal(own, logits(tiny))


def test_blocks_may_be_nested_and_an_error_ends_them(tiny):
    model = adapted()
    own, base = logits(model), logits(tiny)
    with pytest.raises(RuntimeError, match="inside"), model.without_adapter():
        with model.without_adapter():
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)
        raise RuntimeError("inside")
    assert torch.equal(logits(model), own)


def test_only_the_model_named_is_without_its_adapter(tiny):
    model, other = adapted(), adapted(r=8)
    with other.without_adapter():
        pass
    own = logits(other)
    with model.without_adapter():
        assert torch.equal(logits(model), logits(tiny))
        assert torch.equal(logits(other), own)


def test_a_user_s_own_settings_stay(tiny):
    model = adapted()
    own, base = logits(model), logits(tiny)
    model.disable_adapters()
    assert torch.equal(logits(model), base)
    with model.without_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), base)  # off, as before
    model.enable_adapters()
    assert torch.equal(logits(model), own)

    model.add_adapter(LoraConfig(**LORA), "second")
    second = logits(model)
    model.set_adapter("default")
    with model.without_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), own) and not torch.equal(own, second)


def test_other_threads_have_the_adapter_meanwhile(tiny):
    """A server answers one request by the base while another has the adapter's vector."""
    model = adapted()
    own, base = model.encode(SENTENCES), tiny.encode(SENTENCES)
    inside, done = threading.Event(), threading.Event()

    def as_base():
        with model.without_adapter():
            inside.set()
            assert done.wait(60)
            return model.encode(SENTENCES)

    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(as_base)
        assert inside.wait(60)
        np.testing.assert_array_equal(model.encode(SENTENCES), own)
        done.set()
        np.testing.assert_array_equal(answer.result(), base)

        def either(i):
            if i % 2:
                return model.encode(SENTENCES)
            with model.without_adapter():
                return model.encode(SENTENCES)

        for i, vectors in enumerate(pool.map(either, range(40))):
            np.testing.assert_array_equal(vectors, own if i % 2 else base)


def test_other_tasks_of_asyncio_have_the_adapter_meanwhile(tiny):
    model = adapted()
    own, base = logits(model), logits(tiny)

    async def as_base(inside, done):
        with model.without_adapter():
            inside.set()
            await done.wait()
            assert torch.equal(await asyncio.to_thread(logits, model), base)

    async def serve():
        inside, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(as_base(inside, done))
        await inside.wait()
        assert torch.equal(logits(model), own)
        done.set()
        await task

    asyncio.run(serve())


def test_copies_and_pickles_keep_the_switch(tiny):
    model = adapted()
    with model.without_adapter():
        pass
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(same), logits(model))
        with same.without_adapter():
            assert torch.equal(logits(same), logits(tiny))


def test_what_has_no_lora_adapter_says_so(tiny):
    with pytest.raises(ValueError, match="has no adapter to switch off"), tiny.without_adapter():
        pass
    for method in (tiny.disable_adapters, tiny.enable_adapters, tiny.active_adapters):
        with pytest.raises(ValueError, match="has no adapter: call load_adapter"):
            method()
    tiny.add_adapter(IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    with pytest.raises(ValueError, match="the adapter is IA3: only LORA"), tiny.without_adapter():
        pass


def test_adapters_are_added_chosen_saved_and_deleted(tmp_path, tiny):
    """By transformers' methods, also where these refuse every release of PEFT."""
    tiny.save_pretrained(tmp_path / "base")
    model = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "base")
    for seed, name in enumerate(["one", "two"]):
        torch.manual_seed(seed)
        model.add_adapter(LoraConfig(**LORA, task_type="CAUSAL_LM"), name)
    with pytest.raises(ValueError, match="an adapter named 'two'"):
        model.add_adapter(LoraConfig(**LORA), "two")
    assert model.active_adapters() == ["two"]
    with pytest.raises(
        ValueError, match=r"no adapter named \['three'\]: the model has \['one', 'two'\]"
    ):
        model.set_adapter("three")
    model.set_adapter("one")
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    model.delete_adapter(["one", "two"])
    assert torch.equal(logits(model), logits(tiny))
    with pytest.raises(ValueError, match="no adapter"), model.without_adapter():
        pass


WRAPPED = {
    "layers": {},
    "modules to save": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": [3]},
}
"""What PEFT puts its own modules around."""


@pytest.mark.parametrize("lora", WRAPPED.values(), ids=WRAPPED.keys())
def test_a_model_whose_last_adapter_is_deleted_is_saved_as_its_base(tmp_path, tiny, lora):
    """PEFT leaves its layers, whose weights have names that no model reads."""
    before, names = logits(tiny), list(tiny.state_dict())
    tiny.add_adapter(LoraConfig(**LORA | lora))
    tiny.delete_adapter("default")
    assert list(tiny.state_dict()) == names
    tiny.save_pretrained(tmp_path)
    assert torch.equal(logits(MagnetLlamaForCausalLM.from_pretrained(tmp_path)), before)


KEPT = {
    "saved with the adapter": {},
    "modules to save": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "trained alone": {"trainable_token_indices": [350, 351]},
}
"""Ways in which PEFT keeps the embeddings of tokens that were added."""

TEXTS = [*SENTENCES, "The <x> boats of <y>."]


def saved_by_peft(folder, base, added=True, **lora):
    """An adapter's folder as PEFT writes it; `added`: on a base that got two tokens more."""
    model = load_magnet(base)
    if added:
        model.tokenizer.add_tokens(["<x>", "<y>"])
        model.resize_token_embeddings(len(model.tokenizer))
    torch.manual_seed(1)
    config = LoraConfig(**(LORA | {"task_type": "CAUSAL_LM"} | lora))
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():  # what starts as a copy of the base, changed
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("load", [load_magnet, AutoModel.from_pretrained])
def test_an_adapter_that_peft_saved_has_the_tokenizer_of_its_base(tmp_path, tiny, load):
    tiny.save_pretrained(tmp_path / "base")
    adapted = saved_by_peft(tmp_path / "adapter", tmp_path / "base", added=False)
    model = load(tmp_path / "adapter", trust_remote_code=True)
    np.testing.assert_allclose(model.encode(TEXTS), adapted.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("lora", KEPT.values(), ids=KEPT)
def test_tokens_that_were_added_come_with_the_adapter(tmp_path, lora, tied):
    make_model(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    adapted = saved_by_peft(tmp_path / "adapter", tmp_path / "base", **lora)
    adapted.tokenizer.save_pretrained(tmp_path / "adapter")
    model = load_magnet(tmp_path / "adapter")
    np.testing.assert_allclose(model.encode(TEXTS), adapted.encode(TEXTS), atol=1e-6)
    ids = torch.tensor([[5, 350, 351, 9]])
    torch.testing.assert_close(model(input_ids=ids).logits, adapted(input_ids=ids).logits)
    model.save_pretrained(tmp_path / "again")
    again = load_magnet(tmp_path / "again")
    np.testing.assert_allclose(again.encode(TEXTS), adapted.encode(TEXTS), atol=1e-6)


def test_modules_that_are_saved_whole_are_loaded(tmp_path, tiny):
    """transformers 5.5 leaves them as the base has them."""
    tiny.save_pretrained(tmp_path / "base")
    adapted = saved_by_peft(
        tmp_path / "adapter", tmp_path / "base", added=False, modules_to_save=["norm"]
    )
    model = load_magnet(tmp_path / "adapter")
    np.testing.assert_allclose(model.encode(TEXTS), adapted.encode(TEXTS), atol=1e-6)


def test_a_tokenizer_that_may_lack_tokens_is_told_of(tmp_path, tiny):
    """PEFT gives the base as many embeddings as the adapter has, but not its tokenizer."""
    tiny.save_pretrained(tmp_path / "base")
    adapted = saved_by_peft(tmp_path / "adapter", tmp_path / "base")
    with pytest.warns(UserWarning, match="350 embeddings and has 352 now.*set it, if tokens were"):
        load_magnet(tmp_path / "adapter").encode(TEXTS)
    adapted.tokenizer.save_pretrained(tmp_path / "adapter")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    with pytest.warns(UserWarning, match="350 embeddings and has 352 now"):
        model.encode(TEXTS)


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "base")
    folder, before = tmp_path / "adapter", logits(tiny)
    saved_by_peft(folder, tmp_path / "base", added=False)
    weights = load_file(folder / "adapter_model.safetensors")
    name = min(weights)
    for change, message in (
        (lambda: weights.pop(name), "lacks .*layers.0.mlp.up_proj.lora_A"),
        (lambda: weights.update({name: torch.zeros(4, 40)}), "does not fit the model: .*up_proj"),
    ):
        change()
        save_file(weights, folder / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=f"(?s){message}"):
            tiny.load_adapter(str(folder))
        assert torch.equal(logits(tiny), before)
        with pytest.raises(ValueError, match="no adapter"):
            tiny.active_adapters()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match="no adapter_model.safetensors"):
        tiny.load_adapter(str(folder))


MISFITS = {
    "half put in": ({"rank_pattern": {"layers.1.self_attn.q_proj": 1.5}}, "does not fit"),
    "tokens without weights": ({"trainable_token_indices": [400]}, "does not fit .* lacks"),
    "of more layers": ({"layers_to_transform": [0]}, "holds .*layers.1.*no such layer to adapt"),
    "of no kind": ({"peft_type": "NONE"}, "PEFT .* does not read .*NONE"),
}
"""Changes to a config, after which the adapter is not of this model."""


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside another"])
@pytest.mark.parametrize("change, message", MISFITS.values(), ids=MISFITS.keys())
def test_an_adapter_with_another_config_leaves_the_model_as_it_was(
    tmp_path, tiny, change, message, others
):
    tiny.save_pretrained(tmp_path / "base")
    saved_by_peft(tmp_path / "adapter", tmp_path / "base", added=False)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    if others:
        tiny.add_adapter(LoraConfig(**LORA), "other")
        tiny.eval()
    before, names = logits(tiny), list(tiny.state_dict())
    with pytest.raises(ValueError, match=f"(?s){message}"):
        tiny.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(tiny), before)
    assert others or list(tiny.state_dict()) == names
    assert list(getattr(tiny, "peft_config", {})) == ["other"] * others
    assert tiny.config.vocab_size == 350


def test_an_adapter_is_refused_where_weights_of_the_base_are_on_the_disk(tmp_path, tiny):
    """There transformers takes whatever is in memory for the adapter's."""
    tiny.save_pretrained(tmp_path / "base")
    saved_by_peft(tmp_path / "adapter", tmp_path / "base", added=False)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    with pytest.raises(
        ValueError, match="device_map has put weights on the disk or another device"
    ):
        load_magnet(tmp_path / "adapter", device_map=places, offload_folder=tmp_path / "offload")
