"""Where `encode` and `infill` run, and that neither moves the model or changes its mode."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny import SENTENCES, make_model

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.devices import inference_model

GAP = {"prefix": ["The old", "A cat"], "suffix": [" boats came.", " stones."]}
PARTLY_ON_DISK = {
    "model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk",
    "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
}  # fmt: skip
HEAD_ON_DISK = {"model": "cpu", "lm_head": "disk"}


def test_a_model_in_evaluation_mode_is_used_itself(tiny):
    assert inference_model(tiny) is tiny
    assert inference_model(tiny, torch.device("cpu")) is tiny


def test_a_model_in_training_mode_stays_in_it(monkeypatch):
    """Another thread may be training: it must not lose its dropout."""
    model = make_model(attention_dropout=0.5)
    vectors, written = model.encode(SENTENCES), model.infill(**GAP, max_new_tokens=9)
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    seen = []

    def watched(self, *arguments, **named):
        seen.append([module.training for module in model.modules()])
        return span_states(self, *arguments, **named)

    span_states = type(model)._span_states
    monkeypatch.setattr(type(model), "_span_states", watched)
    np.testing.assert_array_equal(model.encode(SENTENCES), vectors)
    assert model.infill(**GAP, max_new_tokens=9) == written
    assert seen and all(during == modes for during in seen)
    assert [module.training for module in model.modules()] == modes


def test_a_copy_shares_its_weights_and_its_tokenizer(tiny):
    other = inference_model(tiny.train())
    assert type(other) is type(tiny) and other.tokenizer is tiny.tokenizer
    assert all(a is b for a, b in zip(other.parameters(), tiny.parameters(), strict=True))
    tiny.forward = torch.compile(tiny.forward, backend="eager")
    assert inference_model(tiny).forward.__self__ is not tiny


def test_a_decoder_that_was_compiled_stops_early_too(tiny):
    expected = tiny.encode(SENTENCES, num_layers=1)
    tiny.model.compile(backend="eager")
    np.testing.assert_allclose(tiny.encode(SENTENCES, num_layers=1), expected, atol=1e-6)
    tiny.model.forward = torch.compile(tiny.model.forward, backend="eager")
    np.testing.assert_allclose(tiny.encode(SENTENCES, num_layers=1), expected, atol=1e-6)


def test_a_move_that_fails_leaves_the_model_where_it_is(tiny, monkeypatch):
    expected = tiny.encode(SENTENCES)
    moved = inference_model(tiny, torch.device("meta"))
    assert {weight.device.type for weight in moved.parameters()} == {"meta"}
    np.testing.assert_array_equal(tiny.encode(SENTENCES), expected)
    left = iter(range(5))

    def to(weight, device):
        if next(left, None) is None:
            raise torch.OutOfMemoryError("out of memory")
        return torch.empty_like(weight, device=device)

    monkeypatch.setattr(torch.Tensor, "to", to)
    with pytest.raises(torch.OutOfMemoryError):
        inference_model(tiny, torch.device("meta"))
    monkeypatch.undo()
    np.testing.assert_array_equal(tiny.encode(SENTENCES), expected)


@pytest.mark.parametrize("encode", ["encode", "encode_tokens", "encode_words"])
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device is 'gpu', which is not usable here"),
        ("cuda:77", "device is 'cuda:77', which is not usable here"),
        (1.5, "device is 1.5, which is not usable here"),
        ("meta", "device is 'meta', whose tensors hold no values"),
        (["cpu", "meta"], "'meta'"),
        ([], "at least one device"),
    ],
)
def test_a_device_that_is_not_usable_is_named(tiny, encode, device, message):
    with pytest.raises(ValueError, match=message):
        getattr(tiny, encode)(SENTENCES, device=device)


@pytest.mark.parametrize(
    "device_map", [{"": "cpu"}, PARTLY_ON_DISK, HEAD_ON_DISK], ids=["cpu", "disk", "head"]
)
@pytest.mark.parametrize("training", [False, True])
def test_weights_that_accelerate_holds_elsewhere(tmp_path, tiny, device_map, training):
    tiny.save_pretrained(tmp_path / "m")
    model = MagnetLlamaForCausalLM.from_pretrained(
        tmp_path / "m", device_map=device_map, offload_folder=tmp_path / "offload"
    ).train(training)
    np.testing.assert_allclose(model.encode(SENTENCES), tiny.encode(SENTENCES), atol=1e-6)
    np.testing.assert_allclose(
        model.encode(SENTENCES, convert_to_tensor=True), tiny.encode(SENTENCES), atol=1e-6
    )
    np.testing.assert_allclose(
        model.encode(SENTENCES, num_layers=1), tiny.encode(SENTENCES, num_layers=1), atol=1e-6
    )
    for mine, own in zip(model.encode_words(SENTENCES), tiny.encode_words(SENTENCES), strict=True):
        np.testing.assert_allclose(mine, own, atol=1e-6)
    assert model.infill(**GAP, span_length=4) == tiny.infill(**GAP, span_length=4)
    assert model.infill(**GAP, max_new_tokens=9) == tiny.infill(**GAP, max_new_tokens=9)
    blanks = ["The", " sat on the", "."]
    assert model.infill_blanks(blanks) == tiny.infill_blanks(blanks)
    if len(device_map) > 1:
        with pytest.raises(ValueError, match="loaded with a device_map"):
            model.encode(SENTENCES, device=["cpu", "cpu"])


def test_many_threads_give_what_one_gives():
    """In training mode too, where `encode` once switched dropout for all."""
    model = make_model(attention_dropout=0.5)
    jobs = [
        lambda: model.encode(SENTENCES, batch_size=2),
        lambda: model.encode_words(SENTENCES)[3],
        lambda: model.infill(**GAP, span_length=4),
        lambda: model.infill(**GAP, max_new_tokens=5),
        lambda: model.infill_blanks(["The", " sat on the", "."], span_length=3),
        lambda: model.encode(SENTENCES, batch_size=1, device=["cpu", "cpu"]),
    ]
    jobs += [lambda: model.encode(SENTENCES, batch_size=2, num_layers=1)]
    expected = [job() for job in jobs]
    for training in (False, True):
        model.train(training)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda i: jobs[i % len(jobs)](), range(48)))
        for i, result in enumerate(results):
            if isinstance(result, np.ndarray):
                np.testing.assert_array_equal(result, expected[i % len(jobs)])
            else:
                assert result == expected[i % len(jobs)]
