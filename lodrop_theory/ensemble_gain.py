r"""What an ensemble gains over its members: exactly, and in brackets.

For a convex loss the mean over members minus the loss of the averaged output is the mean Bregman
divergence of the members from their average (the ambiguity identity): the linear terms cancel. For
the log loss of averaged *probabilities* the divergence is :math:`x/m - 1 - \ln(x/m)` in the
probability x of the right answer, with mean m; for cross-entropy of averaged *logits* it is
:math:`\mathrm{KL}(\bar\pi \,\|\, \pi_i)`, and needs no label.

**Bracket** (Liao and Berg). :math:`h(x) = (x/m - 1 - \ln(x/m)) / (x - m)^2` is decreasing, so that
for members in [a, b] :math:`h(b) \operatorname{Var} \le \text{gain} \le h(a) \operatorname{Var}`.
Proof of the monotonicity: by Taylor's formula :math:`h(x) = \int_0^1 (1-t) (m + t(x -
m))^{-2}\,dt`, a mean of decreasing functions of x.
"""

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    Float64Array,
    as_float64,
    check_nonnegative,
    check_positive,
)
from lodrop_theory._numerics import round_down, round_up

_EPS = float(np.finfo(np.float64).eps)


def _excess_of_log(pool: Float64Array, mean: Float64Array) -> Float64Array:
    """(x/m - 1 - ln(x/m)) / (x/m - 1)^2, without cancellation for x near m or near 0."""
    t = (pool - mean) / mean
    near = np.abs(t) < 0.125
    small, large = np.where(near, t, 0.0), np.where(near, 1.0, t)
    # sum_k (-t)^k / (k + 2); the first term left out is below 0.125^18 < 1e-16
    series = np.zeros_like(small)
    for k in range(17, -1, -1):
        series = 1.0 / (k + 2) - small * series
    direct = (large - (np.log(pool) - np.log(mean))) / large / large
    return np.asarray(np.where(near, series, direct))


def _members(name: str, value: ArrayLike) -> Float64Array:
    pool = check_positive(name, value)
    if pool.ndim < 1 or len(pool) < 1 or np.any(pool > 1):
        raise ValueError(f"`{name}` must be in (0, 1], with the members on the first axis.")
    return pool


def log_loss_ambiguity(member_probabilities: ArrayLike) -> Float64Array:
    r"""Gain of averaged probabilities under the log loss, as a mean of divergences.

    .. math:: \frac1N \sum_i -\ln x_i + \ln m = \frac1N \sum_i
        \Bigl(\frac{x_i}{m} - 1 - \ln \frac{x_i}{m}\Bigr)

    Args:
        member_probabilities: Probability of the right answer under each member, in (0, 1], shape
            (n_members, ...); mixed with the uniform law first if the loss is smoothed.

    Returns:
        The gain, shape (...), >= 0, in nats; computed without cancellation.

    Raises:
        ValueError: If a probability is outside (0, 1].

    Source:
        Krogh and Vedelsby (1995) for the squared loss; Bregman form derived here.

    Example:
        >>> round(float(log_loss_ambiguity([0.25, 0.75])), 6) == round(float(np.log(4 / 3) / 2), 6)
        True
    """
    pool = _members("member_probabilities", member_probabilities)
    mean = pool.mean(axis=0)
    t = (pool - mean) / mean
    gain: Float64Array = np.mean(t * t * _excess_of_log(pool, mean), axis=0)
    return gain[()]


def logit_ambiguity(member_logits: ArrayLike) -> Float64Array:
    r"""Gain of averaged logits under the cross-entropy: no label is needed.

    .. math:: \frac1N \sum_i \ell(z_i, y) - \ell(\bar z, y) = \frac1N \sum_i
        \mathrm{KL}\bigl(\mathrm{softmax}(\bar z) \,\|\, \mathrm{softmax}(z_i)\bigr)

    for every y, because cross-entropy is logsumexp minus a linear function of the logits.

    Args:
        member_logits: Shape (n_members, ..., n_classes).

    Returns:
        The gain, shape (...), >= 0, in nats.

    Raises:
        ValueError: If a logit is not finite or there is no member.

    Source:
        Derived here (Bregman divergence of logsumexp).

    Example:
        >>> float(logit_ambiguity([[0.0, 1.0], [0.0, 1.0]]))
        0.0
    """
    pool = as_float64("member_logits", member_logits)
    if pool.ndim < 2 or len(pool) < 1 or not np.isfinite(pool).all():
        raise ValueError(
            "`member_logits` must be finite, shape (n_members, ..., n_classes), "
            f"got shape {pool.shape}."
        )
    mean = pool.mean(axis=0)
    log_mean, log_each = _log_softmax(mean), _log_softmax(pool)
    divergence = (np.exp(log_mean) * (log_mean - log_each)).sum(axis=-1)
    gain: Float64Array = np.maximum(divergence.mean(axis=0), 0.0)
    return gain[()]


def _log_softmax(logits: Float64Array) -> Float64Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_gain_bracket(member_probabilities: ArrayLike) -> tuple[Float64Array, Float64Array]:
    r"""Bracket of :func:`log_loss_ambiguity` by the variance and the range of the members.

    .. math:: h(b) \operatorname{Var} \le \text{gain} \le h(a) \operatorname{Var}, \qquad
        h(x) = \frac{x/m - 1 - \ln(x/m)}{(x - m)^2},

    with a and b the smallest and the largest member. Proof: top of this module.

    Args:
        member_probabilities: As in :func:`log_loss_ambiguity`.

    Returns:
        Lower and upper end, shape (...), in nats, rounded outward. They are exact for the ensemble
        of *these* members; about infinitely many masks they say nothing.

    Raises:
        ValueError: If a probability is outside (0, 1].

    Source:
        Liao and Berg (2019), arXiv:1901.09350, Theorem 1.

    Example:
        >>> low, high = log_gain_bracket([0.25, 0.75])
        >>> round(float(low), 4), round(float(high), 4)
        (0.0945, 0.1931)
    """
    pool = _members("member_probabilities", member_probabilities)
    mean = pool.mean(axis=0)
    t = (pool - mean) / mean
    root = np.sqrt(np.mean(t * t, axis=0))
    # A sum of N terms is off by N ulps, and t by that much of 1, whatever its own size.
    error = (8.0 + len(pool)) * _EPS * (1.0 + np.abs(t).max(axis=0))
    low = _excess_of_log(pool.max(axis=0), mean) * np.maximum(root - error, 0.0) ** 2
    high = _excess_of_log(pool.min(axis=0), mean) * (root + error) ** 2
    size = 4.0 * (8.0 + len(pool)) * (2.0 - np.log(pool.min(axis=0)))
    return np.maximum(round_down(low, low * size), 0.0)[()], round_up(high, high * size)[()]


def curvature_gain_bracket(
    total_variance: ArrayLike, curvature_low: ArrayLike, curvature_high: ArrayLike
) -> tuple[Float64Array, Float64Array]:
    r"""Bracket of the gain by the curvature of the loss where the outputs lie.

    .. math:: \tfrac{k}{2} \operatorname{tr} \operatorname{Cov} z \le \text{gain} \le \tfrac{K}{2}
        \operatorname{tr} \operatorname{Cov} z

    for :math:`k I \preceq \ell'' \preceq K I` on the segments between the members and their mean.

    Args:
        total_variance: tr Cov z over the members (divided by N), >= 0.
        curvature_low: k >= 0; 1 for the half-squared loss, 0 for cross-entropy.
        curvature_high: K >= k; 1 for the half-squared loss (the gain is then exact), 1/2 for
            cross-entropy in the logits.

    Returns:
        Lower and upper end, in loss units, rounded outward.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Taylor's formula; derived here.

    Example:
        >>> [round(float(v), 12) for v in curvature_gain_bracket(4.0, 0.0, 0.5)]
        [0.0, 1.0]
    """
    variance = check_nonnegative("total_variance", total_variance)
    low = check_nonnegative("curvature_low", curvature_low)
    high = check_nonnegative("curvature_high", curvature_high)
    if np.any(low > high):
        raise ValueError(f"`curvature_low` must be <= `curvature_high`, got {low} > {high}.")
    with np.errstate(over="ignore"):
        ends = 0.5 * low * variance, 0.5 * high * variance
    return np.maximum(round_down(ends[0]), 0.0)[()], np.where(ends[1] == 0, 0.0, round_up(ends[1]))[
        ()
    ]


__all__ = [
    "curvature_gain_bracket",
    "log_gain_bracket",
    "log_loss_ambiguity",
    "logit_ambiguity",
]
