"""Perplexities and correlation against computations by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SENTENCES, make_model

from evaluation.measures import draw_spans, perplexities, sts_spearman, tokenize_rows


def test_perplexities_equal_a_loop_over_single_texts(tiny):
    rows = tokenize_rows(SENTENCES, tiny, shortest=5, longest=60, count=4)
    maps = [[0] * 3 + [1] * 4 + [0] * (len(row) - 12) + [2] * 3 + [0] * 2 for row in rows]
    losses = {"both_sides": [], "left_only": [], "causal": []}
    for row, span_map in zip(rows, maps):
        ids = torch.tensor([row])
        hybrid = tiny(input_ids=ids, span_ids=torch.tensor([span_map])).logits[0].log_softmax(-1)
        plain = tiny(input_ids=ids).logits[0].log_softmax(-1)
        for t in range(1, len(row)):
            losses["causal"].append(-plain[t - 1, row[t]].item())
            if span_map[t]:
                losses["both_sides"].append(-hybrid[t - 1, row[t]].item())
                losses["left_only"].append(-plain[t - 1, row[t]].item())
    for batch_size in (1, 3):
        figures = perplexities(tiny, rows, maps, batch_size, progress=False)
        for name, values in losses.items():
            assert figures[name] == pytest.approx(math.exp(sum(values) / len(values)), rel=1e-5)


def test_both_sides_sees_the_right_side(base_model):
    """With the true right side a span is likelier than with another text's: the figure sees it."""
    texts = [
        "The capital of France is Paris, and Paris lies on the river Seine, says the guide.",
        "She bought a violin because her old violin had broken, and the violin was cheap.",
    ]
    rows = tokenize_rows(texts, base_model, 5, 40)
    maps = [[0] * 6 + [1] * 2 + [0] * (len(row) - 8) for row in rows]
    swapped = [rows[0][:8] + rows[1][8:], rows[1][:8] + rows[0][8:]]
    swapped_maps = [m[:8] + [0] * (len(row) - 8) for m, row in zip(maps, swapped)]
    figures = [
        perplexities(base_model, r, m, progress=False)
        for r, m in ((rows, maps), (swapped, swapped_maps))
    ]
    assert figures[0]["both_sides"] != figures[1]["both_sides"]
    assert figures[0]["left_only"] == pytest.approx(figures[1]["left_only"], rel=1e-4)


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


def test_spearman_equals_ranks_by_hand(tmp_path):
    model = make_model()
    pairs = list(zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1]))
    scores = [3.0, 1.5, 0.2, 4.8, 2.2]
    path = tmp_path / "sts.tsv"
    lines = [f"{score}\t{a}\t{b}" for score, (a, b) in zip(scores, pairs)]
    path.write_text("\n".join(["score\tsentence1\tsentence2", *lines]) + "\n")
    one, two = (model.encode(list(side), normalize_embeddings=True) for side in zip(*pairs))
    ranks = [np.argsort(np.argsort(values)) for values in (scores, (one * two).sum(1))]
    expected = 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (5 * 24)
    assert sts_spearman(model, path) == pytest.approx(expected)
    (tmp_path / "bad.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="needs the columns"):
        sts_spearman(model, tmp_path / "bad.tsv")
