"""A missing span in windows of growing length, and a paragraph's vector in them, against plain computations."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import SENTENCES, make_model

from evaluation.tasks.windows import SPAN, main, measure_windows, middles, read_articles

ARTICLE = " ".join(SENTENCES * 12)


@pytest.fixture(scope="module")
def model():
    return make_model(max_position_embeddings=512)


@pytest.fixture
def wikitext(tmp_path):
    path = tmp_path / "wiki.tokens"
    path.write_text(
        f" \n = Harbour = \n \n {ARTICLE} \n = = Boats = = \n {ARTICLE} \n = Kites = \n Short . \n"
    )
    return path


def test_articles_are_read_without_their_headings(wikitext, tmp_path):
    expected = [f"{ARTICLE}\n{ARTICLE}", "Short ."]
    assert read_articles(wikitext) == expected
    rows = [("Harbour", ARTICLE), ("Harbour", ARTICLE), ("Kites", "Short .")]
    lines = [json.dumps({"title": title, "text": text}) for title, text in rows]
    (tmp_path / "wiki.jsonl").write_text("\n".join(lines))
    assert read_articles(tmp_path / "wiki.jsonl") == expected
    (tmp_path / "empty.tokens").write_text(" = Harbour = \n")
    with pytest.raises(ValueError, match="no article"):
        read_articles(tmp_path / "empty.tokens")


def test_articles_that_are_too_short_are_left_out(model):
    (middle,) = middles([ARTICLE, "Short ."], model, length=101)
    ids = model.tokenizer(ARTICLE, add_special_tokens=False)["input_ids"]
    assert middle == ids[(len(ids) - 101) // 2 :][:101]
    with pytest.raises(ValueError, match="no article has 5000 tokens"):
        middles([ARTICLE], model, length=5000)


def test_every_window_scores_the_same_span(model):
    """One row at a time, without padding, by the model's own forward pass."""
    articles = middles([ARTICLE, f"{ARTICLE} {SENTENCES[0]} {ARTICLE}"], model, length=128)
    figures = measure_windows(model, articles, (32, 64, 128))
    for window in (32, 64, 128):
        losses = {"both sides": 0.0, "left only": 0.0}
        for article in articles:
            first = (127 - SPAN) // 2
            span = article[first : first + SPAN]
            begin = (128 - window) // 2
            ids = torch.tensor([[0, *article[begin : begin + window - 1]]])
            place = 1 + first - begin
            spans = torch.zeros_like(ids)
            spans[0, place : place + SPAN] = 1
            assert ids[0, place : place + SPAN].tolist() == span
            with torch.no_grad():
                for view, given in (("both sides", {"span_ids": spans}), ("left only", {})):
                    logits = model(input_ids=ids, **given).logits[0, place - 1 : place + SPAN - 1]
                    losses[view] += float(
                        torch.nn.functional.cross_entropy(
                            logits, torch.tensor(span), reduction="sum"
                        )
                    )
        for view, loss in losses.items():
            expected = math.exp(loss / (2 * SPAN))
            assert figures[f"{window}, {view}"].value == pytest.approx(expected, rel=1e-4)
        ratio = figures[f"{window}, both sides"].value / figures[f"{window}, left only"].value
        assert figures[f"{window}, both sides / left only"].value == pytest.approx(ratio, rel=1e-5)


def test_a_paragraph_s_vector_is_compared_with_its_own_and_with_others(model):
    texts = [ARTICLE, " ".join(reversed(SENTENCES * 12)), " ".join(SENTENCES[1:] * 15)]
    articles = middles(texts, model, length=96)
    figures = measure_windows(model, articles, (32, 96))
    vectors = []
    for article in articles:
        alone = torch.tensor([[0, *article[32:63]]])
        among = torch.tensor([[0, *article[:95]]])
        with torch.no_grad():
            states = [
                model(
                    input_ids=ids, span_ids=torch.zeros_like(ids), output_hidden_states=True
                ).hidden_states[-1][0]
                for ids in (alone, among)
            ]
        vectors.append([states[0][:31].mean(0), states[1][32:63].mean(0)])
    alone, among = (
        torch.nn.functional.normalize(torch.stack(part), dim=1).numpy()
        for part in zip(*vectors, strict=True)
    )
    cosines = 100 * among @ alone.T
    own = np.diagonal(cosines).mean()
    others = cosines[~np.eye(3, dtype=bool)].mean()
    assert figures["96, vector, cosine with it alone"].value == pytest.approx(own, abs=1e-3)
    assert figures["96, vector, with others alone"].value == pytest.approx(others, abs=1e-3)
    assert "32, vector, cosine with it alone" not in figures


def test_the_command_prints_and_stores_the_table(model, wikitext, tmp_path, capsys):
    model.save_pretrained(tmp_path / "tiny")
    output = tmp_path / "windows.json"
    main(
        ["--model", str(tmp_path / "tiny"), "--text", str(wikitext), "--windows", "32", "64",
         "--output", str(output)]
    )  # fmt: skip
    assert "| 64, both sides / left only |" in capsys.readouterr().out
    assert json.loads(output.read_text())["64, both sides"]["examples"] == 1
