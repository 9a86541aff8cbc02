"""Infillings of a missing sentence, judged automatically (MAGNET, section 4.3, in place of Table 5's raters)."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from rouge_score import rouge_scorer

from evaluation.common.figures import Figure
from evaluation.common.generating import Gap, checked, parts_of
from evaluation.common.texts import sentences
from evaluation.common.views import Row, perplexity, start_of, token_losses

REFERENCE = "reference"
"""The missing sentence's name among the methods."""

JUDGEMENTS = ("ROUGE-L", "similarity", "story perplexity", "copied", "length", "empty")


def judge_infillings(
    written: Mapping[str, Sequence[str]],
    stories: Sequence[Sequence[str]],
    gaps: Sequence[int],
    judge_model,
    judge_encoder=None,
    examples: Sequence[Gap] = (),
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, Figure]:
    """Judge infillings automatically; an empty one counts as a bad one.

    Args:
        written, stories, gaps, examples: of `write_infillings`.
        judge_model: a causal language model that reads the stories, the same for all methods.
        judge_encoder: its `encode` makes vectors (texts, hidden) of texts. None: no similarity.

    Returns:
        Figures named `METHOD, JUDGEMENT`, in % but for the perplexity. The missing sentences are
        judged too, as `reference`, where that says something. The judgements:

        - `ROUGE-L`: F-measure against the missing sentence, of word stems (`rouge_score`).
        - `similarity`: cosine to the missing sentence, 0 for an empty infilling.
        - `story perplexity`: of all tokens of the filled-in story, read left to right. Greedy and
          copied text is below the reference's: lower is not always better.
        - `copied`: infillings with a sentence that stands in the context, or for `five_shot` in an
          example; case, punctuation and white space make no difference.
        - `length`: words written, of those of the missing sentences.
        - `empty`: infillings without a letter or digit.
    """
    pairs = checked(stories, gaps)
    missing = [parts_of(*pair).reference for pair in pairs]
    shown = [line for story, _ in examples for line in story]
    everything = {**written, REFERENCE: missing}
    losses = _story_losses(everything, pairs, judge_model, batch_size)
    figures = {}
    for method, texts in everything.items():
        seen = [[*s[: k - 1], *s[k:], *(shown if method == "five_shot" else [])] for s, k in pairs]
        shares = {"copied": [_copied(*each) for each in zip(texts, seen, strict=True)]}
        if method != REFERENCE:
            shares["ROUGE-L"] = _rouge_l(texts, missing)
            if judge_encoder is not None:
                shares["similarity"] = _cosines(texts, missing, judge_encoder)
            shares["empty"] = [float(not _plain(text)) for text in texts]
            wrote, lacked = ([len(text.split()) for text in each] for each in (texts, missing))
            figures[f"{method}, length"] = Figure.of_ratio(wrote, lacked, seed).scaled(100)
        for name, values in shares.items():
            figures[f"{method}, {name}"] = Figure.of_ratio(values, seed=seed).scaled(100)
        figures[f"{method}, story perplexity"] = perplexity(losses[method], seed)
    return figures


def _rouge_l(texts: Sequence[str], missing: Sequence[str]) -> list[float]:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(missing, texts, strict=True)
    return [scorer.score(sentence, text)["rougeL"].fmeasure for sentence, text in pairs]


def _cosines(texts: Sequence[str], missing: Sequence[str], encoder) -> list[float]:
    filled = [i for i, text in enumerate(texts) if _plain(text)]
    cosines = np.zeros(len(texts))
    if filled:
        columns = [[column[i] for i in filled] for column in (texts, missing)]
        ours, theirs = (np.asarray(encoder.encode(column), np.float64) for column in columns)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosines[filled] = (ours * theirs).sum(1) / norms
    return cosines.tolist()


def _copied(text: str, context: Sequence[str]) -> float:
    lines = {_plain(piece) for line in context for piece in (line, *sentences(line))} - {""}
    return float(any(_plain(piece) in lines for piece in (text, *sentences(text))))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _story_losses(
    written: Mapping[str, Sequence[str]], pairs: list[Gap], judge, batch_size: int
) -> dict[str, list[np.ndarray]]:
    """By method, the losses of each story's tokens; without a start token, from the second on."""
    texts = [
        " ".join(filter(None, parts_of(*pair)._replace(reference=text)))
        for method in written
        for text, pair in zip(written[method], pairs, strict=True)
    ]
    start = start_of(judge)
    token_ids = judge.text_tokenizer.ids(texts)
    rows = [Row([*start, *ids], None, [*range(1, len(start) + len(ids))]) for ids in token_ids]
    losses = token_losses(judge, rows, batch_size, "Judging")
    size = len(pairs)
    return {method: losses[n * size : (n + 1) * size] for n, method in enumerate(written)}
