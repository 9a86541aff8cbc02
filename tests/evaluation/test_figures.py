"""Figures: their intervals against theory, and the table that shows them."""

import math

import numpy as np
import pytest

from evaluation.common.figures import Figure, table


def ratio_interval(above, below=None, seed=0):
    return Figure.of_ratio(above, below, seed)[1:3]


def test_intervals():
    assert ratio_interval([3.0, 3.0], [2, 2]) == (1.5, 1.5)
    generator = np.random.default_rng(0)
    values = generator.normal(5, 2, size=400)
    low, high = ratio_interval(values)
    error = values.std() / 20  # of the mean of 400
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.02
    )
    assert ratio_interval(values) == (low, high) != ratio_interval(values, seed=1)
    sizes = generator.integers(1, 9, size=400)
    low, high = ratio_interval(values * sizes, sizes)
    assert low < (values * sizes).sum() / sizes.sum() < high
    for above, below in (([], None), ([1.0], [1, 2])):
        with pytest.raises(ValueError, match="one of each for every example"):
            ratio_interval(above, below)
    for below in ([1, -1], [0, 0]):
        with pytest.raises(ValueError, match="give 0 or more, not all 0"):
            ratio_interval([1.0, 1.0], below)


def test_a_statistic_has_the_interval_of_its_resamples():
    """The mean by `of_statistic`, which draws examples, and by `of_ratio`, which draws counts."""
    values = np.random.default_rng(1).normal(5, 2, size=300)
    drawn = Figure.of_statistic(lambda chosen: float(values[chosen].mean()), len(values))
    counted = Figure.of_ratio(values)
    assert drawn.value == pytest.approx(counted.value) and drawn.examples == 300
    assert (drawn.low, drawn.high) == pytest.approx((counted.low, counted.high), abs=0.02)


def test_units():
    mean = Figure.of_ratio([1.0, 3.0], seed=4)
    assert mean.scaled(100) == (200, 100 * mean.low, 100 * mean.high, 2)
    assert mean.mapped(math.exp).value == pytest.approx(math.e**2)


def test_table():
    columns = {
        "a": {"x": Figure(1, 0.5, 2, 9)},
        "b": {"x": Figure(3, 2, 4, 9), "y": Figure(0, 0, 0, 5)},
    }
    assert table(columns, digits=1).splitlines() == [
        "| | a | b | n |",
        "|---|---|---|---|",
        "| x | 1.0 (0.5 to 2.0) | 3.0 (2.0 to 4.0) | 9 |",
        "| y | - | 0.0 (0.0 to 0.0) | 5 |",
    ]
