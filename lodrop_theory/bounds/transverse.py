r"""Stability modulo a symmetry: what is left of strong convexity in the factors (A, B).

The loss depends on :math:`BA` alone, so it is constant along the orbits :math:`(BG, G^{-1}A)`, and
no curvature along an orbit can be positive. Let :math:`M_S` be the set of minimizers of
:math:`F_S`, a single orbit along which every loss is constant, and :math:`d(\theta, M)` the
distance to a set. Suppose *quadratic growth*: :math:`F_S(\theta) - \min F_S \ge \frac{\mu_t}2
d(\theta, M_S)^2`.

**Theorem.** Let :math:`v \in M_S` and :math:`u \in M_{S'}` be the solutions for two training sets
that differ in one example, and :math:`\ell` be :math:`\rho`-Lipschitz between each and the nearest
point of the other's orbit. If growth holds for S at u and for S' at v, then at every point
:math:`|\ell(u) - \ell(v)| \le 2\rho^2/(\mu_t n)`; if it is known for S alone, at most
:math:`4\rho^2/(\mu_t n)`.

Proof. Let :math:`a = d(u, M_S)`, :math:`b = d(v, M_{S'})`. The loss is constant on :math:`M_S`
and on :math:`M_{S'}`, so :math:`|\ell(u) - \ell(v)| \le \rho \min(a, b)` for every example. Adding
the two growth inequalities, all but the replaced examples cancel: :math:`\frac{\mu_t}2 (a^2 + b^2)
\le \frac1n [\ell_i(u) - \ell_i(v) + \ell_i'(v) - \ell_i'(u)] \le \frac{2\rho}n \min(a, b)`, and
:math:`\min(a, b) \le 2\rho/(\mu_t n)`. With growth for S alone, :math:`\frac{\mu_t}2 a^2 \le
F_S(u) - F_S(v) \le F_{S'}(u) - F_{S'}(v) + \frac{2\rho}n a \le \frac{2\rho}n a`.

The group need not act by isometries: :math:`GL(r)` and :math:`O(r)` have the same constants. But
for :math:`GL(r)` neither :math:`\rho` nor the curvature is the same along an orbit, and the
hypothesis is about the points that occur.
"""

import numpy as np

from lodrop_theory.bounds.dropout_stability import ratio_stability
from lodrop_theory.inputs import TransverseInputs
from lodrop_theory.results import StabilityResult, input_fields


def gauge_dimension(rank: int, *, factor_ridge: bool, update_rank: int | None = None) -> int:
    r"""Number of zero eigenvalues that the symmetry forces on the Hessian of one LoRA module.

    :math:`r^2` without a penalty on the factors. A ridge on both factors leaves the rotations,
    :math:`r(r-1)/2 - (r-k)(r-k-1)/2` of which move a solution whose update has rank k.

    Args:
        rank: r >= 1.
        factor_ridge: Whether the objective holds the squared norms of A and B.
        update_rank: k in [0, r], the rank of the update; None means r.

    Returns:
        The dimension of the orbit; without a ridge it assumes factors of full rank r.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Derived here: tangent vectors (XA, -BX), X skew with a ridge.

    Example:
        >>> gauge_dimension(2, factor_ridge=False), gauge_dimension(2, factor_ridge=True)
        (4, 1)
    """
    k = rank if update_rank is None else update_rank
    if rank < 1 or not 0 <= k <= rank:
        raise ValueError(
            f"`rank` must be >= 1 and `update_rank` in [0, rank], got {rank}, {update_rank}."
        )
    if not factor_ridge:
        return rank * rank
    return (rank * (rank - 1) - (rank - k) * (rank - k - 1)) // 2


def transverse_stability(
    inputs: TransverseInputs, *, both_sides: bool, certified: bool = False
) -> StabilityResult:
    r"""Replace-one stability from the curvature across the orbits of a symmetry.

    .. math:: g = \frac{2\rho^2}{\mu_t n} \quad\text{or}\quad \frac{4\rho^2}{\mu_t n}

    Proof: top of this module.

    Args:
        inputs: Lipschitz constant and transverse curvature of the objective.
        both_sides: Whether the growth is assumed for every training set (2); False assumes it for
            the training set at hand alone (4), and then the result is about its neighbors.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs. An eigenvalue
            at one point does not prove growth: measured curvature is plug-in.

    Returns:
        The stability; infinite and not applicable where mu_t <= 0.

    Source:
        Derived here; of the family of Charles and Papailiopoulos (2018), arXiv:1710.08402.

    Example:
        >>> from lodrop_theory.inputs import TransverseInputs
        >>> inputs = TransverseInputs(n_train=100, lipschitz=1, transverse_min_eig=2)
        >>> round(float(transverse_stability(inputs, both_sides=True).value), 12)
        0.01
    """
    rho, mu = np.asarray(inputs.lipschitz), np.asarray(inputs.transverse_min_eig)
    value, applicable = ratio_stability(
        rho, mu, np.asarray(inputs.n_train), 2.0 if both_sides else 4.0
    )
    everywhere = bool(np.all(applicable))
    whose = "every training set" if both_sides else "the training set at hand"
    return StabilityResult(
        bound="transverse-replace-one" if both_sides else "transverse-replace-one-sided",
        source="derived in lodrop (proof in the source)",
        value=value,
        notion=("uniform: " if both_sides else "neighbors of one training set: ")
        + "one example replaced, the loss compared at every point",
        applicable=applicable,
        failed_hypothesis=None if everywhere else "transverse curvature: transverse_min_eig > 0",
        remedy=None if everywhere else "train on to a minimum, or add a penalty",
        certified=certified,
        hypotheses=(
            f"the objective of {whose} grows at least as transverse_min_eig / 2 times the squared "
            "distance to its set of minimizers, at the solutions that are compared",
            "the minimizers are one orbit of a symmetry that leaves every loss and the penalty "
            "alone",
            "the unregularized per-example loss is `lipschitz`-Lipschitz between a solution and "
            "the nearest minimizer of the other objective",
        ),
        inputs=input_fields(inputs),
    )


__all__ = ["gauge_dimension", "transverse_stability"]
