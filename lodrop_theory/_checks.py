"""Argument checks: every public entry of the package passes through these.

Each check returns the argument as float64 (an array, possibly 0-d) and raises ``ValueError`` or
``TypeError`` whose text names the argument, the accepted set and what came.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64Array = NDArray[np.float64]


def as_float64(name: str, value: ArrayLike) -> Float64Array:
    """Convert to float64; booleans, complex numbers, text and NaN are refused.

    Raises:
        TypeError: If ``value`` is not a real number or an array of them.
        ValueError: If it contains NaN.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"`{name}` must be a real number or an array of them, got {value!r}.")
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise ValueError(f"`{name}` must not contain NaN, got {value!r}.")
    return array


def _check(
    name: str, value: ArrayLike, accepted: Callable[[Float64Array], NDArray[np.bool_]], words: str
) -> Float64Array:
    array = as_float64(name, value)
    inside = np.asarray(accepted(array))
    if not inside.all():
        first = array[~inside].flat[0]
        raise ValueError(f"`{name}` must be {words}, got {float(first)!r}.")
    return array


def check_dropout_rate(name: str, value: ArrayLike) -> Float64Array:
    """A probability of dropping, in [0, 1)."""
    return _check(name, value, lambda x: (x >= 0) & (x < 1), "in [0, 1)")


def check_failure_probability(name: str, value: ArrayLike) -> Float64Array:
    """A failure probability, in (0, 1)."""
    return _check(name, value, lambda x: (x > 0) & (x < 1), "in (0, 1)")


def check_unit_interval(name: str, value: ArrayLike) -> Float64Array:
    """A number in [0, 1]."""
    return _check(name, value, lambda x: (x >= 0) & (x <= 1), "in [0, 1]")


def check_count(name: str, value: ArrayLike) -> Float64Array:
    """A whole number >= 1."""
    return _check(
        name, value, lambda x: np.isfinite(x) & (x >= 1) & (x == np.floor(x)), "a whole number >= 1"
    )


def check_nonnegative(name: str, value: ArrayLike) -> Float64Array:
    """A finite number >= 0."""
    return _check(name, value, lambda x: np.isfinite(x) & (x >= 0), "finite and >= 0")


def check_positive(name: str, value: ArrayLike) -> Float64Array:
    """A finite number > 0."""
    return _check(name, value, lambda x: np.isfinite(x) & (x > 0), "finite and > 0")


def check_finite(name: str, value: ArrayLike) -> Float64Array:
    """A finite number of either sign."""
    return _check(name, value, np.isfinite, "finite")
