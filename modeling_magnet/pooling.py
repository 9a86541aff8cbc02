"""Computes the last layer's states of token ids, and pools them to one vector per sentence (section 3.2.2)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .checkpoint import CheckpointMixin
from .checks import whole_number
from .devices import apply_is_causal, first_layers
from .masking import CONTEXT, attention_arguments, check_attention_mask

View = Callable[[Any], Any]
"""Turns a decoder into what is called in its place, such as its first layers."""


class PoolingMixin(CheckpointMixin):
    """`pool`, and the states that encoding, scoring and training read."""

    def pool(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        num_layers: int | None = None,
    ) -> torch.Tensor:
        """Vectors of sentences that are tokenized already, prompt included.

        Puts the start token before (unless the settings leave it out) and the end token after each
        row, and pools the last layer's outputs as the settings say. This is the method that
        sentence-transformers calls on a saved folder; gradients flow through it in training.

        Args:
            input_ids: (batch, length) without start and end token; padded on either side.
            attention_mask: (batch, length) 1 for tokens, 0 for padding.
            num_layers: as in `encode`.

        Returns:
            (batch, hidden) in the model's dtype.

        Raises:
            TypeError, ValueError: `attention_mask` does not say of each token whether it is one, or the
                model has fewer layers.
        """
        view = stopping_after(self._checked_layers(num_layers))
        return self._pool(input_ids, attention_mask, view)

    def _pool(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, view: View | None = None
    ) -> torch.Tensor:
        """`pool`, on another view of the decoder."""
        settings = self.magnet_settings
        check_attention_mask(attention_mask, *input_ids.shape)
        lengths = attention_mask.long().sum(dim=1)  # (batch,)
        longest = int(lengths.max())
        columns = torch.arange(longest, device=input_ids.device)
        if longest:
            first = attention_mask.int().argmax(dim=1)  # (batch,) of the first token
            source = (first[:, None] + columns).clamp(max=input_ids.shape[1] - 1)
            input_ids = input_ids.gather(1, source)  # (batch, longest) padded on the right
        tokens = input_ids[:, :longest].masked_fill(
            columns >= lengths[:, None], settings.end_token_id
        )
        parts = [tokens, tokens.new_full((len(tokens), 1), settings.end_token_id)]
        if settings.start_in_encode and settings.start_token_id is not None:
            parts.insert(0, tokens.new_full((len(tokens), 1), settings.start_token_id))
        padded = torch.cat(parts, dim=1)  # (batch, longest + 1 or 2)
        last = lengths + len(parts) - 2  # (batch,) the column of the end token
        columns = torch.arange(padded.shape[1], device=padded.device)
        mask = columns <= last[:, None]  # (batch, length)
        hidden = self._span_states(
            padded, torch.full_like(padded, CONTEXT), mask, view=view
        )  # (batch, length, hidden)
        return pooled(hidden, mask.to(hidden.device), settings.pooling, starts=len(parts) == 3)

    def _span_states(
        self,
        input_ids: torch.Tensor,
        span_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        view: View | None = None,
    ) -> torch.Tensor:
        """Last hidden states (batch, length, hidden) under a span map, without the output head."""
        arguments = attention_arguments(
            self.config,
            span_ids,
            query_length=input_ids.shape[1],
            dtype=self.dtype,
            attention_mask=attention_mask,
            document_ids=document_ids,
        )
        decoder = apply_is_causal(self.base_model, arguments)
        if view is not None:
            decoder = view(decoder)
        return decoder(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **arguments
        ).last_hidden_state

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of last hidden states: the output head, and the cap that a Gemma may have on it."""
        logits = self.get_output_embeddings()(hidden)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _checked_layers(self, num_layers: int | None) -> int | None:
        """Check that the model has `num_layers` layers."""
        if num_layers is None:
            return None
        held = self.config.num_hidden_layers
        if whole_number("num_layers", num_layers) > held:
            raise ValueError(f"num_layers is {num_layers}: the model has {held} layers")
        return int(num_layers)


def pooled(
    hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: str, starts: bool
) -> torch.Tensor:
    """Pool the states of each row to one vector.

    Args:
        hidden: (batch, length, hidden).
        attention_mask: (batch, length) 1 for tokens, 0 for padding on either side.
        pooling: one of `settings.POOLINGS`.
        starts: whether rows begin with a start token. Means leave it out.

    Returns:
        (batch, hidden).
    """
    order = attention_mask.long().cumsum(dim=1) * attention_mask  # (batch, length) from 1 on
    if pooling in ("end", "first"):
        column = (order if pooling == "end" else order == 1).int().argmax(dim=1)  # (batch,)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), column]
    weights = (order - int(starts)).clamp(min=0)  # (batch, length)
    if pooling == "mean":
        weights = weights.clamp(max=1)
    shares = weights / weights.sum(dim=1, keepdim=True)  # before a sum that float16 cannot hold
    return (shares.to(hidden)[:, None] @ hidden)[:, 0]


def stopping_after(num_layers: int | None) -> View | None:
    """A view of the decoder that stops after `num_layers` layers; None if all of them run."""
    return None if num_layers is None else partial(first_layers, num_layers=num_layers)
