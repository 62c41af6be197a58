"""Newton steps and refits on the neighbors that the exact methods look at."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float64
from torch import Tensor

from lodrop_nn.measure.stability.dual import DualGaussNewton
from lodrop_nn.measure.stability.gauss_newton import solve_each
from lodrop_nn.measure.stability.neighborhood import Neighborhood
from lodrop_nn.measure.stability.neighbors import Neighbor
from lodrop_nn.measure.stability.newton import newton_steps
from lodrop_nn.measure.stability.refits import Refit, refit
from lodrop_nn.measure.stability.replica_gradients import coupled_gradients
from lodrop_nn.measure.stability.settings import StabilitySettings
from lodrop_nn.measure.stability.subspace import Subspace

Vector = Float64[Tensor, " n_parameters"]
Moves = list[tuple[Vector, Vector]]  # without an example, and with another one in its place
_REPLICAS = 32  # copies of the adapter at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactMoves:
    """Moves to the solutions on neighbors, with how exactly they were found.

    Attributes:
        moves: One pair per left-out example.
        method: How, and how exactly.
    """

    moves: Moves
    method: str


class ExactMethods:
    """Newton and refit on the same neighbors, of which the refits are the first.

    Args:
        near: The solution.
        settings: How exactly.
        solvers: The Gauss-Newton Hessian by weight of an example.
        ridge_curvature: mu.
        known: Where products with the same Hessian are known already.

    Attributes:
        subspace: Where the exact Hessian is known.
    """

    def __init__(
        self,
        near: Neighborhood,
        settings: StabilitySettings,
        solvers: dict[float, DualGaussNewton],
        ridge_curvature: float,
        known: Subspace | None = None,
    ) -> None:
        self._near, self._settings = near, settings
        self._solvers, self._mu = solvers, ridge_curvature
        self._mean = near.curvature.mean_gradient
        self._spent = 0 if known is None or known.is_everything else known.dimension
        self.subspace = Subspace(near.span, near.curvature, solvers, ridge_curvature, known)

    def newton(self, on_product: Callable[[int, int], None]) -> ExactMoves:
        """Newton steps.

        Raises:
            NegativeCurvature: If the solution is no minimum.
        """
        near, settings = self._near, self._settings
        count = len(near.draw.left_out)
        if not self.subspace.is_everything:
            count = min(count, settings.n_exact)
        neighbors = [*near.draw.removed(count), *near.draw.replaced(count)]
        slopes = [self._slope(each) for each in neighbors]
        precondition = partial(solve_each, near.span, self._solvers)
        starts = [-vector for vector in precondition(neighbors, slopes)]
        steps = newton_steps(
            neighbors,
            slopes,
            starts,
            self.subspace,
            near.curvature,
            precondition,
            self._mu,
            # Half of them at least: the directions that matter move with the ridge.
            most_products=max(
                settings.newton_products - self._spent, (settings.newton_products + 1) // 2
            ),
            tolerance=settings.newton_tolerance,
            on_product=on_product,
        )
        worst = max(step.residual for step in steps)
        how = (
            "dense Hessian"
            if self.subspace.is_everything
            else f"{self.subspace.dimension} Hessian products"
        )
        return ExactMoves(
            moves=_paired([step.delta for step in steps]),
            method=f"Newton step, exact Hessian of the neighbor, {how}, residual <= {worst:.1e}",
        )

    def refits(
        self, starts: Moves, strong_convexity: float, on_round: Callable[[int, int], None]
    ) -> ExactMoves:
        """Refits from given moves, each minimized to convergence.

        Args:
            starts: Moves at which they start, of the first neighbors.
            strong_convexity: Smallest eigenvalue of the Hessian, for the error.
            on_round: Called after each round of gradients.
        """
        near, count = self._near, len(starts)
        neighbors = [*near.draw.removed(count), *near.draw.replaced(count)]
        points = [pair[k] for k in (0, 1) for pair in starts]
        found: list[Refit] = []
        groups = range(0, len(neighbors), _REPLICAS)
        with coupled_gradients(near.model, near.rows, min(_REPLICAS, len(neighbors))) as (
            gradients,
            how,
        ):
            for start in groups:
                some = neighbors[start : start + _REPLICAS]
                found += refit(
                    some,
                    gradients,
                    [self._slope(each) for each in some],
                    self._mean,
                    self._mu,
                    self.subspace.precondition,
                    points[start : start + _REPLICAS],
                    steps=self._settings.refit_steps,
                    tolerance=self._settings.refit_tolerance,
                    on_round=partial(_overall, on_round, start, len(some), len(neighbors)),
                )
        reached = _convergence(found, self._settings, strong_convexity)
        return ExactMoves(
            moves=_paired([each.delta for each in found]),
            method=f"refit to convergence, {how}, {reached}",
        )

    def _slope(self, neighbor: Neighbor) -> Vector:
        """Gradient of the objective on a neighbor, at the solution."""
        total = self._mean * (neighbor.weight if neighbor.replaced_by is None else 0.0)
        for row, gain in neighbor.changes.items():
            total = total + gain * self._near.span.gradient(row)
        return total


def _overall(
    report: Callable[[int, int], None], before: int, here: int, total: int, done: int, rounds: int
) -> None:
    """Progress of one group of refits as that of all."""
    report(before * rounds + here * done, total * rounds)


def _paired(moves: list[Vector]) -> Moves:
    half = len(moves) // 2
    return list(zip(moves[:half], moves[half:], strict=True))


def _convergence(refits: list[Refit], settings: StabilitySettings, strong_convexity: float) -> str:
    norm = max(each.gradient_norm for each in refits)
    missed = sum(each.residual > settings.refit_tolerance for each in refits)
    steps = max(each.n_gradients for each in refits)
    said = f"<= {steps} gradients each, residual <= {max(each.residual for each in refits):.1e}"
    said += f", gradient norm / smallest eigenvalue <= {norm / strong_convexity:.1e}"
    return said + (f", {missed} of {len(refits)} above the tolerance" if missed else "")
