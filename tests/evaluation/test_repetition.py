"""Rep-Sen and Rep-n against counts by hand, and continuations against a loop over single texts."""

import re
from pathlib import Path

import evaluate
import pytest
import torch
from tiny import SENTENCES, make_model, make_spaced_tokenizer

from evaluation import models
from evaluation.common.generating import continuations, prompt_lengths
from evaluation.common.texts import STORY_COLUMNS, sentences
from evaluation.tasks import repetition
from evaluation.tasks.repetition import (
    Repetition,
    rep_n,
    rep_sen,
)

SCRIPT = Path(repetition.__file__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It rains. It pours! Who knew?", ["It rains.", "It pours!", "Who knew?"]),
        ("The tide came in . \n The boat left", ["The tide came in .", "The boat left"]),
        ("“It rains.” (So it does.) Fine", ["“It rains.”", "(So it does.)", "Fine"]),
        ("Mr. Ode and J. R. Pell met. A line\nbreak", ["Mr. Ode and J. R. Pell met.", "A line", "break"]),
        ("It costs 2.5 or 3 @.@ 5 crowns...  Then?!", ["It costs 2.5 or 3 @.@ 5 crowns...", "Then?!"]),
        ("it rains. it rains. it", ["it rains.", "it rains.", "it"]),
        (" \n\t ", []),
        ("", []),
    ],
)  # fmt: skip
def test_sentences(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "of_sentences", "of_bigrams", "of_4_grams"),
    [
        ("", 0, 0, 0),
        (" \n ", 0, 0, 0),
        ("Rain.", 0, 0, 0),  # shorter than n
        ("It rains. It rains. It rains. It pours.", 2 / 4, 4 / 7, 2 / 5),
        ("It  rains. It\trains.", 1 / 2, 1 / 3, 0),  # white space makes no difference
        ("It rains. it rains.", 0, 0, 0),  # case does
        ("la la la la la", 0, 3 / 4, 1 / 2),
    ],
)
def test_repetition_counted_by_hand(text, of_sentences, of_bigrams, of_4_grams):
    assert rep_sen(text) == pytest.approx(of_sentences)
    assert rep_n(text, 2) == pytest.approx(of_bigrams)
    assert rep_n(text) == pytest.approx(of_4_grams)


def test_n_below_1_is_refused():
    with pytest.raises(ValueError, match="n is 0: give the words of an n-gram, 1 or more"):
        rep_n("It rains.", 0)


def test_the_metric_is_the_mean_over_texts(tmp_path):
    texts = ["It rains. It rains.", "It pours.", ""]
    expected = {"rep_sen": 1 / 6, "rep_2": 1 / 9}
    for metric in (
        Repetition(cache_dir=str(tmp_path)),
        evaluate.load(str(SCRIPT), cache_dir=str(tmp_path)),
    ):
        found = metric.compute(predictions=texts, n=2)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].value == pytest.approx(value)
            assert 0 <= found[name].low <= value <= found[name].high <= 0.5


def greedy(model, ids: list[int], count: int) -> list[int]:
    """Greedy decoding written out, one text and no cache."""
    written = []
    while len(written) < count:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
        if token in (0, 1):  # the start and the end token
            break
        written.append(token)
    return written


@pytest.mark.parametrize("batch_size", [1, 3])
def test_continuations_equal_a_loop_over_single_texts(tiny, batch_size):
    tiny.generation_config.repetition_penalty = 1.5  # what a checkpoint prefers is not greedy
    lengths = [4, 9, 2, 6, 5]
    made = continuations(tiny, SENTENCES, lengths, 8, batch_size)
    for text, length, continuation in zip(SENTENCES, lengths, made):
        ids = tiny.tokenizer(text)["input_ids"]
        decode = tiny.tokenizer.decode
        assert continuation.prompt == decode(ids[:length])
        assert continuation.original == decode(ids[length : length + 8])
        expected = greedy(tiny, [0, *ids[:length]], 8)
        assert continuation.written == decode(expected, skip_special_tokens=True)


def test_prompt_and_original_are_the_text_whatever_the_tokenizer():
    spaced = make_model(vocab_size=400)
    spaced.tokenizer = make_spaced_tokenizer()
    made = continuations(spaced, SENTENCES[:4], 3, 200)
    for text, continuation in zip(SENTENCES, made):
        assert continuation.prompt + continuation.original == text


def test_a_continuation_ends_where_the_next_document_starts(tiny):
    """A base whose documents are parted by its start token writes it where a text is over."""
    tiny.lm_head.weight.data[:] = 0
    tiny.lm_head.weight.data[0] = 1
    hidden = tiny.base_model(input_ids=torch.tensor([[0, 5]])).last_hidden_state[0, -1].sum()
    tiny.lm_head.weight.data[0] = hidden.sign()  # so that the start token is likeliest
    assert continuations(tiny, SENTENCES[:1], 1, 4)[0].written == ""


def test_prompts_are_counted_in_tokens_behind_the_start_token(tiny):
    tiny.config.magnet = {"start_token_id": None}
    ids = tiny.tokenizer(SENTENCES[0])["input_ids"]
    made = continuations(tiny, SENTENCES[:1], 3, 2)
    assert made[0].prompt == tiny.tokenizer.decode(ids[:3])
    with pytest.raises(ValueError, match="text 1 has a prompt of 0 tokens"):
        continuations(tiny, SENTENCES[:2], [3, 0], 2)
    with pytest.raises(ValueError, match="got 2 texts and 1 prompt lengths"):
        continuations(tiny, SENTENCES[:2], [3], 2)


def test_a_prompt_of_five_words_ends_with_the_fifth(tiny):
    texts = [*SENTENCES, "Two words", ""]
    lengths = prompt_lengths(texts, tiny.text_tokenizer)
    for text, length in zip(texts, lengths):
        ids = tiny.tokenizer(text)["input_ids"]
        assert tiny.tokenizer.decode(ids[:length]) == " ".join(text.split()[:5])
    assert prompt_lengths(["abc abc"], tiny.text_tokenizer, [0]) == [0]


@pytest.mark.parametrize("name", ["text.txt", "stories.tsv"])
def test_command(tmp_path, capsys, monkeypatch, name):
    path = tmp_path / name
    if name.endswith("tsv"):
        header = "\t".join(STORY_COLUMNS)
        path.write_text("\n".join([header, "\t".join(SENTENCES)]) + "\n", encoding="utf-8")
    else:
        path.write_text("\n".join([" = Harbour = ", *[" ".join(SENTENCES)] * 3]), encoding="utf-8")
    monkeypatch.setattr(models, "load_base", lambda model, dtype: make_model())
    repetition.main(["--model", "tiny", "--text", str(path), "--limit", "2", "--new-tokens", "6"])
    printed = capsys.readouterr().out
    assert printed.startswith("Greedy continuations of up to 6 tokens, in %")
    count = 1 if name.endswith("tsv") else 2
    assert re.search(rf"\| Rep-Sen \| \d.* \| {count} \|", printed)
    assert f"| Rep-Sen of the true text | 0.00 (0.00 to 0.00) | {count} |" in printed
