r"""Variance of an ensemble over masks of one layer: i.i.d., balanced and crossed masks.

The ensemble of N members averages :math:`z_i = m_B^i \odot (D (m_A^i \odot x))`. Entries of one
mask and masks of rows and columns are independent; *one* coordinate may be dependent between
members. Let an entry have mean m and variance v, and let c be its covariance between two different
members. For members :math:`i \ne i'` the second moments of a product of entries are those of one
member with v replaced by c, so that with the covariance C(v) of
:func:`~lodrop_theory.masked_update_covariance`

.. math:: \operatorname{Cov} \bar z = \tfrac1N C(v) + \tfrac{N-1}{N} C(c)
    = m^2 a\,[S + \operatorname{Diag}((Dx)^2)] + b \operatorname{Diag}(S),
    \qquad a = \tfrac{v + (N-1)c}{N}, \quad b = \tfrac{v^2 + (N-1)c^2}{N} .

Here a is the variance of the *average* of a coordinate's N entries and b that of the product part.

* *i.i.d. masks*: c = 0, so that a = v / N and b = v^2 / N.
* *Balanced masks*: each coordinate is kept in :math:`\lfloor qN \rfloor` or :math:`\lceil qN
  \rceil` members, the latter with probability f = qN - floor(qN), at random places, so that every
  member keeps its i.i.d. law exactly. The number of members that keep it has variance f (1 - f),
  which is a up to scale. For whole qN the average is exact: a = 0, c = -v / (N - 1) and b = v^2 /
  (N - 1). Only the product of row and column noise is left.
* *Crossed masks*: N = N_A N_B members are the cells of a table; the column masks depend on the
  table's row alone, the row masks on its column alone, each balanced over its own factor. The
  ensemble mean is then the product of two averages, and a_A, a_B are those of N_A and N_B masks,
  :math:`b = a_A a_B`. For whole :math:`q N_A`, :math:`q N_B` every member keeps its i.i.d. law and
  yet the mean update of the layer is *exact*: variance 0. At p = 1/2 four members suffice; they
  form the orthogonal array OA(4, 2, 2, 2).

The tests compare each law with the enumeration of all its joint masks.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    Float64Array,
    as_float64,
    check_count,
    check_dropout_rate,
)


class AveragedMasks(NamedTuple):
    """What the average over members leaves of the noise of one coordinate.

    Attributes:
        mean: m, the mean of an entry.
        columns: a_A, the variance of the average of a column coordinate's entries.
        rows: a_B, the same for a row coordinate.
        product: b, what is left of the product of row and column noise.
    """

    mean: Float64Array
    columns: Float64Array
    rows: Float64Array
    product: Float64Array


def _entry(
    dropout_rate: ArrayLike, rescale: bool
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Value of a kept entry, the probability q of keeping it, and p itself: 1 - q is inexact."""
    p = check_dropout_rate("dropout_rate", dropout_rate)
    q = 1.0 - p
    return (1.0 / q if rescale else np.ones_like(q)), q, p


def _balanced_average(p: Float64Array, n_masks: Float64Array) -> Float64Array:
    """Variance of the dropped share of a balanced coordinate: f (1 - f) / N^2, f = frac(p N)."""
    dropped = p * n_masks
    # A share such as 0.3 of 10 is meant whole although neither float64 is exact; one such as 1e-10
    # of 1 is not.
    nearest = np.rint(dropped)
    whole = np.abs(dropped - nearest) <= 16.0 * np.finfo(np.float64).eps * dropped
    fraction = np.where(whole, 0.0, dropped - np.floor(dropped))
    return np.asarray(fraction * (1.0 - fraction) / n_masks**2)


def iid_masks_average(
    dropout_rate: ArrayLike, n_masks: ArrayLike, *, rescale: bool
) -> AveragedMasks:
    """What independent masks leave: every part divided by N.

    Args:
        dropout_rate: p in [0, 1).
        n_masks: N, whole and >= 1.
        rescale: Whether kept coordinates are divided by 1 - p.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> [float(v) for v in iid_masks_average(0.5, 4, rescale=True)]
        [1.0, 0.25, 0.25, 0.25]
    """
    value, q, p = _entry(dropout_rate, rescale)
    n = check_count("n_masks", n_masks)
    variance = value**2 * q * p
    return AveragedMasks(value * q + 0.0 * n, variance / n, variance / n, variance**2 / n)


def balanced_masks_average(
    dropout_rate: ArrayLike, n_masks: ArrayLike, *, rescale: bool
) -> AveragedMasks:
    """What balanced masks leave: for whole q N, only the product of row and column noise.

    Args:
        dropout_rate: p in [0, 1).
        n_masks: N, whole and >= 1.
        rescale: Whether kept coordinates are divided by 1 - p.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> [round(float(v), 12) for v in balanced_masks_average(0.5, 4, rescale=True)]
        [1.0, 0.0, 0.0, 0.333333333333]
    """
    value, q, p = _entry(dropout_rate, rescale)
    n = check_count("n_masks", n_masks)
    variance = value**2 * q * p
    average = value**2 * _balanced_average(p, n)
    between = np.where(n > 1, (n * average - variance) / np.maximum(n - 1.0, 1.0), 0.0)
    product = (variance**2 + (n - 1.0) * between**2) / n
    return AveragedMasks(value * q + 0.0 * n, average, average, product)


def crossed_masks_average(
    dropout_rate: ArrayLike, n_column_masks: ArrayLike, n_row_masks: ArrayLike, *, rescale: bool
) -> AveragedMasks:
    """What crossed masks leave: nothing at all for whole q N_A and q N_B.

    Args:
        dropout_rate: p in [0, 1).
        n_column_masks: N_A, whole and >= 1.
        n_row_masks: N_B, whole and >= 1; the ensemble has N_A N_B members.
        rescale: Whether kept coordinates are divided by 1 - p.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> [float(v) for v in crossed_masks_average(0.5, 2, 2, rescale=True)]
        [1.0, 0.0, 0.0, 0.0]
    """
    value, q, p = _entry(dropout_rate, rescale)
    columns, rows = (
        value**2 * _balanced_average(p, check_count(name, n))
        for name, n in (("n_column_masks", n_column_masks), ("n_row_masks", n_row_masks))
    )
    return AveragedMasks(value * q + 0.0 * (columns + rows), columns, rows, columns * rows)


def _layer(delta_weight: ArrayLike, x: ArrayLike) -> tuple[Float64Array, Float64Array]:
    weight, points = as_float64("delta_weight", delta_weight), as_float64("x", x)
    if weight.ndim != 2 or points.ndim < 1 or points.shape[-1] != weight.shape[1]:
        raise ValueError(
            "`delta_weight` must have shape (out_features, in_features) and `x` shape "
            f"(..., in_features), got {weight.shape} and {points.shape}."
        )
    return weight, points


def ensemble_covariance(
    average: AveragedMasks, delta_weight: ArrayLike, x: ArrayLike
) -> Float64Array:
    r"""Covariance of the ensemble's mean update of one layer, over draws of all its masks.

    .. math:: m^2 [a_A S + a_B \operatorname{Diag}((Dx)^2)] + b \operatorname{Diag}(S), \qquad
        S = D \operatorname{diag}(x^2) D^\top

    Args:
        average: Of one mask law, as scalars.
        delta_weight: D, shape (out_features, in_features).
        x: Inputs, shape (..., in_features).

    Returns:
        Shape (..., out_features, out_features).

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> law = iid_masks_average(0.5, 3, rescale=False)
        >>> ensemble_covariance(law, [[4.0]], [1.0]).tolist()
        [[1.0]]
    """
    weight, points = _layer(delta_weight, x)
    spread = np.einsum("ij,...j,kj->...ik", weight, points**2, weight)
    identity = np.eye(len(weight))
    squares = ((points @ weight.T) ** 2)[..., None] * identity
    m2 = average.mean**2
    return np.asarray(
        m2 * (average.columns * spread + average.rows * squares)
        + average.product * spread * identity
    )


def variance_ratio(
    law: AveragedMasks, reference: AveragedMasks, delta_weight: ArrayLike, x: ArrayLike
) -> float:
    r"""Total variance of one ensemble over that of another, averaged over inputs.

    For balanced masks against i.i.d. ones, whole qN and inverted scaling it is

    .. math:: \frac{N}{N - 1} \cdot \frac{(p/q) t}{(1 + p/q)\, t + u}, \qquad
        t = \sum_{ij} D_{ij}^2 \overline{x_j^2}, \quad u = \overline{\|Dx\|^2},

    so that the gain is largest for small p and for outputs that add up (:math:`u \gg t`).

    Args:
        law: The averages of the law in question.
        reference: Those of the law that it is compared with.
        delta_weight: D, shape (out_features, in_features).
        x: Inputs, shape (..., in_features).

    Returns:
        The ratio, >= 0; nan where the reference has no variance (p = 0, or no update).

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> iid, balanced = (
        ...     f(0.5, 4, rescale=True) for f in (iid_masks_average, balanced_masks_average)
        ... )
        >>> round(variance_ratio(balanced, iid, [[1.0]], [1.0]), 12)
        0.444444444444
    """
    weight, points = _layer(delta_weight, x)
    squares = (points**2).reshape(-1, points.shape[-1]).mean(axis=0)
    t = float(np.einsum("ij,j->", weight**2, squares))
    u = float(((points @ weight.T) ** 2).sum(axis=-1).mean())
    total, other = (
        float(each.mean**2 * (each.columns * t + each.rows * u) + each.product * t)
        for each in (law, reference)
    )
    return total / other if other > 0 else float("nan")


__all__ = [
    "AveragedMasks",
    "balanced_masks_average",
    "crossed_masks_average",
    "ensemble_covariance",
    "iid_masks_average",
    "variance_ratio",
]
