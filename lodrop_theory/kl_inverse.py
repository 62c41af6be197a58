r"""Divergence of two Bernoulli laws and its inverse, rounded outward.

Written with :math:`\varphi(a, b) = a \ln(a/b) - a + b \ge 0`,

.. math:: \mathrm{kl}(q \,\|\, p) = \varphi(q, p) + \varphi(1 - q, 1 - p),

nothing cancels between the two terms, and within one term only for :math:`b \approx a`, where
:math:`\varphi(a, b) = d s - 2 a s^3 (1/3 + s^2/5 + s^4/7 + \dots)` with :math:`d = b - a`,
:math:`s = d / (a + b)` takes over. The computed divergence is relatively exact to a few tens of
ulps (``_SLACK`` is twice the worst case of the analysis; a test compares with 50 digits), however
close p is to q. That is what lets the inverse be tight for a budget of 1e-14 and still be safe.

The inverse solves :math:`\mathrm{kl}(q \,\|\, p) = c` by Newton's method from outside, where the
iteration on a convex function is monotone. Whatever it returns is then moved away from q until
its *computed* divergence exceeds the budget by more than that error: the guarantee rests on this
last step alone.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, as_float64, check_unit_interval

_EPS = float(np.finfo(np.float64).eps)
_SLACK = 64.0 * _EPS
_TINY = 1e-250  # risks below it are rounded outward to it, or to 0
_BLOCK = 1 << 13  # temporaries of this length stay in the cache
_NEAR = 0.25  # |d| / a below which the series is the more exact form
_SERIES = [1.0 / k for k in range(23, 1, -2)]


def _phi(a: Float64Array, b: Float64Array, d: Float64Array) -> Float64Array:
    """The term a ln(a/b) - a + b for d = b - a; b where a is 0."""
    s = d / (a + b)
    square = s * s
    tail = _SERIES[0] * square
    for coefficient in _SERIES[1:-1]:
        tail = (tail + coefficient) * square
    near = d * s - 2.0 * a * s * square * (tail + _SERIES[-1])
    far = d - a * np.log(np.minimum(b / a, np.finfo(np.float64).max))
    return np.where(np.abs(d) < _NEAR * a, near, np.where(a == 0, b, far))


def _binary_kl(q: Float64Array, p: Float64Array) -> Float64Array:
    d = p - q
    return _phi(q, p, d) + _phi(1.0 - q, 1.0 - p, -d)


def binary_kl(empirical_risk: ArrayLike, population_risk: ArrayLike) -> Float64Array:
    r"""Divergence of the Bernoulli law of mean q from that of mean p, in nats.

    .. math:: \mathrm{kl}(q \,\|\, p) = q \ln\frac qp + (1 - q) \ln\frac{1 - q}{1 - p}

    Args:
        empirical_risk: q in [0, 1].
        population_risk: p in [0, 1].

    Returns:
        The divergence, with a relative error of a few tens of ulps also for p next to q, where q
        and p are 0 or at least 1e-290; +inf where p is 0 or 1 and q is not.

    Raises:
        ValueError: If an argument is outside [0, 1].

    Example:
        >>> binary_kl(0.0, 0.5) == np.log(2)
        np.True_
        >>> round(float(binary_kl(0.5, 0.5 + 2**-40)) * 2**79, 12)  # a naive formula has no digit
        1.0
    """
    q = check_unit_interval("empirical_risk", empirical_risk)
    p = check_unit_interval("population_risk", population_risk)
    with np.errstate(all="ignore"):
        value = _binary_kl(*np.broadcast_arrays(q, p))
    return np.where(np.equal(q, p), 0.0, np.where(np.isnan(value), np.inf, value))[()]


def _check_budget(budget_nats: ArrayLike) -> Float64Array:
    budget = as_float64("budget_nats", budget_nats)
    if np.any(budget < 0):
        raise ValueError(f"`budget_nats` must be >= 0, got {budget_nats!r}.")
    return budget


def _start_above(q: Float64Array, c: Float64Array) -> Float64Array:
    """No smaller than the inverse: the least of four lower bounds on kl, inverted."""
    entropy = -(q * np.log(q) + (1.0 - q) * np.log1p(-q))
    start = q + np.sqrt(c / 2.0)  # kl >= 2 d^2
    start = np.minimum(start, q + np.sqrt(2.0 * (1.0 - q) * c))  # kl >= d^2 / (2 (1 - q))
    start = np.minimum(start, q + c + np.sqrt(c * (c + 2.0 * q)))  # kl >= d^2 / (2 p)
    # kl >= -entropy - (1 - q) ln(1 - p)
    return np.minimum(start, -np.expm1(-(c + entropy) / (1.0 - q)))


def _start_below(q: Float64Array, c: Float64Array) -> Float64Array:
    """No larger than the inverse from below: the same four, mirrored."""
    entropy = -(q * np.log(q) + (1.0 - q) * np.log1p(-q))
    start = np.maximum(q - np.sqrt(c / 2.0), q - np.sqrt(2.0 * q * c))
    start = np.maximum(start, q - c - np.sqrt(c * (c + 2.0 * (1.0 - q))))
    return np.maximum(start, np.exp(-(c + entropy) / q))


def _solve(q: Float64Array, c: Float64Array, p: Float64Array, end: float) -> Float64Array:
    """From a start between ``end`` and the solution, to the solution, rounded toward ``end``."""
    next_to_q = np.nextafter(q, end)
    low, high = (next_to_q, 1.0 - _EPS / 2.0) if end == 1.0 else (1e-300, next_to_q)
    at_end = (p >= high) if end == 1.0 else (p <= low)
    for newton in (False, False, True, True):
        p = np.minimum(np.maximum(p, low), high)
        width = p * (1.0 - p)
        slope = (p - q) / width
        # the last two aim beyond the budget by the error of the divergence
        step = (_binary_kl(q, p) - (c * (1.0 + 1.5 * _SLACK) if newton else c)) / slope
        if not newton:  # Halley: width times the second derivative is `curvature`
            curvature = q * (1.0 - p) / p + (1.0 - q) * p / (1.0 - p)
            bend = step / (p - q) * curvature
            step = step / (1.0 - 0.5 * np.minimum(np.maximum(bend, -1.0), 1.0))
        p = p - step
    p = np.where(at_end | np.isnan(p), end, np.minimum(np.maximum(p, low), high))
    short = np.flatnonzero(~(_binary_kl(q, p) * (1.0 - _SLACK) >= c) & (p != end))
    stride = 4.0 * _EPS
    while short.size:  # invariant: all others have a divergence of at least c
        at, center = p[short], q[short]
        at = np.nextafter(at + (at - center) * stride, end)
        at = np.minimum(at, 1.0) if end == 1.0 else np.maximum(at, 0.0)
        p[short] = at
        enough = (_binary_kl(center, at) * (1.0 - _SLACK) >= c[short]) | (at == end)
        short, stride = short[~enough], 2.0 * stride
    return p


def _inverse(
    empirical_risk: ArrayLike,
    budget_nats: ArrayLike,
    start: Callable[[Float64Array, Float64Array], Float64Array],
    end: float,
) -> Float64Array:
    q = check_unit_interval("empirical_risk", empirical_risk)
    c = _check_budget(budget_nats)
    shape = np.broadcast_shapes(q.shape, c.shape)
    flat_q, flat_c = (np.broadcast_to(x, shape).ravel() for x in (q, c))
    result = np.empty(flat_q.shape)
    for first in range(0, flat_q.size, _BLOCK):
        block = slice(first, first + _BLOCK)
        qs, cs = flat_q[block], flat_c[block]
        with np.errstate(all="ignore"):
            if end == 1.0:
                qs = np.where(qs > 0, np.maximum(qs, _TINY), 0.0)  # increasing in q
                at_zero = np.nextafter(-np.expm1(-cs) * (1.0 + 2.0 * _EPS), 2.0)
                edge = (qs == 0) | (qs >= 1.0 - _EPS)
                closed = np.where(qs == 0, np.minimum(at_zero, 1.0), 1.0)
            else:
                edge = (qs <= _TINY) | (qs == 1)
                closed = np.where(qs == 1, np.exp(-cs) * (1.0 - 2.0 * _EPS), 0.0)
            closed = np.where(np.isinf(cs), end, closed)
            edge = edge | (cs == 0) | np.isinf(cs)
            inner_q, inner_c = np.where(edge, 0.5, qs), np.where(edge, 1.0, cs)
            inner = _solve(inner_q, inner_c, start(inner_q, inner_c), end)
        result[block] = np.where(edge, np.where(cs == 0, flat_q[block], closed), inner)
    return result.reshape(shape)[()]


def binary_kl_inverse(empirical_risk: ArrayLike, budget_nats: ArrayLike) -> Float64Array:
    r"""Largest risk that a divergence budget cannot rule out.

    .. math:: \sup\{p \in [q, 1] : \mathrm{kl}(q \,\|\, p) \le c\}

    Args:
        empirical_risk: q in [0, 1].
        budget_nats: c >= 0, possibly +inf. Nats, not bits.

    Returns:
        A risk in [q, 1], never below the exact supremum: rounded upward by at most about 1e-14
        of its distance from q, and by a few ulps of itself.

    Raises:
        ValueError: If an argument is NaN or outside its range.

    Source:
        Langford (2005), JMLR 6; Maurer (2004), arXiv:cs/0411099, Theorem 5 (implicit there).

    Example:
        With no observed error the inverse is 1 - exp(-c):

        >>> round(float(binary_kl_inverse(0.0, np.log(2.0))), 12)
        0.5
    """
    return _inverse(empirical_risk, budget_nats, _start_above, 1.0)


def binary_kl_inverse_lower(empirical_risk: ArrayLike, budget_nats: ArrayLike) -> Float64Array:
    r"""Smallest risk that a divergence budget cannot rule out.

    .. math:: \inf\{p \in [0, q] : \mathrm{kl}(q \,\|\, p) \le c\}

    Args:
        empirical_risk: q in [0, 1].
        budget_nats: c >= 0, possibly +inf. Nats, not bits.

    Returns:
        A risk in [0, q], never above the exact infimum.

    Raises:
        ValueError: If an argument is NaN or outside its range.

    Source:
        As :func:`binary_kl_inverse`.

    Example:
        >>> round(float(binary_kl_inverse_lower(1.0, np.log(2.0))), 12)
        0.5
    """
    return _inverse(empirical_risk, budget_nats, _start_below, 0.0)


__all__ = ["binary_kl", "binary_kl_inverse", "binary_kl_inverse_lower"]
