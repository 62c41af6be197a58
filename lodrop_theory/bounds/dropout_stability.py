r"""Stability of the objective that LoRA Dropout really minimizes: no lambda anywhere.

The loss :math:`\ell_p(\theta; z) = \mathbb E_m \ell(m \circ \theta; z)`, averaged over masks, is
the loss whose empirical mean is minimized; the paper replaces it by :math:`\ell + \lambda s(p)
\|\theta\|^2`. If the mean of the :math:`\ell_p` (plus any data-independent penalty) is
:math:`\mu_p`-strongly convex and each is :math:`\rho_p`-Lipschitz, replacing one example moves
the minimizer by at most :math:`2\rho_p/(\mu_p n)` (proof:
:mod:`~lodrop_theory.bounds.strongconvex`, with :math:`\ell_p` for :math:`\ell`) and changes
:math:`\ell_p` by at most :math:`2\rho_p^2/(\mu_p n)` at every point.

:math:`\ell_p` is the loss of the predictor that draws one mask per prediction. So the bounds that
follow are about ``gibbs``, and by Jensen's inequality about the ensemble, but not about the model
with masks off. For a linear model :math:`\mu_p` is the smallest eigenvalue of
:math:`\Sigma/q + (p/q^2)\operatorname{Diag}\Sigma` (inverted scaling): positive as soon as every
input coordinate is used, however singular :math:`\Sigma` is.
"""

import numpy as np

from lodrop_theory._checks import Float64Array
from lodrop_theory._numerics import round_up
from lodrop_theory.inputs import DropoutCurvatureInputs
from lodrop_theory.results import StabilityResult, input_fields


def ratio_stability(
    rho: Float64Array, mu: Float64Array, n: Float64Array, coefficient: float
) -> tuple[Float64Array, np.ndarray]:
    """``coefficient`` rho^2 / (mu n), infinite where mu <= 0, and where it is not."""
    applicable = np.asarray(mu > 0)
    safe = np.where(applicable, mu, 1.0)
    with np.errstate(over="ignore", under="ignore"):
        value = round_up(coefficient * (rho / (np.sqrt(safe) * np.sqrt(n))) ** 2)
    value = np.where(rho == 0, 0.0, value)
    return np.where(applicable, value, np.inf), applicable


def dropout_stability(
    inputs: DropoutCurvatureInputs, *, certified: bool = False
) -> StabilityResult:
    r"""Uniform replace-one stability of the expected dropout loss.

    .. math:: g = \frac{2 \rho_p^2}{\mu_p n}

    Args:
        inputs: Lipschitz constant and strong convexity, both of the expected dropout loss.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The stability; infinite and not applicable where mu_p <= 0.

    Source:
        Derived here (top of this module and of :mod:`~lodrop_theory.bounds.strongconvex`).

    Example:
        >>> from lodrop_theory.inputs import DropoutCurvatureInputs
        >>> inputs = DropoutCurvatureInputs(
        ...     n_train=100, dropout_rate=0.5, dropout_lipschitz=1, dropout_min_eig=2
        ... )
        >>> round(float(dropout_stability(inputs).value), 12)
        0.01
    """
    rho, mu = np.asarray(inputs.dropout_lipschitz), np.asarray(inputs.dropout_min_eig)
    value, applicable = ratio_stability(rho, mu, np.asarray(inputs.n_train), 2.0)
    everywhere = bool(np.all(applicable))
    return StabilityResult(
        bound="dropout-replace-one",
        source="derived in lodrop (proof in the source)",
        value=value,
        notion="uniform: one example replaced, the loss averaged over masks and compared at every "
        "point",
        applicable=applicable,
        failed_hypothesis=None if everywhere else "strong convexity: dropout_min_eig > 0",
        remedy=None
        if everywhere
        else "measure where every input coordinate is used, or add a penalty to the objective",
        certified=certified,
        hypotheses=(
            "the mean over examples of the loss averaged over masks is dropout_min_eig-strongly "
            "convex on a convex set that holds the compared minimizers, for every training set",
            "the compared solutions are exact minimizers of it in the interior of that set",
            "the loss averaged over masks is `dropout_lipschitz`-Lipschitz there, for every "
            "example",
            "the dropout rate does not depend on the training set",
        ),
        inputs=input_fields(inputs),
    )


__all__ = ["dropout_stability"]
