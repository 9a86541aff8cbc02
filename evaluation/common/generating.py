"""What a model writes greedily: after the beginning of a text, and in place of a missing sentence."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from evaluation.common.views import start_of
from modeling_magnet.batching import batches_of

PROMPT_WORDS = 5
GREEDY = {
    "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
}  # fmt: skip
"""Greedy decoding, whatever a checkpoint's generation config holds."""


class Continuation(NamedTuple):
    """A prompt, what the model wrote after it, and what stands there in the text."""

    prompt: str
    written: str
    original: str


@torch.no_grad()
def continuations(
    model,
    texts: Sequence[str],
    prompt_tokens: int | Sequence[int],
    new_tokens: int = 128,
    batch_size: int = 16,
) -> list[Continuation]:
    """Continue the beginnings of texts greedily.

    Args:
        model: with a tokenizer and `magnet_settings`, whose start token begins each prompt.
        prompt_tokens: how many tokens of a text are its prompt, for all or one each.
        new_tokens: the most to write, and to take of the original. A continuation ends earlier at an
            end token, or at the start token: what stands after that is another document.

    Returns:
        In the order of `texts`.

    Raises:
        ValueError: numbers of texts and prompts differ, or a prompt has no token.
    """
    counts = [prompt_tokens] * len(texts) if isinstance(prompt_tokens, int) else list(prompt_tokens)
    if len(counts) != len(texts):
        raise ValueError(f"got {len(texts)} texts and {len(counts)} prompt lengths: give one each")
    tokenizer, settings = model.text_tokenizer, model.magnet_settings
    start = start_of(model)
    token_ids = tokenizer.ids(list(texts))
    prompts = [start + ids[:count] for ids, count in zip(token_ids, counts, strict=True)]
    for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        if count < 0 or not prompt:
            raise ValueError(f"text {i} has a prompt of {count} tokens: give 1 or more")
    ends = id_set(model.generation_config.eos_token_id) | {settings.end_token_id, *start}
    written: list[list[int]] = [[] for _ in texts]
    batches = batches_of([len(prompt) for prompt in prompts], batch_size, None)
    for batch in tqdm(batches, desc="Continuing"):
        rows = [torch.tensor(prompts[i], device=model.device) for i in batch]
        ids = pad_sequence(rows, batch_first=True, padding_side="left")  # (batch, longest)
        ones = [torch.ones_like(row) for row in rows]
        output = model.generate(
            input_ids=ids,
            attention_mask=pad_sequence(ones, batch_first=True, padding_side="left"),
            max_new_tokens=new_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=settings.end_token_id,
            **GREEDY,
        )
        for i, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
            stop = next((j for j, token in enumerate(row) if token in ends), len(row))
            written[i] = row[:stop]

    made = []
    for prompt, row, ids, count in zip(prompts, written, token_ids, counts, strict=True):
        later = tokenizer.continued if count else tokenizer
        original = later.decode(ids[count : count + new_tokens])
        made.append(Continuation(tokenizer.decode(prompt), later.decode(row), original))
    return made


def prompt_lengths(
    texts: Sequence[str], tokenizer, characters: Sequence[int] | None = None
) -> list[int]:
    """How many tokens of each text its prompt has.

    A prompt is so many `characters` of each text, or the first 5 words, as the paper has it for
    WikiText-103.
    """
    if characters is None:
        words = [list(re.finditer(r"\S+", text))[:PROMPT_WORDS] for text in texts]
        characters = [found[-1].end() if found else 0 for found in words]
    _, offsets = tokenizer.ids_and_offsets(list(texts))
    return [
        sum(end <= limit for _, end in ends)
        for ends, limit in zip(offsets, characters, strict=True)
    ]


def id_set(value: int | list[int] | None) -> set[int]:
    """The ids of a setting that holds one, several or none."""
    if value is None:
        return set()
    return {value} if isinstance(value, int) else set(value)


Gap = tuple[Sequence[str], int]
"""A story of five sentences, and the number of the missing one, 1 to 5."""


class Parts(NamedTuple):
    """The text before the missing sentence, itself, and the text after it."""

    left: str
    reference: str
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

    `span_lengths` are the tokens of each gap, or of all; None: nobody gives a length.
    """
    parts = [parts_of(*pair) for pair in pairs]
    written = [""] * len(pairs)
    batches = batches_of([len(part.left) + len(part.right) for part in parts], batch_size, None)
    for batch in tqdm(batches, desc=description):
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
