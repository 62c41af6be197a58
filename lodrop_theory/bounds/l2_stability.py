r"""Risk bound from mean-square replace-one stability; derived here.

Write :math:`\ell_S(z)` for the loss at :math:`z` of what was learned from :math:`S`, :math:`S^i`
for :math:`S` with :math:`z_i` replaced by an independent copy :math:`z_i'`, :math:`\Phi = R - \hat
R`;

.. math:: g_{\mathrm{out}}^2 = \mathbb E(\ell_S(z) - \ell_{S^i}(z))^2, \quad
    g_{\mathrm{in}}^2 = \mathbb E(\ell_S(z_i) - \ell_{S^i}(z_i))^2, \quad
    v = \mathbb E_S \operatorname{Var}_z \ell_S(z) \le C^2/4.

**Theorem.** :math:`\|\Phi\|_{L_2} \le \sqrt{v/n + g_{\mathrm{out}}^2/2} + g_{\mathrm{out}}/\sqrt2 +
g_{\mathrm{in}}`.

Proof. Let :math:`h_i = \mathbb E_{z_i'}[R(S^i) - \ell_{S^i}(z_i)]`. Since :math:`z_i` is fresh to
:math:`S^i`, :math:`\mathbb E[h_i \mid z_{-i}] = 0` and, by Jensen, :math:`\mathbb E h_i^2 \le v`.
Let :math:`E_j` average over :math:`z_j` alone. For :math:`i \ne j` the products of :math:`E_j h_i`
with :math:`h_j` and with :math:`E_i h_j`, and of :math:`h_i` with :math:`E_i h_j`, have mean 0, so

.. math:: \mathbb E h_i h_j = \mathbb E(h_i - E_j h_i)(h_j - E_i h_j)
    \le \mathbb E(h_i - E_j h_i)^2 = \tfrac12 \mathbb E(h_i(S) - h_i(S^j))^2
    \le \tfrac12 g_{\mathrm{out}}^2,

the last step because :math:`h_i(S) - h_i(S^j)` is a mean of centered differences of losses at a
point fresh to both samples. Hence :math:`\|n^{-1}\sum_i h_i\|^2 \le v/n + g_{\mathrm{out}}^2/2`.
What remains, :math:`\Phi - n^{-1}\sum_i h_i`, is the mean over i of :math:`[R(S) - \mathbb
E_{z_i'} R(S^i)] - [\ell_S(z_i) - \mathbb E_{z_i'} \ell_{S^i}(z_i)]`, two terms of norms at most
:math:`g_{\mathrm{out}}/\sqrt2` (a centered variable is half a replacement in mean square) and
:math:`g_{\mathrm{in}}`. Minkowski's inequality ends the proof; Chebyshev's gives the bound.
"""

import numpy as np

from lodrop_theory._numerics import round_up
from lodrop_theory.bounds.lin2024 import SAMPLE_HYPOTHESES
from lodrop_theory.inputs import L2StabilityInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import SAME_GAP, BoundResult, as_array, input_fields


def l2_stability_bound(
    inputs: L2StabilityInputs, *, predictor: Predictor = "mean", certified: bool = False
) -> BoundResult:
    r"""Risk bound from mean-square replace-one stability.

    .. math:: R \le \hat R + \frac{1}{\sqrt\delta} \Bigl(\sqrt{v/n + g_{\mathrm{out}}^2/2}
        + g_{\mathrm{out}}/\sqrt2 + g_{\mathrm{in}}\Bigr)

    Stability enters to first order in g, not through its square root: for g of order 1/n the bound
    is :math:`\sqrt{v/(n\delta)}` to leading order, whatever the constant of g. Proof: top of this
    module.

    Args:
        inputs: Root mean square changes when one example is replaced. A uniform replace-one
            stability may stand for both.
        predictor: The predictor whose loss they compare.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, with probability at least 1 - delta over training sets.

    Source:
        Derived here; of the family of Feldman and Vondrak (2018), arXiv:1812.09859.

    Example:
        A constant algorithm leaves Chebyshev's inequality, C / sqrt(4 n delta):

        >>> from lodrop_theory.inputs import L2StabilityInputs
        >>> inputs = L2StabilityInputs(
        ...     n_train=100, loss_range=1, delta=0.25, replace_one_out=0, replace_one_in=0
        ... )
        >>> round(float(l2_stability_bound(inputs).gap), 12)
        0.1
    """
    c, n = np.asarray(inputs.loss_range), np.asarray(inputs.n_train)
    out, within = np.asarray(inputs.replace_one_out), np.asarray(inputs.replace_one_in)
    deviation = c / 2.0 if inputs.loss_variance is None else np.sqrt(inputs.loss_variance)
    half = out / np.sqrt(2.0)
    with np.errstate(over="ignore"):
        norm = np.hypot(deviation / np.sqrt(n), half) + half + within
        gap = norm / np.sqrt(inputs.delta)
    return BoundResult(
        bound="l2-stability",
        title="Mean-square stability",
        source="derived in lodrop (proof in the source)",
        statement="probability",
        predictor=predictor,
        gap=round_up(gap),
        empirical_risk=as_array(inputs.empirical_risk),
        loss_range=c,
        delta=as_array(inputs.delta),
        certified=certified,
        hypotheses=(
            *SAMPLE_HYPOTHESES,
            "the two stabilities are root mean squares over training sets and replacements",
        ),
        inputs=input_fields(inputs),
        event=SAME_GAP,
    )
