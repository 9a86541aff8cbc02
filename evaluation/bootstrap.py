"""Percentile bootstrap intervals over examples."""

import numpy as np
from numpy.typing import ArrayLike


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
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
        seed: of the draws.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: there are no examples, the two differ in shape, or a denominator is not above 0.

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
    if (below <= 0).any():
        raise ValueError(f"denominator {int((below <= 0).argmax())} is {below.min()}: give > 0")
    generator = np.random.default_rng(seed)
    share = np.full(len(above), 1 / len(above))
    times = generator.multinomial(len(above), share, size=resamples)  # (resamples, examples)
    ratios = (times @ above) / (times @ below)  # (resamples,)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
