"""`encode`, `encode_tokens` and `encode_words`."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.models import Pooling
from tiny import ARCHITECTURES, SENTENCES, WITHOUT_SDPA, make_model

from modeling_magnet import batching, load_magnet
from modeling_magnet.batching import batches_of
from modeling_magnet.pooling import pooled

PROMPT = "Given the sentence, find its representation: "


def by_hand(model, text, prompt=PROMPT):
    """Start token, prompt, sentence, end token through the stock model; its last output."""
    ids = [0, *model.tokenizer(prompt + text, add_special_tokens=False)["input_ids"], 1]
    output = model.model(input_ids=torch.tensor([ids]), is_causal=False)
    return output.last_hidden_state[0]


def test_a_sentence_vector_is_the_output_at_the_end_token(any_tiny):
    for text in SENTENCES:
        expected = by_hand(any_tiny, text)[-1].detach().numpy()
        np.testing.assert_allclose(any_tiny.encode(text), expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_equals_batch_in_any_order_and_backend(architecture, attention):
    if architecture in WITHOUT_SDPA and attention == "sdpa":
        pytest.skip("its cap on attention scores is not in sdpa")
    model = make_model(architecture=architecture)
    alone = np.stack([model.encode(text) for text in SENTENCES])
    model.set_attn_implementation(attention)
    for batch_size in (1, 2, 3, 32):
        together = model.encode(SENTENCES[::-1], batch_size=batch_size)
        np.testing.assert_allclose(together[::-1], alone, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=6), st.integers(1, 4))
def test_any_texts_come_back_in_order(texts, batch_size):
    model = make_model()
    vectors = model.encode(texts, batch_size=batch_size)
    assert vectors.shape == (len(texts), 48)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(model.encode(text), vector, atol=1e-5)


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 5), st.integers(1, 90))
def test_batches_hold_each_text_once_and_keep_to_their_bounds(lengths, batch_size, max_tokens):
    bounded, unbounded = (batches_of(lengths, batch_size, most) for most in (max_tokens, None))
    assert len(unbounded) == -(-len(lengths) // batch_size)
    for batches in (bounded, unbounded):
        order = [i for batch in batches for i in batch]
        assert sorted(order) == list(range(len(lengths)))
        assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
        assert all(1 <= len(batch) <= batch_size for batch in batches)
    for batch in bounded:
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= max_tokens


def test_on_a_cpu_long_texts_go_in_smaller_batches(monkeypatch):
    model = make_model(max_position_embeddings=2048)
    texts = [SENTENCES[0] * n for n in (30, 29, 1, 1, 1)]
    together = model.encode(texts)
    sizes = []
    pool = model.pool
    monkeypatch.setattr(
        model, "pool", lambda **inputs: sizes.append(len(inputs["input_ids"])) or pool(**inputs)
    )
    np.testing.assert_array_equal(model.encode(texts), together)
    assert sizes == [1, 1, 3]
    np.testing.assert_allclose(model.encode(texts, batch_size=1), together, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pool_takes_padding_on_either_side(any_tiny, side):
    tiny = any_tiny
    tiny.tokenizer.padding_side = side
    batch = tiny.tokenizer(SENTENCES, padding=True, add_special_tokens=False, return_tensors="pt")
    vectors = tiny.pool(batch["input_ids"], batch["attention_mask"]).detach().numpy()
    np.testing.assert_allclose(vectors, tiny.encode(SENTENCES, prompt=""), atol=1e-5)


def test_pool_takes_ones_and_zeros_of_any_type(tiny):
    ids, mask = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 1, 0]])
    for dtype in (torch.bool, torch.float32):
        assert torch.equal(tiny.pool(ids, mask.to(dtype)), tiny.pool(ids, mask))
    for wrong, message in ((mask * 2, "holds 2: give 1"), (mask[:, :2], r"shape \(1, 2\)")):
        with pytest.raises(ValueError, match=message):
            tiny.pool(ids, wrong)


def test_prompts_by_name_by_text_and_none(tiny):
    text = SENTENCES[0]
    named = tiny.encode(text, prompt_name="STS")
    np.testing.assert_array_equal(
        named, tiny.encode(text, prompt="Retrieve semantically similar text: ")
    )
    np.testing.assert_array_equal(
        tiny.encode(text, prompt=""), by_hand(tiny, text, "")[-1].detach()
    )
    assert not np.allclose(named, tiny.encode(text))
    tiny.config.magnet = {"default_prompt_name": None}
    np.testing.assert_array_equal(tiny.encode(text), tiny.encode(text, prompt=""))


def test_without_a_start_token_in_encode(tiny):
    tiny.config.magnet = {"start_in_encode": False}
    text = SENTENCES[0]
    ids = [*tiny.tokenizer(PROMPT + text, add_special_tokens=False)["input_ids"], 1]
    output = tiny.model(input_ids=torch.tensor([ids]), is_causal=False).last_hidden_state[0, -1]
    np.testing.assert_allclose(tiny.encode(text), output.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(tiny.encode(SENTENCES)[0], tiny.encode(text), atol=1e-5)
    tokens = tiny.encode_tokens(text)  # the first token's vector stays the start token's output
    np.testing.assert_array_equal(tokens, make_model().encode_tokens(text))


@pytest.mark.parametrize("start_in_encode", [True, False])
@pytest.mark.parametrize(
    ("pooling", "theirs"),
    [("end", "lasttoken"), ("first", "cls"), ("mean", "mean"), ("weighted_mean", "weightedmean")],
)
def test_every_pooling_is_that_of_sentence_transformers(tiny, pooling, theirs, start_in_encode):
    """Of means the start token is left out: its state is like no other."""
    tiny.config.magnet = {"pooling": pooling, "start_in_encode": start_in_encode}
    ids = tiny.tokenizer(["x" + text for text in SENTENCES], add_special_tokens=False)["input_ids"]
    ids = [[0, *row, 1] if start_in_encode else [*row, 1] for row in ids]
    inputs = tiny.tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right")
    states = tiny.model(**inputs, is_causal=False).last_hidden_state
    mask, skip = inputs["attention_mask"], int(start_in_encode and "mean" in pooling)
    features = {"token_embeddings": states[:, skip:], "attention_mask": mask[:, skip:]}
    expected = Pooling(48, pooling_mode=theirs)(features)["sentence_embedding"].detach()
    np.testing.assert_allclose(tiny.encode(SENTENCES, prompt="x"), expected, atol=1e-5)
    assert np.isfinite(tiny.encode("", prompt="")).all()
    for left in (0, 3):  # padding on either side of the mask
        hidden = torch.randn(1, 9, 48)
        hidden[:, left : left + 5] = states[:1, :5]
        part = torch.zeros(1, 9).index_fill(1, torch.arange(left, left + 5), 1).long()
        alone = pooled(states[:1, :5], torch.ones(1, 5).long(), pooling, start_in_encode)
        torch.testing.assert_close(pooled(hidden, part, pooling, start_in_encode), alone)


@pytest.mark.parametrize("start_in_encode", [True, False])
def test_mean_pooling_is_over_all_but_the_start_token(tiny, start_in_encode):
    tiny.config.magnet = {"pooling": "mean", "start_in_encode": start_in_encode}
    ids = [0, *tiny.tokenizer(PROMPT + SENTENCES[0], add_special_tokens=False)["input_ids"], 1]
    ids = ids if start_in_encode else ids[1:]
    states = tiny.model(input_ids=torch.tensor([ids]), is_causal=False).last_hidden_state[0]
    expected = states[1:] if start_in_encode else states
    vectors = tiny.encode(SENTENCES)
    np.testing.assert_allclose(vectors[0], expected.mean(0).detach().numpy(), atol=1e-5)
    assert np.isfinite(tiny.encode("", prompt="")).all()
    tiny.config.magnet = {"pooling": "max"}
    with pytest.raises(ValueError, match="pooling is 'max': give one of end, first"):
        tiny.encode("A cat.")


def test_return_types(tiny):
    assert isinstance(tiny.encode(SENTENCES), np.ndarray)
    assert tiny.encode(SENTENCES).dtype == np.float32
    assert isinstance(tiny.encode(SENTENCES, convert_to_tensor=True), torch.Tensor)
    vectors = tiny.encode(SENTENCES, convert_to_numpy=False)
    assert isinstance(vectors, list) and vectors[0].shape == (48,)
    assert tiny.encode([]).shape == (0, 48)
    assert tiny.encode_tokens([]) == []
    assert tiny.encode("").shape == (48,)
    assert tiny.encode_tokens("").shape == (0, 48)
    assert tiny.encode_words("").shape == (0, 96)


def test_truncate_dim_comes_before_normalizing(tiny):
    short = tiny.encode(SENTENCES, truncate_dim=16, normalize_embeddings=True)
    assert short.shape == (5, 16)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    whole = tiny.encode(SENTENCES)[:, :16]
    np.testing.assert_allclose(
        short, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6
    )


def at_layer(model, text, layer, end=(1,)):
    """The outputs of a layer of the whole stock model, through its final norm."""
    ids = [0, *model.tokenizer(text, add_special_tokens=False)["input_ids"], *end]
    output = model.model(
        input_ids=torch.tensor([ids]), is_causal=False, output_hidden_states=True
    ).hidden_states[layer]
    norm = (
        model.model.final_layernorm if hasattr(model.model, "final_layernorm") else model.model.norm
    )
    return norm(output)[0].detach().numpy()


def test_num_layers_is_that_layer_through_the_final_norm_and_pooling(any_tiny):
    for text in SENTENCES:
        expected = at_layer(any_tiny, PROMPT + text, 1)
        np.testing.assert_allclose(any_tiny.encode(text, num_layers=1), expected[-1], atol=1e-5)
    assert not np.allclose(any_tiny.encode(text), expected[-1], atol=1e-2)
    np.testing.assert_array_equal(any_tiny.encode(text, num_layers=2), any_tiny.encode(text))
    states = at_layer(any_tiny, text, 1, end=())
    tokens = any_tiny.encode_tokens(text, num_layers=1)
    np.testing.assert_allclose(tokens, states[:-1], atol=1e-5)
    asked = any_tiny.encode(text, output_value="token_embeddings", num_layers=1)
    np.testing.assert_array_equal(asked, tokens)
    words = any_tiny.encode_words([[text]], num_layers=1)[0]
    both = np.concatenate([states[:-1].mean(0), states[1:].mean(0)])
    np.testing.assert_allclose(words[0], both, atol=1e-5)
    any_tiny.config.magnet = {"pooling": "mean"}
    mean = any_tiny.encode(text, num_layers=1, truncate_dim=8, normalize_embeddings=True)
    expected = expected[1:].mean(0)[:8]
    np.testing.assert_allclose(mean, expected / np.linalg.norm(expected), atol=1e-5)


def test_layers_after_num_layers_do_not_run_and_the_model_stays_whole():
    model = make_model(num_hidden_layers=4)
    whole, ran = model.encode(SENTENCES), []
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.encode(SENTENCES, num_layers=2)
    assert ran == [0, 1]
    np.testing.assert_array_equal(model.encode(SENTENCES), whole)
    assert len(model.model.layers) == model.config.num_hidden_layers == 4


def test_settings_are_changed_in_the_config_and_nowhere_else(tiny, tmp_path):
    with pytest.raises(AttributeError, match="cannot assign to field 'pooling'"):
        tiny.magnet_settings.pooling = "mean"
    tiny.config.magnet = tiny.magnet_settings.to_dict() | {"pooling": "mean"}
    tiny.save_pretrained(tmp_path / "model")
    loaded = load_magnet(tmp_path / "model")
    assert loaded.magnet_settings.pooling == "mean"
    np.testing.assert_allclose(loaded.encode(SENTENCES), tiny.encode(SENTENCES), atol=1e-6)


@pytest.mark.parametrize("number", [0, -1, 3, True, 1.0])
def test_pool_refuses_layers_that_the_model_does_not_have(tiny, number):
    ids = torch.tensor([[5, 6]])
    with pytest.raises((TypeError, ValueError), match="num_layers is"):
        tiny.pool(ids, torch.ones_like(ids), num_layers=number)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_means_of_long_texts_in_float16(pooling):
    hidden = torch.randn(1, 1024, 8)
    mask = torch.ones(1, 1024).long()
    found = pooled(hidden.half(), mask, pooling, True)
    torch.testing.assert_close(
        found.float(), pooled(hidden, mask, pooling, True), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("method", ["encode", "encode_tokens", "encode_words", "encode_query"])
def test_num_layers_out_of_range(tiny, method):
    for wrong, kind, message in (
        (40, ValueError, "num_layers is 40: the model has 2 layers"),
        (0, ValueError, "num_layers is 0: give a whole number from 1 on"),
        (1.0, TypeError, "num_layers is 1.0"),
    ):
        with pytest.raises(kind, match=message):
            getattr(tiny, method)(SENTENCES, num_layers=wrong)


def test_precision(tiny):
    assert tiny.encode(SENTENCES, precision="int8").dtype == np.int8
    binary = tiny.encode(SENTENCES, precision="ubinary")
    np.testing.assert_array_equal(binary, np.packbits(tiny.encode(SENTENCES) > 0, axis=1))


def test_token_vectors_are_the_outputs_one_position_before(any_tiny):
    tiny, text = any_tiny, SENTENCES[4]
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    output = tiny.model(input_ids=torch.tensor([[0, *ids]]), is_causal=False).last_hidden_state[0]
    vectors = tiny.encode_tokens(text)
    np.testing.assert_allclose(vectors, output[:-1].detach().numpy(), atol=1e-5)
    for row, alone in zip(tiny.encode_tokens(SENTENCES, batch_size=2), SENTENCES, strict=True):
        np.testing.assert_allclose(row, tiny.encode_tokens(alone), atol=1e-5)
    batch = tiny.encode(SENTENCES, output_value="token_embeddings")
    np.testing.assert_allclose(batch[4], vectors, atol=1e-5)


def test_word_vectors_are_means_over_the_word_s_tokens(tiny):
    """Section 4.1: w2 = (y at w1's last token + y at w2's tokens but the last) / tokens of w2.

    By default the mean of y at w2's tokens stands beside it.
    """
    words = ["Größe", "and", "naïve", "façades:", "7."]
    tokens = tiny.encode_tokens(" ".join(words))
    ids = [0, *tiny.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]]
    output = tiny.model(input_ids=torch.tensor([ids]), is_causal=False).last_hidden_state[0]
    expected, at_the_word, first = [], [], 0
    for i, word in enumerate(words):
        text = word if i == 0 else " " + word
        count = len(tiny.tokenizer(text, add_special_tokens=False)["input_ids"])
        expected.append(tokens[first : first + count].mean(axis=0))
        first += count
        at_the_word.append(output[first - count + 1 : first + 1].mean(dim=0).detach().numpy())
    assert first == len(tokens)
    np.testing.assert_allclose(tiny.encode_words([words], states="paper")[0], expected, atol=1e-5)
    expected = np.concatenate([expected, at_the_word], axis=1)
    np.testing.assert_allclose(tiny.encode_words([words])[0], expected, atol=1e-5)
    np.testing.assert_allclose(tiny.encode_words(" ".join(words)), expected, atol=1e-5)
    several = tiny.encode_words([SENTENCES[0], " ".join(words)])
    np.testing.assert_allclose(several[1], expected, atol=1e-5)
    assert several[0].shape == (len(SENTENCES[0].split()), 96)
    with pytest.raises(ValueError, match="states is 'last': give 'both' or 'paper'"):
        tiny.encode_words("A cat.", states="last")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("method", ["encode", "encode_tokens", "encode_words", "encode_query"])
def test_a_long_call_shows_its_progress_in_a_terminal_unless_told(tiny, method, monkeypatch):
    def shown(file, delay=0.0, **arguments) -> str:
        monkeypatch.setattr(batching, "BAR_DELAY", delay)
        monkeypatch.setattr("sys.stderr", file)
        getattr(tiny, method)(SENTENCES, batch_size=1, **arguments)
        return file.getvalue()

    assert "Encoding: 100%" in shown(Terminal())
    assert shown(Terminal(), delay=3600.0) == ""  # a short call
    assert shown(io.StringIO()) == ""  # a log
    assert shown(Terminal(), show_progress_bar=False) == ""
    assert "Encoding: 100%" in shown(io.StringIO(), delay=3600.0, show_progress_bar=True)


def test_gradients_flow_through_pool_but_not_through_encode(tiny):
    batch = tiny.tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")
    tiny.pool(batch["input_ids"], batch["attention_mask"]).sum().backward()
    assert tiny.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    assert not tiny.encode(SENTENCES, convert_to_tensor=True).requires_grad


def test_a_list_of_devices_gives_the_same_vectors(tiny):
    expected = tiny.encode(SENTENCES, batch_size=1)
    shared = tiny.encode(SENTENCES, batch_size=1, device=["cpu", "cpu"])
    np.testing.assert_allclose(shared, expected, atol=1e-6)
    with pytest.raises(ValueError, match="at least one device"):
        tiny.encode(SENTENCES, device=[])


def test_an_error_on_one_of_several_devices_is_raised(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny), "pool", lambda *a, **k: (_ for _ in ()).throw(OSError("lost")))
    with pytest.raises(OSError, match="lost"):
        tiny.encode(SENTENCES, batch_size=1, device=["cpu", "cpu"])


def test_a_long_text_raises_or_is_cut_aloud(tiny):
    long = "harbour " * 300
    with pytest.raises(ValueError, match=r"text 1 has \d+ tokens.*truncation=True"):
        tiny.encode(["short", long])
    with pytest.warns(UserWarning, match="1 of 2 texts were cut to 254 tokens"):
        cut = tiny.encode(["short", long], truncation=True)
    ids = tiny.tokenizer(PROMPT + long, add_special_tokens=False)["input_ids"][:254]
    output = tiny.model(input_ids=torch.tensor([[0, *ids, 1]]), is_causal=False)
    np.testing.assert_allclose(cut[1], output.last_hidden_state[0, -1].detach(), atol=1e-5)


def test_texts_longer_than_the_checkpoint_was_trained_on_are_said_once_a_call(tiny):
    tiny.config.magnet = {"trained_length": 60}
    with pytest.warns(
        UserWarning, match=r"has \d+ tokens, .* adapted on texts of up to 60"
    ) as said:
        tiny.encode(["A cat sleeps.", "harbour " * 30, "harbour " * 40], batch_size=1)
    assert len(said) == 1 and said[0].filename == __file__
    for method in (tiny.encode_tokens, tiny.encode_words):
        with pytest.warns(UserWarning, match="up to 60"):
            method("harbour " * 30)


def test_texts_of_the_trained_length_are_read_without_a_word(tiny, recwarn):
    ids = tiny.tokenizer(PROMPT + SENTENCES[0], add_special_tokens=False)["input_ids"]
    tiny.config.magnet = {"trained_length": len(ids) + 2}  # start and end token
    tiny.encode(SENTENCES[0])
    assert not [warning for warning in recwarn if "adapted on" in str(warning.message)]
    tiny.config.magnet = {"trained_length": len(ids) + 1}
    tiny.encode(SENTENCES[0])
    assert [warning for warning in recwarn if "adapted on" in str(warning.message)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sentences": ["a", 3]}, TypeError, "text 1 is int"),
        ({"sentences": None}, TypeError, "NoneType"),
        ({"sentences": b"bytes"}, TypeError, "bytes"),
        ({"sentences": "a", "prompt_name": "nope"}, ValueError, "no prompt is named 'nope'"),
        ({"sentences": "a", "prompt_name": ["STS"]}, ValueError, r"no prompt is named \['STS'\]"),
        ({"sentences": "a", "prompt_name": "STS", "prompt": "x"}, ValueError, "give one"),
        ({"sentences": "a", "precision": "int4"}, ValueError, "int4"),
        ({"sentences": "a", "output_value": "all"}, ValueError, "all"),
        ({"sentences": "a", "truncate_dim": 0}, ValueError, "1 to 48"),
        ({"sentences": "a", "truncate_dim": 49}, ValueError, "truncate_dim is 49: .* 1 to 48"),
        ({"sentences": "a", "truncate_dim": 1.5}, TypeError, r"truncate_dim is 1.5 \(float\)"),
        ({"sentences": "a", "truncate_dim": "2"}, TypeError, r"truncate_dim is '2' \(str\)"),
        ({"sentences": "a", "batch_size": 0}, ValueError, "batch_size is 0"),
        ({"sentences": "a", "batch_size": 1.5}, TypeError, r"batch_size is 1.5 \(float\)"),
        ({"sentences": "a", "batch_size": None}, TypeError, "batch_size is None"),
        ({"sentences": "a", "batch_size": "3"}, TypeError, r"batch_size is '3' \(str\)"),
        ({"sentences": "a", "unknown": 1}, TypeError, "unknown"),
    ],
)
def test_bad_arguments(tiny, arguments, error, message):
    with pytest.raises(error, match=message):
        tiny.encode(**arguments)


def test_bad_words(tiny):
    with pytest.raises(ValueError, match="sentence 0 holds the empty word"):
        tiny.encode_words([["a", " "]])
    with pytest.raises(TypeError, match="word 1 of sentence 0 is int"):
        tiny.encode_words([["a", 3]])


def test_nan_is_an_error(tiny):
    with torch.no_grad():
        tiny.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in torch.float32"):
        tiny.encode(SENTENCES)
    with pytest.raises(ValueError, match="NaN or infinity"):
        tiny.encode_tokens(SENTENCES)


def test_bidirectional_for_real(base_model):
    """llm2vec#74: a batch of one must not fall back to causal attention."""
    changed = base_model.encode_tokens(["The bank of the river", "The bank of the nation"])
    assert np.abs(changed[0][1] - changed[1][1]).max() > 0.01  # "bank" sees what comes after it
    alone = base_model.encode_tokens("The bank of the river")
    np.testing.assert_allclose(alone, changed[0], atol=1e-3)


def test_real_model_one_equals_batch(base_model):
    texts = ["A cat sleeps.", "Nobody in the village remembered who had built the old bridge.", "7"]
    alone = np.stack([base_model.encode(text) for text in texts])
    np.testing.assert_allclose(base_model.encode(texts), alone, atol=1e-4)
