"""Directed rounding: an upper bound computed in floating point must not end up below the exact one.

Every formula of this package is a chain of fewer than sixteen float64 operations, each off by at
most half an ulp, so sixteen ulps in the safe direction cover the chain.
"""

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array

SLACK = 16.0 * float(np.finfo(np.float64).eps)


def round_up(value: ArrayLike, scale: ArrayLike | None = None) -> Float64Array:
    """A number at least as large as the exact one; ``scale`` bounds the terms that were added."""
    number = np.asarray(value, dtype=np.float64)
    size = np.abs(number) if scale is None else np.asarray(scale, dtype=np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(np.nextafter(number + SLACK * size, np.inf))


def round_down(value: ArrayLike, scale: ArrayLike | None = None) -> Float64Array:
    """A number at most as large as the exact one; ``scale`` bounds the terms that were added."""
    return -round_up(-np.asarray(value, dtype=np.float64), scale)
