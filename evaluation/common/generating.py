"""Texts continued greedily from their beginnings."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from evaluation.common.views import start_of

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
    order = sorted(range(len(texts)), key=lambda i: len(prompts[i]))
    for first in tqdm(range(0, len(order), batch_size), desc="Continuing"):
        batch = order[first : first + batch_size]
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

    Args:
        characters: how many characters of each text are its prompt. None: those of its first 5
            words, as the paper has it for WikiText-103.
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
