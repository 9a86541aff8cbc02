"""Stories with a missing sentence, and what a model writes in its place."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from evaluation.common.generating import GREEDY, prompt_lengths

Gap = tuple[Sequence[str], int]
"""A story of five sentences, and the number of the missing one, 1 to 5."""


class Parts(NamedTuple):
    """The text before the missing sentence, itself, and the text after it."""

    left: str
    missing: str
    right: str


def parts_of(story: Sequence[str], gap: int) -> Parts:
    """The parts of a story, its sentences joined by spaces."""
    return Parts(" ".join(story[: gap - 1]), story[gap - 1], " ".join(story[gap:]))


def checked(stories: Sequence[Sequence[str]], gaps: Sequence[int]) -> list[Gap]:
    """Each story with its gap; a ValueError where they do not fit."""
    if len(stories) != len(gaps):
        raise ValueError(f"got {len(stories)} stories and {len(gaps)} gaps: give one gap per story")
    for i, (story, gap) in enumerate(zip(stories, gaps, strict=True)):
        if len(story) != 5 or not all(story) or gap not in range(1, 6):
            raise ValueError(
                f"story {i} is {list(story)}, its gap {gap}: give five sentences that are not empty, "
                "and the number of one of them"
            )
    return list(zip(stories, gaps, strict=True))


def token_counts(tokenizer, pairs: Sequence[Gap]) -> list[int]:
    """Of each missing sentence its tokens, as they stand in the whole text."""
    texts = [" ".join(story) for story, _ in pairs]
    begins, ends = (
        prompt_lengths(texts, tokenizer, [len(" ".join(story[: gap - n])) for story, gap in pairs])
        for n in (1, 0)
    )
    return [end - begin for begin, end in zip(begins, ends, strict=True)]


def fill_gaps(
    model,
    pairs: Sequence[Gap],
    span_lengths: Sequence[int] | int | None,
    batch_size: int,
    description: str,
    **arguments: Any,
) -> list[str]:
    """What `model.infill` writes greedily for each missing sentence, without white space around it.

    Args:
        span_lengths: tokens of each gap, or of all; None: nobody gives a length.
        arguments: of `model.infill`.
    """
    parts = [parts_of(*pair) for pair in pairs]
    written = [""] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: len(parts[i].left) + len(parts[i].right))
    steps = range(0, len(order), batch_size)
    for first in tqdm(steps, desc=description):
        batch = order[first : first + batch_size]
        lengths = span_lengths
        if isinstance(lengths, Sequence):
            lengths = [lengths[i] for i in batch]
        spans = model.infill(
            [parts[i].left for i in batch],
            [f" {parts[i].right}".rstrip() for i in batch],
            span_length=lengths,
            **GREEDY,
            **arguments,
        )
        for i, span in zip(batch, spans, strict=True):
            written[i] = span.strip()
    return written
