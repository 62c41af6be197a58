"""Strong convexity of the penalized objective, and the dropout rate that would restore it."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, check_nonnegative, check_positive
from lodrop_theory._numerics import round_down, round_up
from lodrop_theory.inputs import CurvatureInputs
from lodrop_theory.mask_laws import update_sparsity
from lodrop_theory.results import StabilityResult, input_fields

_EPS = float(np.finfo(np.float64).eps)
_LAST_RATE = float(np.nextafter(1.0, 0.0))
_HUGE = float(np.finfo(np.float64).max) / 4.0

STABILITY_HYPOTHESES = (
    "the penalized objective is mu-strongly convex on a convex set that holds the compared "
    "minimizers, for every training set",
    "the compared solutions are exact minimizers in the interior of that set",
    "the unregularized per-example loss is `lipschitz`-Lipschitz there, for every example",
    "the dropout rate and the penalty do not depend on the training set",
)


def strong_convexity(
    inputs: CurvatureInputs, *, min_singular_value: ArrayLike = 1.0
) -> Float64Array:
    r"""Strong convexity of the penalized objective, as far as its curvature proves it.

    .. math:: \mu = \Lambda_{\min} + 2 \lambda (2p - p^2) \sigma^2

    The penalty :math:`\lambda s(p) \|D\|_F^2` has the Hessian :math:`2 \lambda s(p) I` in the
    entries of :math:`D`; with frozen :math:`A` of full row rank and :math:`D = B A`,
    :math:`\|B A\|_F^2 \ge \sigma_{\min}(A)^2 \|B\|_F^2`, and in the entries of :math:`B` the
    curvature is at least :math:`2 \lambda s(p) \sigma_{\min}(A)^2`.

    In the factors :math:`(A, B)` jointly there is no such statement: the objective is constant
    along :math:`(B G, G^{-1} A)`, so that its Hessian is singular at every dropout rate.

    Args:
        inputs: The curvature and the penalty, in the coordinates of the proof.
        min_singular_value: sigma. 1 in the coordinates of D; the smallest singular value of the
            frozen A (times PEFT's scaling) in the coordinates of B. Unitless, > 0.

    Returns:
        mu, rounded downward by a few ulps, in loss per parameter^2. Not positive where the
        curvature proves nothing.

    Raises:
        ValueError: If ``min_singular_value`` is not finite and > 0.

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, Proposition 4.2 (sigma = 1).

    Example:
        >>> from lodrop_theory.inputs import CurvatureInputs
        >>> inputs = CurvatureInputs(
        ...     n_train=100, dropout_rate=0.5, lipschitz=1, hessian_min_eig=-0.5, penalty=1
        ... )
        >>> round(float(strong_convexity(inputs)), 12)
        1.0
    """
    sigma = check_positive("min_singular_value", min_singular_value)
    # Clipping from above keeps a lower bound a lower bound, and inf - inf away.
    smallest = np.minimum(inputs.hessian_min_eig, _HUGE)
    with np.errstate(over="ignore"):
        # Clipped after each factor: an infinite one would meet a zero.
        added = np.asarray(inputs.penalty) * (2.0 * update_sparsity(inputs.dropout_rate))
        for _ in range(2):
            added = np.minimum(added, _HUGE) * sigma
        added = np.minimum(added, _HUGE)
        return round_down(smallest + added, np.abs(smallest) + added)[()]


def repair_dropout_rate(
    inputs: CurvatureInputs, *, min_singular_value: ArrayLike = 1.0, above: ArrayLike = 0.0
) -> Float64Array:
    r"""Smallest dropout rate at which :func:`strong_convexity` exceeds a threshold, mostly 0.

    .. math:: p > 1 - \sqrt{1 - t}, \qquad t = \frac{\max(a - \Lambda_{\min}, 0)}{2\lambda\sigma^2},

    which exists in [0, 1) only for :math:`t < 1`: for a = 0, where :math:`\lambda >
    |\Lambda_{\min}| / (2\sigma^2)`. The set of such rates is open; the result lies in it, a few
    ulps above its infimum (and is machine epsilon where every p > 0 will do).

    Args:
        inputs: The curvature and the penalty; ``dropout_rate`` is not read.
        min_singular_value: As in :func:`strong_convexity`.
        above: a >= 0, the strong convexity that is not enough. Loss per parameter^2.

    Returns:
        A rate in [0, 1) with mu > a, or nan where there is none.

    Raises:
        ValueError: If a keyword argument is outside its range.

    Source:
        Derived from Lin et al. (2024), arXiv:2404.09610v1, Proposition 4.2.

    Example:
        >>> from lodrop_theory.inputs import CurvatureInputs
        >>> inputs = CurvatureInputs(
        ...     n_train=100, dropout_rate=0, lipschitz=1, hessian_min_eig=-1.5, penalty=1
        ... )
        >>> round(float(repair_dropout_rate(inputs)), 12)
        0.5
    """
    sigma = check_positive("min_singular_value", min_singular_value)
    threshold = check_nonnegative("above", above)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        weight = 2.0 * np.asarray(inputs.penalty) * sigma**2
        t = np.maximum(threshold - np.asarray(inputs.hessian_min_eig), 0.0) / weight
        # t / (1 + sqrt(1 - t)) is 1 - sqrt(1 - t) without the cancellation.
        start = np.where(t < 1.0, t / (1.0 + np.sqrt(1.0 - t)), np.nan)
    start = np.where(np.asarray(inputs.hessian_min_eig) > threshold, 0.0, start)
    rate = start
    for step in range(56):  # one ulp, then two, four, ... until the computed mu suffices
        candidate = replace(inputs, dropout_rate=np.where(np.isnan(rate), 0.0, rate))
        mu = strong_convexity(candidate, min_singular_value=sigma)
        short = ~np.isnan(rate) & ~(mu > threshold)
        if not short.any():
            return rate[()]
        nudge = np.where(start > 0, start, 1.0) * (_EPS * 2.0**step)
        rate = np.where(short, np.minimum(start + nudge, _LAST_RATE), rate)
    return np.where(short, np.nan, rate)[()]


def failed_strong_convexity(frozen_factor: bool = False) -> str:
    """The hypothesis, in the words that every result uses when it fails."""
    factor = " min_singular_value^2" if frozen_factor else ""
    return f"strong convexity: hessian_min_eig + 2 penalty (2p - p^2){factor} > 0"


def _remedy(inputs: CurvatureInputs, rate: Float64Array, sigma: Float64Array) -> str:
    needed = np.asarray(-np.asarray(inputs.hessian_min_eig) / (2.0 * sigma**2))
    if np.ndim(rate) or np.ndim(needed):
        return (
            "raise `dropout_rate` to `repair_dropout_rate` or above; where that is nan no dropout "
            "rate in [0, 1) helps: `penalty` must exceed |hessian_min_eig| / 2"
        )
    if np.isnan(rate):
        return (
            "no dropout rate in [0, 1) helps: "
            f"`penalty` must exceed |hessian_min_eig| / 2 = {max(float(needed), 0.0):.6g}"
        )
    above = "above 0" if rate <= _EPS else f"to {float(rate):.6g} or above"
    return f"raise `dropout_rate` {above}"


def stability_from_curvature(
    inputs: CurvatureInputs,
    *,
    coefficient: float,
    bound: str,
    source: str,
    notion: str,
    certified: bool,
    min_singular_value: ArrayLike = 1.0,
) -> StabilityResult:
    """``coefficient`` lipschitz^2 / (mu n_train), with its standing; infinite where mu <= 0."""
    sigma = check_positive("min_singular_value", min_singular_value)
    mu = np.asarray(strong_convexity(inputs, min_singular_value=sigma))
    rho, n = np.asarray(inputs.lipschitz), np.asarray(inputs.n_train)
    applicable = mu > 0
    safe = np.where(applicable, mu, 1.0)
    with np.errstate(over="ignore"):
        # (rho / sqrt(mu n))^2: neither rho^2 nor mu n can overflow on the way to a finite value.
        value = round_up(coefficient * (rho / (np.sqrt(safe) * np.sqrt(n))) ** 2)
    value = np.where(rho == 0, 0.0, value)
    everywhere = bool(np.all(applicable))
    rate = repair_dropout_rate(inputs, min_singular_value=sigma)
    frozen = not bool(np.all(sigma == 1.0))
    return StabilityResult(
        bound=bound,
        source=source,
        value=np.where(applicable, value, np.inf),
        notion=notion,
        applicable=applicable,
        failed_hypothesis=None if everywhere else failed_strong_convexity(frozen),
        repair_dropout_rate=rate,
        remedy=None if everywhere else _remedy(inputs, rate, sigma),
        certified=certified,
        hypotheses=STABILITY_HYPOTHESES,
        inputs=input_fields(inputs),
    )
