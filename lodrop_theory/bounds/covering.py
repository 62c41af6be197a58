r"""A bound for every low-rank update at once, from the number of balls that cover them.

**Cover** (Candès and Plan 2011, arXiv:1001.0339, Lemma 3.1). The matrices of shape
:math:`n_1 \times n_2`, rank at most r and Frobenius norm at most :math:`\nu` have an
:math:`\epsilon`-cover, inside themselves, of at most :math:`(9\nu/\epsilon)^{r(n_1+n_2+1)}`
elements, :math:`\epsilon \le \nu`: write :math:`U \Sigma V^\top` and cover the three factors with
radius :math:`\epsilon / (3\nu)`, of which each has at most :math:`(1 + 6\nu/\epsilon)^{\dim} \le
(9\nu/\epsilon)^{\dim}` elements (volumes; :math:`\epsilon \le 3\nu`).

**Modules.** For k modules cover each with radius :math:`\epsilon/\sqrt k`; the squared distances
add up to :math:`\epsilon^2`. (The same radius for each, as often written, is
:math:`\epsilon\sqrt k` in all.)

**Bound.** Hoeffding's inequality at every center, a union over centers, and
:math:`|R(D) - R(D')|, |\hat R(D) - \hat R(D')| \le \rho\epsilon` for the center D' next to D:

.. math:: R \le \hat R + 2\rho\epsilon + C \sqrt{\frac{d \ln(9 \nu \sqrt k/\epsilon) +
    \ln(1/\delta)}{2n}}, \qquad d = \sum_i r_i (n_{1,i} + n_{2,i} + 1).

It holds for every :math:`\epsilon` that does not depend on the sample.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, check_positive
from lodrop_theory._numerics import round_up
from lodrop_theory.inputs import CoveringInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import BoundResult, as_array, input_fields


def low_rank_dimension(rank: int, shapes: Iterable[tuple[int, int]]) -> int:
    r"""Exponent of the covering number of rank-r updates: :math:`\sum_i r (n_{1,i}+n_{2,i}+1)`.

    Args:
        rank: r >= 1.
        shapes: (out_features, in_features) of each adapted module.

    Returns:
        The exponent; with ranks above the smaller side of a module counted as that side.

    Raises:
        ValueError: If the rank or a side is not >= 1.

    Source:
        Candès and Plan (2011), arXiv:1001.0339, Lemma 3.1.

    Example:
        >>> low_rank_dimension(8, [(384, 384)] * 12)
        73824
    """
    total = 0
    for rows, columns in shapes:
        if min(rank, rows, columns) < 1:
            raise ValueError(
                f"`rank` and the sides must be whole numbers >= 1, got {rank}, {rows}, {columns}."
            )
        total += min(rank, rows, columns) * (rows + columns + 1)
    return total


def _radius(inputs: CoveringInputs, top: Float64Array) -> Float64Array:
    """Near the best radius: a few fixed-point steps; every radius in (0, top] is valid."""
    rho, c = np.asarray(inputs.lipschitz), np.asarray(inputs.loss_range)
    n, d = np.asarray(inputs.n_train), np.asarray(inputs.dimension)
    log = -np.log(inputs.delta)
    radius, lowest = top, np.maximum(top * 1e-250, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for _ in range(6):  # 2 rho = C d / (radius sqrt(8 n (d ln(9 top / radius) + log)))
            nats = d * np.log(9.0 * top / radius) + log
            radius = np.minimum(c * d / (2.0 * rho * np.sqrt(8.0 * n * nats)), top)
            radius = np.maximum(np.where(np.isfinite(radius), radius, top), lowest)
    return radius


def covering_bound(
    inputs: CoveringInputs,
    *,
    cover_radius: ArrayLike | None = None,
    predictor: Predictor = "mean",
    certified: bool = False,
) -> BoundResult:
    r"""Risk bound for every update of the given rank and norm; proof at the top of this module.

    .. math:: R \le \hat R + 2\rho\epsilon + C \sqrt{\frac{d \ln(9 \nu \sqrt k/\epsilon) +
        \ln(1/\delta)}{2n}}

    It needs nothing of the training (no minimizer, no convexity) and says nothing of dropout.

    Args:
        inputs: Size of the class, and the Lipschitz constant over all of it.
        cover_radius: epsilon in (0, norm_bound sqrt(n_modules)], not chosen from the sample; None
            takes one that nearly minimizes the bound. Parameter units.
        predictor: The predictor whose loss the inputs describe. With masks without scaling the
            masked updates are in the same class, so that ``gibbs`` is covered too.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, with probability at least 1 - delta over training sets.

    Raises:
        ValueError: If ``cover_radius`` is outside its range.

    Source:
        Candès and Plan (2011), arXiv:1001.0339, Lemma 3.1, and a union bound; derived here.

    Example:
        >>> from lodrop_theory.inputs import CoveringInputs
        >>> inputs = CoveringInputs(
        ...     n_train=10**6, loss_range=1, delta=0.05, lipschitz=1, norm_bound=1,
        ...     dimension=low_rank_dimension(1, [(10, 10)]), n_modules=1,
        ... )
        >>> round(float(covering_bound(inputs).gap), 4)
        0.0111
    """
    c, n = np.asarray(inputs.loss_range), np.asarray(inputs.n_train)
    rho, d = np.asarray(inputs.lipschitz), np.asarray(inputs.dimension)
    top = np.asarray(inputs.norm_bound) * np.sqrt(inputs.n_modules)
    if cover_radius is None:
        radius = _radius(inputs, top)
    else:
        radius = check_positive("cover_radius", cover_radius)
        if np.any(radius > top):
            raise ValueError(
                f"`cover_radius` must be at most norm_bound sqrt(n_modules) = {top}, "
                f"got {cover_radius!r}."
            )
    with np.errstate(over="ignore"):
        nats = d * np.log(9.0 * top / radius) - np.log(inputs.delta)
        gap = round_up(2.0 * rho * radius + c * np.sqrt(nats / n / 2.0))
    return BoundResult(
        bound="covering",
        title="Covering of low-rank updates",
        source="Candès and Plan 2011, arXiv:1001.0339, Lemma 3.1, and a union bound",
        statement="probability",
        predictor=predictor,
        gap=gap,
        empirical_risk=as_array(inputs.empirical_risk),
        loss_range=c,
        delta=as_array(inputs.delta),
        certified=certified,
        hypotheses=(
            "the training examples are independent draws from the population",
            "the loss of every example lies in one interval of length `loss_range`",
            "`norm_bound`, ranks and radius were fixed before the training sample was seen",
            "the loss is `lipschitz`-Lipschitz over all updates of that rank and norm",
        ),
        inputs={
            **input_fields(inputs),
            "cover_radius": None if cover_radius is None else np.asarray(radius),
        },
        event="a center of the cover has a gap above its Hoeffding bound",
    )


__all__ = ["covering_bound", "low_rank_dimension"]
