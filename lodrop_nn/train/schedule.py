"""How strongly masks drop as training goes on."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real

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
        if not _are_points(self.points):
            raise ValueError(
                "`points` must be a tuple of pairs of numbers in [0, 1] with strictly increasing "
                f"first entries, got {self.points!r}."
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


def _are_points(points: object) -> bool:
    if not isinstance(points, tuple) or not points:
        return False
    for point in points:
        if not isinstance(point, tuple) or len(point) != 2:
            return False
        if not all(isinstance(number, Real) and 0.0 <= float(number) <= 1.0 for number in point):
            return False
    return all(a < b for (a, _), (b, _) in pairwise(points))


def _check_fraction(
    name: str, value: object, accepted: str, inside: Callable[[float], bool]
) -> None:
    if not isinstance(value, Real) or not inside(float(value)):
        raise ValueError(f"`{name}` must be in {accepted}, got {value!r}.")


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
    _check_fraction("until", until, "(0, 1]", lambda value: 0.0 < value <= 1.0)
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
    _check_fraction("after", after, "[0, 1)", lambda value: 0.0 <= value < 1.0)
    return PiecewiseLinear(((after, 1.0), (1.0, 0.0)))
