"""Scores how likely a model finds a span between the texts on both sides of it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from .batching import CPU_BATCH_TOKENS, batches_of
from .devices import input_device
from .layout import Layout
from .pooling import PoolingMixin

SCORE_BATCH_SIZE = 32
"""The most texts in a forward pass."""


class SpanScore(NamedTuple):
    """Natural log-probabilities of a span from both sides.

    Attributes:
        sum: over all tokens.
        mean: per token; NaN for an empty span.
        log_probabilities: of each token, given the context and the span's earlier tokens.
        token_ids: of the span.
    """

    sum: float
    mean: float
    log_probabilities: list[float]
    token_ids: list[int]


class Infilling(NamedTuple):
    """What `infill` returns with `return_scores=True`.

    Attributes:
        text: of the span.
        score: its `SpanScore`, without an end token. Sampling, beams and penalties change what is
            written, but not this score.
        ended: why: `length`, if the gap is full or `max_new_tokens` were written; `seam`, if it was cut
            where it leads best into the suffix; `end token`; or `stopped`, by a stop string, a stopping
            criterion or the time.
    """

    text: str
    score: SpanScore
    ended: str


class ScoringMixin(PoolingMixin):
    """Scores spans at their place in the text, in one forward pass."""

    def _scores(self, spans: Sequence[tuple[Layout, int, list[int]]]) -> list[SpanScore]:
        """Score spans.

        Args:
            spans: per span, the text with its gaps, the number of the gap, and the tokens in it.
        """
        rows = [layout.filled(blank, written) for layout, blank, written in spans]
        found: list[SpanScore | None] = [None] * len(spans)
        lengths = [len(token_ids) for token_ids, _, _ in rows]
        for batch in batches_of(lengths, SCORE_BATCH_SIZE, CPU_BATCH_TOKENS):
            columns = [
                *zip(*(rows[i] for i in batch), strict=True),
                [[1] * lengths[i] for i in batch],
            ]
            input_ids, position_ids, span_ids, mask = (
                pad_sequence([torch.tensor(row) for row in column], True).to(input_device(self))
                for column in columns
            )  # (texts, length) each
            hidden = self._span_states(input_ids, span_ids, mask, position_ids=position_ids)
            for row, i in enumerate(batch):
                layout, blank, written = spans[i]
                first = layout.tokens_before(blank)
                states = hidden[row, first - 1 : first - 1 + len(written)]  # (span, hidden)
                logits = self._logits(states).float().log_softmax(-1)
                targets = torch.tensor(written, dtype=torch.long, device=logits.device)
                each = logits.gather(1, targets[:, None])[:, 0].tolist()
                total = math.fsum(each)
                found[i] = SpanScore(total, total / len(each) if each else math.nan, each, written)
        return [score for score in found if score is not None]
