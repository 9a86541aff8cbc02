"""Chooses the length of a span for which the caller gave none.

The gap is a little longer than a sentence of the text around it, and what fills it is cut where it leads
best into the suffix. `evaluation/README.md`, "Infilling without a length", describes what else was tried.
"""

import math
import re
from collections.abc import Sequence

import torch
from transformers import DynamicCache

from .compat import CACHE
from .devices import input_device
from .pooling import PoolingMixin

SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)"  # not after initials and titles
    r"[.!?\u2026]+[\"')\]\u2019\u201d\xbb]*(?=\s+[^\sa-z]|\s*$)"  # nor before a small letter
    r"|[\u3002\uff01\uff1f]+|\n+"  # full-width marks
)
"""Where a sentence ends, in the scripts that mark it."""

GAP_FACTOR = 1.2
"""Positions of a gap per token of a sentence of usual length: there must be room to cut."""

MIN_KEPT_SHARE = 0.5
"""The least share of a filled gap that a cut keeps."""

SEAM_LENGTH = 8
"""How many suffix tokens are read after each cut, to judge it."""

TOKENS_READ_BEFORE = 32
"""How many context tokens are read before a span, to judge its cuts."""


def usual_length(parts: Sequence[str], tokens: int, most: int) -> int:
    """How many positions a gap gets: those of a sentence of the text around it, and a few more.

    Args:
        parts: the text around the gaps, in order.
        tokens: how many it has.
        most: the longest gap.

    Returns:
        1 to `most`.

    Example:
        >>> usual_length(["The boats came home.", " It was late."], tokens=10, most=64)
        6
    """
    pieces = [piece for part in parts for piece in SENTENCE_END.split(part)]
    sentences = max(1, sum(bool(piece.strip()) for piece in pieces))
    return min(most, math.ceil(GAP_FACTOR * tokens / sentences))


class LengthsMixin(PoolingMixin):
    """Finds where to cut what was written into a gap of a guessed length."""

    def _best_cut(self, before: list[int], span: list[int], after: list[int]) -> int:
        """How many tokens of a span to keep.

        A cut's score is the mean log-probability of the last token kept and of the suffix's first ones,
        read left to right. Without the last token, half sentences that end in a full stop would win.

        The text and the span are read once. Each cut is then a row whose cache shows the span up to there.
        """
        before, after = before[:1] + before[1:][-TOKENS_READ_BEFORE:], after[:SEAM_LENGTH]
        first = max(1, math.ceil(MIN_KEPT_SHARE * len(span)))
        cuts = torch.arange(first, len(span) + 1, device=input_device(self))  # (cuts,)
        cache = DynamicCache(config=self.config)
        token_ids = torch.tensor([before + span], device=input_device(self))
        states = self.base_model(
            input_ids=token_ids, use_cache=True, **{CACHE: cache}
        ).last_hidden_state[0, len(before) - 1 :]  # (1 + span, hidden)
        each = self._logits(states).float().log_softmax(-1)  # (1 + span, vocabulary)
        scores = each[cuts - 1, token_ids[0, len(before) - 1 + cuts]]  # of the last token kept
        scores = scores + each[cuts, after[0]]
        if len(after) > 1:
            cache.batch_repeat_interleave(len(cuts))
            columns = torch.arange(token_ids.shape[1] + len(after) - 1, device=input_device(self))
            shown = columns < len(before) + cuts[:, None]  # (cuts, columns)
            shown |= columns >= token_ids.shape[1]
            read = torch.tensor([after[:-1]] * len(cuts), device=input_device(self))
            states = self.base_model(
                input_ids=read,
                attention_mask=shown.long(),
                position_ids=len(before) + cuts[:, None] + columns[: read.shape[1]],
                use_cache=True,
                **{CACHE: cache},
            ).last_hidden_state  # (cuts, suffix - 1, hidden)
            each = self._logits(states).float().log_softmax(-1)
            targets = torch.tensor(after[1:], device=each.device).expand(len(cuts), -1)
            scores = scores + each.gather(2, targets[..., None])[..., 0].sum(1)
        return int(cuts[scores.argmax()])
