"""Gives each token of a text with gaps its position and its column in the cache (MAGNET, section 3.2.3).

Position ids say where a token is in the text. Those of a gap belong to no token until its span is
written. Columns say in which order tokens are read. To fill a gap, the context is read in cache order:
first what follows the gap, then what precedes it.

    text      The old   [gap of 3]   was quiet.          cache      was quiet.   The old   span ...
    position   0   1     2  3  4      5    6    7                     5    6  7    0   1    2 ...

So the last context token is the one before the gap. Its output predicts the span's first token, and the
span is appended as `generate` appends to any prompt. The order of columns changes no key and no value,
since context sees all context. The blanks of a text therefore share one reading of it, each with its
columns in another order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache

from .compat import CACHE
from .devices import apply_is_causal, input_device
from .masking import CONTEXT, attention_arguments


@dataclass(frozen=True)
class Layout:
    """A text with gaps.

    Attributes:
        parts: token ids of the text around the gaps, in order: one more than there are gaps.
        gaps: how many positions each gap has.

    Example:
        >>> layout = Layout(parts=[[11, 12], [13]], gaps=[3])
        >>> layout.token_ids, layout.positions, layout.cache_order(0)
        ([11, 12, 13], [0, 1, 5], [2, 0, 1])
    """

    parts: Sequence[list[int]]
    gaps: Sequence[int]

    @property
    def token_ids(self) -> list[int]:
        """Token ids of the context, in the order of the text."""
        return [token for part in self.parts for token in part]

    @property
    def positions(self) -> list[int]:
        """Position ids of the same tokens."""
        found: list[int] = []
        start = 0
        for part, gap in zip(self.parts, [*self.gaps, 0], strict=True):
            found += range(start, start + len(part))
            start += len(part) + gap
        return found

    @property
    def context_length(self) -> int:
        """How many tokens the context has."""
        return sum(map(len, self.parts))

    @property
    def length(self) -> int:
        """How many positions the text has, including gaps."""
        return self.context_length + sum(self.gaps)

    def tokens_before(self, blank: int) -> int:
        """How many tokens of the context precede a blank."""
        return sum(map(len, self.parts[: blank + 1]))

    def cache_order(self, blank: int) -> list[int]:
        """For each column of the cache while this blank is written, the token's number in the text."""
        before = self.tokens_before(blank)
        return [*range(before, self.context_length), *range(before)]

    def filled(self, blank: int, span: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Token ids, positions and span map of the text with one blank filled, in the text's order.

        Example:
            >>> Layout(parts=[[11, 12], [13]], gaps=[3]).filled(0, [7, 8])
            ([11, 12, 7, 8, 13], [0, 1, 2, 3, 5], [0, 0, 1, 1, 0])
        """
        token_ids, positions, first = self.token_ids, self.positions, self.tokens_before(blank)
        begin = positions[first - 1] + 1
        span_ids = [CONTEXT] * len(token_ids)
        token_ids[first:first] = span
        positions[first:first] = range(begin, begin + len(span))
        span_ids[first:first] = [1] * len(span)
        return token_ids, positions, span_ids


def context_inputs(
    layouts: Sequence[Layout], orders: Sequence[list[int]] | None = None, device: Any = None
) -> dict[str, torch.Tensor]:
    """Arguments of `forward` or `generate`: left-padded tensors (layouts, length), all context.

    Args:
        layouts: one per row.
        orders: the order of each row's columns. None: that of the text.
        device: of the tensors.
    """
    orders = orders or [list(range(layout.context_length)) for layout in layouts]
    length = max(map(len, orders))

    def left_padded(rows: Sequence[list[int]]) -> torch.Tensor:
        return torch.tensor([[0] * (length - len(row)) + row for row in rows], device=device)

    def ordered(rows: Sequence[list[int]]) -> torch.Tensor:
        pairs = zip(rows, orders, strict=True)
        return left_padded([[row[column] for column in order] for row, order in pairs])

    return {
        "input_ids": ordered([layout.token_ids for layout in layouts]),
        "position_ids": ordered([layout.positions for layout in layouts]),
        "attention_mask": left_padded([[1] * len(order) for order in orders]),
        "span_ids": torch.full((len(layouts), length), CONTEXT, device=device),
    }


def read_contexts(model: Any, layouts: Sequence[Layout]) -> DynamicCache:
    """Keys and values of whole contexts, left-padded, with columns in the order of the text."""
    inputs = context_inputs(layouts, device=input_device(model))
    cache = DynamicCache(config=model.config)
    arguments = attention_arguments(
        model.config,
        inputs["span_ids"],
        query_length=inputs["input_ids"].shape[1],
        dtype=model.dtype,
        attention_mask=inputs["attention_mask"],
    )
    apply_is_causal(model.base_model, arguments)(
        input_ids=inputs["input_ids"],
        position_ids=inputs["position_ids"],
        use_cache=True,
        **{CACHE: cache},
        **arguments,
    )
    return cache


def gather_columns(cache: Cache, sources: torch.Tensor, columns: torch.Tensor) -> None:
    """Rebuild a cache in place: each new row is made of columns of one of the old rows.

    Args:
        cache: keys and values are (sources, heads, columns, size).
        sources: (rows,) the old row that each new row is made of.
        columns: (rows, length) its columns, in order.
    """
    for layer in cache.layers:
        for name in ("keys", "values"):
            states = getattr(layer, name)
            index = sources[:, None].to(states.device), columns.to(states.device)
            gathered = states.transpose(1, 2)[index]  # (rows, length, heads, size)
            setattr(layer, name, gathered.transpose(1, 2).contiguous())
