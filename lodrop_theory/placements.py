r"""Where the masks sit, and the penalty that each place implies without a free parameter.

One layer :math:`z = B A x = D x` may be masked at its inputs, at its outputs, at both (LoRA
Dropout), at each entry of D (DropConnect) or at the r coordinates between the factors (rank masks).
Mask entries are independent, with mean :math:`m` and variance :math:`v`: :math:`(1, p/q)` with
inverted scaling, :math:`(q, pq)` without, :math:`q = 1 - p`. Then

.. math::
    \operatorname{Cov} z = a_{\mathrm{sum}} S + a_{\mathrm{out}} \operatorname{Diag}((Dx)^2)
        + a_{\mathrm{own}} \operatorname{Diag}(S) + a_{\mathrm{rank}} B \operatorname{Diag}((Ax)^2)
        B^\top, \qquad S = D \operatorname{Diag}(x^2) D^\top,

==============  ===========  ============  ============  ============  ============
mask            mean of z    a_sum         a_out         a_own         a_rank
==============  ===========  ============  ============  ============  ============
inputs          m Dx         v
outputs         m Dx                       v
both            m^2 Dx       m^2 v         m^2 v         v^2
each entry      m Dx                                     v
rank            m Dx                                                   v
==============  ===========  ============  ============  ============  ============

Each column is the covariance of a sum of independent terms: over inputs j, :math:`D_{\cdot j} x_j`;
over outputs i, :math:`(Dx)_i e_i`; over entries, :math:`D_{ij} x_j e_i`; over k, :math:`b_k
a_k^\top x`. The row "both" is derived in :mod:`~lodrop_theory.mask_laws`. With second moment
:math:`\Sigma` of the inputs and :math:`\Sigma_d = \operatorname{Diag}(\Sigma)` the traces average
to

.. math:: \mathbb E \operatorname{tr} \operatorname{Cov} z
    = a_{\mathrm{out}} \operatorname{tr}(D \Sigma D^\top)
    + (a_{\mathrm{sum}} + a_{\mathrm{own}}) \operatorname{tr}(D \Sigma_d D^\top)
    + a_{\mathrm{rank}} \sum_k \|b_k\|^2 a_k^\top \Sigma a_k .

The tests compare all of it with the enumeration of every mask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, as_float64, check_dropout_rate


class CovarianceTerms(NamedTuple):
    """Mean factor of the masked update and the weights of the four terms of its covariance."""

    mean: Float64Array
    sums: Float64Array
    outputs: Float64Array
    own: Float64Array
    rank: Float64Array


@dataclass(frozen=True)
class Placement:
    """Where masks act on one adapted layer.

    Attributes:
        name: Short name.
        terms: Maps the mean and the variance of one mask entry to the :class:`CovarianceTerms`.
    """

    name: str
    terms: Callable[[Float64Array, Float64Array], CovarianceTerms]

    def at(self, dropout_rate: ArrayLike, *, rescale: bool) -> CovarianceTerms:
        """The terms at one dropout rate.

        Args:
            dropout_rate: p in [0, 1), of one mask entry.
            rescale: Whether kept coordinates are divided by 1 - p.

        Raises:
            ValueError: If ``dropout_rate`` is outside [0, 1).

        Example:
            >>> LORA_DROPOUT.at(0.5, rescale=True).mean.item()
            1.0
        """
        p = check_dropout_rate("dropout_rate", dropout_rate)
        q = 1.0 - p
        if rescale:
            return self.terms(np.ones_like(p), p / q)
        return self.terms(q, p * q)


def _terms(
    mean: Float64Array,
    *,
    sums: Float64Array | float = 0.0,
    outputs: Float64Array | float = 0.0,
    own: Float64Array | float = 0.0,
    rank: Float64Array | float = 0.0,
) -> CovarianceTerms:
    zero = np.zeros_like(mean)
    return CovarianceTerms(mean, zero + sums, zero + outputs, zero + own, zero + rank)


INPUT_DROPOUT = Placement("input", lambda m, v: _terms(m, sums=v))
OUTPUT_DROPOUT = Placement("output", lambda m, v: _terms(m, outputs=v))
LORA_DROPOUT = Placement(
    "both", lambda m, v: _terms(m * m, sums=m * m * v, outputs=m * m * v, own=v * v)
)
DROP_CONNECT = Placement("entry", lambda m, v: _terms(m, own=v))
RANK_DROPOUT = Placement("rank", lambda m, v: _terms(m, rank=v))

PLACEMENTS = (INPUT_DROPOUT, OUTPUT_DROPOUT, LORA_DROPOUT, DROP_CONNECT, RANK_DROPOUT)


def _factors(lora_a: ArrayLike, lora_b: ArrayLike) -> tuple[Float64Array, Float64Array]:
    a, b = as_float64("lora_a", lora_a), as_float64("lora_b", lora_b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(
            "`lora_a` must have shape (r, in_features) and `lora_b` shape (out_features, r), "
            f"got {a.shape} and {b.shape}."
        )
    return a, b


def check_second_moment(moment: ArrayLike, n_inputs: int) -> Float64Array:
    """Sigma as float64 of shape (n_inputs, n_inputs).

    Raises:
        ValueError: If it has another shape.
    """
    sigma = as_float64("input_second_moment", moment)
    if sigma.shape != (n_inputs, n_inputs):
        raise ValueError(
            f"`input_second_moment` must have shape {(n_inputs, n_inputs)}, got {sigma.shape}."
        )
    return sigma


def placement_covariance(
    placement: Placement,
    dropout_rate: ArrayLike,
    lora_a: ArrayLike,
    lora_b: ArrayLike,
    x: ArrayLike,
    *,
    rescale: bool,
) -> Float64Array:
    """Covariance over mask draws of the masked update of one layer (formula: top of this module).

    Args:
        placement: Where the masks act.
        dropout_rate: p in [0, 1), a scalar.
        lora_a: A, shape (r, in_features). For an update without factors, the identity.
        lora_b: B, shape (out_features, r).
        x: Inputs, shape (..., in_features).
        rescale: Whether kept coordinates are divided by 1 - p.

    Returns:
        Shape (..., out_features, out_features), positive semidefinite.

    Raises:
        ValueError: If the rate is outside [0, 1) or the shapes do not fit.

    Example:
        Masks at rate 1/2 on the input of a 1 x 1 layer leave 8 or 0:

        >>> placement_covariance(INPUT_DROPOUT, 0.5, [[1.0]], [[4.0]], [1.0], rescale=True).item()
        16.0
    """
    a, b = _factors(lora_a, lora_b)
    points = as_float64("x", x)
    if points.ndim < 1 or points.shape[-1] != a.shape[1]:
        raise ValueError(f"`x` must have shape (..., {a.shape[1]}), got {points.shape}.")
    terms, weight = placement.at(dropout_rate, rescale=rescale), b @ a
    between = points @ a.T
    spread = np.einsum("ij,...j,kj->...ik", weight, points**2, weight)
    by_rank = np.einsum("ij,...j,kj->...ik", b, between**2, b)
    identity = np.eye(len(b))
    squares = ((between @ b.T) ** 2)[..., None] * identity
    return np.asarray(
        terms.sums * spread
        + terms.outputs * squares
        + terms.own * spread * identity
        + terms.rank * by_rank
    )


def placement_penalty(
    placement: Placement,
    dropout_rate: ArrayLike,
    lora_a: ArrayLike,
    lora_b: ArrayLike,
    input_second_moment: ArrayLike,
    *,
    rescale: bool,
) -> float:
    r"""What the masks add to the expected squared loss of one linear layer.

    .. math:: \mathbb E \|y - z\|^2 - \mathbb E \|y - \mathbb E_m z\|^2 = \mathbb E
        \operatorname{tr} \operatorname{Cov} z

    Args:
        placement: Where the masks act.
        dropout_rate: p in [0, 1), a scalar.
        lora_a: A, shape (r, in_features).
        lora_b: B, shape (out_features, r).
        input_second_moment: Sigma = E x x^T, shape (in_features, in_features).
        rescale: Whether kept coordinates are divided by 1 - p.

    Returns:
        The penalty, >= 0, in squared output units; the half-squared loss takes half of it.

    Raises:
        ValueError: If the rate is outside [0, 1) or the shapes do not fit.

    Source:
        Derived here; for input masks, Wager, Wang and Liang (2013), arXiv:1307.1493.

    Example:
        Isotropic inputs and one mask side: (p / q) ||D||^2 for inputs and outputs alike.

        >>> a, b, sigma = [[1.0, 0.0], [0.0, 1.0]], [[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]
        >>> [placement_penalty(m, 0.5, a, b, sigma, rescale=True) for m in PLACEMENTS]
        [25.0, 25.0, 75.0, 25.0, 25.0]
    """
    a, b = _factors(lora_a, lora_b)
    sigma = check_second_moment(input_second_moment, a.shape[1])
    hessian, own = penalty_curvatures(placement.at(dropout_rate, rescale=rescale), a, sigma)
    return float(np.einsum("ik,kl,il->", b, hessian, b) + np.einsum("ik,k,ik->", b, own, b))


def penalty_curvatures(
    terms: CovarianceTerms, a: Float64Array, sigma: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """The penalty of one row b of B is b' first b + sum_k second_k b_k^2."""
    diagonal = np.diag(sigma)
    between = a @ sigma @ a.T
    by_input = (a * diagonal) @ a.T
    return terms.outputs * between + (terms.sums + terms.own) * by_input, terms.rank * np.diag(
        between
    )


__all__ = [
    "DROP_CONNECT",
    "INPUT_DROPOUT",
    "LORA_DROPOUT",
    "OUTPUT_DROPOUT",
    "PLACEMENTS",
    "RANK_DROPOUT",
    "CovarianceTerms",
    "Placement",
    "check_second_moment",
    "penalty_curvatures",
    "placement_covariance",
    "placement_penalty",
]
