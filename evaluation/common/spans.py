"""Texts with missing spans, as token ids and a span map: the examples that infilling is scored on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluation.common.texts import read_paragraphs, read_stories
from evaluation.common.views import start_of

SPANS_OF_A_TEXT = 3
SPAN_LENGTHS = (8, 32)
LONGEST_SPAN = 128
"""The longest that the paper trains, and speaks of as long."""


class Example(NamedTuple):
    """A text with spans to infill; `positions` says where each span stands, from 1 to 5.

    In a story that is the number of the sentence, in other text the fifth that the span begins in.
    """

    token_ids: list[int]
    span_ids: list[int]
    positions: list[int]

    @classmethod
    def of_text(cls, token_ids: list[int], span_ids: list[int]) -> "Example":
        """An example whose positions are the fifths of the text in which the spans begin."""
        if len(token_ids) != len(span_ids):
            raise ValueError(
                f"got {len(token_ids)} tokens and {len(span_ids)} entries of a span map: give one "
                "entry per token"
            )
        firsts = [span_ids.index(k) for k in sorted(set(span_ids) - {0})]
        return cls(token_ids, span_ids, [5 * first // len(span_ids) + 1 for first in firsts])


def roc_examples(path: str | Path, model, seed: int = 0, limit: int | None = None) -> list[Example]:
    """Stories with one sentence of five as the span, drawn by the seed, whatever the limit.

    Raises:
        ValueError: as in `read_stories`, or the model has no start token, which predicts the first
            sentence's first token.
    """
    start = model.magnet_settings.start_token_id
    if start is None:
        raise ValueError(
            "the checkpoint has no start token, which must stand before a missing first sentence: "
            "set start_token_id in config.magnet"
        )
    stories = read_stories(path)
    drawn = np.random.default_rng(seed).integers(5, size=len(stories)).tolist()
    tokenizer = model.text_tokenizer
    examples = []
    for story, k in zip(stories[:limit], drawn, strict=False):
        ends = np.cumsum([len(sentence) + 1 for sentence in story]) - 1  # (5,) characters
        (token_ids,), (offsets,) = tokenizer.ids_and_offsets([" ".join(story)])
        # The sentence in which a token's last character stands; a space leads the next sentence.
        owners = np.searchsorted(ends, [end for _, end in offsets])
        spans = (owners == k).astype(int).tolist()
        examples.append(Example([start, *token_ids], [0, *spans], [k + 1]))
    return examples


def text_examples(
    path: str | Path,
    model,
    seed: int = 0,
    limit: int = 100,
    shortest: int = 64,
    longest: int = 512,
) -> list[Example]:
    """Paragraphs of `shortest` to `longest` tokens with up to 3 spans of 8 to 32 tokens; none is cut.

    Raises:
        ValueError: as in `read_paragraphs`, or no paragraph fits.
    """
    texts = read_paragraphs(path)
    texts = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    rows = tokenize_rows(texts, model, shortest, longest, limit)
    return [
        Example.of_text(row, spans)
        for row, spans in zip(rows, draw_spans(list(map(len, rows)), seed), strict=True)
    ]


def centred_examples(
    path: str | Path, model, length: int, seed: int = 0, limit: int = 100, longest: int = 512
) -> list[Example]:
    """Paragraphs with one span of `length` tokens in the middle (Appendix E).

    They have twice `LONGEST_SPAN` to `longest` tokens. They are the same whatever the length, so that spans
    of several lengths compare.

    Raises:
        ValueError: as in `read_paragraphs`, no paragraph fits, or the span exceeds `LONGEST_SPAN`.
    """
    if not 1 <= length <= LONGEST_SPAN:
        raise ValueError(f"the span length is {length}: give 1 to {LONGEST_SPAN}")
    texts = read_paragraphs(path)
    texts = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    examples = []
    for row in tokenize_rows(texts, model, 2 * LONGEST_SPAN, longest, limit):
        first = (len(row) - length) // 2
        spans = [0] * first + [1] * length + [0] * (len(row) - first - length)
        examples.append(Example.of_text(row, spans))
    return examples


def tokenize_rows(
    texts: list[str], model, shortest: int = 48, longest: int = 192, count: int = 64
) -> list[list[int]]:
    """The first `count` texts of `shortest` to `longest` tokens, the model's start token first; none is cut.

    Raises:
        ValueError: no text fits.
    """
    rows = [start_of(model) + ids for ids in model.text_tokenizer.ids(texts)]
    rows = [row for row in rows if shortest <= len(row) <= longest][:count]
    if not rows:
        raise ValueError(f"no text has {shortest} to {longest} tokens")
    return rows


def draw_spans(lengths: list[int], seed: int) -> list[list[int]]:
    """Span maps of texts of these lengths: up to 3 spans a text, of 8 to 32 tokens (section 4.3).

    Context stands before, between and after the spans. A text has as many spans as leave each at least as
    much context as it may take.
    """
    generator = np.random.default_rng(seed)
    maps = []
    for length in lengths:
        most = max(1, min(SPANS_OF_A_TEXT, length // (2 * SPAN_LENGTHS[1])))
        count = int(generator.integers(1, most + 1))
        share = length // count  # each span keeps to its own share of the text
        row = np.zeros(length, dtype=np.int64)
        for k in range(count):
            span_length = int(generator.integers(SPAN_LENGTHS[0], SPAN_LENGTHS[1] + 1))
            span_length = min(span_length, share - 2)
            start = int(generator.integers(k * share + 1, (k + 1) * share - span_length))
            row[start : start + span_length] = k + 1
        maps.append(row.tolist())
    return maps
