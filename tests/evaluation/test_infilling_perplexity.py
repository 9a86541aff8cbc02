"""Infilling perplexities against all logits under a mask written out, on invented stories."""

import json
import math
from pathlib import Path

import evaluate
import numpy as np
import oracle
import pytest
import torch
from tiny import SENTENCES, make_model
from transformers import LlamaForCausalLM

from evaluation import models
from evaluation.common.spans import Example, roc_examples, text_examples
from evaluation.common.texts import STORY_COLUMNS, read_paragraphs, read_stories
from evaluation.common.views import BLANK, PROMPT, VIEWS, rows_of_view
from evaluation.tasks import infilling
from evaluation.tasks.infilling import (
    InfillingPerplexity,
    SpanScore,
    infilling_scores,
    perplexity_table,
)

STORIES = [
    [
        "Ida wanted a kite.",
        "She bought paper and string.",
        "The wind tore it.",
        "She mended it with tape!",
        "It flew.",
    ],
    [
        "Tom heard a noise in the café.",
        "He took a lamp.",
        "A cat sat there.",
        "He laughed.",
        "They shared some milk…",
    ],
    SENTENCES,
]
HEADER = "\t".join(STORY_COLUMNS)
SCRIPT = Path(infilling.__file__)


def write_stories(folder: Path, stories=STORIES, header=HEADER) -> Path:
    path = folder / "stories.tsv"
    path.write_text("\n".join([header, *map("\t".join, stories)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def model():
    return make_model(max_position_embeddings=512)


@pytest.fixture
def examples(model, tmp_path) -> list[Example]:
    """A story each, and a text with two spans."""
    ids = [0, *model.tokenizer(" ".join(STORIES[0]))["input_ids"]]
    spans = [0] * 4 + [1] * 5 + [0] * 6 + [2] * 3 + [0] * (len(ids) - 18)
    return [*roc_examples(write_stories(tmp_path), model), Example.of_text(ids, spans)]


def log_probabilities(model, ids: list[int], span_ids: list[int] | None) -> torch.Tensor:
    """(length, vocabulary) by the stock class: under the oracle's mask, or plainly without a map."""
    stock = LlamaForCausalLM(model.config).eval()
    stock.load_state_dict(model.state_dict())
    mask = None
    if span_ids is not None:
        spans = torch.tensor([span_ids])
        mask = oracle.allowed(spans, torch.ones_like(spans))[:, None]
    with torch.no_grad():
        logits = stock(input_ids=torch.tensor([ids]), attention_mask=mask).logits[0]
    return logits.log_softmax(-1)


def places(example: Example) -> list[list[int]]:
    return [
        [t for t, k in enumerate(example.span_ids) if k == span]
        for span in sorted(set(example.span_ids) - {0})
    ]


def test_losses_equal_all_logits_under_the_oracle_mask(model, examples):
    expected: list[dict[str, float]] = []
    for i, example in enumerate(examples):
        ids = example.token_ids
        hybrid = log_probabilities(model, ids, example.span_ids)
        causal = log_probabilities(model, ids, None)
        rows = rows_of_view("shuffled", model, example, places(example), seed=(0, i))
        for span, row in zip(places(example), rows):
            shuffled = log_probabilities(model, row.token_ids, example.span_ids)
            tables = {"both_sides": hybrid, "left_only": causal, "shuffled": shuffled}
            expected.append(
                {
                    view: -sum(float(table[t - 1, ids[t]]) for t in span)
                    for view, table in tables.items()
                }
            )
    for batch_size in (1, 3):
        scores = infilling_scores(model, examples, batch_size=batch_size)
        assert [score.example for score in scores] == [0, 1, 2, 3, 3]
        for score, losses in zip(scores, expected):
            assert score.length > 1
            for view, loss in losses.items():
                assert score.losses[view] == pytest.approx(loss, rel=1e-4), view
    table = perplexity_table(scores)
    tokens = sum(score.length for score in scores)
    assert table["tokens"] == tokens and table["examples"] == 4
    for view in ("both_sides", "left_only", "shuffled"):
        figure = table["perplexity"][view]
        perplexity = math.exp(sum(losses[view] for losses in expected) / tokens)
        assert figure.value == pytest.approx(perplexity, rel=1e-4)
        assert figure.low <= figure.value <= figure.high


def test_prompted_reads_the_gapped_text_and_then_the_text(model, examples):
    scores = infilling_scores(model, examples, ["prompted"])
    before, between, blank = (
        model.tokenizer(text)["input_ids"]
        for text in (PROMPT[0].format(blank=BLANK.strip()), PROMPT[1], BLANK)
    )
    for example in examples:
        (row,) = rows_of_view("prompted", model, example, places(example))
        ids, firsts = example.token_ids, [span[0] for span in places(example)]
        gapped: list[int] = []
        for t, k in list(enumerate(example.span_ids))[1:]:
            gapped += [ids[t]] if k == 0 else blank if t in firsts else []
        shown = [0, *before, *gapped, *between, *ids[1 : places(example)[-1][-1] + 1]]
        assert row.token_ids == shown and row.span_ids is None
        spans = [t for span in places(example) for t in span]
        assert [row.token_ids[t] for t in row.scored] == [example.token_ids[t] for t in spans]
        table = log_probabilities(model, row.token_ids, None)
        expected = -sum(float(table[t - 1, row.token_ids[t]]) for t in row.scored)
        number = examples.index(example)
        found = sum(score.losses["prompted"] for score in scores if score.example == number)
        assert found == pytest.approx(expected, rel=1e-4)


def test_shuffling_changes_the_context_behind_the_span_alone(model, examples):
    moved = 0
    for example in examples:
        rows = rows_of_view("shuffled", model, example, places(example), seed=3)
        for row, span in zip(rows, places(example)):
            assert row.scored == span and row.span_ids == example.span_ids
            for t, (token, original) in enumerate(zip(row.token_ids, example.token_ids)):
                if t <= span[-1] or example.span_ids[t]:
                    assert token == original
                moved += token != original
            assert sorted(row.token_ids) == sorted(example.token_ids)
    assert moved > 20


def test_the_metric_sees_the_right_side(model):
    """A model that has learnt to copy the token behind the span is lost when that side is shuffled."""
    torch.manual_seed(0)
    ids = torch.randint(100, 120, (64 * 160, 8))  # (texts, length)
    ids[:, 3] = ids[:, 4]
    spans = torch.zeros_like(ids)
    spans[:, 3] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for rows in torch.arange(64, len(ids)).split(64):
        logits = model(input_ids=ids[rows], span_ids=spans[rows]).logits[:, 2]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, ids[rows, 3]).backward()
        optimizer.step()
    held_out = [Example.of_text(row, spans[0].tolist()) for row in ids[:64].tolist()]
    views = ("both_sides", "shuffled", "left_only")
    table = perplexity_table(infilling_scores(model.eval(), held_out, views))
    both, shuffled, left = (table["perplexity"][view] for view in views)
    assert both.value < 2 and shuffled.low > 10 * both.high and left.low > 10 * both.high


def test_the_order_of_the_examples_makes_no_difference(model, examples):
    views = ["both_sides", "left_only", "prompted"]
    forth = perplexity_table(infilling_scores(model, examples, views, 2))
    back = perplexity_table(infilling_scores(model, examples[::-1], views, 3))
    for view in views:
        for key in ("perplexity", "by_length", "by_position"):
            assert set(forth[key]) == set(back[key])
        pair = [table["perplexity"][view].value for table in (forth, back)]
        assert pair[0] == pytest.approx(pair[1], rel=1e-4)


def test_a_story_is_tokenised_once_and_its_sentences_end_on_token_borders(model, tmp_path):
    path = write_stories(tmp_path, STORIES * 20)
    found = roc_examples(path, model)
    drawn = [example.positions[0] for example in found]
    assert set(drawn) == {1, 2, 3, 4, 5}
    for story, example, k in zip(STORIES * 20, found, drawn):
        assert example.token_ids == [0, *model.tokenizer(" ".join(story))["input_ids"]]
        (span,) = places(example)
        text = model.tokenizer.decode([example.token_ids[t] for t in span])
        assert text == (" " if k > 1 else "") + story[k - 1]  # the space is the second's
    assert roc_examples(path, model, limit=7) == found[:7]
    assert roc_examples(path, model, seed=1) != found


def test_stories_need_a_start_token(model, tmp_path):
    model.config.magnet = {"start_token_id": None}
    with pytest.raises(ValueError, match="no start token, which must stand before"):
        roc_examples(write_stories(tmp_path), model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"has the columns \[\], it lacks \['sentence1'"),
        (HEADER.replace("sentence3", "three") + "\n", r"it lacks \['sentence3'\]"),
        (HEADER + "\n", "only a header"),
        (HEADER + "\na\tb\tc\td\te\na\tb\n", "line 3: got 2 fields, expected 5"),
        (HEADER + "\na\tb\tc\td\te\tf\n", "line 2: got 6 fields, expected 5"),
        (HEADER + "\na\tb\t \td\te\n", "line 2: sentence3 is empty, expected text"),
    ],
)
def test_what_is_wrong_with_a_file_of_stories_is_said(model, tmp_path, content, message):
    path = tmp_path / "bad.tsv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        roc_examples(path, model)


def test_stories_are_read_by_column_name_and_quotes_are_text(tmp_path):
    story = ['"Go', 'away!" he said.', "A '", 'B "c"', "D"]
    path = tmp_path / "stories.tsv"
    columns = ["id", *STORY_COLUMNS[::-1]]
    path.write_text("\t".join(columns) + "\n" + "\t".join(["7", *story[::-1]]) + "\n")
    assert read_stories(path) == [story]


def test_paragraphs_and_their_spans(model, tmp_path):
    path = tmp_path / "wiki.tokens"
    tide = "The tide of 1 @,@ 204 boats = a <unk> record . "
    lines = [" ", " = Harbour = ", f" {tide * 4} ", " = = Boats = = ", f" {tide * 9} ", " = 7 ", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_paragraphs(path) == [(tide * 4).strip(), (tide * 9).strip(), "= 7"]
    found = text_examples(path, model, longest=500)
    assert len(found) == 2 and found == text_examples(path, model, longest=500)
    assert len(text_examples(path, model, longest=500, limit=1)) == 1
    for example in found:
        assert example.token_ids[0] == 0 and example.span_ids[0] == 0
        assert model.tokenizer.decode(example.token_ids[1:]) in read_paragraphs(path)
        assert 1 <= len(places(example)) <= 3 and len(places(example)) == len(example.positions)
        for span, position in zip(places(example), example.positions):
            assert 8 <= len(span) <= 32
            assert (position - 1) / 5 <= span[0] / len(example.span_ids) < position / 5
    path.write_text(" \n = Harbour = \n")
    with pytest.raises(ValueError, match="only headings or empty lines"):
        read_paragraphs(path)


def test_perplexity_by_length_and_position_counted_by_hand():
    scores = [
        SpanScore(0, 1, 2, {"both_sides": 2 * math.log(3)}),
        SpanScore(0, 4, 9, {"both_sides": 9 * math.log(5)}),
        SpanScore(1, 4, 8, {"both_sides": 8 * math.log(7)}),
        SpanScore(2, 5, 200, {"both_sides": 200 * math.log(2)}),
    ]
    table = perplexity_table(scores)

    def figure(group):
        return group["perplexity"]["both_sides"].value

    assert (table["examples"], table["tokens"]) == (3, 219)
    lengths = {name: figure(group) for name, group in table["by_length"].items()}
    assert lengths == pytest.approx(
        {"1-8": math.exp((2 * math.log(3) + 8 * math.log(7)) / 10), "9-16": 5, "129-": 2}
    )
    positions = {name: figure(group) for name, group in table["by_position"].items()}
    assert positions == pytest.approx(
        {"1": 3, "4": math.exp((9 * math.log(5) + 8 * math.log(7)) / 17), "5": 2}
    )
    assert table["by_position"]["4"]["examples"] == 2 and table["by_length"]["1-8"]["tokens"] == 10


def test_the_metric_loads_from_its_path(model, examples, tmp_path):
    arguments = {
        "input_ids": [example.token_ids for example in examples],
        "span_ids": [example.span_ids for example in examples],
        "model": model,
    }
    expected = perplexity_table(infilling_scores(model, examples))
    for metric in (
        InfillingPerplexity(cache_dir=str(tmp_path)),
        evaluate.load(str(SCRIPT), cache_dir=str(tmp_path)),
    ):
        found = metric.compute(**arguments)
        assert found["perplexity"] == expected["perplexity"]
    found = metric.compute(**arguments, views=["left_only"], batch_size=2)
    assert list(found["perplexity"]) == ["left_only"]


def test_what_cannot_be_scored_is_said(model):
    ids = list(range(3, 12))
    for spans in ([1] * 3 + [0] * 6, [0] * 9, [0, 2] + [0] * 7):
        with pytest.raises(ValueError, match="example 0 has the span map"):
            infilling_scores(model, [Example.of_text(ids, spans)])
    with pytest.raises(ValueError, match="got 9 tokens and 8 entries of a span map"):
        Example.of_text(ids, [0] * 8)
    example = Example.of_text(ids, [0] * 4 + [1] * 5)
    with pytest.raises(ValueError, match="unknown view 'right_only'"):
        infilling_scores(model, [example], ["right_only"])
    with pytest.raises(ValueError, match="got 0 examples and 4 views"):
        infilling_scores(model, [])
    model.config.magnet = {"max_length": 8}
    with pytest.raises(ValueError, match="a row has 9 positions, the limit is 8"):
        infilling_scores(model, [example])


def test_command(tmp_path, capsys, monkeypatch):
    stories = write_stories(tmp_path)
    text, output = tmp_path / "wiki.tokens", tmp_path / "results.json"
    text.write_text("\n".join([" = Harbour = ", *[" ".join(SENTENCES[:3])] * 3]))
    monkeypatch.setattr(
        models, "load_base", lambda model, dtype: make_model(max_position_embeddings=512)
    )
    command = ["--model", "tiny", "--roc", str(stories), "--wikitext", str(text), "--limit", "2"]
    infilling.main([*command, "--start-token", "<s>", "--output", str(output)])
    printed = capsys.readouterr().out
    assert f"| text | examples | tokens | {' | '.join(VIEWS)} |" in printed
    results = json.loads(output.read_text())["results"]
    for name in ("ROC Stories", "WikiText-103"):
        figure = results[name]["perplexity"]["both_sides"][0]
        assert f"| {name} | 2 |" in printed and f"{figure:.1f} (" in printed
        assert np.isfinite(figure)
    with pytest.raises(SystemExit):
        infilling.main(["--model", "tiny"])
