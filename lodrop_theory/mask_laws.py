r"""Laws of row and column masks: what LoRA Dropout does to an update, in closed form.

One draw masks the input coordinates and the output coordinates of the update :math:`D = \Delta W`,

.. math:: z = m_B \odot \bigl(D (m_A \odot x)\bigr),

with independent entries :math:`m = c\,\mathrm{Bernoulli}(q)`, :math:`q = 1 - p`; :math:`c = 1/q`
with inverted scaling (``rescale=True``), :math:`c = 1` as in the paper's equations. With the
moments :math:`\mu_1 = c q` and :math:`v = c^2 q - \mu_1^2` of one entry,

.. math::
    \mathbb E z &= \mu_1^2 D x, \\
    \operatorname{Cov} z &= \mu_1^2 v \bigl[S + \operatorname{Diag}((Dx)^2)\bigr]
        + v^2 \operatorname{Diag}(S), \qquad S = D \operatorname{diag}(x^2) D^\top .

Derivation: the masks are independent, so :math:`\mathbb E z_i z_k` is the product of
:math:`\mathbb E m_{B,i} m_{B,k} = \mu_1^2 + v [i = k]` and
:math:`\sum_{jl} D_{ij} D_{kl} x_j x_l (\mu_1^2 + v [j = l]) = \mu_1^2 (Dx)_i (Dx)_k + v S_{ik}`.
The tests compare with the enumeration of all :math:`2^{d+k}` masks.
"""

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    Float64Array,
    as_float64,
    check_dropout_rate,
    check_nonnegative,
)


def update_sparsity(dropout_rate: ArrayLike) -> Float64Array:
    r"""Probability that an entry of the masked update is zero: :math:`s(p) = 2p - p^2`.

    An entry survives if its row and its column do, which has probability :math:`(1-p)^2`.

    Args:
        dropout_rate: p in [0, 1).

    Returns:
        s(p) in [0, 1].

    Raises:
        ValueError: If ``dropout_rate`` is outside [0, 1).

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, Section 4.1.

    Example:
        >>> float(update_sparsity(0.5))
        0.75
    """
    p = check_dropout_rate("dropout_rate", dropout_rate)
    return (p * (2.0 - p))[()]  # not 1 - (1 - p)^2, which cancels for small p


def dropout_rate_for_sparsity(sparsity: ArrayLike) -> Float64Array:
    r"""Dropout rate that gives an expected zero fraction: :math:`p = 1 - \sqrt{1 - s}`.

    Args:
        sparsity: s in [0, 1).

    Returns:
        p in [0, 1), the inverse of :func:`update_sparsity`.

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1).

    Example:
        >>> float(dropout_rate_for_sparsity(0.75))
        0.5
    """
    s = check_dropout_rate("sparsity", sparsity)
    return (s / (1.0 + np.sqrt(1.0 - s)))[()]


def _entry_moments(dropout_rate: ArrayLike, rescale: bool) -> tuple[Float64Array, Float64Array]:
    """Mean and variance of one mask entry."""
    p = check_dropout_rate("dropout_rate", dropout_rate)
    q = 1.0 - p
    return (np.ones_like(p), p / q) if rescale else (q, p * q)


def _layer(delta_weight: ArrayLike, x: ArrayLike) -> tuple[Float64Array, Float64Array]:
    weight, points = as_float64("delta_weight", delta_weight), as_float64("x", x)
    if weight.ndim != 2 or points.ndim < 1 or points.shape[-1] != weight.shape[1]:
        raise ValueError(
            "`delta_weight` must have shape (out_features, in_features) and `x` shape "
            f"(..., in_features), got {weight.shape} and {points.shape}."
        )
    return weight, points


def masked_update_mean(
    dropout_rate: ArrayLike, delta_weight: ArrayLike, x: ArrayLike, *, rescale: bool
) -> Float64Array:
    r"""Mean of the masked update over mask draws: :math:`\mathbb E z = \mu_1^2 D x`.

    It is :math:`D x` with inverted scaling and :math:`(1-p)^2 D x` without.

    Args:
        dropout_rate: p in [0, 1); a scalar, or broadcasting against the leading axes of ``x``.
        delta_weight: D, shape (out_features, in_features).
        x: Inputs, shape (..., in_features).
        rescale: Whether kept coordinates are divided by 1 - p.

    Returns:
        Shape (..., out_features).

    Raises:
        ValueError: If the rate is outside [0, 1) or the shapes do not fit.

    Example:
        >>> masked_update_mean(0.5, [[4.0]], [1.0], rescale=False).tolist()
        [1.0]
    """
    weight, points = _layer(delta_weight, x)
    mean, _ = _entry_moments(dropout_rate, rescale)
    return np.asarray((mean**2)[..., None] * (points @ weight.T))


def masked_update_covariance(
    dropout_rate: ArrayLike, delta_weight: ArrayLike, x: ArrayLike, *, rescale: bool
) -> Float64Array:
    r"""Covariance of the masked update over mask draws.

    .. math:: \operatorname{Cov} z = \mu_1^2 v [S + \operatorname{Diag}((Dx)^2)] + v^2
        \operatorname{Diag}(S), \qquad S = D \operatorname{diag}(x^2) D^\top,

    with :math:`(\mu_1, v) = (1, p/q)` with inverted scaling and :math:`(q, pq)` without.

    Args:
        dropout_rate: p in [0, 1); a scalar, or broadcasting against the leading axes of ``x``.
        delta_weight: D, shape (out_features, in_features).
        x: Inputs, shape (..., in_features).
        rescale: Whether kept coordinates are divided by 1 - p.

    Returns:
        Shape (..., out_features, out_features), positive semidefinite.

    Raises:
        ValueError: If the rate is outside [0, 1) or the shapes do not fit.

    Example:
        Both masks of a 1 x 1 layer survive with probability 1/4, so z is 4 or 0:

        >>> masked_update_covariance(0.5, [[4.0]], [1.0], rescale=False).tolist()
        [[3.0]]
    """
    weight, points = _layer(delta_weight, x)
    mean, variance = (m[..., None, None] for m in _entry_moments(dropout_rate, rescale))
    spread = np.einsum("ij,...j,kj->...ik", weight, points**2, weight)
    identity = np.eye(weight.shape[0])
    squares = ((points @ weight.T) ** 2)[..., None] * identity
    return np.asarray(mean**2 * variance * (spread + squares) + variance**2 * spread * identity)


def squared_loss_penalty(
    dropout_rate: ArrayLike,
    delta_weight: ArrayLike,
    input_second_moment: ArrayLike,
    *,
    rescale: bool,
) -> float:
    r"""What the masks add to an expected squared loss of one linear layer.

    .. math:: \mathbb E \|y - z\|^2 = \mathbb E \|y - \mathbb E z\|^2 + \mathbb E
        \operatorname{tr} \operatorname{Cov} z

    and, for inputs with second moment :math:`\Sigma` and :math:`\Sigma_d =
    \operatorname{Diag}(\Sigma)`,

    .. math:: \mathbb E \operatorname{tr} \operatorname{Cov} z = \mu_1^2 v \operatorname{tr}(D
        \Sigma D^\top) + \mu_2 v \operatorname{tr}(D \Sigma_d D^\top), \qquad
        \mu_2 = \mu_1^2 + v,

    that is :math:`(p/q) \operatorname{tr} D \Sigma D^\top + (p/q^2) \operatorname{tr} D \Sigma_d
    D^\top` with inverted scaling. The half-squared loss takes half of it.

    Args:
        dropout_rate: p in [0, 1), a scalar.
        delta_weight: D, shape (out_features, in_features).
        input_second_moment: Sigma = E x x^T, shape (in_features, in_features).
        rescale: Whether kept coordinates are divided by 1 - p.

    Returns:
        The penalty, >= 0, in squared output units.

    Raises:
        ValueError: If the rate is outside [0, 1) or the shapes do not fit.

    Source:
        Derived here; for input masks alone, Wager, Wang and Liang (2013), arXiv:1307.1493.

    Example:
        >>> squared_loss_penalty(0.5, [[2.0]], [[1.0]], rescale=True)
        12.0
    """
    weight, moment = _layer(delta_weight, input_second_moment)
    if moment.shape != (weight.shape[1],) * 2:
        raise ValueError(
            f"`input_second_moment` must have shape {(weight.shape[1],) * 2}, got {moment.shape}."
        )
    mean, variance = _entry_moments(dropout_rate, rescale)
    whole = np.einsum("ij,jl,il->", weight, moment, weight)
    diagonal = np.einsum("ij,j,ij->", weight, np.diag(moment), weight)
    return float(mean**2 * variance * whole + (mean**2 + variance) * variance * diagonal)


def isotropic_penalty(
    dropout_rate: ArrayLike, input_scale: ArrayLike, output_curvature: ArrayLike
) -> Float64Array:
    r"""Penalty weight lambda that the masks themselves imply, for isotropic inputs.

    .. math:: \lambda_{\mathrm{eff}} = \frac{h \sigma^2}{2 (1-p)^2}

    For one linear layer with :math:`\mathbb E x x^\top = \sigma^2 I` and an output Hessian
    :math:`h I`, the masks add :math:`\lambda_{\mathrm{eff}} (2p - p^2) \|D\|_F^2` to the risk,
    where D is the *deployed* update (inverted scaling). This is the paper's penalty with a derived
    weight: put it in ``CurvatureInputs.penalty``.

    Args:
        dropout_rate: p in [0, 1).
        input_scale: sigma, the root mean square of an input coordinate, >= 0.
        output_curvature: h >= 0: 2 for the squared loss, 1 for half of it. Softmax
            cross-entropy has at most 1/2 in every direction of the logits, but no positive
            minimum: with 1/2 the result is an upper end, which is not the safe one.

    Returns:
        lambda_eff >= 0, in loss per parameter^2. Grows with p.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Derived here; the factor 2p - p^2 is Lin et al. (2024), arXiv:2404.09610v1, Eq. 11.

    Example:
        >>> float(isotropic_penalty(0.5, 1.0, 1.0))
        2.0
    """
    p = check_dropout_rate("dropout_rate", dropout_rate)
    sigma = check_nonnegative("input_scale", input_scale)
    h = check_nonnegative("output_curvature", output_curvature)
    return (0.5 * h * (sigma / (1.0 - p)) ** 2)[()]
