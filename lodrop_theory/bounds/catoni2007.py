r"""PAC-Bayes at one temperature: Catoni (2007), arXiv:0712.0248, and McAllester (2013).

Proof of both. For :math:`a > 0` let :math:`F(p) = -\ln(1 - p(1 - e^{-a}))`, which is convex and
increasing. A loss in [0, 1] of mean p satisfies :math:`\mathbb E e^{-a \ell} \le 1 - p(1 - e^{-a})
= e^{-F(p)}` (chord of a convex function), so that :math:`\mathbb E e^{n (F(R_h) - a \hat R_h)} \le
1` for each h, and in the mean over the prior. Change of measure, Markov and Jensen give, with
probability at least :math:`1 - \delta` and for all posteriors at once,

.. math:: F(R) \le a \hat R + K, \qquad K = \frac{\mathrm{KL} + \ln(1/\delta)}{n}.

Solving for R is Catoni's bound; :math:`F(p) \ge p(1 - e^{-a}) \ge p(a - a^2/2)` is McAllester's.
There is no :math:`2 \sqrt n` to pay, but a has to be fixed before the sample is seen: a grid of G
values counts into ``n_priors``. The infimum over a is the kl inverse at K.
"""

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, check_positive
from lodrop_theory._numerics import round_up
from lodrop_theory.bounds.maurer2004 import complexity_nats, pac_bayes_result, scaled_risk
from lodrop_theory.inputs import PacBayesInputs
from lodrop_theory.results import BoundResult

_CATONI = "Catoni 2007, arXiv:0712.0248, Theorem 1.2.6"
_FIXED = "`inverse_temperature` was fixed before the training sample was seen"


def _exponent(inputs: PacBayesInputs, a: Float64Array) -> Float64Array:
    nats = round_up(complexity_nats(inputs) / np.asarray(inputs.n_train))
    return round_up(a * scaled_risk(inputs) + nats)


def catoni_bound(
    inputs: PacBayesInputs, *, inverse_temperature: ArrayLike, certified: bool = False
) -> BoundResult:
    r"""Risk bound of a randomized adapter at a fixed inverse temperature a.

    .. math:: R \le \frac{1 - \exp(-a \hat R - K)}{1 - e^{-a}}, \qquad
        K = \frac{\mathrm{KL} + \ln(G / (\delta - \delta'))}{n}

    for losses scaled to [0, 1]; proof at the top of this module.

    Args:
        inputs: Training risk of the posterior, its divergence from the prior, and what pays.
        inverse_temperature: a > 0, fixed before the sample was seen. Unitless.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound for the predictor ``gibbs``.

    Raises:
        ValueError: If ``inverse_temperature`` is not finite and > 0.

    Source:
        Catoni (2007), arXiv:0712.0248, Theorem 1.2.6.

    Example:
        >>> from lodrop_theory.inputs import PacBayesInputs
        >>> inputs = PacBayesInputs(
        ...     n_train=1000, loss_range=1, delta=0.05, empirical_risk=0.1, kl_nats=5
        ... )
        >>> round(float(catoni_bound(inputs, inverse_temperature=0.4).risk), 4)
        0.1421
    """
    a = check_positive("inverse_temperature", inverse_temperature)
    share = round_up(-np.expm1(-_exponent(inputs, a)) / -np.expm1(-a))
    return pac_bayes_result(
        inputs,
        share,
        bound="catoni",
        title="PAC-Bayes, Catoni",
        source=_CATONI,
        event=_CATONI,
        certified=certified,
        extra={"inverse_temperature": a},
        hypotheses=(_FIXED,),
    )


def mcallester2013_bound(
    inputs: PacBayesInputs, *, inverse_temperature: ArrayLike, certified: bool = False
) -> BoundResult:
    r"""The linear form in which McAllester states his dropout bound.

    .. math:: R \le \frac{1}{1 - a/2} \Bigl(\hat R + \frac{K}{a}\Bigr), \qquad
        K = \frac{\mathrm{KL} + \ln(G / (\delta - \delta'))}{n}

    with his lambda = 1 / a. His dropout bound is this one with
    :func:`~lodrop_theory.bounds.gaussian_masks.masked_factors_kl` at sigma = 1, without scaling.

    Args:
        inputs: As in :func:`catoni_bound`.
        inverse_temperature: a in (0, 2), fixed before the sample was seen. Unitless.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound for the predictor ``gibbs``; never below :func:`catoni_bound` at the same a.

    Raises:
        ValueError: If ``inverse_temperature`` is not in (0, 2).

    Source:
        McAllester (2013), arXiv:1307.2118, PAC-Bayes and dropout theorems; proof above.

    Example:
        >>> from lodrop_theory.inputs import PacBayesInputs
        >>> inputs = PacBayesInputs(
        ...     n_train=1000, loss_range=1, delta=0.05, empirical_risk=0.1, kl_nats=5
        ... )
        >>> round(float(mcallester2013_bound(inputs, inverse_temperature=0.4).risk), 4)
        0.15
    """
    a = check_positive("inverse_temperature", inverse_temperature)
    if np.any(a >= 2.0):
        raise ValueError(f"`inverse_temperature` must be in (0, 2), got {inverse_temperature!r}.")
    with np.errstate(over="ignore"):
        share = round_up(_exponent(inputs, a) / (a * (1.0 - a / 2.0)))
    return pac_bayes_result(
        inputs,
        share,
        bound="mcallester2013",
        title="PAC-Bayes, linear (McAllester's dropout bound)",
        source="McAllester 2013, arXiv:1307.2118",
        event=_CATONI,
        certified=certified,
        extra={"inverse_temperature": a},
        hypotheses=(_FIXED,),
    )


__all__ = ["catoni_bound", "mcallester2013_bound"]
