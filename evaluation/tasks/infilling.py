"""Perplexity of infilling (MAGNET, section 4.3, Table 4, and the long spans of Appendix E).

    python -m evaluation.tasks.infilling --model FOLDER --roc dev.tsv --wikitext wiki.valid.tokens \\
        --limit 100 --output results.json

"For ROC Stories, we randomly mask out a sentence from each 5-sentence story, while for Wikitext-103,
we mask up to three spans with lengths ranging from 8 to 32 tokens. Following Donahue et al. (2020),
we compute PPL only for the tokens comprising the original masked out spans." The same span tokens
are scored in the four views of `evaluation.common.views`.

A text is tokenised once, as running text, after the model's start token. So a span begins and ends
on a token border of that text, and all views score the same tokens. The space between two sentences
is part of the second one's first token, as tokenizers have it, and so is scored with it.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np

from evaluation.common.figures import Figure
from evaluation.common.spans import Example, roc_examples, text_examples
from evaluation.common.views import VIEWS, rows_of_view, token_losses
from evaluation.common.writing import markdown, output_file, write_json
from evaluation.models import command_parser, load_language_model

LENGTH_BINS = (8, 16, 32, 64, 128)
"""Upper ends of the span lengths that are reported together, in tokens."""


class SpanScore(NamedTuple):
    """The summed negative log-probability of one span's tokens in each view."""

    example: int
    position: int
    length: int
    losses: dict[str, float]


class InfillingPerplexity(evaluate.Metric):
    """Perplexity of marked spans under a model, with 95 % bootstrap intervals over the texts.

    Example:
        >>> metric = InfillingPerplexity()
        >>> ids = [[0, *model.tokenizer("She fed the cat, then left.")["input_ids"]]]
        >>> spans = [[0, 0, 0, 1, 1] + [0] * (len(ids[0]) - 5)]
        >>> found = metric.compute(input_ids=ids, span_ids=spans, model=model, views=["both_sides"])
        >>> found["tokens"]
        2
    """

    def _info(self):
        row = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description="Perplexity of the tokens of the missing spans only.",
            citation="Khosla et al., MAGNET: Augmenting Generative Decoders with Representation "
            "Learning and Infilling Capabilities, section 4.3",
            inputs_description="input_ids: token ids of texts, start token included. span_ids: their "
            "span maps, 0 for context. model: with a span map. views, batch_size, seed: as in "
            "infilling_scores.",
            features=datasets.Features({"input_ids": row, "span_ids": row}),
        )

    def _compute(self, input_ids, span_ids, model, **arguments):
        examples = [Example.of_text(*pair) for pair in zip(input_ids, span_ids, strict=True)]
        scores = infilling_scores(model, examples, **arguments)
        return perplexity_table(scores)


def infilling_scores(
    model,
    examples: Sequence[Example],
    views: Sequence[str] = VIEWS,
    batch_size: int = 8,
    seed: int = 0,
) -> list[SpanScore]:
    """A score for each span, in the order of the examples: its original tokens in each view.

    Raises:
        ValueError: there are no examples or views, a view is unknown, an example has no span or
            begins with one, or a row is longer than the checkpoint's `max_length`.
    """
    if not examples or not views:
        raise ValueError(f"got {len(examples)} examples and {len(views)} views: give one or more")
    places = [_span_places(example, i) for i, example in enumerate(examples)]
    scores = [
        SpanScore(i, position, len(span), {})
        for i, (example, spans) in enumerate(zip(examples, places, strict=True))
        for position, span in zip(example.positions, spans, strict=True)
    ]
    sizes = [score.length for score in scores]
    for view in views:
        rows = [
            row
            for i, (example, spans) in enumerate(zip(examples, places, strict=True))
            for row in rows_of_view(view, model, example, spans, seed=(seed, i))
        ]
        losses = np.concatenate(token_losses(model, rows, batch_size, view))
        for score, part in zip(scores, np.split(losses, np.cumsum(sizes)[:-1]), strict=True):
            score.losses[view] = float(part.sum())
    return scores


def _span_places(example: Example, number: int) -> list[list[int]]:
    spans = np.array(example.span_ids)
    places = [np.flatnonzero(spans == k).tolist() for k in range(1, spans.max() + 1)]
    if not places or not all(places) or places[0][0] == 0:
        raise ValueError(
            f"example {number} has the span map {example.span_ids}: give spans 1, 2, ... after at "
            "least one token"
        )
    return places


def perplexity_table(scores: Sequence[SpanScore], seed: int = 0) -> dict[str, Any]:
    """Perplexities of each view: over all spans, by their length and by their position.

    The bootstrap draws examples with all their spans.

    Returns:
        `examples` and `tokens`, the counts; `perplexity`, a view's name to its `Figure`; `by_length` and
        `by_position`, a group's name to such a table.
    """
    lowest = (1, *(end + 1 for end in LENGTH_BINS))
    names = [f"{low}-{high}" for low, high in zip(lowest, (*LENGTH_BINS, ""), strict=True)]
    by_length: dict[str, list[SpanScore]] = {name: [] for name in names}
    by_position: dict[str, list[SpanScore]] = {}
    for score in sorted(scores, key=lambda score: score.position):
        by_length[names[bisect_left(LENGTH_BINS, score.length)]].append(score)
        by_position.setdefault(str(score.position), []).append(score)
    return _table(scores, seed) | {
        "by_length": {name: _table(group, seed) for name, group in by_length.items() if group},
        "by_position": {name: _table(group, seed) for name, group in by_position.items()},
    }


def _table(scores: Sequence[SpanScore], seed: int) -> dict[str, Any]:
    examples, owners = np.unique([score.example for score in scores], return_inverse=True)
    tokens = np.bincount(owners, [score.length for score in scores])  # (examples,)
    perplexity = {}
    for view in scores[0].losses:
        losses = np.bincount(owners, [score.losses[view] for score in scores])
        perplexity[view] = Figure.of_ratio(losses, tokens, seed).mapped(math.exp)
    return {"examples": len(examples), "tokens": int(tokens.sum()), "perplexity": perplexity}


def as_table(results: dict[str, dict[str, Any]]) -> str:
    """The tables of several sets of texts, by name, as one table in Markdown."""
    rows = []
    for name, table in results.items():
        groups = {name: table}
        for part in ("length", "position"):
            groups |= {f"{name}, {part} {label}": v for label, v in table[f"by_{part}"].items()}
        for label, group in groups.items():
            figures = group["perplexity"].values()
            shown = [f"{f.value:.1f} ({f.low:.1f} to {f.high:.1f})" for f in figures]
            rows.append([label, group["examples"], group["tokens"], *shown])
    return markdown(["text", "examples", "tokens", *table["perplexity"]], rows)


def main(command_line: list[str] | None = None) -> None:
    """Print the infilling perplexities of a model on stories and paragraphs."""
    parser = command_parser()
    add = parser.add_argument
    add("--roc", help="TSV with the columns sentence1 to sentence5")
    add("--wikitext", help="text with a paragraph or heading a line")
    add("--limit", type=int, default=100, help="texts of each to use")
    add("--views", nargs="+", choices=VIEWS, default=VIEWS, help="what to score")
    add("--output", type=output_file, help="JSON file to write")
    options = parser.parse_args(command_line)
    if not options.roc and not options.wikitext:
        parser.error("nothing to measure on: give --roc, --wikitext or both")
    model, seed = load_language_model(options.model, options.start_token), options.seed
    examples = {}
    if options.roc:
        examples["ROC Stories"] = roc_examples(options.roc, model, seed, options.limit)
    if options.wikitext:
        examples["WikiText-103"] = text_examples(options.wikitext, model, seed, options.limit)
    results = {}
    for name, given in examples.items():
        scores = infilling_scores(model, given, options.views, options.batch_size, seed)
        results[name] = perplexity_table(scores, seed)
    print("Perplexity of the missing spans' tokens (95 % bootstrap interval over texts)\n")
    print(as_table(results))
    if options.output:
        settings = {name: str(value) for name, value in vars(options).items()}
        write_json(options.output, {"settings": settings, "results": results})


if __name__ == "__main__":
    main()
