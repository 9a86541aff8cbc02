"""Follows the rows of a batch while it is decoded. Each ends independently and can be read as it grows."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, StoppingCriteria

UNFINISHED = "\ufffd"
"""What a decoded text ends in when the bytes of its last character are not all there."""


class TokenScore(NamedTuple):
    """A token's natural log-probability, and by id those of the likeliest tokens at its place."""

    logprob: float
    likeliest: dict[int, float]


@dataclass(eq=False)
class Row:
    """A text that is being written.

    Attributes:
        decode: the text of token ids.
        limit: the most tokens to write.
        ends: token ids that end the text.
        stop: strings that end the text and are cut off.
        likeliest: how many of the likeliest tokens to note with each token's log-probability. None:
            note nothing.
        emit: gets each new piece of text.
        is_guess: the text may still be cut when it is complete, so it is emitted at the end.
        tokens, text: the part written so far.
        scores: a `TokenScore` per token.
        finish_reason: `stop`, `length` or `cancelled`; None while it is being written.
    """

    decode: Callable[[list[int]], str]
    limit: int
    ends: Collection[int] = ()
    stop: Sequence[str] = ()
    likeliest: int | None = None
    emit: Callable[[str], None] | None = None
    is_guess: bool = False
    tokens: list[int] = field(default_factory=list, init=False)
    scores: list[TokenScore] = field(default_factory=list, init=False)
    text: str = field(default="", init=False)
    finish_reason: str | None = field(default=None, init=False)
    sent: int = field(default=0, init=False)

    def add(self, token: int, logprobs: torch.Tensor | None = None) -> None:
        """Take the next token, unless the text has ended; `logprobs` is (vocabulary,)."""
        if self.finish_reason is not None:
            return
        if token in self.ends:
            self.finish_reason = "stop"
        else:
            self.tokens.append(token)
            if logprobs is not None and self.likeliest is not None:
                top = logprobs.topk(self.likeliest)
                likeliest = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
                self.scores.append(TokenScore(float(logprobs[token]), likeliest))
            self.text = self.decode(self.tokens)
            found = [at for at in map(self.text.find, self.stop) if at >= 0]
            if found:
                self.text, self.finish_reason = self.text[: min(found)], "stop"
            elif len(self.tokens) >= self.limit:
                self.finish_reason = "length"
        if not self.is_guess:
            self._send()

    def end(self, text: str) -> None:
        """Replace the text by what is left after a gap of a guessed length was cut."""
        if self.finish_reason == "length" and text != self.text:
            kept = next(n for n in range(len(self.tokens)) if self.decode(self.tokens[:n]) == text)
            self.tokens, self.scores = self.tokens[:kept], self.scores[:kept]
            self.text, self.finish_reason = text, "stop"
        self._send()

    def _send(self) -> None:
        """Emit the part that is certain: no half character, and no beginning of a stop string."""
        if self.emit is None:
            return
        end = len(self.text)
        if self.finish_reason is None:
            end = len(self.text.rstrip(UNFINISHED))
            end -= max((_overlap(self.text[:end], string) for string in self.stop), default=0)
        if end > self.sent:
            self.emit(self.text[self.sent : end])
            self.sent = end


class Rows(StoppingCriteria):
    """Hands each new token of a batch to its row, and tells `generate` which rows have ended.

    Args:
        rows: in the order of the batch.
        after_step: called after each token.
    """

    def __init__(self, rows: Sequence[Row], after_step: Callable[[], None] = lambda: None):
        self.rows, self.after_step = rows, after_step
        self.logprobs = LogProbabilities()

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `generate` that connect it to the batch."""
        arguments: dict[str, Any] = {"stopping_criteria": [self]}
        if any(row.likeliest is not None for row in self.rows):
            arguments["logits_processor"] = [self.logprobs]
        return arguments

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs) -> torch.BoolTensor:
        """Whether each row has ended, (batch,)."""
        for i, (row, token) in enumerate(zip(self.rows, input_ids[:, -1].tolist(), strict=True)):
            row.add(token, None if self.logprobs.step is None else self.logprobs.step[i])
        self.after_step()
        ended = [row.finish_reason is not None for row in self.rows]
        return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]


class LogProbabilities(LogitsProcessor):
    """Keeps the log-probabilities of the next token, before temperature, top-k and top-p.

    Attributes:
        step: (batch, vocabulary), or None before the first token.
    """

    step: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores unchanged, (batch, vocabulary)."""
        self.step = scores.float().log_softmax(-1)
        return scores


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of `text` begin `string`.

    Example:
        >>> _overlap("one tw", "two")
        2
    """
    lengths = range(min(len(text), len(string) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(string[:n])), 0)
