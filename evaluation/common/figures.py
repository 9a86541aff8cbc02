"""A measured number with its uncertainty: what every task returns, by name."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evaluation.common.writing import markdown

RESAMPLES = 2000
"""Draws of as many examples as there are, with replacement."""


class Figure(NamedTuple):
    """A number, its 95 % bootstrap interval, and the examples that both stand on."""

    value: float
    low: float
    high: float
    examples: int

    @classmethod
    def of_ratio(
        cls, numerators: ArrayLike, denominators: ArrayLike | None = None, seed: int = 0
    ) -> "Figure":
        """A ratio of sums, or a mean; arguments as in `ratio_interval`.

        Example:
            >>> Figure.of_ratio([1.0, 0.0, 1.0, 0.0]).value
            0.5
        """
        above = np.asarray(numerators, dtype=np.float64)
        below = np.ones_like(above) if denominators is None else np.asarray(denominators)
        low, high = ratio_interval(above, below, seed=seed)
        return cls(float(above.sum() / below.sum()), low, high, len(above))

    @classmethod
    def of_statistic(
        cls, statistic: Callable[[np.ndarray], float], count: int, seed: int = 0
    ) -> "Figure":
        """What a function of the examples' numbers finds, such as a rank correlation.

        The `count` examples are drawn with replacement, as often as in `ratio_interval`.

        Example:
            >>> values = np.array([1.0, 2.0, 3.0])
            >>> Figure.of_statistic(lambda chosen: float(values[chosen].mean()), 3).value
            2.0
        """
        generator = np.random.default_rng(seed)
        draws = generator.integers(count, size=(RESAMPLES, count))
        found = np.array([statistic(draw) for draw in draws])  # (resamples,)
        found = found[np.isfinite(found)]  # a draw of one example over and over has no correlation
        low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (np.nan, np.nan)
        return cls(float(statistic(np.arange(count))), float(low), float(high), count)

    def scaled(self, factor: float) -> "Figure":
        """The figure in another unit, such as percent."""
        return Figure(self.value * factor, self.low * factor, self.high * factor, self.examples)

    def mapped(self, function: Callable[[float], float]) -> "Figure":
        """A rising function of the figure, such as the exponential of a mean loss."""
        return Figure(function(self.value), function(self.low), function(self.high), self.examples)


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of a ratio of sums, or of a mean, when whole examples are drawn again.

    An example is drawn with all it holds, because the tokens of one text are not independent: a
    perplexity is the exponential of such a ratio, and its interval that of the interval's ends.

    Args:
        numerators: (examples,) what the ratio sums above the line, such as losses.
        denominators: (examples,) what it sums below, such as token counts. None: a mean.
        confidence: the share of the resampled ratios that lies inside.
        resamples: draws of as many examples as there are, with replacement.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: there are no examples, the two differ in shape, a denominator is below 0, or all
            are 0.

    Example:
        >>> ratio_interval([1.0, 1.0, 1.0], [2, 2, 2])
        (0.5, 0.5)
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.ones_like(above) if denominators is None else np.asarray(denominators, np.float64)
    if above.ndim != 1 or not len(above) or below.shape != above.shape:
        raise ValueError(
            f"numerators have shape {above.shape}, denominators {below.shape}: give one of each for "
            "every example, and at least one example"
        )
    if (below < 0).any() or not below.any():
        raise ValueError(
            f"denominators are {below.min()} to {below.max()}: give 0 or more, not all 0"
        )
    generator = np.random.default_rng(seed)
    share = np.full(len(above), 1 / len(above))
    times = generator.multinomial(len(above), share, size=resamples)  # (resamples, examples)
    drawn = times @ below  # (resamples,)
    ratios = (times @ above)[drawn > 0] / drawn[drawn > 0]
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def table(columns: dict[str, dict[str, Figure]], digits: int = 2) -> str:
    """Figures by name, side by side, as a table in Markdown; a column that lacks a figure shows `-`."""
    rows = []
    for name in dict.fromkeys(name for figures in columns.values() for name in figures):
        found = [figures.get(name) for figures in columns.values()]
        cells = [
            f"{f.value:.{digits}f} ({f.low:.{digits}f} to {f.high:.{digits}f})" if f else "-"
            for f in found
        ]
        counts = sorted({figure.examples for figure in found if figure})
        rows.append([name, *cells, ", ".join(map(str, counts))])
    return markdown(["", *columns, "n"], rows)
