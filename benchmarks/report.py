"""Rows of the table, the table, and plots."""

import operator
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

NOT_MEASURED = "not measured"

HEAD = "| | Magnet | other | ratio | aim | holds |\n|---|---|---|---|---|---|"

COMPARES = {">=": operator.ge, "<=": operator.le}

Answers = Mapping[str, Sequence[dict[str, Any]]]
"""By way the answer of each round; empty where a comparison was not measured."""


@dataclass
class Row:
    """A line of the table."""

    label: str  # what, in which unit; the other
    ours: str = ""  # as it is shown
    other: str = ""
    value: float | None = None  # the ratio of ours to the other's, or ours alone
    low: float | None = None  # the lowest of the rounds' ratios; None of one round
    high: float | None = None
    aim: str | None = None  # for the value, `>= 1.2` or `<= 1.05`
    is_alone: bool = False  # whether `value` is ours alone

    @classmethod
    def missing(cls, label: str, aim: str | None = None) -> "Row":
        """A row that was not measured."""
        return cls(label, NOT_MEASURED, aim=aim)

    @classmethod
    def of_rounds(
        cls,
        label: str,
        ours: Sequence[float],
        other: Sequence[float],
        aim: str | None = None,
        more: Sequence[str] = ("", ""),
    ) -> "Row":
        """The ratio of the medians of a figure of each round; `more` is shown after the medians."""
        medians = statistics.median(ours), statistics.median(other)
        ratios = [a / b for a, b in zip(ours, other, strict=True)]
        shown = [f"{number(m)} {text}".rstrip() for m, text in zip(medians, more, strict=True)]
        ratio = medians[0] / medians[1]
        low, high = (min(ratios), max(ratios)) if len(ratios) > 1 else (None, None)
        return cls(label, shown[0], shown[1], ratio, low, high, aim)

    @classmethod
    def compared(
        cls,
        label: str,
        answers: Answers,
        ways: tuple[str, str],
        figure: str = "seconds",
        scale: float = 1.0,
        aim: str | None = None,
    ) -> "Row":
        """A figure of two ways over rounds, ours first; not measured where one has no answers."""
        if not all(way in answers for way in ways):
            return cls.missing(label, aim)
        ours, other = ([scale * given[figure] for given in answers[way]] for way in ways)
        return cls.of_rounds(label, ours, other, aim)

    @classmethod
    def of_memory(
        cls, label: str, answers: Answers, ways: tuple[str, str], aim: str | None = None
    ) -> "Row":
        """The highest `peak_mib` of two ways; not measured where ways shared a process."""
        if not all(way in answers and "peak_mib" in answers[way][0] for way in ways):
            return cls.missing(label, aim)
        peaks = [max(given["peak_mib"] for given in answers[way]) for way in ways]
        return cls.of_rounds(label, peaks[:1], peaks[1:], aim)

    @classmethod
    def alone(cls, label: str, value: float, other: str = "", aim: str | None = None) -> "Row":
        """A figure that is compared with nothing but its aim."""
        return cls(label, number(value), other, value, aim=aim, is_alone=True)

    @property
    def holds(self) -> bool | None:
        """Whether the aim is reached; None without aim or value."""
        if self.value is None or self.aim is None:
            return None
        sign, bound = self.aim.split()
        return COMPARES[sign](self.value, float(bound))

    def line(self) -> str:
        """In Markdown."""
        ratio = "" if self.value is None or self.is_alone else f"{self.value:.2f}"
        if self.low is not None:
            ratio += f" ({self.low:.2f} to {self.high:.2f})"
        held = {True: "yes", False: "**no**", None: ""}[self.holds]
        cells = [self.label, self.ours, self.other, ratio, self.aim or "", held]
        return "| " + " | ".join(cells) + " |"


def timings_of(found: dict[str, Any]) -> Mapping[str, Answers]:
    """A part's answers by comparison, empty ones for what was not measured."""
    return defaultdict(dict, found.get("timings", {}))


def number(value: float) -> str:
    """With three digits that count.

    Example:
        >>> number(1234.5), number(12.345), number(0.01234)
        ('1234', '12.3', '0.0123')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """All rows, in Markdown."""
    return "\n".join([HEAD, *(row.line() for row in rows)])


def draw_lines(
    path: Path, curves: dict[str, list[tuple[float, float]]], x_label: str, y_label: str
) -> None:
    """A plot with a logarithmic x axis, from 0 on the y axis."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xscale="log", xlabel=x_label, ylabel=y_label)
    ticks = sorted({x for points in curves.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
