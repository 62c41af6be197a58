r"""Stability of a strongly convex objective, with the constants proved.

Let :math:`F_S = \frac1n \sum_i \ell_i + g` with the data-independent penalty :math:`g`, be
:math:`\mu`-strongly convex on a convex set that holds the minimizers :math:`v` of :math:`F_S` and
:math:`u` of the changed objective. Both are stationary, so :math:`\mu \|u - v\| \le \|\nabla
F_S(u) - \nabla F_S(v)\| = \|\nabla F_S(u)\|`, and only :math:`\nabla F_S(u)` is left to bound.

* *Remove one, mean over n - 1.* :math:`F_S = \frac{n-1}{n} F_{S \setminus i} + \frac1n(\ell_i +
  g)`, so :math:`\nabla F_S(u) = \frac1n(\nabla\ell_i(u) + \nabla g(u))`; stationarity of :math:`u`
  makes :math:`\nabla g(u)` minus a mean of loss gradients. Norm at most :math:`2\rho/n`.
* *Remove one, still divided by n.* :math:`\nabla F_S(u) = \nabla\ell_i(u)/n`. Norm at most
  :math:`\rho/n`.
* *Replace one.* :math:`\nabla F_S(u) = (\nabla\ell_i - \nabla\ell_i')(u)/n`. Norm at most
  :math:`2\rho/n`.

The loss changes by at most :math:`\rho \|u - v\|` at *every* point, fresh or not: the stabilities
are uniform. :math:`\rho` is that of the *unregularized* loss. A solution that exceeds the minimum
of its own objective by :math:`\epsilon` is within :math:`\sqrt{2\epsilon/\mu}` of the minimizer;
two such solutions add :math:`2\rho\sqrt{2\epsilon/\mu}`.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import check_nonnegative
from lodrop_theory._numerics import round_up
from lodrop_theory.bounds.curvature import (
    repair_dropout_rate,
    stability_from_curvature,
    strong_convexity,
)
from lodrop_theory.inputs import CurvatureInputs
from lodrop_theory.results import StabilityResult

_LARGEST = float(np.finfo(np.float64).max)
_SOURCE = "Lin et al. 2024, arXiv:2404.09610v1, Proposition 4.2, corrected (proof in the source)"


_EXACT_TO_INEXACT = (
    "the compared solutions are exact minimizers in the interior of that set",
    "the compared solutions are in that set, each within `suboptimality` of the minimum of its "
    "own objective, which is attained in the interior",
)


def _inexact(
    exact: StabilityResult, inputs: CurvatureInputs, sigma: ArrayLike, suboptimality: ArrayLike
) -> StabilityResult:
    """Adds what two solutions with a positive objective gap can add."""
    excess = check_nonnegative("suboptimality", suboptimality)
    numbers = {
        **exact.inputs,
        "suboptimality": excess,
        "min_singular_value": np.asarray(sigma, dtype=np.float64),
    }
    if not np.any(excess > 0):
        return replace(exact, inputs=numbers)
    mu = np.where(exact.applicable, strong_convexity(inputs, min_singular_value=sigma), 1.0)
    rho = np.asarray(inputs.lipschitz)
    with np.errstate(over="ignore", invalid="ignore"):
        added = np.sqrt(8.0) * (rho * (np.sqrt(excess) / np.sqrt(mu)))
        value = np.where((rho > 0) & (excess > 0), round_up(exact.value + added), exact.value)
    hypotheses = tuple(h.replace(*_EXACT_TO_INEXACT) for h in exact.hypotheses)
    return replace(exact, value=value, hypotheses=hypotheses, inputs=numbers)


def remove_one_stability(
    inputs: CurvatureInputs,
    *,
    fixed_normalization: bool = False,
    min_singular_value: ArrayLike = 1.0,
    suboptimality: ArrayLike = 0.0,
    certified: bool = False,
) -> StabilityResult:
    r"""Uniform stability when one training example is removed.

    .. math:: b = \frac{2\rho^2}{\mu n} + 2\rho\sqrt{2\epsilon/\mu},

    and half the first term if the loss of the remaining examples is still divided by n (the
    convention of Bousquet and Elisseeff). Proof: top of this module.

    Args:
        inputs: The curvature, in coordinates in which the objective is strongly convex.
        fixed_normalization: Whether the sum over the remaining examples is divided by n rather
            than by n - 1.
        min_singular_value: 1 in the coordinates of the update; the smallest singular value of the
            frozen A when B alone is trained. See
            :func:`~lodrop_theory.bounds.curvature.strong_convexity`.
        suboptimality: epsilon >= 0, by which each solution may exceed the minimum of its own
            objective. Loss units.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The stability; infinite and not applicable where mu <= 0.

    Raises:
        ValueError: If a keyword argument is outside its range.

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, Proposition 4.2, corrected; for the fixed
        normalization compare Bousquet and Elisseeff (2002), JMLR 2, Theorem 22.

    Example:
        >>> from lodrop_theory.inputs import CurvatureInputs
        >>> inputs = CurvatureInputs(
        ...     n_train=100, dropout_rate=0.5, lipschitz=1, hessian_min_eig=0.5, penalty=1
        ... )
        >>> round(float(remove_one_stability(inputs, fixed_normalization=True).value), 12)
        0.005
    """
    exact = stability_from_curvature(
        inputs,
        coefficient=1.0 if fixed_normalization else 2.0,
        bound="remove-one-fixed-normalization" if fixed_normalization else "remove-one",
        source=_SOURCE,
        notion="uniform: one example removed, "
        + ("1/n" if fixed_normalization else "1/(n-1)")
        + " normalization, the loss compared at every point",
        certified=certified,
        min_singular_value=min_singular_value,
    )
    return _inexact(exact, inputs, min_singular_value, suboptimality)


def replace_one_stability(
    inputs: CurvatureInputs,
    *,
    min_singular_value: ArrayLike = 1.0,
    suboptimality: ArrayLike = 0.0,
    certified: bool = False,
) -> StabilityResult:
    r"""Uniform stability when one training example is replaced.

    .. math:: g = \frac{2\rho^2}{\mu n} + 2\rho\sqrt{2\epsilon/\mu}

    Proof: top of this module. This is the g that the exponential tail, the bound in expectation and
    the mean-square bound read.

    Args:
        inputs: The curvature, in coordinates in which the objective is strongly convex.
        min_singular_value: As in :func:`remove_one_stability`.
        suboptimality: As in :func:`remove_one_stability`. Loss units.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The stability; infinite and not applicable where mu <= 0.

    Raises:
        ValueError: If a keyword argument is outside its range.

    Source:
        Derived here; compare Shalev-Shwartz et al. (2010), JMLR 11.

    Example:
        >>> from lodrop_theory.inputs import CurvatureInputs
        >>> inputs = CurvatureInputs(
        ...     n_train=100, dropout_rate=0.5, lipschitz=1, hessian_min_eig=0.5, penalty=1
        ... )
        >>> round(float(replace_one_stability(inputs).value), 12)
        0.01
    """
    exact = stability_from_curvature(
        inputs,
        coefficient=2.0,
        bound="replace-one",
        source="derived in lodrop (proof in the source)",
        notion="uniform: one example replaced, the loss compared at every point",
        certified=certified,
        min_singular_value=min_singular_value,
    )
    return _inexact(exact, inputs, min_singular_value, suboptimality)


def local_stability(
    inputs: CurvatureInputs, *, hessian_lipschitz: ArrayLike, certified: bool = False
) -> StabilityResult:
    r"""Replace-one stability from the curvature at one minimizer alone.

    With an M-Lipschitz Hessian, strong convexity at the minimizer :math:`v` of :math:`F_S` decays
    no faster than :math:`\mu - M \|\theta - v\|`, and

    .. math:: g = \rho r, \qquad r = \frac{4\rho/n}{\mu + \sqrt{\mu^2 - 4 M \rho / n}},
        \qquad \text{where } \mu^2 > 4 M \rho / n .

    Proof. Along the segment to :math:`\theta` at distance t, :math:`\langle \nabla F_S(\theta),
    \theta - v \rangle \ge (\mu - M t / 2) t^2`. The changed objective differs in its gradient by
    at most :math:`2\rho/n`, so on the sphere of radius t its gradient points outward whenever
    :math:`t(\mu - M t/2) > 2\rho/n`, that is between the two roots of the quadratic, of which r is
    the smaller: the changed objective has a minimizer within r of v.

    Args:
        inputs: The curvature, at the minimizer for the full training set.
        hessian_lipschitz: M >= 0, the Lipschitz constant of the Hessian of the empirical risk
            within 2r of the minimizer. Loss per parameter^3.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The stability of *that* minimizer (warm-started training, not the global one); it tends to
        :func:`replace_one_stability` for M to 0.

    Raises:
        ValueError: If ``hessian_lipschitz`` is not finite and >= 0.

    Source:
        Derived here; it replaces the unstated "close to" of Lin et al. (2024), Proposition 4.2.

    Example:
        >>> from lodrop_theory.inputs import CurvatureInputs
        >>> inputs = CurvatureInputs(
        ...     n_train=100, dropout_rate=0.5, lipschitz=1, hessian_min_eig=0.5, penalty=1
        ... )
        >>> round(float(local_stability(inputs, hessian_lipschitz=75).value), 12)
        0.013333333333
    """
    slope = check_nonnegative("hessian_lipschitz", hessian_lipschitz)
    flat = replace_one_stability(inputs)
    rho, n = np.asarray(inputs.lipschitz), np.asarray(inputs.n_train)
    mu = np.where(flat.applicable, strong_convexity(inputs), 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        enough = round_up(2.0 * np.sqrt(slope) * np.sqrt(rho / n))
        ratio = round_up(4.0 * (slope / mu) * (rho / mu) / n)
        applicable = np.asarray(flat.applicable) & (ratio < 1.0)
        root = np.sqrt(np.where(applicable, 1.0 - ratio, 1.0))
        value = np.where(rho == 0, 0.0, round_up(2.0 * np.asarray(flat.value) / (1.0 + root)))
    everywhere = bool(np.all(applicable))
    return replace(
        flat,
        bound="local-replace-one",
        notion="one example replaced, for the minimizer nearest to the old one, at every point",
        value=np.where(applicable, value, np.inf),
        applicable=applicable,
        failed_hypothesis=None
        if everywhere
        else "curvature that lasts: mu > 0 and mu^2 > 4 hessian_lipschitz lipschitz / n_train, "
        "with mu = hessian_min_eig + 2 penalty (2p - p^2)",
        repair_dropout_rate=repair_dropout_rate(inputs, above=np.minimum(enough, _LARGEST)),
        remedy=None
        if everywhere
        else "raise `dropout_rate` to `repair_dropout_rate` or above; where that is nan, more "
        "training examples or a larger `penalty`",
        certified=certified,
        hypotheses=(
            "`hessian_min_eig` is that of the minimizer for every training set",
            "the Hessian of the empirical risk is `hessian_lipschitz`-Lipschitz around it",
            "training on the changed set finds the minimizer nearest to the old one",
            *flat.hypotheses[2:],
        ),
        inputs={**flat.inputs, "hessian_lipschitz": slope},
    )
