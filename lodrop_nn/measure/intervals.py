"""Intervals around measured means, each with the law that it assumes in its method text."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lodrop_theory.records import Estimate

Float64Array = NDArray[np.float64]


def mean_estimate(draws: Float64Array, level: float, method: str) -> Estimate:
    r"""Mean of independent draws with Student's interval.

    .. math:: \bar x \pm t_{(1 + \text{level}) / 2,\, n - 1}\, s / \sqrt n

    Approximate unless the draws are normal. A single draw has no interval.

    Args:
        draws: Shape (n,), independent and identically distributed.
        level: Coverage, in (0, 1).
        method: Who was measured and how.

    Returns:
        The estimate; ``n_draws`` is n.

    Raises:
        ValueError: If ``level`` is outside (0, 1), or a draw is not finite, or there is none.

    Example:
        >>> estimate = mean_estimate(np.array([-1.0, 1.0]), 0.5, "two draws")
        >>> estimate.value, round(estimate.high, 6)  # the quartile of Cauchy's law is 1
        (0.0, 1.0)
    """
    check_level(level)
    n_draws, value = _mean(draws)
    if n_draws == 1:
        return Estimate(value=value, n_draws=1, method=method)
    error = float(np.std(draws, ddof=1)) / math.sqrt(n_draws)
    half = float(stats.t.ppf((1 + level) / 2, n_draws - 1)) * error
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        level=level,
        n_draws=n_draws,
        method=f"{method}; Student's interval",
    )


def variance_estimate(draws: Float64Array, level: float, method: str) -> Estimate | None:
    r"""Sample variance of independent draws with Student's interval for the mean of squares.

    .. math:: s^2 = \frac{1}{n-1} \sum_i (x_i - \bar x)^2

    Approximate: the squares :math:`\frac{n}{n-1} (x_i - \bar x)^2`, of which it is the mean, are
    taken for independent.

    Args:
        draws: Shape (n,), independent and identically distributed.
        level: Coverage, in (0, 1).
        method: Who was measured and how.

    Returns:
        The estimate with low >= 0; None for a single draw, which has no variance.

    Raises:
        ValueError: If ``level`` is outside (0, 1), or a draw is not finite, or there is none.

    Example:
        >>> variance_estimate(np.array([0.0, 1.0, 2.0]), 0.9, "three draws").value
        1.0
    """
    check_level(level)
    n_draws, mean = _mean(draws)
    if n_draws == 1:
        return None
    squares = mean_estimate(np.square(draws - mean) * (n_draws / (n_draws - 1)), level, method)
    return replace(squares, low=max(squares.lower, 0.0))


def fraction_estimate(draws: Float64Array, level: float, method: str) -> Estimate:
    r"""Mean of independent draws in [0, 1] with an interval that stays inside.

    Draws that are all 0 or 1 get the exact interval of Clopper and Pearson. Draws in between get
    Wilson's, with m(1 - m) for the variance, which no law on [0, 1] of mean m exceeds; unlike
    Student's interval it keeps a width when all draws agree.

    Args:
        draws: Shape (n,), independent and identically distributed, in [0, 1].
        level: Coverage, in (0, 1).
        method: Who was measured and how.

    Returns:
        The estimate with 0 <= low <= value <= high <= 1; ``n_draws`` is n.

    Raises:
        ValueError: If ``level`` is outside (0, 1), or a draw outside [0, 1], or there is none.

    Source:
        Clopper and Pearson (1934); Wilson (1927).

    Example:
        >>> estimate = fraction_estimate(np.ones(10), 0.95, "ten successes")
        >>> round(estimate.low, 6) == round(0.025 ** (1 / 10), 6), estimate.high
        (True, 1.0)
    """
    check_level(level)
    n_draws, value = _mean(draws)
    if draws.min() < 0 or draws.max() > 1:
        raise ValueError(f"`draws` must be in [0, 1], got {draws.min()}..{draws.max()}.")
    if np.isin(draws, (0.0, 1.0)).all():
        name = "Clopper-Pearson"
        exact = stats.binomtest(round(float(draws.sum())), n_draws).proportion_ci(level, "exact")
        low, high = float(exact.low), float(exact.high)
    else:
        name = "Wilson's interval"
        low, high = _wilson(value, n_draws, float(stats.norm.ppf((1 + level) / 2)))
    return Estimate(
        value=value,
        low=min(low, value),
        high=max(high, value),
        level=level,
        n_draws=n_draws,
        method=f"{method}; {name}",
    )


def _wilson(mean: float, n_draws: int, quantile: float) -> tuple[float, float]:
    shrink = 1 / (1 + quantile**2 / n_draws)
    center = (mean + quantile**2 / (2 * n_draws)) * shrink
    spread = mean * (1 - mean) / n_draws + quantile**2 / (4 * n_draws**2)
    half = quantile * math.sqrt(spread) * shrink
    return max(0.0, center - half), min(1.0, center + half)


def _mean(draws: Float64Array) -> tuple[int, float]:
    if draws.ndim != 1 or not draws.size:
        raise ValueError(f"`draws` must have shape (n,) with n >= 1, got {draws.shape}.")
    bad = ~np.isfinite(draws)
    if bad.any():
        place = int(np.argmax(bad))
        raise ValueError(f"`draws` must be finite, got {draws[place]} as draw {place}.")
    return draws.size, float(draws.mean())


def check_level(level: float) -> None:
    """Refuse what is not the coverage of an interval.

    Raises:
        ValueError: If it is outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level!r}.")
