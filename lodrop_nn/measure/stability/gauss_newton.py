"""What the Gauss-Newton Hessian says of all neighbors at once: moves, influence, expected gap."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from lodrop_nn.measure.intervals import Float64Array, mean_estimate
from lodrop_nn.measure.stability.changes import gradient_products
from lodrop_nn.measure.stability.dual import DualGaussNewton, Span
from lodrop_nn.measure.stability.jacobian import ContrastJacobian
from lodrop_nn.measure.stability.neighbors import Draw, Neighbor
from lodrop_nn.measure.stability.summary import as_plug_in
from lodrop_theory.records import Estimate

Vector = Float64[Tensor, " n_parameters"]
_CHUNK = 16


def gauss_newton_by_weight(
    span: Span, base: Sequence[int], n_train: int, ridge_curvature: float
) -> dict[float, DualGaussNewton]:
    """The Gauss-Newton Hessian for neighbors with an example less, and with another one.

    Args:
        span: The contrast Jacobians.
        base: Training rows in them; where they are not all, each stands for several.
        n_train: n.
        ridge_curvature: mu.
    """
    share = n_train / len(base)
    return {
        weight: DualGaussNewton(span, base, share * weight, ridge_curvature)
        for weight in (1.0 / (n_train - 1), 1.0 / n_train)
    }


def solve_each(
    span: Span,
    solvers: dict[float, DualGaussNewton],
    neighbors: Sequence[Neighbor],
    vectors: Sequence[Vector],
) -> list[Vector]:
    """The inverse Gauss-Newton Hessian of each neighbor times a vector of its own.

    The Jacobian, which is what takes time, is read twice for all of them.
    """
    together = torch.stack(list(vectors), dim=1)
    projected = span.project(together)
    parts = [
        solvers[each.weight].coefficients(projected[:, k : k + 1], each.changes)
        for k, each in enumerate(neighbors)
    ]
    moved = together / solvers[neighbors[0].weight].ridge_curvature
    return list((moved - span.expand(torch.cat(parts, dim=1))).T)


def gauss_newton_moves(
    span: Span, solvers: dict[float, DualGaussNewton], draw: Draw
) -> Iterator[tuple[Vector, Vector]]:
    """For each left-out example the move when it is left out, and when it is replaced."""
    count = len(draw.left_out)
    pairs = list(zip(draw.removed(count), draw.replaced(count), strict=True))
    for start in range(0, count, _CHUNK):
        some = [each for pair in pairs[start : start + _CHUNK] for each in pair]
        combinations = [_solved(span, solvers[each.weight], each) for each in some]
        moves = span.expand(torch.stack(combinations, dim=1)).T.unflatten(0, (-1, 2))
        yield from ((pair[0], pair[1]) for pair in moves)


def influence_products(
    span: Span, jacobian: ContrastJacobian, solver: DualGaussNewton
) -> Float64[Tensor, "rows rows"]:
    r"""Inner products :math:`\langle g_j, H^{-1} g_k \rangle` of the gradients of all rows."""
    identity = torch.eye(len(span.gram), dtype=torch.float64)
    return gradient_products(jacobian.slopes, span.gram @ solver.solve_in_span(identity))


def trace_gap(
    products: Float64[Tensor, "rows rows"], n_train: int, level: float, hessian: str
) -> Estimate:
    r"""Expected generalization gap of a minimizer to first order in 1/n.

    .. math:: \frac{\operatorname{tr}(H^{-1} G)}{n}, \qquad
              G = \frac{1}{n-1} \sum_i (g_i - \bar g)(g_i - \bar g)^\top

    Centered, because it is :math:`g_i - \bar g` that has mean zero at the minimizer of the risk
    with its ridge. In the plain cross-entropy.

    Args:
        products: :math:`\langle g_j, H^{-1} g_k \rangle`; the training rows come first.
        n_train: n.
        level: Coverage of the interval.
        hessian: Which H, in words.

    Source:
        Takeuchi (1976); with a penalty: Moody (1992), Murata, Yoshizawa and Amari (1994).
    """
    table: Float64Array = products[:n_train, :n_train].numpy()
    mean = table.mean(1)
    terms = table.diagonal() - 2.0 * mean + mean.mean()
    what = f"tr(H^-1 G) / n, G the centered covariance of example gradients, H {hessian}"
    return as_plug_in(mean_estimate(terms / (n_train - 1), level, what))


def _solved(span: Span, solver: DualGaussNewton, neighbor: Neighbor) -> Float64[Tensor, " size"]:
    slope = slope_weights(neighbor)
    return -solver.solve_in_span(span.combination(slope)[:, None], neighbor.changes)[:, 0]


def slope_weights(neighbor: Neighbor) -> dict[int, float]:
    """The gradient of the objective on a neighbor, at the solution, as a sum of gradients."""
    weights = dict(neighbor.changes)
    if neighbor.replaced_by is None:
        n = neighbor.n_train
        for row in range(n):
            weights[row] = weights.get(row, 0.0) + neighbor.weight / n
    return weights
