"""The hybrid mask written a second time, as three loops over the rule of the paper's section 3.1."""

import torch


def allowed(span_ids: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
    """(batch, length, length): may query q see key k."""
    batch, length = span_ids.shape
    result = torch.zeros(batch, length, length, dtype=torch.bool)
    for b in range(batch):
        for q in range(length):
            for k in range(length):
                key_is_context = int(span_ids[b, k]) == 0
                same_span = int(span_ids[b, q]) == int(span_ids[b, k])
                visible = key_is_context or (same_span and k <= q)
                result[b, q, k] = visible and bool(padding_mask[b, k])
    return result
