"""Writes spans into gaps of known length, by `generate` (MAGNET, sections 3.2.3 and 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer

from .checks import whole_number
from .compat import CACHE, CACHE_NAMES
from .devices import input_device
from .layout import Layout, context_inputs, gather_columns, read_contexts
from .masking import sliding_window
from .pooling import PoolingMixin

SET_BY_INFILL = (
    "inputs",
    "input_ids",
    "attention_mask",
    "position_ids",
    "span_ids",
    *CACHE_NAMES,
)


class Span(NamedTuple):
    """What was written into a gap, and why it ended.

    Attributes:
        token_ids: without the end token.
        ended: `length`, if the gap is full or `max_new_tokens` were written; `seam`, if it was cut where
            it leads best into the suffix; `end token`; or `stopped`, by a stop string, a stopping
            criterion or the time. With beams, `generate` does not tell the last two apart: `stopped`
            then also covers an end token, if a rule ended any of the beams.
    """

    token_ids: list[int]
    ended: str


@dataclass
class Blank:
    """One blank of one text: a row of the batch that is decoded."""

    text_index: int
    blank_index: int  # among the text's blanks
    layout: Layout
    follows_space: bool  # the part before ended in a space, which the span then writes
    begins_text: bool = False  # no text comes before the blank
    is_guess: bool = False  # nobody gave the gap's length
    spans: list[Span] = field(default_factory=list)

    @property
    def gap(self) -> int:
        """How many positions it has."""
        return self.layout.gaps[self.blank_index]

    @property
    def order(self) -> list[int]:
        """The context's tokens in cache order."""
        return self.layout.cache_order(self.blank_index)


class DecodingMixin(PoolingMixin):
    """Writes spans into blanks, and checks the caller's arguments for `generate`."""

    def _write(self, blanks: Sequence[Blank], max_new_tokens: int | None, arguments: dict):
        """Fill `spans` of all blanks; returns what the last call of `generate` returned."""
        output = None
        for group in self._groups(blanks, arguments):
            output = self._decode(group, max_new_tokens, arguments)
        return output

    def _groups(self, blanks: Sequence[Blank], arguments: dict) -> list[list[Blank]]:
        """All blanks in one group if gaps of several lengths can share a batch, else one group per length."""
        window = sliding_window(self.config)
        columns = max(b.layout.context_length for b in blanks) + max(b.gap for b in blanks)
        if not self._beams(arguments) and (window is None or columns <= window):
            return [list(blanks)]  # a beam's score ends where its gap ends
        return [[b for b in blanks if b.gap == gap] for gap in sorted({b.gap for b in blanks})]

    def _decode(self, blanks: list[Blank], max_new_tokens: int | None, arguments: dict):
        """Decode blanks in one call of `generate`; fills their `spans`."""
        layouts = [blank.layout for blank in blanks]
        inputs: dict[str, Any] = context_inputs(
            layouts, [b.order for b in blanks], input_device(self)
        )
        length = inputs["input_ids"].shape[1]
        longest = max(blank.gap for blank in blanks)
        copies = max(
            self._generation_value(name, arguments) or 1
            for name in ("num_beams", "num_return_sequences")
        )
        if self._share_contexts(blanks, copies, arguments):
            inputs[CACHE] = self._read_shared(blanks, copies)
        rules = self._stopping_rules(arguments)
        if rules is not None:
            arguments = arguments | {"stopping_criteria": StoppingCriteriaList([rules])}
        output: Any = self.generate(
            **inputs, max_new_tokens=min(longest, max_new_tokens or longest), **arguments
        )
        whole = not isinstance(output, torch.Tensor)
        written = (output.sequences if whole else output)[:, length:]
        if whole:
            output.sequences = written
        returned = len(written) // len(blanks)
        for row, token_ids in enumerate(written.tolist()):
            blank = blanks[row // returned]
            stopped = None
            if rules is not None:
                stopped = rules.stopped_after(row, length, self._beams(arguments))
            most = min(blank.gap, max_new_tokens or blank.gap)
            blank.spans.append(self._span(token_ids[:most], most, stopped, arguments))
        return output

    def _span(self, token_ids: list[int], most: int, stopped: int | None, arguments: dict) -> Span:
        """Cut a row at its end; `stopped` is the number of tokens after which a rule ended it."""
        ends = self._end_tokens(arguments)
        end = next((i for i, token in enumerate(token_ids) if token in ends), len(token_ids))
        while not ends and end and token_ids[end - 1] == arguments["pad_token_id"]:
            end -= 1  # nothing but a stopping criterion ends a span here
        if end == most:
            return Span(token_ids, "length")
        by_rule = end == len(token_ids) or not ends or (stopped is not None and stopped <= end)
        return Span(token_ids[:end], "stopped" if by_rule else "end token")

    def _share_contexts(self, blanks: Sequence[Blank], copies: int, arguments: dict) -> bool:
        """Whether some rows have the same context, and their cache can be made here."""
        texts = {_shared(blank) for blank in blanks}
        longest = max(blank.layout.context_length for blank in blanks)
        if len(texts) == len(blanks) * copies or longest == 1:
            return False  # nothing is read twice, or nothing before the last token
        return (
            sliding_window(self.config) is None
            and self._generation_value("cache_implementation", arguments) is None
            and self._generation_value("use_cache", arguments) is not False
        )

    def _read_shared(self, blanks: Sequence[Blank], copies: int) -> DynamicCache:
        """The cache of all but the last token of each row, with each context read once.

        `generate` reads the last token itself, because it needs its output.
        """
        layouts = {_shared(blank): blank.layout for blank in blanks}
        cache = read_contexts(self, list(layouts.values()))
        width = max(layout.context_length for layout in layouts.values())
        columns = torch.zeros(len(blanks), width - 1, dtype=torch.long, device=input_device(self))
        for row, blank in enumerate(blanks):
            pad = width - blank.layout.context_length
            columns[row, pad:] = torch.tensor(blank.order[:-1], device=input_device(self)) + pad
        numbers = {shared: number for number, shared in enumerate(layouts)}
        sources = torch.tensor([numbers[_shared(b)] for b in blanks], device=input_device(self))
        columns, sources = (t.repeat_interleave(copies, dim=0) for t in (columns, sources))
        gather_columns(cache, sources, columns)
        return cache

    def _generation_value(self, name: str, arguments: dict):
        """The value of an option that `generate` will use."""
        if name in arguments:  # None too: `eos_token_id=None` is no end token
            return arguments[name]
        config = arguments.get("generation_config") or self.generation_config
        value = getattr(config, name, None)
        return getattr(self.generation_config, name, None) if value is None else value

    def _beams(self, arguments: dict) -> bool:
        return self._generation_value("num_beams", arguments) not in (None, 1)

    def _end_tokens(self, arguments: dict) -> list[int]:
        """The tokens of the vocabulary at which `generate` ends a row."""
        ends = self._generation_value("eos_token_id", arguments)
        ends = [] if ends is None else torch.as_tensor(ends).flatten().tolist()
        return [token for token in ends if 0 <= token < self.config.vocab_size]

    def _stopping_rules(self, arguments: dict) -> "_StoppingRules | None":
        """The caller's stopping criteria and stop strings; None if there are none."""
        criteria = list(arguments.get("stopping_criteria") or [])
        strings = self._generation_value("stop_strings", arguments)
        if strings:
            criteria.append(StopStringCriteria(self.tokenizer, strings))
        return _StoppingRules(criteria) if criteria else None

    def _generate_arguments(
        self, arguments: dict, max_new_tokens: int | None
    ) -> tuple[dict, int | None]:
        """Check the caller's arguments for `generate`, and set those that infilling decides."""
        arguments = dict(arguments)
        for name in SET_BY_INFILL:
            if name in arguments:
                raise TypeError(f"{name} is set by infill itself: leave it out")
        for name in ("max_length", "min_length"):
            if arguments.get(name) is not None:
                raise ValueError(
                    f"{name} counts the context too: give span_length, max_new_tokens or min_new_tokens"
                )
        config = arguments.get("generation_config")
        if config is not None and not isinstance(config, GenerationConfig):
            raise TypeError(
                f"generation_config is {type(config).__name__}: give a GenerationConfig of transformers"
            )
        if self._generation_value("prefill_chunk_size", arguments):
            raise ValueError(
                "prefill_chunk_size reads the prompt in chunks, but infilling needs every context token "
                "to see all others: leave it out, or set it to None in model.generation_config"
            )
        if max_new_tokens is None and config is not None:
            max_new_tokens = config.max_new_tokens
        if max_new_tokens is not None:
            max_new_tokens = whole_number("max_new_tokens", max_new_tokens)
        # Only the caller's word counts: a checkpoint's default would change what infill returns.
        whole = arguments.get(
            "return_dict_in_generate", getattr(config, "return_dict_in_generate", 0)
        )
        arguments["return_dict_in_generate"] = bool(whole)
        if self._generation_value("stop_strings", arguments):
            arguments.setdefault("tokenizer", self.tokenizer)
        # A row that a stopping criterion ends is padded with an end token, where the span is cut.
        # Without any end token `generate` would continue the row, so it gets one that cannot occur.
        ends = self._end_tokens(arguments)
        arguments["pad_token_id"] = ends[0] if ends else self.magnet_settings.end_token_id
        if not ends:
            arguments["eos_token_id"] = self.config.vocab_size
        return arguments, max_new_tokens


def _shared(blank: Blank) -> tuple[int, ...]:
    """A key that is equal for blanks with the same context at the same positions."""
    return (blank.text_index, *blank.layout.gaps)


class _StoppingRules(StoppingCriteria):
    """The caller's stopping criteria, which also note when they ended each row."""

    def __init__(self, criteria: Sequence[StoppingCriteria]):
        self.criteria = StoppingCriteriaList(criteria)
        self.lengths: dict[int, int] = {}  # of a row, prompt included, when they first ended it

    def __call__(self, input_ids, scores, **kwargs):
        ended = self.criteria(input_ids, scores, **kwargs)  # (rows,)
        for row in ended.nonzero().flatten().tolist():
            self.lengths.setdefault(row, input_ids.shape[1])
        return ended

    def stopped_after(self, row: int, prompt: int, beams: bool) -> int | None:
        """How many tokens the row had when they ended it; None if they did not. With beams, 0 if they ended any."""
        if beams:
            return 0 if self.lengths else None
        return self.lengths[row] - prompt if row in self.lengths else None


class SpanStreamer(BaseStreamer):
    """Hands a streamer the written tokens, with an empty prompt instead of the context.

    `generate` puts the prompt into a streamer first, and streamers with `skip_prompt` count on it.
    """

    def __init__(self, streamer: BaseStreamer):
        self.streamer = streamer
        self.prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then each token."""
        if self.prompt_is_next:
            self.prompt_is_next = False
            value = value[:, :0]
        self.streamer.put(value)

    def end(self) -> None:
        """End the span."""
        self.streamer.end()
