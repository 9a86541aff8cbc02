"""What `magnet infill` is given to fill: the text around blanks, from records of several kinds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from .reading import STANDARD_INPUT, text_fault

RECORD_COLUMNS = ("text", "prefix", "suffix", "parts", "span_length")


@dataclass
class Gap:
    """A text around its blanks, and the blanks' length: one for all, one each, or None."""

    parts: list[str]
    span_length: Any = None

    def filled(self, middles: Sequence[str]) -> str:
        """The whole text."""
        return "".join(chain(*zip_longest(self.parts, middles, fillvalue="")))


def gap_of(record: dict[str, Any], blank: str, span_length: int | None) -> Gap:
    """Read a record: `prefix` and `suffix`, or `parts`, or a `text` with blanks.

    Raises:
        ValueError: it is none of these, or holds something else than text.
    """
    parts: Any = record.get("parts")
    if parts is None and record.get("text") is not None:
        fault = text_fault(record["text"], "text")
        if fault:
            raise ValueError(fault)
        parts = record["text"].split(blank)
        if len(parts) == 1:
            raise ValueError(f"no {blank} in the text")
    elif parts is None:
        parts = [record.get("prefix"), record.get("suffix")]
        if parts == [None, None]:
            raise ValueError("it has neither prefix and suffix, nor parts, nor text")
        if None in parts:
            there, missing = ("suffix", "prefix") if parts[0] is None else ("prefix", "suffix")
            raise ValueError(f'{there} is given without {missing}: give both, "" where it is empty')
    if not isinstance(parts, list) or len(parts) < 2:
        raise ValueError(f"parts is {parts!r:.80}: n blanks need n + 1 strings around them")
    for part in parts:
        fault = text_fault(part, "a part")
        if fault:
            raise ValueError(fault)
    given = record.get("span_length")
    if isinstance(given, str) and given.isdecimal():  # all that .csv holds is text
        given = int(given)
    return Gap(parts, span_length if given in (None, "") else given)


def check_stream(gap: Gap | None, samples: int, output: str) -> None:
    """Refuse what plain text that comes as it is written cannot show.

    Raises:
        ValueError: several blanks or samples, or a file.
    """
    if output != STANDARD_INPUT:
        raise ValueError("--stream shows text on standard output: leave --output out")
    if samples > 1:
        raise ValueError("--stream shows one sample: leave it out")
    if gap is not None and len(gap.parts) != 2:
        raise ValueError("--stream shows one blank: leave it out")
