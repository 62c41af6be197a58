"""How strongly masks drop as training goes on."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# From the trained fraction in [0, 1] to the number in [0, 1] that multiplies all dropout rates.
DropoutRateSchedule = Callable[[float], float]


@dataclass(frozen=True)
class PiecewiseLinear:
    """A schedule of straight lines between given points, level before and after them.

    Attributes:
        points: Pairs (trained fraction, multiplier of the rates), both in [0, 1], fractions
            strictly increasing; at least one.

    Raises:
        ValueError: If the points are not such pairs.

    Example:
        >>> schedule = PiecewiseLinear(((0.0, 0.0), (0.5, 1.0)))
        >>> [schedule(t) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0]
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        fractions = [fraction for fraction, _ in self.points]
        inside = all(0.0 <= number <= 1.0 for point in self.points for number in point)
        if not (self.points and inside and all(a < b for a, b in pairwise(fractions))):
            raise ValueError(
                "`points` must be pairs of numbers in [0, 1] with strictly increasing first "
                f"entries, got {self.points!r}."
            )

    def __call__(self, fraction: float) -> float:
        """The multiplier in [0, 1] after a trained fraction in [0, 1].

        Raises:
            ValueError: If the fraction is outside its range.
        """
        if not 0.0 <= fraction <= 1.0:  # false for NaN
            raise ValueError(f"`fraction` must be in [0, 1], got {fraction!r}.")
        fractions, levels = ([point[i] for point in self.points] for i in (0, 1))
        level = float(np.interp(fraction, fractions, levels))
        return min(max(level, 0.0), 1.0)  # rounding may pass an end by its last bit


def linear_warmup(until: float) -> PiecewiseLinear:
    """A schedule whose rates rise linearly from 0 and are full from a trained fraction on.

    Args:
        until: Trained fraction in (0, 1] from which on the rates are full.

    Raises:
        ValueError: If the fraction is outside its range.

    Example:
        >>> linear_warmup(0.1)(0.05)
        0.5
    """
    if not 0.0 < until <= 1.0:
        raise ValueError(f"`until` must be in (0, 1], got {until!r}.")
    return PiecewiseLinear(((0.0, 0.0), (until, 1.0)))


def linear_decay(after: float = 0.0) -> PiecewiseLinear:
    """A schedule whose rates are full up to a trained fraction and fall linearly to 0 at the end.

    Args:
        after: Trained fraction in [0, 1) up to which the rates are full.

    Raises:
        ValueError: If the fraction is outside its range.

    Example:
        >>> linear_decay(0.5)(0.75)
        0.5
    """
    if not 0.0 <= after < 1.0:
        raise ValueError(f"`after` must be in [0, 1), got {after!r}.")
    return PiecewiseLinear(((after, 1.0), (1.0, 0.0)))
