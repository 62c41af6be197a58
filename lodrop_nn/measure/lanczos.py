"""Krylov spaces of a symmetric operator that is known by its products alone."""

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


@dataclass(frozen=True, kw_only=True, eq=False)
class KrylovSpace:
    r"""An orthonormal basis of a Krylov space and the products that made it.

    Attributes:
        basis: V, one vector per row, on the device of the start vector.
        images: H V, one product per row, each projected where the operator is.
        next_length: :math:`\beta_k`, length of the last product outside of the space.
    """

    basis: Float64[Tensor, "k n_parameters"]
    images: Float64[Tensor, "k n_parameters"]
    next_length: float

    @property
    def projected(self) -> Float64[Tensor, "k k"]:
        r""":math:`V^\top H V` as computed, not symmetrized; on the CPU, as everything small."""
        return (self.basis @ self.images.T).cpu()

    def ritz(self) -> RitzValues:
        """The Ritz values, in ascending order."""
        projected = self.projected
        values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
        turned = vectors.T.to(self.basis.device)
        defects = turned @ self.images
        defects -= values.to(turned.device)[:, None] * (turned @ self.basis)
        skew = torch.linalg.matrix_norm((projected - projected.T) / 2, ord=2)
        return RitzValues(values=values, residuals=defects.norm(dim=1).cpu(), asymmetry=float(skew))


def krylov_space(
    product: Callable[[Vector], Vector],
    start: Vector,
    *,
    steps: int,
    project: Callable[[Vector], Vector] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> KrylovSpace:
    r"""The Krylov space of a start vector under an operator, or under its projection.

    .. math:: \operatorname{span}\{v, Hv, \dots, H^{k-1} v\}, \qquad H \to P H P,\ v \to P v

    Every new vector is orthogonalized twice against all earlier ones, so no copies of converged
    eigenvalues ("ghosts") appear. With a projection P the space lies in its range, and the
    eigenvalues are those of the operator restricted to the range: the zeros that :math:`PHP` has
    on the kernel of P do not come in.

    Args:
        product: Maps v to H v, both float64 of shape (n_parameters,); called ``steps`` times.
        start: Start vector, finite and not zero, shape (n_parameters,); it is not changed.
        steps: Dimension of the Krylov space, >= 1; fewer are taken when the space becomes
            invariant.
        project: Orthogonal projection P; None is the identity.
        on_step: Called as ``on_step(step, steps)`` after each product.

    Returns:
        The space.

    Raises:
        ValueError: If the projected ``start`` is zero or not finite, ``steps`` < 1, or a product
            is not finite.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` must be a whole number >= 1, got {steps!r}.")
    vector = start.to(torch.float64)
    vector = vector if project is None else project(vector)
    length = float(vector.norm())
    if not 0.0 < length < float("inf"):
        raise ValueError(f"`start` must be finite and not zero, got norm {length!r}.")
    steps = min(steps, vector.numel())
    basis, images = vector.new_empty(steps, vector.numel()), vector.new_empty(steps, vector.numel())
    scale, done = 0.0, 0
    rest = vector
    while done < steps:
        basis[done] = rest / length
        image = product(basis[done])
        if not bool(torch.isfinite(image).all()):
            raise ValueError(f"`product` must be finite, got NaN or infinity at step {done + 1}.")
        images[done] = image if project is None else project(image)
        done += 1
        if on_step is not None:
            on_step(done, steps)
        scale = max(scale, float(images[done - 1].norm()))
        rest = _orthogonalize(images[done - 1], basis[:done], project)
        length = float(rest.norm())
        if length <= _BREAKDOWN * scale:
            break
    return KrylovSpace(basis=basis[:done], images=images[:done], next_length=length)


def lanczos(
    product: Callable[[Vector], Vector],
    start: Vector,
    *,
    steps: int,
    project: Callable[[Vector], Vector] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> RitzValues:
    r"""Ritz values of a symmetric operator on the Krylov space of a start vector.

    .. math:: V = \operatorname{orth}\{v, Hv, \dots, H^{k-1} v\}, \qquad
              V^\top H V\, s_i = \theta_i s_i, \qquad r_i = \|H V s_i - \theta_i V s_i\|

    The products are kept, and the small problem is solved on :math:`V^\top H V` itself: rounding in
    single-precision products then shows up in the residuals and in ``asymmetry`` instead of being
    lost in the recurrence.

    What holds: within :math:`r_i` of each :math:`\theta_i` there is an eigenvalue, and
    :math:`\theta_1 \ge \lambda_{\min}`, :math:`\theta_k \le \lambda_{\max}` (Cauchy). What does
    not: that the eigenvalue near :math:`\theta_1` is the smallest, so :math:`\theta_1 - r_1` need
    not be below it. Where the start is random,
    :func:`~lodrop_nn.measure.enclosure.spectrum_enclosure` encloses both ends.

    Args:
        product: Maps v to H v, both float64 of shape (n_parameters,); called ``steps`` times.
        start: Start vector, finite and not zero, shape (n_parameters,); it is not changed.
        steps: Dimension of the Krylov space, >= 1; fewer are taken when the space becomes
            invariant, in which case the residuals are zero up to rounding.
        project: Orthogonal projection to whose range operator and start are restricted; None is
            the identity.
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
    return krylov_space(product, start, steps=steps, project=project, on_step=on_step).ritz()


def _orthogonalize(
    vector: Vector,
    basis: Float64[Tensor, "k n_parameters"],
    project: Callable[[Vector], Vector] | None,
) -> Vector:
    """Remove the part inside the basis; the second pass removes what the first one rounded."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
        vector = vector if project is None else project(vector)
    return vector
