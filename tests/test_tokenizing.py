"""A user's text to token ids and back: control tokens are text, later parts get no space of their own."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tiny import (
    SENTENCES,
    make_model,
    make_sentencepiece_tokenizer,
    make_spaced_tokenizer,
    make_tokenizer,
)
from tokenizers.normalizers import Lowercase, Replace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, ByT5Tokenizer

from modeling_magnet.tokenizing import TextTokenizer

KINDS = ("byte-level", "prepend", "unigram", "sentencepiece")
SPACED = KINDS[1:]
PREFIX, SUFFIX = "The old harbour was quiet", ", and the boats came home."


def make(kind, folder):
    makers = {
        "byte-level": make_tokenizer,
        "prepend": make_spaced_tokenizer,
        "unigram": lambda: make_spaced_tokenizer(unigram=True),
        "sentencepiece": lambda: make_sentencepiece_tokenizer(folder),
    }
    return makers[kind]()


@pytest.fixture(params=KINDS)
def tokenizer(request, tmp_path):
    return make(request.param, tmp_path)


@pytest.fixture(params=SPACED)
def spaced(request, tmp_path):
    """A model whose tokenizer puts a space before each text."""
    model = make_model(vocab_size=400, pad_token_id=None)
    model.tokenizer = make(request.param, tmp_path)
    return model


def tokens(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


# Control tokens


def test_a_control_token_in_a_text_is_text(tokenizer):
    end, text = tokenizer.eos_token_id, "A cat</s></s> sleeps</s>"
    view = TextTokenizer(tokenizer)
    assert tokenizer(text)["input_ids"].count(end) == 3
    for reader in (view, view.continued):
        (ids,) = reader.ids([text])
        assert end not in ids
        assert reader.decode(ids) == text
    (ids,), (offsets,) = view.ids_and_offsets([text])
    assert ids == view.ids([text])[0]
    characters = [text[begin:end] for begin, end in offsets]
    assert "<" in characters[-4] and characters[-1] == ">"


def test_control_tokens_that_the_tokenizer_adds_stay(tokenizer):
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    view = TextTokenizer(tokenizer)
    (ids,) = view.ids(["A cat</s>"])
    assert view.ids(["A cat</s>"], add_special_tokens=True) == [[start, *ids, end]]
    assert end not in ids


def test_there_is_a_way_to_opt_out(tiny):
    text = "A cat</s>"
    split = tiny.encode(text)
    (ids,) = tiny.text_tokenizer.ids([text])
    tiny.config.magnet = {"split_special_tokens": False}
    (with_end,) = tiny.text_tokenizer.ids([text])
    assert with_end == [*ids[:-4], 1] and 1 not in ids
    assert not np.allclose(tiny.encode(text), split)


def test_an_added_token_that_is_not_special_is_ordinary_vocabulary(tiny):
    before = tiny.text_tokenizer.ids(["a<entity>b"])
    tiny.tokenizer.add_tokens(["<entity>"])
    tiny.tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    tiny.tokenizer.add_tokens(["<other>"])
    tiny.resize_token_embeddings(len(tiny.tokenizer))
    ids = tiny.text_tokenizer.ids(["a<entity>b", "a<tool>b", "a<other>b"])
    assert ids[0] == tiny.tokenizer("a<entity>b")["input_ids"] != before[0]
    assert 351 not in ids[1]
    assert ids[2] == tiny.tokenizer("a<other>b")["input_ids"] and 352 in ids[2]


@pytest.mark.parametrize("kind", KINDS)
def test_every_job_reads_them_as_text(tmp_path, kind):
    model = make_model(vocab_size=400, pad_token_id=None)
    model.tokenizer = make(kind, tmp_path)
    text, end = "A cat</s>", model.tokenizer.eos_token_id
    settings = model.magnet_settings
    (ids,) = TextTokenizer(model.tokenizer).ids([text])
    row = torch.tensor([[settings.start_token_id, *ids, end]])
    states = model.model(input_ids=row, is_causal=False).last_hidden_state[0]
    np.testing.assert_allclose(model.encode(text, prompt=""), states[-1].detach(), atol=1e-5)
    assert len(model.encode_tokens(text)) == len(ids)
    assert len(model.encode_words(f"{text} x")) == 3
    read = read_by_infill(model, text, text)
    assert end not in read


def test_sentence_transformers_reads_them_as_text_too(tmp_path, tiny):
    text = "A cat</s> sleeps <pad>"
    for split in (True, False):
        tiny.config.magnet = {"split_special_tokens": split}
        tiny.save_pretrained(tmp_path / str(split))
        loaded = SentenceTransformer(str(tmp_path / str(split)), trust_remote_code=True)
        np.testing.assert_allclose(loaded.encode(text), tiny.encode(text), atol=1e-6)
        np.testing.assert_allclose(
            loaded.encode(["a", text])[1], tiny.encode(["a", text])[1], atol=1e-6
        )


def test_the_real_model_reads_them_as_text(base_model):
    text = "<|im_end|>" * 8 + "A cat sleeps." + "<|endoftext|>"
    (ids,) = base_model.text_tokenizer.ids([text])
    assert not set(ids) & set(base_model.tokenizer.all_special_ids)
    assert base_model.text_tokenizer.decode(ids) == text
    for sentence in SENTENCES:
        plain = base_model.tokenizer(sentence, add_special_tokens=False)["input_ids"]
        assert base_model.text_tokenizer.ids([sentence]) == [plain]


# Spaces


def read_by_infill(model, *parts, span=()):
    """The token ids that `infill` puts before decoding, in cache order."""
    seen = {}
    generate = model.generate

    def spy(**inputs):
        seen.update(inputs)
        return generate(**inputs)

    model.generate = spy
    forced = {}
    if span:
        model.generation_config.eos_token_id = None
        forced["prefix_allowed_tokens_fn"] = lambda _, ids: [
            span[min(len(ids) - seen["input_ids"].shape[1], len(span) - 1)]
        ]
    text = model.infill(*parts, span_length=len(span) or 2, **forced)
    del model.generate
    ids = seen["input_ids"][0].tolist()
    return (ids, text) if span else ids


def test_ordinary_text_has_the_tokens_that_it_always_had(tokenizer):
    texts = [*SENTENCES, "", " ", "one\n two  three", "Größe 😀"]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert TextTokenizer(tokenizer).ids(texts) == expected


def test_a_later_part_gets_no_space_of_its_own(spaced):
    view = spaced.text_tokenizer
    assert tokens(spaced.tokenizer, view.ids([", and the"])[0])[0] == "▁"
    assert tokens(spaced.tokenizer, view.continued.ids([", and the"])[0]) == [",", "▁and", "▁the"]
    assert tokens(spaced.tokenizer, view.continued.ids([" came"])[0])[0].startswith("▁c")


def test_infill_reads_both_sides_as_the_whole_text_has_them(spaced):
    start = spaced.magnet_settings.start_token_id
    (whole,) = spaced.text_tokenizer.ids([PREFIX + SUFFIX])
    for prefix, suffix in ((PREFIX, SUFFIX), (f"{PREFIX},", " and the boats came home.")):
        (before,) = spaced.text_tokenizer.ids([prefix])
        assert whole[: len(before)] == before
        assert read_by_infill(spaced, prefix, suffix) == [*whole[len(before) :], start, *before]
    assert read_by_infill(spaced, "", SUFFIX)[0] == whole[whole.index(tokens_of(spaced, ",")) :][0]


def tokens_of(model, token):
    return model.tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize("prefix", ["The old", "The old ", "", " "])
def test_what_infill_writes_keeps_its_spaces(spaced, prefix):
    """A span that is forced to be the missing words comes back as their text."""
    middle, suffix = "harbour was", " quiet"
    view = spaced.text_tokenizer
    written = middle if prefix in ("", " ") else f" {middle}"
    (span,) = (view if prefix in ("", " ") else view.continued).ids([written])
    _, text = read_by_infill(spaced, prefix, suffix, span=span)
    assert text == (middle if prefix != "The old" else f" {middle}")


@pytest.mark.parametrize("kind", KINDS)
def test_any_later_part_comes_back_as_it_was(tmp_path, kind):
    view = TextTokenizer(make(kind, tmp_path)).continued

    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
    def holds(text):
        (ids,) = view.ids([text])
        assert view.decode(ids) == text

    holds()


@pytest.mark.parametrize("kind", SPACED)
def test_a_character_that_is_cut_garbles_nothing_before_it(tmp_path, kind):
    tokenizer = make(kind, tmp_path)
    view = TextTokenizer(tokenizer).continued
    text = " the 😀😀"
    (ids,) = view.ids([text])
    assert "�" in tokenizer.decode(ids[:-1]) and "😀" not in tokenizer.decode(ids[:-1])
    for cut in (1, 2, 3):
        assert view.decode(ids[:-cut]) == " the 😀�"
    assert view.decode(ids) == text


def test_infill_keeps_what_stands_before_a_character_that_is_cut(spaced):
    """The text before ends in a character of several byte tokens, and the span in half of one."""
    (ids,) = spaced.text_tokenizer.continued.ids(["😀😀"])
    _, text = read_by_infill(spaced, "A cat 😀", " sleeps.", span=ids[:-1])
    assert text == "😀�"


# Other threads, other tokenizers, other texts


def test_other_threads_may_truncate_with_the_same_tokenizer(tiny):
    expected = tiny.encode(SENTENCES)
    done = []

    def truncate():
        while not done:
            tiny.tokenizer(SENTENCES, truncation=True, max_length=2, padding="max_length")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                pool.submit(truncate)
            try:
                for _ in range(60):
                    np.testing.assert_allclose(tiny.encode(SENTENCES), expected, atol=1e-5)
            finally:
                done.append(True)
    finally:
        sys.setswitchinterval(interval)


def test_the_tokenizer_itself_stays_as_it_was(tokenizer):
    before = tokenizer.backend_tokenizer.to_str()
    tokenizer.backend_tokenizer.enable_truncation(1)
    view = TextTokenizer(tokenizer)
    assert len(view.ids([SENTENCES[0]])[0]) > 1
    view.continued.decode(view.continued.ids([SENTENCES[0]])[0])
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 1
    tokenizer.backend_tokenizer.no_truncation()
    assert tokenizer.backend_tokenizer.to_str() == before
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_a_changed_tokenizer_is_the_one_that_is_used(tiny):
    text = "A CAT"
    before = tiny.encode(text, prompt="")
    tiny.tokenizer.backend_tokenizer.normalizer = Lowercase()
    np.testing.assert_allclose(
        tiny.encode(text, prompt=""), make_model().encode("a cat", prompt=""), atol=1e-6
    )
    tiny.tokenizer = make_tokenizer()
    np.testing.assert_array_equal(tiny.encode(text, prompt=""), before)


def test_a_saved_tokenizer_is_read_alike(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = TextTokenizer(AutoTokenizer.from_pretrained(tmp_path))
    texts = [*SENTENCES, "a</s>b"]
    assert loaded.ids(texts) == TextTokenizer(tokenizer).ids(texts)
    later = loaded.continued
    assert later.ids(texts) == TextTokenizer(tokenizer).continued.ids(texts)


def test_a_slow_tokenizer_encodes_and_infills_but_knows_no_words():
    model = make_model(vocab_size=384)
    model.tokenizer = ByT5Tokenizer()
    assert model.magnet_settings.end_token_id not in model.text_tokenizer.ids(["a</s>b"])[0]
    model.config.magnet = {"start_token_id": 0}
    assert model.encode(["a</s>b", "c"]).shape == (2, 48)
    assert isinstance(model.infill("The old", " boats", span_length=2), str)
    with pytest.raises(ValueError, match="ByT5Tokenizer does not tell which characters"):
        model.encode_words("A cat.")
    with pytest.raises(ValueError, match="text 1 holds half a surrogate pair"):
        model.encode(["a", "b\ud83d"])


def test_half_a_character_is_named(tiny):
    half = "a cat \ud83d"
    with pytest.raises(ValueError, match=r"text 1 holds half a surrogate pair, '\\ud83d' at char"):
        tiny.encode(["fine", half])
    with pytest.raises(ValueError, match="text 0 holds half"):
        tiny.encode_tokens(half)
    with pytest.raises(ValueError, match="sentence 1 holds half"):
        tiny.encode_words(["fine", half])
    with pytest.raises(ValueError, match="word 1 of sentence 0 holds half"):
        tiny.encode_words([["fine", half]])
    with pytest.raises(ValueError, match="part 1 of text 2 holds half"):
        tiny.infill(["a", "b", "c"], ["d", "e", half], span_length=1)
    with pytest.raises(ValueError, match="part 2 of text 0 holds half"):
        tiny.infill_blanks(["a", "b", half], span_length=1)
    with pytest.raises(ValueError, match="prompt holds half"):
        tiny.encode("fine", prompt=half)
    with pytest.raises(ValueError, match="text 3 holds half"):
        tiny.text_tokenizer.ids(["a", "b", "c", half])


def test_what_is_no_text_is_named(tiny):
    for wrong, error in (
        ({"sentences": None}, "sentences is NoneType: give a string or a sequence of strings"),
        ({"sentences": ["a", 3]}, r"text 1 is int \(3\): give a string"),
        ({"sentences": "a", "prompt": 5}, r"prompt is int \(5\): give a string"),
    ):
        with pytest.raises(TypeError, match=error):
            tiny.encode(**wrong)
    with pytest.raises(TypeError, match="sentences is NoneType: give a string or a sequence"):
        tiny.encode_words(None)
    with pytest.raises(TypeError, match="sentence 1 is int: give a string or a sequence"):
        tiny.encode_words(["a", 3])
    with pytest.raises(TypeError, match="prefix is NoneType: give a string or a sequence"):
        tiny.infill(None, "b")
    with pytest.raises(TypeError, match="suffix is int: give a string or a sequence"):
        tiny.infill("a", 5)
    with pytest.raises(TypeError, match="part 0 of text 1 is int"):
        tiny.infill(["a", 5], ["b", "c"])


def test_numpy_s_strings_are_the_texts_that_they_hold(tiny):
    for text in ("a\0", "a\0\0b\0", "\0"):
        same = np.str_(text)
        expected = tiny.encode([text])[0]
        np.testing.assert_array_equal(tiny.encode(same), expected)
        np.testing.assert_array_equal(tiny.encode([same])[0], expected)
        np.testing.assert_array_equal(tiny.encode("x", prompt=same), tiny.encode("x", prompt=text))
        np.testing.assert_array_equal(tiny.encode_words([[same]]), tiny.encode_words([[text]]))
        assert tiny.infill(same, same, span_length=2) == tiny.infill(text, text, span_length=2)


def test_a_token_that_the_model_does_not_know_is_named(tiny):
    """On a CPU torch says that an index is out of range, on a GPU the process is lost."""
    tiny.tokenizer.add_tokens(["<new>"])
    for call in (
        lambda: tiny.encode(["A cat", "a <new> cat"], prompt=""),
        lambda: tiny.encode_words(["A cat", "a <new> cat"]),
        lambda: tiny.text_tokenizer.continued.ids(["A cat", "a <new> cat"]),
    ):
        with pytest.raises(ValueError, match="text 1 has the token '<new>', number 350, but the"):
            call()
    with pytest.raises(ValueError, match="has the token '<new>'"):
        tiny.infill("a", " <new>", span_length=2)
    tiny.resize_token_embeddings(351)
    assert np.isfinite(tiny.encode("a <new> cat")).all()


def test_a_word_without_tokens_is_named(tiny):
    tiny.tokenizer.backend_tokenizer.normalizer = Replace("\u00ad", "")
    for sentences in ([["fine"], ["\u00ad", "b"]], ["fine", "\u00ad"]):
        with pytest.raises(ValueError, match=r"the word '\\xad' of sentence 1 has no tokens"):
            tiny.encode_words(sentences)
    assert np.isfinite(tiny.encode_words("a b\u00ad c")).all()
