"""Extreme eigenvalues of a symmetric operator that is known by its products alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

Vector = Float64[Tensor, " n_parameters"]
_BREAKDOWN = 1e-12  # relative length below which the Krylov space is taken as invariant


@dataclass(frozen=True, kw_only=True)
class RitzValues:
    r"""Eigenvalues of a symmetric operator on a Krylov space, with what they miss.

    Attributes:
        values: Ritz values :math:`\theta_1 \le \dots \le \theta_k`, float64. They lie between the
            smallest and the largest eigenvalue of the operator.
        residuals: :math:`\|H y_i - \theta_i y_i\|` of the unit Ritz vectors, computed from the
            products themselves and not from the three-term recurrence.
        asymmetry: Spectral norm of the skew part of :math:`V^\top H V`: zero for exact products
            of a symmetric operator, hence the visible part of their rounding.
    """

    values: Float64[Tensor, " k"]
    residuals: Float64[Tensor, " k"]
    asymmetry: float


def lanczos(
    product: Callable[[Vector], Vector],
    start: Vector,
    *,
    steps: int,
    on_step: Callable[[int, int], None] | None = None,
) -> RitzValues:
    r"""Ritz values of a symmetric operator on the Krylov space of a start vector.

    .. math:: V = \operatorname{orth}\{v, Hv, \dots, H^{k-1} v\}, \qquad
              V^\top H V\, s_i = \theta_i s_i, \qquad r_i = \|H V s_i - \theta_i V s_i\|

    Every new vector is orthogonalized twice against all earlier ones, so no copies of converged
    eigenvalues ("ghosts") appear. The products are kept, and the small problem is solved on
    :math:`V^\top H V` itself: rounding in single-precision products then shows up in the
    residuals and in ``asymmetry`` instead of being lost in the recurrence.

    What holds: within :math:`r_i` of each :math:`\theta_i` there is an eigenvalue, and
    :math:`\theta_1 \ge \lambda_{\min}`, :math:`\theta_k \le \lambda_{\max}` (Cauchy). What does
    not: that the eigenvalue near :math:`\theta_1` is the smallest. A start vector orthogonal to an
    eigenvector never sees it; a random one has this with probability zero, but sees it late.

    Args:
        product: Maps v to H v, both float64 of shape (n_parameters,); called ``steps`` times.
        start: Start vector, finite and not zero, shape (n_parameters,); it is not changed.
        steps: Dimension of the Krylov space, >= 1; fewer are taken when the space becomes
            invariant, in which case the residuals are zero up to rounding.
        on_step: Called as ``on_step(step, steps)`` after each product.

    Returns:
        The Ritz values in ascending order with their residuals.

    Raises:
        ValueError: If ``start`` is zero or not finite, ``steps`` < 1, or a product is not finite.

    Source:
        Lanczos (1950); residual bound and full reorthogonalization: Parlett (1998), The Symmetric
        Eigenvalue Problem, Theorem 4.5.1 and section 13.3.

    Example:
        >>> diagonal = torch.arange(1.0, 6.0, dtype=torch.float64)
        >>> ritz = lanczos(lambda v: diagonal * v, torch.ones(5, dtype=torch.float64), steps=5)
        >>> [round(value, 6) for value in ritz.values.tolist()]
        [1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` must be a whole number >= 1, got {steps!r}.")
    vector = start.to(torch.float64)
    length = float(vector.norm())
    if not 0.0 < length < float("inf"):
        raise ValueError(f"`start` must be finite and not zero, got norm {length!r}.")
    basis: list[Vector] = []
    products: list[Vector] = []
    scale = 0.0
    vector = vector / length
    for step in range(min(steps, vector.numel())):
        image = product(vector)
        if not bool(torch.isfinite(image).all()):
            raise ValueError(f"`product` must be finite, got NaN or infinity at step {step + 1}.")
        basis.append(vector)
        products.append(image)
        if on_step is not None:
            on_step(step + 1, steps)
        scale = max(scale, float(image.norm()))
        rest = _orthogonalize(image, torch.stack(basis))
        length = float(rest.norm())
        if length <= _BREAKDOWN * scale:
            break
        vector = rest / length
    return _rayleigh_ritz(torch.stack(basis), torch.stack(products))


def _orthogonalize(vector: Vector, basis: Float64[Tensor, "k n_parameters"]) -> Vector:
    """Remove the part inside the basis; the second pass removes what the first one rounded."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


def _rayleigh_ritz(
    basis: Float64[Tensor, "k n_parameters"], products: Float64[Tensor, "k n_parameters"]
) -> RitzValues:
    projected = basis @ products.T
    values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    defects = vectors.T @ products - values[:, None] * (vectors.T @ basis)
    skew = torch.linalg.matrix_norm((projected - projected.T) / 2, ord=2)
    return RitzValues(values=values, residuals=defects.norm(dim=1), asymmetry=float(skew))
