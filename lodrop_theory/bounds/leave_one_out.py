r"""Bounds around the leave-one-out risk: the companion of Bousquet and Elisseeff, sharpened.

Write :math:`\ell_S(z)` for the loss at z of what was learned from S, :math:`S^{\setminus i}` for S
without :math:`z_i`, :math:`\Phi = R(S) - \frac1n \sum_i \ell_{S^{\setminus i}}(z_i)`, T for
:math:`S^{\setminus 1}`, :math:`S'` for T with a fresh z. Let the loss lie in
:math:`[-C/2, C/2]` and v be the mean over training sets of n - 1 examples of the variance of the
loss, :math:`v \le C^2/4`.

**First moment.** By symmetry, and exchanging z with :math:`z_1` in the first term,
:math:`\mathbb E\Phi^2 = \mathbb E\,\Phi(S) (\ell_S(z) - \ell_T(z_1)) = \mathbb E\,\Phi(S')
(\ell_{S'}(z_1) - \ell_T(z_1)) + \mathbb E\,(\Phi(S') - \Phi(S))\,\ell_T(z_1)`. The first term is at
most :math:`C b_1`. In the second, R changes by at most :math:`2 b_1` in mean; each of the n - 1
losses at :math:`z_i \ne z_1` by at most :math:`2 b_1` (both samples arise from the *same* n
examples :math:`\{z_1, z\} \cup \{z_j\}_{j \ne 1, i}` by removing one); the loss at
:math:`z_1` contributes :math:`-\frac1n \mathbb E (\ell_T(z) - \ell_T(z_1)) \ell_T(z_1) = v/n`.
With :math:`|\ell_T| \le C/2`, in all

.. math:: \mathbb E\Phi^2 \le v/n + 3 C b_1 .

The printed constant (their Lemma 9) is :math:`C^2/(2n)` in the place of :math:`v/n \le C^2/(4n)`.

**Mean square.** Let :math:`d^2 = \mathbb E(\ell_S(z) - \ell_{S^{\setminus 1}}(z))^2` and
:math:`h_i = R(S^{\setminus i}) - \ell_{S^{\setminus i}}(z_i)`. As in
:mod:`~lodrop_theory.bounds.l2_stability`, :math:`\mathbb E[h_i | z_{-i}] = 0` makes
:math:`\mathbb E h_i h_j \le \tfrac12 \mathbb E(\ell_{S^{\setminus i}}(z) - \ell_{S'^{\setminus
i}}(z))^2 \le \tfrac12 (2d)^2`, and :math:`R(S) - \frac1n\sum_i R(S^{\setminus i})` has norm at most
d, so that :math:`\|\Phi\|_{L_2} \le \sqrt{v/n + 2 d^2} + d`. Chebyshev's inequality ends both.
"""

import numpy as np

from lodrop_theory._checks import Float64Array
from lodrop_theory._numerics import round_up
from lodrop_theory.bounds.lin2024 import SAMPLE_HYPOTHESES
from lodrop_theory.inputs import L2LeaveOneOutInputs, LeaveOneOutInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import BoundResult, input_fields

_CAVEAT = "the bound is counted from the leave-one-out risk"


def _result(
    inputs: LeaveOneOutInputs | L2LeaveOneOutInputs,
    margin: Float64Array,
    *,
    bound: str,
    title: str,
    source: str,
    stability: str,
    predictor: Predictor,
    certified: bool,
) -> BoundResult:
    left_out = np.asarray(inputs.leave_one_out_risk)
    start = left_out if inputs.empirical_risk is None else np.asarray(inputs.empirical_risk)
    with np.errstate(over="ignore"):
        gap = round_up(margin + (left_out - start), margin + np.abs(left_out) + np.abs(start))
    return BoundResult(
        bound=bound,
        title=title,
        source=source,
        statement="probability",
        predictor=predictor,
        gap=gap,
        empirical_risk=start,
        loss_range=np.asarray(inputs.loss_range),
        delta=np.asarray(inputs.delta),
        certified=certified,
        hypotheses=(*SAMPLE_HYPOTHESES, stability),
        caveats=(_CAVEAT,) if inputs.empirical_risk is None else (),
        inputs=input_fields(inputs),
        event="population risk - leave-one-out risk exceeds a constant",
    )


def leave_one_out_bound(
    inputs: LeaveOneOutInputs, *, predictor: Predictor = "mean", certified: bool = False
) -> BoundResult:
    r"""Risk bound from the leave-one-out risk and hypothesis stability.

    .. math:: R \le \hat R_{\mathrm{loo}} + \sqrt{\frac{C^2 + 12 C n b_1}{4 n \delta}}

    It needs the stability at fresh points only, unlike the bounds around the training risk. Proof:
    top of this module.

    Args:
        inputs: The leave-one-out risk, and the stability as a mean over training sets.
        predictor: The predictor whose loss they describe.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, with probability at least 1 - delta over training sets; the gap is counted from
        ``empirical_risk`` if given, else from the leave-one-out risk.

    Source:
        Bousquet and Elisseeff (2002), JMLR 2, Theorem 11 (second part), with C^2/(4n) for
        C^2/(2n).

    Example:
        >>> from lodrop_theory.inputs import LeaveOneOutInputs
        >>> inputs = LeaveOneOutInputs(
        ...     n_train=100, loss_range=1, delta=0.25, leave_one_out_risk=0.2,
        ...     hypothesis_stability=0,
        ... )
        >>> round(float(leave_one_out_bound(inputs).risk), 12)
        0.3
    """
    c, n = np.asarray(inputs.loss_range), np.asarray(inputs.n_train)
    with np.errstate(over="ignore"):
        root = np.hypot(
            c / (2.0 * np.sqrt(n)), np.sqrt(3.0 * c) * np.sqrt(inputs.hypothesis_stability)
        )
        margin = root / np.sqrt(inputs.delta)
    return _result(
        inputs,
        np.asarray(margin),
        bound="leave-one-out",
        title="Leave-one-out, Chebyshev",
        source="Bousquet and Elisseeff 2002, JMLR 2, Theorem 11, sharpened (proof in the source)",
        stability="the stability is a mean over training sets of n_train examples",
        predictor=predictor,
        certified=certified,
    )


def l2_leave_one_out_bound(
    inputs: L2LeaveOneOutInputs, *, predictor: Predictor = "mean", certified: bool = False
) -> BoundResult:
    r"""Risk bound from the leave-one-out risk and mean-square remove-one stability.

    .. math:: R \le \hat R_{\mathrm{loo}} + \frac{1}{\sqrt\delta}
        \Bigl(\sqrt{\frac{C^2}{4n} + 2 d^2} + d\Bigr)

    Stability enters to first order, not through its square root. Proof: top of this module.

    Args:
        inputs: The leave-one-out risk, and the stability as a root mean square.
        predictor: The predictor whose loss they describe.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, counted as in :func:`leave_one_out_bound`.

    Source:
        Derived here.

    Example:
        >>> from lodrop_theory.inputs import L2LeaveOneOutInputs
        >>> inputs = L2LeaveOneOutInputs(
        ...     n_train=100, loss_range=1, delta=0.25, leave_one_out_risk=0.2, remove_one_out=0
        ... )
        >>> round(float(l2_leave_one_out_bound(inputs).risk), 12)
        0.3
    """
    c, n = np.asarray(inputs.loss_range), np.asarray(inputs.n_train)
    d = np.asarray(inputs.remove_one_out)
    with np.errstate(over="ignore"):
        norm = np.hypot(c / (2.0 * np.sqrt(n)), np.sqrt(2.0) * d) + d
        margin = norm / np.sqrt(inputs.delta)
    return _result(
        inputs,
        np.asarray(margin),
        bound="l2-leave-one-out",
        title="Leave-one-out, mean square",
        source="derived in lodrop (proof in the source)",
        stability="the stability is a root mean square over training sets of n_train examples",
        predictor=predictor,
        certified=certified,
    )


__all__ = ["l2_leave_one_out_bound", "leave_one_out_bound"]
