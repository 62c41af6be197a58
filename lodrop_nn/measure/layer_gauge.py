r"""An orthonormal basis of the gauge directions of one layer.

The directions are :math:`M_X \theta = (X A, -B X)` for all :math:`r \times r` matrices X; see
:mod:`~lodrop_nn.measure.gauge`.

**Orthonormal basis.** The squared length of :math:`M_X\theta` is :math:`\langle X, X A A^\top +
B^\top B X \rangle`. With :math:`A A^\top = U \operatorname{diag}(\alpha) U^\top` and
:math:`B^\top B = W \operatorname{diag}(\beta) W^\top`, the matrices :math:`X_{ij} = w_i u_j^\top /
\sqrt{\beta_i + \alpha_j}` therefore give an orthonormal basis of a layer's directions: two
:math:`r \times r` matrices hold all of it, and layers share no coordinate. With B = 0 all
:math:`r^2` directions are there still, through A; a direction is left out where both
:math:`\alpha_j` and :math:`\beta_i` vanish.

**Ridge.** A ridge on both factors breaks all but the rotations: X skew, dimension
:math:`r(r-1)/2` (``symmetry="orthogonal"``). With :math:`A A^\top + B^\top B = U
\operatorname{diag}(\kappa) U^\top` the skew matrices :math:`(u_i u_j^\top - u_j u_i^\top) /
\sqrt{\kappa_i + \kappa_j}`, i < j, give an orthonormal basis.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

Vector = Float64[Tensor, " n_parameters"]
Coordinates = Float64[Tensor, " d"]
Square = Float64[Tensor, "r r"]
_DEPENDENT = 1e-6  # relative length below which a direction is rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerGauge:
    """The gauge directions of one layer.

    Attributes:
        name: Path of the layer in the model.
        lora_A: A as a matrix, float64.
        lora_B: B as a matrix, float64.
        at_A: Where A lies in the flat vector of the trained parameters.
        at_B: Where B lies.
        left: W, the orthonormal columns w_i.
        right: U, the orthonormal columns u_j.
        weights: One over the length of the direction of each pair (i, j), 0 where there is none.
        is_skew: Whether X is skew: pairs i < j.
    """

    name: str
    lora_A: Float64[Tensor, "r in_features"]
    lora_B: Float64[Tensor, "out_features r"]
    at_A: slice
    at_B: slice
    left: Square
    right: Square
    weights: Square
    is_skew: bool

    @cached_property
    def dimension(self) -> int:
        """Number of its independent directions, at most r^2."""
        return int((self.weights > 0).sum())

    def parts(self, vector: Vector) -> tuple[Tensor, Tensor]:
        """The entries of A and of B in a flat vector, as matrices."""
        return (
            vector[self.at_A].reshape(self.lora_A.shape),
            vector[self.at_B].reshape(self.lora_B.shape),
        )

    def matrix(self, coordinates: Float64[Tensor, "*n d"]) -> Float64[Tensor, "*n r r"]:
        """X of a combination of the basis, or of several."""
        pairs = self.weights.new_zeros(*coordinates.shape[:-1], *self.weights.shape)
        pairs[..., self.weights > 0] = coordinates
        matrix = self.left @ (pairs * self.weights) @ self.right.T
        return matrix - matrix.mT if self.is_skew else matrix

    def coordinates(self, matrix: Square) -> Coordinates:
        """Inner products of the basis matrices with a matrix."""
        matrix = matrix - matrix.T if self.is_skew else matrix
        pairs = self.left.T @ matrix @ self.right
        return (pairs * self.weights)[self.weights > 0]

    def basis(self) -> Float64[Tensor, "d r r"]:
        """The matrices X of the basis."""
        return self.matrix(torch.eye(self.dimension).to(self.weights))


def layer_gauge(
    name: str, lora_A: Tensor, lora_B: Tensor, at_A: slice, at_B: slice, *, is_skew: bool
) -> LayerGauge:
    """The gauge directions of a layer.

    Args:
        name: Path of the layer in the model.
        lora_A: A as a matrix, float64.
        lora_B: B as a matrix, float64.
        at_A: Where A lies in the flat vector of the trained parameters.
        at_B: Where B lies.
        is_skew: Whether X is skew.
    """
    if is_skew:
        kappa, right = torch.linalg.eigh(lora_A @ lora_A.T + lora_B.T @ lora_B)
        left, squares = right, kappa[:, None] + kappa
    else:
        alpha, right = torch.linalg.eigh(lora_A @ lora_A.T)
        beta, left = torch.linalg.eigh(lora_B.T @ lora_B)
        squares = beta[:, None] + alpha
    squares = squares.clamp(min=0.0)
    there = squares > _DEPENDENT**2 * squares.max()
    if is_skew:
        there = there.triu(1)
    weights = torch.where(there, squares, 1.0).rsqrt() * there
    return LayerGauge(
        name=name,
        lora_A=lora_A,
        lora_B=lora_B,
        at_A=at_A,
        at_B=at_B,
        left=left,
        right=right,
        weights=weights,
        is_skew=is_skew,
    )
