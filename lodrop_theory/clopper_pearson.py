r"""Confidence limits of a binomial probability: Clopper and Pearson (1934), rounded outward.

The limit solves :math:`P(X \le k) = \delta` (or :math:`P(X \ge k) = \delta`). SciPy's inverse of
the incomplete beta function can miss it by more than a rounding error (far from it for n near
1e15), so it only gives the start: the limit is moved outward until the tail *at the limit*, which
SciPy computes to about 1e-13 (tested against exact sums), is below delta by more than that. For
delta below 1e-100 it does not: near 1e-250 SciPy's tail can underflow to 0 long before its value
does. There, and wherever it is the tighter of the two, the limit is the inverse of the binary
divergence (Chernoff's bound), which needs no tail.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    Float64Array,
    as_float64,
    check_count,
    check_failure_probability,
)
from lodrop_theory._numerics import round_down, round_up
from lodrop_theory.kl_inverse import binary_kl_inverse, binary_kl_inverse_lower

_TAIL_ERROR = 1e-10  # per nat of the tail; the worst seen is 2e-13
_SMALLEST_TAIL = 1e-100


def _counts(
    n_errors: ArrayLike, n_test: ArrayLike, delta: ArrayLike
) -> tuple[Float64Array, Float64Array, Float64Array]:
    n, failure = check_count("n_test", n_test), check_failure_probability("delta", delta)
    k = as_float64("n_errors", n_errors)
    if np.any((k < 0) | (k > n) | (k != np.floor(k))):
        raise ValueError(f"`n_errors` must be a whole number in [0, n_test], got {n_errors!r}.")
    k, n, failure = np.broadcast_arrays(k, n, failure)
    return k, n, failure


def _chernoff_nats(failure: Float64Array, n: Float64Array) -> Float64Array:
    return np.asarray(round_up(-np.log(failure) / n))


def _outward(
    limit: Float64Array,
    cap: Float64Array,
    tail: Callable[[Float64Array], Float64Array],
    failure: Float64Array,
) -> Float64Array:
    """Moves each limit toward ``cap`` until the tail there is small enough; never beyond."""
    limit = np.where(failure < _SMALLEST_TAIL, cap, limit)
    stride, target = 2.0**-50, failure * (1.0 - _TAIL_ERROR * (1.0 - np.log(failure)))
    for _ in range(64):  # invariant: where the tail at `limit` is small enough, it is final
        short = (limit != cap) & ~(tail(limit) <= target)
        if not np.any(short):
            break
        step = np.maximum(stride * np.minimum(limit, 1.0 - limit), np.spacing(limit))
        moved = np.where(cap > limit, np.minimum(limit + step, cap), np.maximum(limit - step, cap))
        limit, stride = np.where(short, moved, limit), 2.0 * stride
    else:
        limit = np.where(short, cap, limit)
    return limit


def clopper_pearson_upper(n_errors: ArrayLike, n_test: ArrayLike, delta: ArrayLike) -> Float64Array:
    r"""Upper confidence limit of a probability after k successes in n trials.

    .. math:: \sup\{p : P(X \le k) > \delta\}, \qquad X \sim \mathrm{Binomial}(n, p)

    Args:
        n_errors: k, a whole number in [0, n].
        n_test: n, independent trials, >= 1.
        delta: Failure probability in (0, 1), one-sided.

    Returns:
        The limit in (0, 1], rounded upward; 1 for k = n.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Clopper and Pearson (1934), Biometrika 26.

    Example:
        No error in n trials gives 1 - delta^(1/n), about 3/n for delta = 5%:

        >>> round(float(clopper_pearson_upper(0, 100, 0.05)), 6)
        0.029513
    """
    from scipy.special import betaincc, betainccinv  # SciPy is not loaded on import

    k, n, failure = _counts(n_errors, n_test, delta)
    inside = k < n
    a, b = k + 1.0, np.where(inside, n - k, 1.0)
    cap = np.where(
        inside, binary_kl_inverse(np.minimum(round_up(k / n), 1.0), _chernoff_nats(failure, n)), 1.0
    )
    limit = np.fmin(np.where(inside, betainccinv(a, b, failure), 1.0), cap)
    return _outward(limit, cap, lambda p: betaincc(a, b, p), failure)[()]


def clopper_pearson_lower(n_errors: ArrayLike, n_test: ArrayLike, delta: ArrayLike) -> Float64Array:
    r"""Lower confidence limit of a probability after k successes in n trials.

    .. math:: \inf\{p : P(X \ge k) > \delta\}, \qquad X \sim \mathrm{Binomial}(n, p)

    Args:
        n_errors: k, a whole number in [0, n].
        n_test: n, independent trials, >= 1.
        delta: Failure probability in (0, 1), one-sided.

    Returns:
        The limit in [0, 1), rounded downward; 0 for k = 0.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Clopper and Pearson (1934), Biometrika 26.

    Example:
        >>> round(float(clopper_pearson_lower(100, 100, 0.05)), 6)
        0.970487
    """
    from scipy.special import betainc, betaincinv

    k, n, failure = _counts(n_errors, n_test, delta)
    inside = k > 0
    a, b = np.where(inside, k, 1.0), n - k + 1.0
    cap = np.where(
        inside,
        binary_kl_inverse_lower(np.maximum(round_down(k / n), 0.0), _chernoff_nats(failure, n)),
        0.0,
    )
    limit = np.fmax(np.where(inside, betaincinv(a, b, failure), 0.0), cap)
    return _outward(limit, cap, lambda p: betainc(a, b, p), failure)[()]


__all__ = ["clopper_pearson_lower", "clopper_pearson_upper"]
