r"""Divergence of a masked Gaussian posterior from its prior: what dropout buys in PAC-Bayes.

The posterior draws the masks of LoRA Dropout and then, for each entry of the factors that they
keep, a normal variable of standard deviation :math:`\sigma` around the trained value; the prior
draws the *same* masks and centers the normal variables at the initial values. Given the masks, a
dropped entry is 0 under both laws and a kept one contributes its squared distance over
:math:`2\sigma^2`; the laws of the masks agree. By the chain rule the divergence is the mean over
masks, and each entry is kept with probability :math:`q = 1 - p`. The mask of a column is shared
by its entries: only the marginals enter.

With inverted scaling the deployed entries are :math:`1/q` times the trained ones. If
:math:`\sigma` is the noise in *deployed* entries in both cases, the squared distance grows by
:math:`1/q^2`, and dropout raises the divergence instead of lowering it.

The result is the divergence of (masks, noisy factors); that of the predictors they make is at most
as large (data processing). No Hessian, penalty, Lipschitz constant or convexity enters.
"""

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    Float64Array,
    check_dropout_rate,
    check_nonnegative,
    check_positive,
)
from lodrop_theory._numerics import round_down, round_up


def _half_ratio(squared: Float64Array, noise_std: ArrayLike) -> Float64Array:
    sigma = check_positive("noise_std", noise_std)
    with np.errstate(over="ignore", under="ignore"):
        # (root / sigma)^2: sigma^2 alone could underflow
        return 0.5 * (np.sqrt(squared) / sigma) ** 2


def _keep_rate(dropout_rate: ArrayLike, rescale: bool) -> Float64Array:
    q = 1.0 - check_dropout_rate("dropout_rate", dropout_rate)
    return 1.0 / round_down(q) if rescale else round_up(q)


def masked_factors_kl(
    squared_distance: ArrayLike, dropout_rate: ArrayLike, noise_std: ArrayLike, *, rescale: bool
) -> Float64Array:
    r"""KL(posterior || prior) of masked, noisy LoRA factors, in nats.

    .. math:: \mathrm{KL} = \frac{1 - p}{2\sigma^2} \bigl(\|A - A_0\|_F^2 + \|B - B_0\|_F^2\bigr)

    for masks without scaling; with inverted scaling :math:`1/(1-p)` takes the place of
    :math:`1 - p`.

    Args:
        squared_distance: Squared Frobenius distance of the trained factors from the initial ones,
            summed over A and B of all modules, >= 0.
        dropout_rate: p in [0, 1).
        noise_std: sigma > 0, the noise in deployed (masked and scaled) entries. Parameter units.
        rescale: Whether kept coordinates are divided by 1 - p.

    Returns:
        The divergence, rounded upward.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Derived here (top of this module); for masks without scaling and all weights masked,
        McAllester (2013), arXiv:1307.2118, the dropout bound.

    Example:
        >>> round(float(masked_factors_kl(4.0, 0.5, 1.0, rescale=False)), 12)
        1.0
        >>> round(float(masked_factors_kl(4.0, 0.5, 1.0, rescale=True)), 12)
        4.0
    """
    squared = check_nonnegative("squared_distance", squared_distance)
    with np.errstate(over="ignore"):
        factor = _keep_rate(dropout_rate, rescale)
        return round_up(factor * _half_ratio(squared, noise_std))[()]


def masked_update_kl(
    squared_norm: ArrayLike, dropout_rate: ArrayLike, noise_std: ArrayLike, *, rescale: bool
) -> Float64Array:
    r"""Upper bound on KL(posterior || prior) when the noise is on every entry of the update.

    .. math:: \mathrm{KL} \le \frac{(1 - p)^2 \|\Delta W\|_F^2}{2\sigma^2}
        = \frac{(1 - s(p)) \|\Delta W\|_F^2}{2\sigma^2}

    for masks without scaling, :math:`(1-p)^{-2}` in the place of :math:`(1-p)^2` with inverted
    scaling. The posterior is the mixture over masks of normal laws around the masked update,
    the prior the normal law around 0; the divergence of the mixture is at most the mean of the
    divergences (joint convexity), and an entry survives with probability :math:`(1-p)^2`.

    Args:
        squared_norm: Squared Frobenius norm of the update, summed over modules, >= 0.
        dropout_rate: p in [0, 1).
        noise_std: sigma > 0, the noise on each entry of the deployed update. Parameter units.
        rescale: Whether kept coordinates are divided by 1 - p.

    Returns:
        The bound on the divergence, rounded upward.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Derived here.

    Example:
        >>> round(float(masked_update_kl(8.0, 0.5, 1.0, rescale=False)), 12)
        1.0
    """
    squared = check_nonnegative("squared_norm", squared_norm)
    with np.errstate(over="ignore"):
        factor = round_up(_keep_rate(dropout_rate, rescale) ** 2)
        return round_up(factor * _half_ratio(squared, noise_std))[()]


__all__ = ["masked_factors_kl", "masked_update_kl"]
