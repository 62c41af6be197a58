r"""The Gauss-Newton Hessian of a risk with a ridge, inverted in the space of the examples.

With :math:`U_j = S_j^\top C_j` (:mod:`~lodrop_nn.measure.stability.jacobian`),

.. math:: H = w \sum_{j \in S} U_j^\top U_j + \mu I, \qquad
          H^{-1} v = \tfrac1\mu \bigl(v - \sqrt w\, U^\top (w\, U U^\top + \mu I)^{-1} \sqrt w\, U
          v\bigr),

so that one factorization of a matrix of n (K - 1) rows, however many parameters there are, serves
every training set that differs from S in few examples: with :math:`E` the blocks that change and
:math:`\Delta` the changes of their weights,

.. math:: (H + E^\top \Delta E)^{-1} = H^{-1} - H^{-1} E^\top (\Delta^{-1} + E H^{-1} E^\top)^{-1}
          E H^{-1}.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from lodrop_nn.measure.stability.jacobian import ContrastJacobian

Vector = Float64[Tensor, " n_parameters"]
Changes = Mapping[int, float]  # number of a row -> what its weight gains
_COLUMNS = 1 << 14  # parameters that are turned into float64 at a time


class Span:
    r"""The space of all :math:`C^\top b`: products with C and the Gram matrix of its rows.

    Args:
        jacobian: Contrast Jacobians of the rows.
        numbers: The numbers of the rows, by which they are named from here on.

    Attributes:
        numbers: The same.
        gram: :math:`C C^\top`, shape (rows (K - 1), rows (K - 1)), float64.
    """

    def __init__(self, jacobian: ContrastJacobian, numbers: Sequence[int]) -> None:
        self.n_rows, self.width, _ = jacobian.jacobian.shape
        self.numbers = list(numbers)
        self._place = {number: place for place, number in enumerate(self.numbers)}
        self.roots, self._slopes = jacobian.roots, jacobian.slopes
        self._flat = jacobian.jacobian.flatten(0, 1)
        size = self.n_rows * self.width
        gram = torch.zeros(size, size, dtype=torch.float64)
        for block in self._flat.split(_COLUMNS, dim=1):
            wide = block.to(torch.float64)
            gram += (wide @ wide.T).cpu()
        self.gram = gram

    def project(self, vectors: Float64[Tensor, "n_parameters m"]) -> Float64[Tensor, "size m"]:
        """C v for some vectors, float64."""
        total = torch.zeros(len(self.gram), vectors.shape[1], dtype=torch.float64)
        parts = vectors.split(_COLUMNS)
        for block, part in zip(self._flat.split(_COLUMNS, dim=1), parts, strict=True):
            total += (block.to(torch.float64) @ part.to(block.device)).cpu()
        return total

    def expand(self, coefficients: Float64[Tensor, "size m"]) -> Float64[Tensor, "n_parameters m"]:
        r""":math:`C^\top b`, float64 on the CPU."""
        right = coefficients.to(self._flat.device)
        blocks = [
            (block.to(torch.float64).T @ right).cpu() for block in self._flat.split(_COLUMNS, dim=1)
        ]
        return torch.cat(blocks)

    def combination(self, weights: Mapping[int, float]) -> Float64[Tensor, "size"]:
        r"""The b with :math:`C^\top b = \sum_j w_j g_j`, a sum of gradients."""
        full = torch.zeros(self.n_rows, dtype=torch.float64)
        full[[self._place[row] for row in weights]] = torch.tensor(
            list(weights.values()), dtype=torch.float64
        )
        return (full[:, None] * self._slopes).flatten()

    def gradient(self, row: int) -> Vector:
        """Gradient of the cross-entropy of a row."""
        return self._slopes[self._place[row]] @ self._line(row)

    def root(self, row: int) -> Float64[Tensor, "k k"]:
        """S of a row."""
        return self.roots[self._place[row]]

    def block(self, row: int) -> Float64[Tensor, "k n_parameters"]:
        r""":math:`U_j = S_j^\top C_j` of one row, on the CPU."""
        return self.root(row).T @ self._line(row)

    def entries(self, row: int) -> slice:
        """Where the K - 1 entries of a row lie."""
        place = self._place[row]
        return slice(place * self.width, (place + 1) * self.width)

    def _line(self, row: int) -> Float64[Tensor, "k n_parameters"]:
        return self._flat[self.entries(row)].to("cpu", torch.float64)


class DualGaussNewton:
    """H of the top of this module, and its neighbors.

    Args:
        span: The space of all rows.
        base: Numbers of the rows of S, or of some of them.
        weight: w > 0.
        ridge_curvature: mu > 0.

    Raises:
        ValueError: If mu is not positive.
    """

    def __init__(
        self, span: Span, base: Sequence[int], weight: float, ridge_curvature: float
    ) -> None:
        if not ridge_curvature > 0.0:
            raise ValueError(f"`ridge_curvature` must be > 0, got {ridge_curvature!r}.")
        self._span, self._mu = span, ridge_curvature
        entries = torch.arange(len(span.gram))
        self._places = torch.cat([entries[span.entries(row)] for row in base])
        self._roots = math.sqrt(weight) * torch.stack([span.root(row) for row in base])
        rows = self._times_root(span.gram[self._places])  # sqrt(w) U C^T
        kernel = self._times_root(rows[:, self._places].T.contiguous())
        kernel = (kernel + kernel.T) / 2
        kernel.diagonal().add_(ridge_curvature)
        self._factor = torch.linalg.cholesky(kernel)
        self._whitened = torch.linalg.solve_triangular(self._factor, rows, upper=False)

    @property
    def ridge_curvature(self) -> float:
        """Curvature mu of the ridge."""
        return self._mu

    def coefficients(
        self, projected: Float64[Tensor, "size m"], changes: Changes | None = None
    ) -> Float64[Tensor, "size m"]:
        r"""The a of :math:`(H + E^\top \Delta E)^{-1} v = v / \mu - C^\top a`.

        Args:
            projected: C v.
            changes: Rows whose weights change.
        """
        found = self._of_base(projected)
        active = {row: gain for row, gain in (changes or {}).items() if gain != 0.0}
        if not active:
            return found
        span, mu = self._span, self._mu
        places = torch.cat([torch.arange(len(span.gram))[span.entries(row)] for row in active])
        root = torch.block_diag(*[span.root(row) for row in active])
        inner = (
            span.gram[places][:, places] - self._whitened[:, places].T @ self._whitened[:, places]
        )
        inner = root.T @ inner @ root / mu
        gains = torch.tensor(list(active.values()), dtype=torch.float64)
        inner.diagonal().add_(1.0 / gains.repeat_interleave(span.width))
        seen = projected - span.gram @ found * mu  # mu C H^-1 v
        right = root.T @ seen[places] / mu
        put = torch.zeros_like(projected)
        put[places] = root @ torch.linalg.solve(inner, right)
        return found + put / mu - self._of_base(span.gram @ put)

    def solve(self, vector: Vector, changes: Changes | None = None) -> Vector:
        r""":math:`(H + E^\top \Delta E)^{-1} v` for any vector."""
        coefficients = self.coefficients(self._span.project(vector[:, None]), changes)
        return vector / self._mu - self._span.expand(coefficients)[:, 0]

    def solve_in_span(
        self, combination: Float64[Tensor, "size m"], changes: Changes | None = None
    ) -> Float64[Tensor, "size m"]:
        r"""The b' of :math:`C^\top b' = (H + E^\top \Delta E)^{-1} C^\top b`."""
        projected = self._span.gram @ combination
        return combination / self._mu - self.coefficients(projected, changes)

    def _of_base(self, projected: Float64[Tensor, "size m"]) -> Float64[Tensor, "size m"]:
        right = self._times_root(projected[self._places])
        solved = torch.cholesky_solve(right, self._factor)
        put = torch.zeros_like(projected)
        blocks = solved.unflatten(0, (-1, self._span.width))
        put[self._places] = (self._roots @ blocks).flatten(0, 1)
        return put / self._mu

    def _times_root(self, rows: Float64[Tensor, "n_k m"]) -> Float64[Tensor, "n_k m"]:
        """Blocks of rows times the transposed roots, w included."""
        return (self._roots.mT @ rows.unflatten(0, (-1, self._span.width))).flatten(0, 1)
