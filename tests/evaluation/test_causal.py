"""Causal perplexity, and the spans drawn from running text, against computations by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SENTENCES
from transformers import LlamaForCausalLM

from evaluation.common.spans import LONGEST_SPAN, centred_examples, draw_spans, tokenize_rows
from evaluation.tasks.causal import blocks_of, measure_causal


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.tokens"
    lines = [" \n", " = Harbour = \n", *(f" {sentence} \n" for sentence in SENTENCES * 12)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_causal_perplexity_equals_the_stock_models_loss(tiny, text):
    blocks = blocks_of(text, tiny, length=40, limit=5)
    stock = LlamaForCausalLM(tiny.config).eval()
    stock.load_state_dict(tiny.state_dict())
    ids = torch.tensor(blocks)
    with torch.no_grad():
        expected = math.exp(stock(input_ids=ids, labels=ids).loss)
    for batch_size in (1, 3):
        figure = measure_causal(tiny, blocks, batch_size)
        assert figure.value == pytest.approx(expected, rel=1e-5)
        assert figure.low < figure.value < figure.high and figure.examples == 5


def test_blocks_hold_each_token_once_behind_the_start_token(tiny, text):
    blocks = blocks_of(text, tiny, length=30)
    assert all(len(block) == 30 and block[0] == 0 for block in blocks)
    whole = tiny.tokenizer("\n".join(SENTENCES * 12), add_special_tokens=False)["input_ids"]
    joined = [token for block in blocks for token in block[1:]]
    assert joined == whole[: len(joined)] and len(whole) - len(joined) < 29
    drawn = blocks_of(text, tiny, length=30, limit=3, seed=1)
    assert len(drawn) == 3 and all(block in blocks for block in drawn)
    assert drawn != blocks_of(text, tiny, length=30, limit=3, seed=2)
    with pytest.raises(ValueError, match="tokens, a block 99999: give a longer text"):
        blocks_of(text, tiny, length=100_000)


def test_spans_of_several_lengths_stand_in_the_middle_of_the_same_texts(tiny, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("\n".join(" ".join(SENTENCES * n) for n in (1, 4, 6, 5)), encoding="utf-8")
    found = [centred_examples(path, tiny, length, limit=2, longest=9999) for length in (4, 64)]
    for short, long in zip(*found, strict=True):
        assert short.token_ids == long.token_ids and len(short.token_ids) >= 2 * LONGEST_SPAN
        for example, length in ((short, 4), (long, 64)):
            places = np.flatnonzero(example.span_ids)
            assert len(places) == length and places[-1] - places[0] == length - 1
            before, behind = places[0], len(example.span_ids) - 1 - places[-1]
            assert abs(before - behind) <= 1
    with pytest.raises(ValueError, match="the span length is 129: give 1 to 128"):
        centred_examples(path, tiny, 129)


@given(st.lists(st.integers(12, 300), min_size=1, max_size=5), st.integers(0, 99))
def test_drawn_spans(lengths, seed):
    for length, row in zip(lengths, draw_spans(lengths, seed)):
        row = np.array(row)
        assert len(row) == length and row[0] == 0 and 1 <= row.max() <= 3
        for k in range(1, row.max() + 1):
            places = np.flatnonzero(row == k)
            assert len(places) <= 32 and (np.diff(places) == 1).all()
            assert row[places[0] - 1] == 0  # context stands before each span
    assert draw_spans(lengths, seed) == draw_spans(lengths, seed)


def test_rows_are_whole_texts_behind_the_start_token(tiny):
    rows = tokenize_rows(SENTENCES, tiny, 5, 60)
    assert [tiny.tokenizer.decode(row[1:]) for row in rows] == SENTENCES
    assert all(row[0] == 0 for row in rows)
    with pytest.raises(ValueError, match="no text has 500 to 600 tokens"):
        tokenize_rows(SENTENCES, tiny, 500, 600)
