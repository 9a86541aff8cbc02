"""What the example scripts measure before and after: all three jobs, on texts that come with the repository."""

import csv
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.common.figures import Figure, table
from evaluation.common.spans import Example, draw_spans, tokenize_rows
from evaluation.common.texts import sentences
from evaluation.tasks.causal import measure_causal
from evaluation.tasks.infilling import infilling_scores, perplexity_table

DATA = Path(__file__).parent / "data"

VIEWS = {"both_sides": "both sides seen", "left_only": "left side only"}


class Measured(NamedTuple):
    """What a model does."""

    figures: dict[str, Figure]
    """Of vectors, infilling and generation, by name."""
    hits: np.ndarray
    """(sentences,) 1 for each sentence that finds its paragraph, else 0."""


def measure(model: Any, count: int) -> Measured:
    """A model's vectors, infilling and generation, each with its interval.

    Args:
        model: in evaluation mode.
        count: held-out paragraphs for the perplexities.
    """
    texts = [row["text"] for row in read(DATA / "wiki-validation.jsonl")]
    rows = tokenize_rows(texts, model, count=count)
    found = {
        f"infilling perplexity, {VIEWS[view]}": f for view, f in infilling(model, rows).items()
    }
    hits = retrieval(model)
    figures = {
        "sentence similarity, Spearman x 100": similarity(model),
        "paragraph found by a sentence of it, %": Figure.of_ratio(hits).scaled(100),
        **found,
        "causal perplexity": measure_causal(model, rows),
    }
    return Measured(figures, hits)


def compare(before: Measured, after: Measured) -> str:
    """Both in a table, and how many more sentences find their paragraph, on the same sentences."""
    more = Figure.of_ratio(after.hits - before.hits).scaled(100)
    change = f"{more.value:+.1f} points ({more.low:+.1f} to {more.high:+.1f})"
    columns = {"before": before.figures, "after": after.figures}
    return f"\n{table(columns)}\n\nParagraphs found: {change}"


def similarity(model: Any) -> Figure:
    """Rank correlation with people's scores, on 375 pairs of the STS benchmark's answers-forums."""
    with (DATA / "sts-answers-forums.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    one, two = (
        model.encode([row[name] for row in rows], normalize_embeddings=True)
        for name in ("sentence1", "sentence2")
    )
    cosines, scores = (one * two).sum(1), np.array([float(row["score"]) for row in rows])
    return Figure.of_correlation(cosines, scores).scaled(100)


def retrieval(model: Any) -> np.ndarray:
    """For each sentence, 1 if the nearest of all held-out paragraphs is the one it was taken out of."""
    found = sentences_of_paragraphs(read(DATA / "wiki-validation.jsonl"), per_paragraph=1)
    queries, paragraphs = ([row[name] for row in found] for name in ("anchor", "positive"))
    near = model.similarity(model.encode(queries), model.encode(paragraphs, truncation=True))
    return (near.argmax(dim=1).numpy() == np.arange(len(found))).astype(float)


def infilling(model: Any, rows: list[list[int]]) -> dict[str, Figure]:
    """Perplexity of spans of 8 to 32 tokens, the same ones for every model with this tokenizer."""
    spans = draw_spans([len(row) for row in rows], seed=0)
    examples = [Example.of_text(*pair) for pair in zip(rows, spans, strict=True)]
    scores = infilling_scores(model, examples, list(VIEWS))
    return perplexity_table(scores)["perplexity"]


def sentences_of_paragraphs(
    rows: list[dict[str, str]], per_paragraph: int, seed: int = 0
) -> list[dict[str, str]]:
    """Triplets that need no annotator: a sentence, its paragraph without it, another of that article.

    Args:
        rows: paragraphs with `text` and `title`.
        per_paragraph: sentences of each, of 5 to 30 words; paragraphs of fewer than three sentences
            give none.
        seed: of the draws.
    """
    draw = random.Random(seed)
    articles: dict[str, list[str]] = {}
    for row in rows:
        articles.setdefault(row["title"], []).append(row["text"])
    triplets = []
    for row in rows:
        parts, others = sentences(row["text"]), articles[row["title"]]
        usable = [i for i, part in enumerate(parts) if 5 <= len(part.split()) <= 30]
        if len(parts) < 3 or len(others) < 2:
            continue
        for i in draw.sample(usable, min(per_paragraph, len(usable))):
            rest = " ".join(parts[:i] + parts[i + 1 :])
            negative = draw.choice([text for text in others if text != row["text"]])
            triplets.append({"anchor": parts[i], "positive": rest, "negative": negative})
    return triplets


def read(path: Path, columns: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """The rows of a JSON lines file, each with a text in all columns.

    Raises:
        SystemExit: the file cannot be used; the message says where.
    """
    rows: list[dict[str, str]] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line) if line.strip() else None
                if row is None:
                    continue
                for name in columns:
                    if not isinstance(row, dict) or not str(row.get(name) or "").strip():
                        raise SystemExit(f"{path}, line {number}, has no text in {name}")
                rows.append(row)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from error
    if not rows:
        raise SystemExit(f"{path} has no rows")
    return rows
