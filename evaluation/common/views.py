"""Four views in which the tokens of a missing span are scored, and their losses.

- `both_sides`: hybrid mask, the span sees all of the context; what MAGNET infills with.
- `left_only`: plain causal attention; the base model of Table 4. A later span of a text sees the
  earlier ones here, which `both_sides` hides.
- `shuffled`: `both_sides` with the context tokens after the span in random order (their set stays):
  worse for a model that reads the right side, the same for one that does not.
- `prompted`: plain causal attention after a prompt that shows the text with its gaps, by which a
  base model can know the right side (Appendix B.1): `PROMPT`, then the text up to the last span.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from evaluation.common.figures import Figure
from modeling_magnet.batching import batches_of

VIEWS = ("both_sides", "left_only", "shuffled", "prompted")
BLANK = " ___"
PROMPT = (
    "Fill in the blank ({blank}) of this text:\n",
    "\n\nThe text with the blank filled in:\n",
)
"""What stands before the gapped text, and between it and the text.

Of 17 wordings tried with SmolLM2-135M-Instruct on 60 ROC stories (24.0 to 31.5, among them one after
the paper's blank prompt and one as a chat turn), the best that serves any text: perplexity 24.8, left
only 32.0. The best of all spoke of a story.
"""


class Row(NamedTuple):
    """What one forward pass reads: `span_ids` None is plain causal; `scored` are token indices."""

    token_ids: list[int]
    span_ids: list[int] | None
    scored: list[int]


def rows_of_view(view: str, model, example, spans: list[list[int]], seed: Any = 0) -> list[Row]:
    """The rows whose scored tokens are, in order, those of an example's spans, given by token indices.

    Raises:
        ValueError: the view is unknown.
    """
    scored = [column for span in spans for column in span]
    if view == "both_sides":
        return [Row(example.token_ids, example.span_ids, scored)]
    if view == "left_only":
        return [Row(example.token_ids, None, scored)]
    if view == "shuffled":  # a row a span: what is after one is before the next
        generator = np.random.default_rng(seed)
        return [
            Row(_shuffled(example, span, generator), example.span_ids, [*span]) for span in spans
        ]
    if view == "prompted":
        first = len(start_of(model))
        prompt = _prompt(model, example, first)
        whole = prompt + example.token_ids[first : scored[-1] + 1]
        return [Row(whole, None, [column + len(prompt) - first for column in scored])]
    raise ValueError(f"unknown view {view!r}: there are {list(VIEWS)}")


def _shuffled(example, span: list[int], generator: np.random.Generator) -> list[int]:
    ids = np.array(example.token_ids)
    behind = np.flatnonzero(np.array(example.span_ids) == 0)
    behind = behind[behind > span[-1]]
    ids[behind] = ids[generator.permutation(behind)]
    return ids.tolist()


def _prompt(model, example, first: int) -> list[int]:
    """The start token, the prompt and the text with a blank for each span, in the text's tokens."""
    tokenizer = model.text_tokenizer
    (before,) = tokenizer.ids([PROMPT[0].format(blank=BLANK.strip())])
    between, blank = tokenizer.continued.ids([PROMPT[1], BLANK])
    gapped: list[int] = []
    for column, (token, k) in enumerate(zip(example.token_ids, example.span_ids, strict=True)):
        if k == 0:
            gapped.append(token)
        elif example.span_ids[column - 1] != k:
            gapped += blank
    return gapped[:first] + before + gapped[first:] + between


@torch.no_grad()
def token_losses(model, rows: list[Row], batch_size: int, description: str) -> list[np.ndarray]:
    """The negative log-probability of each row's scored tokens, (scored tokens,); the head sees no others.

    Raises:
        ValueError: a row is longer than the checkpoint's `max_length`.
    """
    limit = model.magnet_settings.max_length
    longest = max(len(row.token_ids) for row in rows)
    if longest > limit:
        raise ValueError(f"a row has {longest} positions, the limit is {limit}: give shorter texts")
    losses: list[np.ndarray] = [np.empty(0)] * len(rows)
    batches = batches_of([len(row.token_ids) for row in rows], batch_size, None)
    for chosen in tqdm(batches, desc=description):
        batch = [rows[i] for i in chosen]
        ids = _padded([row.token_ids for row in batch], model.device)  # (batch, length)
        hidden = _hidden_states(model, batch, ids)  # (batch, length, hidden)
        owners = [n for n, row in enumerate(batch) for _ in row.scored]
        columns = torch.tensor([column for row in batch for column in row.scored])
        logits = model._logits(hidden[owners, columns - 1]).float()
        targets = ids[owners, columns].to(logits.device)  # (scored tokens,)
        values = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        ends = np.cumsum([len(row.scored) for row in batch])
        for i, part in zip(chosen, np.split(values.cpu().numpy(), ends[:-1]), strict=True):
            losses[i] = part
    return losses


def _hidden_states(model, batch: list[Row], ids: torch.Tensor) -> torch.Tensor:
    mask = _padded([[1] * len(row.token_ids) for row in batch], model.device)
    maps = [row.span_ids for row in batch if row.span_ids is not None]
    if maps:
        return model._span_states(ids, _padded(maps, model.device), mask.bool())
    output = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return output.last_hidden_state


def _padded(values: list[list[int]], device) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in values], batch_first=True).to(device)


def perplexity(losses: Sequence[np.ndarray], seed: int = 0) -> Figure:
    """The perplexity of all tokens of `token_losses`, with its interval over rows."""
    sums, counts = [part.sum() for part in losses], [len(part) for part in losses]
    return Figure.of_ratio(sums, counts, seed).mapped(math.exp)


def start_of(model) -> list[int]:
    """The start token of a model's sequences, if it has one."""
    start = model.magnet_settings.start_token_id
    return [] if start is None else [start]
