"""A measured number with its uncertainty: what every task returns, by name."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

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
        """A ratio of sums (examples,), such as losses over token counts, or a mean.

        An example is drawn again with all it holds, because the tokens of one text are not independent:
        a perplexity is the exponential of such a ratio, and its interval that of the interval's ends.

        Raises:
            ValueError: there are no examples, the two differ in shape, a denominator is below 0, or all
                are 0.

        Example:
            >>> Figure.of_ratio([1.0, 0.0, 1.0, 0.0]).value
            0.5
        """
        above = np.asarray(numerators, dtype=np.float64)
        below = np.asarray(
            np.ones_like(above) if denominators is None else denominators, np.float64
        )
        if above.ndim != 1 or not len(above) or below.shape != above.shape:
            raise ValueError(
                f"numerators have shape {above.shape}, denominators {below.shape}: give one of each for "
                "every example, and at least one example"
            )
        if (below < 0).any() or not below.any():
            raise ValueError(
                f"denominators are {below.min()} to {below.max()}: give 0 or more, not all 0"
            )
        share = np.full(len(above), 1 / len(above))
        times = np.random.default_rng(seed).multinomial(len(above), share, size=RESAMPLES)
        drawn = times @ below  # (resamples,)
        ratios = (times @ above)[drawn > 0] / drawn[drawn > 0]
        low, high = np.quantile(ratios, [0.025, 0.975]).tolist()
        return cls(float(above.sum() / below.sum()), low, high, len(above))

    @classmethod
    def of_statistic(
        cls, statistic: Callable[[np.ndarray], float], count: int, seed: int = 0
    ) -> "Figure":
        """What a function finds on `count` examples, given by their numbers, some more than once.

        Example:
            >>> values = np.array([1.0, 2.0, 3.0])
            >>> Figure.of_statistic(lambda chosen: float(values[chosen].mean()), 3).value
            2.0
        """
        generator = np.random.default_rng(seed)
        draws = (generator.integers(count, size=count) for _ in range(RESAMPLES))
        found = np.array([statistic(draw) for draw in draws])  # (resamples,)
        found = found[np.isfinite(found)]  # a draw of one example over and over has no correlation
        low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (np.nan, np.nan)
        return cls(float(statistic(np.arange(count))), float(low), float(high), count)

    @classmethod
    def of_correlation(cls, one: ArrayLike, two: ArrayLike, seed: int = 0) -> "Figure":
        """Spearman's rank correlation of pairs, NaN where a side is constant; draws are ranked anew."""
        columns = np.stack([one, two])  # (2, pairs)

        def correlation(chosen: np.ndarray) -> float:
            with np.errstate(invalid="ignore"):
                return np.corrcoef(rankdata(columns[:, chosen], axis=1))[0, 1]

        return cls.of_statistic(correlation, columns.shape[1], seed)

    def scaled(self, factor: float) -> "Figure":
        """The figure in another unit, such as percent."""
        return Figure(self.value * factor, self.low * factor, self.high * factor, self.examples)

    def mapped(self, function: Callable[[float], float]) -> "Figure":
        """A rising function of the figure, such as the exponential of a mean loss."""
        return Figure(function(self.value), function(self.low), function(self.high), self.examples)


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
