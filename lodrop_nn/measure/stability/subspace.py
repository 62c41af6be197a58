r"""The exact Hessian on a subspace that all neighbors share, the Gauss-Newton one outside.

Products with the Hessian of the risk are what a Newton step on a network costs. Neighbors differ
from the training set in one or two examples, so a product that was computed for one of them serves
all: with V an orthonormal basis, W = H V known and :math:`A_w = w\,n\,V^\top W + \mu I`, the
Hessian of any neighbor on the subspace is :math:`A_w` with the blocks of the rows that change. Up
to ``dense_up_to`` parameters the subspace is everything.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from lodrop_nn.measure.stability.curvature import ExactHessians
from lodrop_nn.measure.stability.dual import DualGaussNewton, Span
from lodrop_nn.measure.stability.neighbors import Neighbor

Vector = Float64[Tensor, " n_parameters"]
_DEPENDENT = 1e-6  # length, after orthogonalization, of a direction that adds nothing


class NegativeCurvature(ArithmeticError):
    """The objective curves down in some direction: the solution is no minimum of it.

    Attributes:
        curvature: The curvature found, < 0; 0 where only its sign is known.
    """

    def __init__(self, message: str, curvature: float = 0.0) -> None:
        super().__init__(message)
        self.curvature = curvature


class Subspace:
    """Solves with the Hessian of neighbors, exactly so in a subspace that grows.

    Args:
        span: The contrast Jacobians of all rows.
        curvature: The exact Hessians; where its matrix is built, nothing has to grow.
        gauss_newton: The Gauss-Newton Hessian by weight of an example, for the rest.
        ridge_curvature: mu = 2 tau > 0.
        known: Another one with the same risk, whose products are taken over: they do not depend on
            the ridge.
    """

    def __init__(
        self,
        span: Span,
        curvature: ExactHessians,
        gauss_newton: dict[float, DualGaussNewton],
        ridge_curvature: float,
        known: "Subspace | None" = None,
    ) -> None:
        self._span, self._curvature, self._mu = span, curvature, ridge_curvature
        self._gauss_newton = gauss_newton
        self._basis: Float64[Tensor, "n_parameters b"] | None = None
        self._images: Float64[Tensor, "n_parameters b"] | None = None
        if known is not None:
            self._basis, self._images = known._basis, known._images
        self._factors: dict[float, Tensor] = {}

    @property
    def is_everything(self) -> bool:
        """Whether the subspace is the whole space."""
        return self._curvature.matrix is not None

    @property
    def dimension(self) -> int:
        """Number of directions."""
        if self._curvature.matrix is not None:
            return len(self._curvature.matrix)
        return 0 if self._basis is None else self._basis.shape[1]

    def extend(self, directions: Float64[Tensor, "n_parameters m"], most: int) -> int:
        """Add the most prominent of some directions, at one product each; how many were added."""
        rest = directions / directions.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
        for _ in range(2):
            if self._basis is not None:
                rest = rest - self._basis @ (self._basis.T @ rest)
        left, lengths, _ = torch.linalg.svd(rest, full_matrices=False)
        left = left[:, lengths > _DEPENDENT][:, :most]
        added = left.shape[1]
        if not added:
            return 0
        images = torch.stack([self._curvature.risk_product(v) for v in left.T], dim=1)
        if self._basis is not None and self._images is not None:
            left = torch.cat([self._basis, left], dim=1)
            images = torch.cat([self._images, images], dim=1)
        self._basis, self._images = left, images
        self._factors.clear()
        return added

    def solve(self, neighbor: Neighbor, vector: Vector) -> tuple[Vector, Vector]:
        """The step within the subspace and the risk's Hessian times it.

        Raises:
            NegativeCurvature: If the Hessian of the neighbor is not positive on the subspace.
        """
        inner = self._inner(neighbor, self._into(vector))
        if self._basis is None or self._images is None:
            return inner, self._curvature.risk_product(inner)
        return self._basis @ inner, self._images @ inner

    def precondition(self, neighbor: Neighbor, vector: Vector) -> Vector:
        """An approximate inverse: the solve above, and Gauss-Newton on what it leaves.

        Source:
            Balancing: Mandel (1993); Tang, Nabben, Vuik and Erlangga (2009).
        """
        outside = self._gauss_newton[neighbor.weight]
        if self._basis is None or self._images is None:
            if self.is_everything:
                return self._inner(neighbor, vector)
            return outside.solve(vector, neighbor.changes)
        inside, image = self.solve(neighbor, vector)
        left = vector - self._times(neighbor, inside, image)
        step = outside.solve(left, neighbor.changes)
        hidden = neighbor.weight * neighbor.n_train * (self._images.T @ step)
        hidden += self._basis.T @ (self._mu * step + self._row_terms(neighbor, step))
        return inside + step - self._basis @ self._inner(neighbor, hidden)

    def _times(self, neighbor: Neighbor, vector: Vector, image: Vector) -> Vector:
        scaled = neighbor.weight * neighbor.n_train * image + self._mu * vector
        return scaled + self._row_terms(neighbor, vector)

    def _row_terms(self, neighbor: Neighbor, vector: Vector) -> Vector:
        blocks = {row: self._span.block(row) for row in neighbor.changes}
        terms = [
            gain * blocks[row].T @ (blocks[row] @ vector) for row, gain in neighbor.changes.items()
        ]
        return torch.stack(terms).sum(0)

    def _into(self, vector: Vector) -> Float64[Tensor, " b"]:
        return vector if self._basis is None else self._basis.T @ vector

    def _inner(self, neighbor: Neighbor, right: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Solve in the coordinates of the subspace, with the changed rows by Woodbury.

        Raises:
            NegativeCurvature: If the Hessian of the neighbor is not positive there.
        """
        factor = self._factor(neighbor)
        rows = torch.cat([self._span.block(row) for row in neighbor.changes])
        rows = rows if self._basis is None else rows @ self._basis
        gains = torch.tensor(list(neighbor.changes.values()), dtype=torch.float64)
        inverse = (1.0 / gains).repeat_interleave(self._span.width)
        solved = torch.cholesky_solve(torch.cat([right[:, None], rows.T], dim=1), factor)
        small = inverse.diag() + rows @ solved[:, 1:]
        # Haynsworth: the matrix stays positive if and only if the signs of the gains survive here.
        signs = torch.linalg.eigvalsh((small + small.T) / 2)
        if int((signs < 0).sum()) != int((inverse < 0).sum()):
            raise NegativeCurvature(f"without example {neighbor.left_out} it curves down somewhere")
        return solved[:, 0] - solved[:, 1:] @ torch.linalg.solve(small, rows @ solved[:, 0])

    def _factor(self, neighbor: Neighbor) -> Tensor:
        weight = neighbor.weight
        if weight not in self._factors:
            if self._curvature.matrix is not None:
                projected = self._curvature.matrix
            else:
                assert self._basis is not None
                assert self._images is not None
                projected = self._basis.T @ self._images
            matrix = weight * neighbor.n_train * (projected + projected.T) / 2
            matrix.diagonal().add_(self._mu)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if int(failed):
                low = float(torch.linalg.eigvalsh(matrix)[0])
                raise NegativeCurvature(f"its curvature is {low:.3g} in some direction", low)
            self._factors[weight] = factor
        return self._factors[weight]
