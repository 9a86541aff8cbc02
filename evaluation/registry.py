"""The tasks by name: which data each needs, what can be measured on it, and how."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from evaluation.common.figures import Figure
from evaluation.common.spans import centred_examples, roc_examples, text_examples
from evaluation.common.texts import read_conll, read_paragraphs, read_stories
from evaluation.models import Model
from evaluation.names import ModelName
from evaluation.tasks.causal import blocks_of, measure_causal
from evaluation.tasks.choices import check_choices, measure_choices
from evaluation.tasks.infilling import SpanScore, infilling_scores, perplexity_table
from evaluation.tasks.prompting import measure_prompting
from evaluation.tasks.repetition import measure_repetition
from evaluation.tasks.sentences import (
    check_clustering,
    check_sts,
    measure_clustering,
    measure_sts,
    prompt_of,
)
from evaluation.tasks.windows import WINDOWS, measure_windows, middles, read_articles
from evaluation.tasks.words import measure_words, named

SPAN_LENGTHS = (8, 16, 32, 64, 128)

CHECKS: dict[str, Callable[[Sequence[str]], Any]] = {
    "sts": check_sts,
    "clustering": check_clustering,
    "words": lambda paths: [read_conll(path) for path in paths],
    "stories": lambda paths: read_stories(paths[0]),
    "text": lambda paths: read_paragraphs(paths[0]),
    "choices": check_choices,
}
"""What raises where data of a kind are missing or broken, before any model is loaded."""


@dataclass(frozen=True)
class Suite:
    """How much of its data a task uses; None: all."""

    pairs: int | None  # of each STS set
    titles: int | None  # to cluster
    sentences: tuple[int | None, int | None]  # in words, to train on and to test on
    stories: int | None  # with a missing sentence
    paragraphs: int  # with missing spans
    long_paragraphs: int  # with a span of each length
    prompted: int  # stories infilled by prompting
    continued: int  # texts of each kind
    articles: int | None  # with a missing span in windows of growing length
    blocks: int | None  # of 512 tokens
    questions: int | None  # of each set


SUITES = {
    "quick": Suite(400, 1000, (600, 300), 60, 40, 8, 12, 16, 12, 12, 100),
    "paper": Suite(None, None, (None, None), None, 500, 200, 100, 200, None, None, None),
}


class Context(NamedTuple):
    """What a task is measured with."""

    suite: Suite
    seed: int = 0
    batch_size: int = 8
    judge_model: Any = None  # a language model; None: the one that is measured
    judge_encoder: Any = None  # None: no similarity to the reference


@dataclass(frozen=True)
class Result:
    """What a task found: figures by name, and what a figure or a reader may be made of later."""

    figures: dict[str, Figure]
    details: dict[str, Any] = field(default_factory=dict)


class Task(NamedTuple):
    """What is measured, on what, and of which models."""

    shows: str
    data: Sequence[str]  # kinds, see `evaluation.data`
    needs: str  # of a model: vectors, words, or generation
    measure: Callable[..., Result]  # of the model, a Context, and the sources of each kind;
    # where generation is needed, the model is the language model itself
    window: int = 0  # tokens that a language model must be able to read

    def fits(self, name: ModelName) -> bool:
        """Whether a model of this kind can be measured on the task."""
        if self.needs == "generation":
            return name.generates
        return self.needs == "vectors" or name.kind != "sentence-transformers"


def _sts(model: Model, context: Context, sources: list[str]) -> Result:
    """With the paper's prompt; and of a MAGNET model with the default prompt and with none."""
    prompts = {"": prompt_of(model, "STS")}
    if model.name.startswith("magnet:"):
        default = model.language_model.magnet_settings.prompt_text(None, None)
        prompts |= {", default prompt": default, ", no prompt": ""}
    figures: dict[str, Figure] = {}
    for suffix, prompt in prompts.items():
        # Prompts compare on one set; the other sets are measured with the paper's.
        benchmark = [source for source in sources if "STSB" in source] or sources
        chosen = benchmark[:1] if suffix else sources
        found = measure_sts(model, chosen, prompt, context.suite.pairs, context.seed)
        figures |= {name + suffix: figure for name, figure in found.items()}
    return Result(figures)


def _clustering(model: Model, context: Context, sources: list[str]) -> Result:
    """With the paper's prompts where a set has one, else the model's default."""
    limit, seed = context.suite.titles, context.seed
    return Result(measure_clustering(model, sources, limit=limit, seed=seed))


def _words(model: Model, context: Context, paths: list[str]) -> Result:
    (train, test), limit, seed = paths, context.suite.sentences, context.seed
    return Result(named(measure_words(model.encode_words, train, test, limit=limit, seed=seed)))


def _infilling(model: Any, context: Context, stories: list[str], text: list[str]) -> Result:
    suite, seed = context.suite, context.seed
    examples = {
        "ROC Stories": roc_examples(stories[0], model, seed, suite.stories),
        "WikiText-103": text_examples(text[0], model, seed, suite.paragraphs),
    }
    figures: dict[str, Figure] = {}
    details = {}
    for name, given in examples.items():
        scores = infilling_scores(model, given, batch_size=context.batch_size, seed=seed)
        table = perplexity_table(scores, seed)
        for view, figure in table["perplexity"].items():
            figures[f"{name}, {spoken(view)}"] = figure
        details[name] = losses = _losses_of_texts(scores)
        for view in ("left_only", "shuffled", "prompted"):
            ratio = perplexity_ratio(losses, "both_sides", losses, view, seed)
            figures[f"{name}, both sides / {spoken(view)}"] = ratio
        for position, group in table["by_position"].items():
            for view in ("both_sides", "left_only"):
                label = f"{name}, position {position}, {spoken(view)}"
                figures[label] = group["perplexity"][view]
    return Result(figures, details)


def _losses_of_texts(scores: Sequence[SpanScore]) -> dict[str, list[float]]:
    """Of each text the tokens of its spans, and in each view their summed loss."""
    _, owners = np.unique([score.example for score in scores], return_inverse=True)
    columns = {view: [score.losses[view] for score in scores] for view in scores[0].losses}
    columns["tokens"] = [score.length for score in scores]
    return {name: np.bincount(owners, values).tolist() for name, values in columns.items()}


def perplexity_ratio(
    one: dict[str, list[float]], view: str, other: dict[str, list[float]], than: str, seed: int = 0
) -> Figure:
    """The ratio of two perplexities of the same texts, with an interval that knows they are the same.

    `one` and `other` are details of the task `infilling`, of one model or of two.

    Raises:
        ValueError: the texts are not the same.
    """
    if one["tokens"] != other["tokens"]:
        raise ValueError("the two were measured on other spans: measure them with the same data")
    difference = np.subtract(one[view], other[than])  # (texts,)
    return Figure.of_ratio(difference, one["tokens"], seed).mapped(math.exp)


def _span_length(model: Any, context: Context, text: list[str]) -> Result:
    views, count, seed = ("both_sides", "left_only"), context.suite.long_paragraphs, context.seed
    figures: dict[str, Figure] = {}
    for length in SPAN_LENGTHS:
        examples = centred_examples(text[0], model, length, seed, count)
        scores = infilling_scores(model, examples, views, context.batch_size)
        for view, figure in perplexity_table(scores, seed)["perplexity"].items():
            figures[f"{length} tokens, {spoken(view)}"] = figure
    return Result(figures)


def _windows(model: Any, context: Context, text: list[str]) -> Result:
    articles = middles(read_articles(text[0]), model, context.seed, context.suite.articles)
    return Result(measure_windows(model, articles, seed=context.seed))


def _prompting(model: Any, context: Context, stories: list[str]) -> Result:
    judges = context.judge_model, context.judge_encoder
    figures, written = measure_prompting(
        model, stories[0], context.suite.prompted, context.seed, *judges, context.batch_size
    )
    return Result(figures, {"infillings": written})


def _repetition(model: Any, context: Context, stories: list[str], text: list[str]) -> Result:
    limit, size = context.suite.continued, 2 * context.batch_size
    figures: dict[str, Figure] = {}
    for name, path in (("WikiText-103", text[0]), ("ROC Stories", stories[0])):
        found = measure_repetition(model, path, limit, batch_size=size, seed=context.seed)
        figures |= {f"{name}, {label}": figure for label, figure in found.items()}
    return Result(figures)


def _causal(model: Any, context: Context, text: list[str]) -> Result:
    blocks = blocks_of(text[0], model, limit=context.suite.blocks, seed=context.seed)
    return Result({"WikiText-103": measure_causal(model, blocks, context.batch_size, context.seed)})


def _choices(model: Any, context: Context, sources: list[str]) -> Result:
    """MMLU after five solved examples, which gives LLaMA-2-7B the 45.3 of Table 6; others after none."""
    limit, seed, size = context.suite.questions, context.seed, context.batch_size
    figures: dict[str, Figure] = {}
    for source in sources:
        shots = 5 if source == "mmlu" else 0
        figures |= measure_choices(model, [source], limit, seed, size, shots)
    return Result(figures)


def spoken(view: str) -> str:
    """A view's name in words."""
    return view.replace("_", " ")


TASKS = {
    "sts": Task(
        "Table 2: Spearman x 100 of cosine similarity with human scores",
        ["sts"], "vectors", _sts,
    ),
    "clustering": Task(
        "Table 3: V-measure x 100 of k-means",
        ["clustering"], "vectors", _clustering,
    ),
    "words": Task(
        "Table 1: linear classifiers on frozen word vectors, %",
        ["words"], "words", _words,
    ),
    "infilling": Task(
        "Table 4: perplexity of missing spans",
        ["stories", "text"], "generation", _infilling, 1280,
    ),
    "span-length": Task(
        "Appendix E: perplexity of a missing span against its length",
        ["text"], "generation", _span_length, 512,
    ),
    "windows": Task(
        "Perplexity of a missing span, and the vector of a paragraph, against the text around it",
        ["text"], "generation", _windows, WINDOWS[-1],
    ),
    "causal": Task(
        "Appendix E: perplexity of plain text under causal attention",
        ["text"], "generation", _causal, 512,
    ),
    "prompting": Task(
        "Tables 5, 9, 10: infillings written for a missing sentence, judged",
        ["stories"], "generation", _prompting, 1024,
    ),
    "repetition": Task(
        "Figure 5: repetition in greedy continuations, %",
        ["stories", "text"], "generation", _repetition, 256,
    ),
    "choices": Task(
        "Table 6: accuracy of multiple choice, %",
        ["choices"], "generation", _choices,
    ),
}  # fmt: skip
