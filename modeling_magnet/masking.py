"""Checks span maps, and makes the hybrid attention mask from them (MAGNET, section 3.1)."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Cache, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

CONTEXT = 0
"""The value of a context token in a span map; every larger value numbers a span."""

SPAN_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Data types of a span map."""

MASK_BACKENDS = ("eager", "sdpa", "flex_attention")
"""Attention backends of transformers that honour a custom mask; the flash kernels drop it."""


def hybrid_mask_function(
    span_ids: torch.Tensor,
    padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> Callable[..., torch.Tensor]:
    """Make the predicate "may query q see key k" of a batch of span maps.

    A context token sees all context; a span token sees all context and the earlier tokens of its own
    span. With one span `s` in the middle of context `c` (rows are queries, columns are keys):

             c c s s c
        c    ■ ■ ⬚ ⬚ ■
        c    ■ ■ ⬚ ⬚ ■
        s    ■ ■ ■ ⬚ ■
        s    ■ ■ ■ ■ ■
        c    ■ ■ ⬚ ⬚ ■

    All zeros is bidirectional attention, all ones is causal attention. A padding key is seen by
    nobody but itself: without that exception a padding query could have no key at all, which some
    CUDA kernels answer with NaN.

    Args:
        span_ids: (batch, columns) the span map: 0 is context, k >= 1 the k-th span.
        padding_mask: (batch, columns) True where a column holds a real token. None: everywhere.
        document_ids: (batch, columns) the document of each column, where a row holds several that
            must not see each other. None: a row is one document.

    Returns:
        `f(batch, head, q, k)` in the form that transformers' `masking_utils` takes. `q` and `k` are
        absolute columns, cached ones included.

    Example:
        >>> sees = hybrid_mask_function(torch.tensor([[0, 1, 1, 0]]))
        >>> columns = torch.arange(4)
        >>> sees(0, 0, columns[:, None], columns).int()
        tensor([[1, 0, 0, 1],
                [1, 1, 0, 1],
                [1, 1, 1, 1],
                [1, 0, 0, 1]], dtype=torch.int32)
    """

    def predicate(batch, head, q, k):
        span_of_key = span_ids[batch, k]
        allowed = (span_of_key == CONTEXT) | ((span_ids[batch, q] == span_of_key) & (k <= q))
        if document_ids is not None:
            allowed = allowed & (document_ids[batch, q] == document_ids[batch, k])
        if padding_mask is not None:
            allowed = (allowed & padding_mask[batch, k]) | (q == k)
        return allowed

    return predicate


def check_span_ids(span_ids: torch.Tensor, batch_size: int, length: int) -> None:
    """Raise unless `span_ids` is a valid span map for `length` columns.

    Args:
        span_ids: the map to check.
        batch_size: the rows it must have.
        length: the columns it must have, cached ones included.

    Raises:
        TypeError: it is not a dense tensor of one of `SPAN_DTYPES`.
        ValueError: its shape differs, an entry is negative, or a span is in two pieces.
    """
    _check_tensor("span_ids", span_ids, SPAN_DTYPES, "0 for context, k for span k")
    if span_ids.shape != (batch_size, length):
        raise ValueError(
            f"span_ids has shape {tuple(span_ids.shape)}, the tokens (cached ones included) have "
            f"({batch_size}, {length}): give one entry per token"
        )
    if span_ids.numel() == 0 or torch.compiler.is_compiling():
        return  # inside a compiled graph the values cannot be looked at without breaking it
    if span_ids.min() < 0:
        raise ValueError(
            f"span_ids holds {int(span_ids.min())}: 0 is context and spans count from 1"
        )
    starts = torch.ones_like(span_ids, dtype=torch.bool)
    starts[:, 1:] = span_ids[:, 1:] != span_ids[:, :-1]
    rows, columns = (starts & (span_ids > CONTEXT)).nonzero(as_tuple=True)
    pieces = torch.stack([rows, span_ids[rows, columns].long()], dim=1)
    unique, counts = torch.unique(pieces, dim=0, return_counts=True)
    if unique.shape[0] != pieces.shape[0]:
        row, span = unique[counts > 1][0].tolist()
        raise ValueError(
            f"span_ids: span {span} of row {row} is in {int(counts.max())} pieces, but a span is one "
            "unbroken run of tokens: number the pieces differently"
        )


def check_attention_mask(attention_mask: Any, batch_size: int, length: int) -> None:
    """Raise unless `attention_mask` says of each of `length` columns whether it holds a token.

    Args:
        attention_mask: the mask to check; None is fine.
        batch_size: the rows it must have.
        length: the columns it must have, cached ones included.

    Raises:
        TypeError: it is not a dense tensor of numbers.
        ValueError: its shape differs, or an entry is neither 0 nor 1.
    """
    if attention_mask is None:
        return
    dtypes = (*SPAN_DTYPES, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    _check_tensor("attention_mask", attention_mask, dtypes, "1 for a token, 0 for padding")
    if attention_mask.shape != (batch_size, length):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, the tokens (cached ones "
            f"included) have ({batch_size}, {length}): give one entry per token"
        )
    if torch.compiler.is_compiling():
        return
    odd = attention_mask[(attention_mask != 0) & (attention_mask != 1)]
    if len(odd):
        raise ValueError(f"attention_mask holds {odd[0].item()}: give 1 for a token, 0 for padding")


def _check_tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...], meaning: str) -> None:
    got = type(value).__name__
    if isinstance(value, torch.Tensor):
        if value.layout == torch.strided and value.dtype in dtypes:
            return
        got = str(value.dtype if value.layout == torch.strided else value.layout)
    raise TypeError(f"{name} is {got}: give a dense integer tensor (torch.long), {meaning}")


def cached_length(cache: Cache | None) -> int:
    """How many tokens a cache holds."""
    return int(cache.get_seq_length()) if cache is not None else 0


def extend_span_ids(span_ids: torch.Tensor, length: int) -> torch.Tensor:
    """Extend a span map to `length` columns by one open span, as `generate()` does with a prompt.

    The open span continues the span that the map ends in. After context, it is a new span.

    Args:
        span_ids: (batch, columns).
        length: the columns wanted, at least as many as there are.

    Returns:
        (batch, length).

    Example:
        >>> extend_span_ids(torch.tensor([[0, 1, 1, 0]]), 6)
        tensor([[0, 1, 1, 0, 2, 2]])
    """
    last = span_ids[:, -1:]
    opened = torch.where(last == CONTEXT, span_ids.amax(dim=1, keepdim=True) + 1, last)
    return torch.cat([span_ids, opened.expand(-1, length - span_ids.shape[1])], dim=1)


def sliding_window(config: PreTrainedConfig) -> int | None:
    """How many of the last tokens a sliding-window layer of the model sees.

    A window counts columns of the cache, and in the order in which infilling reads, the text after a gap
    comes before it. So a span map works only for sequences that fit into the window. There the window
    hides nothing, and the hybrid mask is exact in every layer.

    Args:
        config: the model's.

    Returns:
        None for a model all of whose layers see everything.
    """
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    return getattr(config, "sliding_window", None)


def attention_arguments(
    config: PreTrainedConfig,
    span_ids: torch.Tensor,
    query_length: int,
    dtype: torch.dtype,
    attention_mask: torch.Tensor | None = None,
    cache: Cache | None = None,
    document_ids: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Turn a span map into what the stock decoder takes.

    Args:
        config: the model's; its current attention backend is read at every call, because
            `set_attn_implementation` may change it.
        span_ids: (batch, past + query_length) the span map of all columns so far.
        query_length: how many of the last columns are queries.
        dtype: of the hidden states (eager adds the mask to its scores).
        attention_mask: (batch, past + query_length) 1 for tokens, 0 for padding. None: no padding.
        cache: its tokens precede the queries. A static cache is longer than what it holds.
        document_ids: (batch, query_length) the document of each column (training on packed blocks,
            without a cache). None: a row is one document.

    Returns:
        `attention_mask` as the backend wants it: a bool (sdpa) or additive (eager) tensor of shape
        (batch, 1, query_length, keys), or a BlockMask (flex_attention); one for each type of layer
        where their caches differ in length. Flash kernels take no mask: there, all context is
        `is_causal=False`, all one span needs nothing, and a single row is declared to be one sequence.

    Raises:
        ValueError: the backend drops custom masks and the map needs one, `attention_mask` or
            `document_ids` has another shape than `span_ids`, or the model has sliding-window layers
            and the map more columns than the window.
    """
    backend = config._attn_implementation
    batch_size, columns = span_ids.shape
    window = sliding_window(config)
    if window is not None and columns > window:
        raise ValueError(
            f"the span map has {columns} columns, but the model's sliding window is {window} and would "
            f"hide some of the context: give at most {window} tokens, or no map"
        )
    if attention_mask is not None and attention_mask.shape != (batch_size, columns):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, span_ids has "
            f"({batch_size}, {columns}): give both one entry per token"
        )
    if document_ids is not None and document_ids.shape != (batch_size, query_length):
        raise ValueError(
            f"document_ids has shape {tuple(document_ids.shape)}, the tokens have ({batch_size}, "
            f"{query_length}): give one entry per token"
        )
    if backend not in MASK_BACKENDS and document_ids is None:
        arguments = {"attention_mask": attention_mask} | _one_sequence(span_ids, query_length)
        if not span_ids.any():
            return arguments | {"is_causal": False}
        if (span_ids == span_ids[:, :1]).all():
            return arguments
    if backend not in MASK_BACKENDS:
        raise ValueError(
            f"the attention backend {backend!r} would silently drop the hybrid mask: call "
            f"model.set_attn_implementation with one of {', '.join(MASK_BACKENDS)}"
        )
    layer_types = getattr(config, "layer_types", None) or ["all"]
    key_lengths = dict.fromkeys(layer_types, columns)
    if cache is not None:  # a static cache is no longer than the window in sliding layers
        for layer_type in key_lengths:
            layer = layer_types.index(layer_type)
            key_lengths[layer_type], _ = cache.get_mask_sizes(query_length, layer)
    masks = {}
    for key_length in set(key_lengths.values()):
        extended = extend_span_ids(span_ids, key_length)
        padding_mask = None
        if attention_mask is not None:
            padding_mask = attention_mask.to(span_ids.device, torch.bool)
            new = (0, key_length - columns)
            padding_mask = torch.nn.functional.pad(padding_mask, new, value=True)
        masks[key_length] = ALL_MASK_ATTENTION_FUNCTIONS[backend](
            batch_size=batch_size,
            q_length=query_length,
            kv_length=key_length,
            q_offset=columns - query_length,
            kv_offset=0,
            mask_function=hybrid_mask_function(extended, padding_mask, document_ids),
            attention_mask=None,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            dtype=dtype,
            config=config,
            device=span_ids.device,
        )
    if len(masks) == 1:  # which every model takes
        return {"attention_mask": masks.popitem()[1]}
    return {"attention_mask": {kind: masks[length] for kind, length in key_lengths.items()}}


def _one_sequence(span_ids: torch.Tensor, query_length: int) -> dict[str, Any]:
    """Tell the flash kernels that a single row is one text, although its positions jump.

    They take such a row for several packed texts. In infilling, positions jump because a text with a gap
    is read in the order [suffix, prefix].
    """
    batch_size, columns = span_ids.shape
    if batch_size != 1:
        return {}
    ends = [
        torch.tensor([0, length], dtype=torch.int32, device=span_ids.device)
        for length in (query_length, columns)
    ]
    return {
        "cu_seq_lens_q": ends[0],
        "cu_seq_lens_k": ends[1],
        "max_length_q": query_length,
        "max_length_k": columns,
    }
