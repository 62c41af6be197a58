r"""How much each input of Theorem 4.4 matters.

With :math:`s = 2p - p^2`, :math:`\mu = \Lambda_{\min} + 2\lambda s`, :math:`K = 24 C \rho^2` and
the share :math:`w = \frac{K/\mu}{C^2 + K/\mu}` of the stability in the squared gap :math:`G^2 =
(C^2 + K/\mu) / (2 n \delta)`, logarithmic differentiation gives :math:`\partial \ln G / \partial
\ln \mu = -w/2` and from there every entry of :class:`Elasticities`.
"""

from dataclasses import dataclass

import numpy as np

from lodrop_theory._checks import Float64Array
from lodrop_theory.bounds.curvature import strong_convexity
from lodrop_theory.inputs import CurvatureInputs, TailInputs
from lodrop_theory.mask_laws import update_sparsity
from lodrop_theory.results import BoolArray, input_fields


@dataclass(frozen=True, kw_only=True, eq=False)
class Elasticities:
    r"""Relative change of the gap of Theorem 4.4 per relative change of one input.

    An entry is :math:`\partial \ln G / \partial \ln x`: at -0.5, one percent more of x lowers the
    gap by half a percent. All entries are nan where ``applicable`` is False, because there is no
    gap.

    Attributes:
        n_train: -1/2.
        delta: -1/2.
        loss_range: 1 - w/2, in [1/2, 1].
        lipschitz: w, in [0, 1].
        hessian_min_eig: -w Lmin / (2 mu); positive for a negative eigenvalue, because then more
            of it loosens.
        penalty: -w lambda s / mu, <= 0.
        dropout_rate: -2 w lambda p (1 - p) / mu, <= 0.
        stability_share: w, the share of the stability term in the squared gap, in [0, 1].
        applicable: Whether mu > 0.
    """

    n_train: Float64Array
    delta: Float64Array
    loss_range: Float64Array
    lipschitz: Float64Array
    hessian_min_eig: Float64Array
    penalty: Float64Array
    dropout_rate: Float64Array
    stability_share: Float64Array
    applicable: BoolArray


def elasticities(curvature: CurvatureInputs, tail: TailInputs) -> Elasticities:
    r"""Elasticities of the gap of Theorem 4.4 in each of its inputs, in closed form.

    Args:
        curvature: The curvature.
        tail: What turns it into a risk bound; same ``n_train``.

    Returns:
        One array per input, of the common shape.

    Raises:
        ValueError: If the two inputs disagree about ``n_train``.

    Source:
        Derived from Lin et al. (2024), arXiv:2404.09610v1, Theorem 4.4.

    Example:
        Here mu = 24, so that both terms under the root are equal and w = 1/2:

        >>> from lodrop_theory.inputs import CurvatureInputs, TailInputs
        >>> curvature = CurvatureInputs(
        ...     n_train=100, dropout_rate=0.5, lipschitz=1, hessian_min_eig=12, penalty=8
        ... )
        >>> found = elasticities(curvature, TailInputs(n_train=100, loss_range=1, delta=0.05))
        >>> [round(float(v), 9) for v in (found.lipschitz, found.loss_range, found.penalty)]
        [0.5, 0.75, -0.125]
    """
    input_fields(curvature, tail)  # raises where the two disagree
    shape = np.broadcast_shapes(curvature.shape, tail.shape)
    mu = np.asarray(strong_convexity(curvature))
    applicable = mu > 0
    safe = np.where(applicable, mu, 1.0)
    rho, c = np.asarray(curvature.lipschitz), np.asarray(tail.loss_range)
    rate, weight = np.asarray(curvature.dropout_rate), np.asarray(curvature.penalty)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        # Squared last: the ratio of the two terms may be beyond float64 where their share is not.
        root = np.sqrt(24.0) * (rho / np.sqrt(c)) / np.sqrt(safe)
        share = 1.0 / (1.0 + (1.0 / root) ** 2)
        # Divided last: lambda s is at most mu / 2 unless the eigenvalue is negative.
        ratios = (
            np.asarray(curvature.hessian_min_eig) / safe,
            weight * update_sparsity(rate) / safe,
            weight * (rate * (1.0 - rate)) / safe,
        )
    # No share, no effect, however large the ratio.
    held = [np.where(share > 0, np.where(share > 0, share, 1.0) * r, 0.0) for r in ratios]
    by_eigenvalue, by_penalty, by_rate = -0.5 * held[0], -held[1], -2.0 * held[2]

    def finished(value: Float64Array | float) -> Float64Array:
        return np.broadcast_to(np.where(applicable, value, np.nan), shape)[()]

    return Elasticities(
        n_train=finished(-0.5),
        delta=finished(-0.5),
        loss_range=finished(1.0 - 0.5 * share),
        lipschitz=finished(share),
        hessian_min_eig=finished(by_eigenvalue),
        penalty=finished(by_penalty),
        dropout_rate=finished(by_rate),
        stability_share=finished(share),
        applicable=np.broadcast_to(applicable, shape)[()],
    )
