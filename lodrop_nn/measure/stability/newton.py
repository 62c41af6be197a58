"""Newton steps from the solution to those of neighboring training sets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lodrop_nn.measure.stability.curvature import ExactHessians
from lodrop_nn.measure.stability.neighbors import Neighbor
from lodrop_nn.measure.stability.subspace import NegativeCurvature, Subspace

Vector = Float64[Tensor, " n_parameters"]
Precondition = Callable[[Sequence[Neighbor], Sequence[Vector]], list[Vector]]
_INNER, _INNER_STEPS = 0.1, 100  # inside the subspace: how much better, and how long at most


@dataclass(frozen=True, kw_only=True, eq=False)
class NewtonStep:
    """A solution of a Newton system.

    Attributes:
        delta: The step.
        residual: What it leaves of the gradient, in the norm of the inverse Gauss-Newton Hessian,
            as a fraction.
    """

    delta: Vector
    residual: float


def newton_steps(
    neighbors: Sequence[Neighbor],
    slopes: Sequence[Vector],
    starts: Sequence[Vector],
    subspace: Subspace,
    curvature: ExactHessians,
    precondition: Precondition,
    ridge_curvature: float,
    *,
    most_products: int,
    tolerance: float,
    on_product: Callable[[int, int], None] | None = None,
) -> list[NewtonStep]:
    r"""Steps to the minima of the second-order models on several neighbors.

    .. math:: \delta = -H^{-1} g, \qquad H v = w\,n\,\hat H v + \sum_j \Delta_j H_j v + \mu v

    with the exact Hessians of the risk and of the rows that change. The steps are found in a
    subspace that holds the Gauss-Newton steps of all neighbors at first and then grows by the
    preconditioned residuals of those that are not solved, the most common directions first. Each
    step is the best in the whole subspace, so that every product serves all neighbors. Residuals
    are exact. A subspace that is everything needs no growing.

    Args:
        neighbors: The training sets.
        slopes: Gradient of each objective at the solution.
        starts: Gauss-Newton steps: minus the preconditioned slopes.
        subspace: Where the exact Hessian is known; it grows.
        curvature: The exact Hessians.
        precondition: The inverse Gauss-Newton Hessian of each neighbor times a vector of its own.
        ridge_curvature: mu = 2 tau.
        most_products: Most products with the Hessian of the risk in all.
        tolerance: Residual at which a step is solved.
        on_product: Called as ``on_product(done, most)``.

    Returns:
        One step per neighbor, with the residual that was reached.

    Raises:
        NegativeCurvature: If a Hessian is not positive on the subspace.

    Source:
        Galerkin projection: Saad (2003), Iterative Methods for Sparse Linear Systems, chapter 5;
        inside, conjugate gradients: Hestenes and Stiefel (1952).
    """
    # The Gauss-Newton steps are minus the preconditioned slopes.
    norms = [-float(g @ start) for g, start in zip(slopes, starts, strict=True)]
    directions, left = torch.stack(list(starts), dim=1), most_products
    while True:
        grown = 0
        if not subspace.is_everything:
            grown = subspace.extend(directions, left)
            left -= grown
            if on_product is not None:
                on_product(most_products - left, most_products)
        if not subspace.dimension:  # no example makes a difference
            return [NewtonStep(delta=0.0 * slope, residual=0.0) for slope in slopes]
        found = [
            _best_in(subspace, neighbor, slope, curvature, ridge_curvature, tolerance)
            for neighbor, slope in zip(neighbors, slopes, strict=True)
        ]
        better = precondition(neighbors, [rest for _, rest in found])
        steps, wanted = [], []
        for (delta, rest), more, norm in zip(found, better, norms, strict=True):
            ratio = max(float(rest @ more), 0.0) / norm if norm > 0.0 else 0.0
            steps.append(NewtonStep(delta=delta, residual=ratio**0.5))
            if ratio**0.5 > tolerance:
                wanted.append(more)
        if not wanted or left <= 0 or not grown:
            return steps
        directions = torch.stack(wanted, dim=1)


def _best_in(
    subspace: Subspace,
    neighbor: Neighbor,
    slope: Vector,
    curvature: ExactHessians,
    ridge_curvature: float,
    tolerance: float,
) -> tuple[Vector, Vector]:
    """The best step in the subspace and its residual, by conjugate gradients inside.

    The solve of the subspace has the changed rows' Gauss-Newton blocks only: it is the
    preconditioner. It knows the risk's Hessian times what it returns, so no product is spent.

    Raises:
        NegativeCurvature: If the Hessian of the neighbor is not positive in a direction.
    """
    delta, rest = torch.zeros_like(slope), -slope
    direction, image = subspace.solve(neighbor, rest)
    better = direction
    energy = first = float(rest @ better)
    for _ in range(_INNER_STEPS):
        if energy <= (_INNER * tolerance) ** 2 * first:
            break
        full = neighbor.weight * neighbor.n_train * image + ridge_curvature * direction
        full = full + curvature.change_product(neighbor, direction)
        bend = float(direction @ full)
        if bend <= 0.0:
            least = bend / float(direction @ direction)
            raise NegativeCurvature(
                f"with example {neighbor.left_out} left out its curvature is {least:.3g} in some "
                "direction",
                least,
            )
        delta, rest = delta + energy / bend * direction, rest - energy / bend * full
        better, better_image = subspace.solve(neighbor, rest)
        before, energy = energy, float(rest @ better)
        direction = better + energy / before * direction
        image = better_image + energy / before * image
    return delta, rest
