"""True refits: the objective on neighboring training sets, minimized to convergence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float64
from torch import Tensor

from lodrop_nn.measure.stability.neighbors import Neighbor
from lodrop_nn.measure.stability.replica_gradients import Gradients

Vector = Float64[Tensor, " n_parameters"]
_MEMORY = 6  # pairs of steps and gradient changes that a refit remembers
_SUFFICIENT, _SHORTEST = 1e-4, 2.0**-20


@dataclass(frozen=True, kw_only=True, eq=False)
class Refit:
    """The minimizer on a neighbor.

    Attributes:
        delta: Its distance from the solution on the full set.
        gradient_norm: Norm of the gradient there. Where the objective is mu-strongly convex, the
            exact minimizer is within ``gradient_norm`` / mu.
        residual: That gradient in the norm of the preconditioner, as a fraction of the one at the
            solution.
        n_gradients: Gradients that it took.
    """

    delta: Vector
    gradient_norm: float
    residual: float
    n_gradients: int


def refit(
    neighbors: Sequence[Neighbor],
    gradients: Gradients,
    slopes: Sequence[Vector],
    mean_gradient: Vector,
    ridge_curvature: float,
    precondition: Callable[[Neighbor, Vector], Vector],
    starts: Sequence[Vector],
    *,
    steps: int,
    tolerance: float,
    on_round: Callable[[int, int], None] | None = None,
) -> list[Refit]:
    r"""Minimizers of the objective on several neighbors, all in the same passes.

    L-BFGS whose initial inverse Hessian is the preconditioner, with a full step wherever it
    decreases the objective sufficiently and half of it elsewhere. The minimizer of a strongly
    convex objective does not depend on where the search starts.

    Args:
        neighbors: The training sets.
        gradients: Risk and gradient on a neighbor at a move away from the solution.
        slopes: Gradient of each neighbor's objective at the solution.
        mean_gradient: Gradient of the full training risk there.
        ridge_curvature: mu = 2 tau.
        precondition: (neighbor, v) -> :math:`M^{-1} v`.
        starts: Where each search starts.
        steps: Most gradients per neighbor, >= 1.
        tolerance: Residual at which a refit has converged.
        on_round: Called as ``on_round(round, rounds)``.

    Returns:
        One refit per neighbor; ``residual`` says whether it converged.

    Source:
        Nocedal (1980), Updating quasi-Newton matrices with limited storage; preconditioned as in
        Nocedal and Wright (2006), Numerical Optimization, section 7.2.
    """

    def objective(risk: float, gradient: Vector, delta: Vector) -> tuple[float, Vector]:
        value = risk - float(mean_gradient @ delta) + ridge_curvature / 2 * float(delta @ delta)
        return value, gradient - mean_gradient + ridge_curvature * delta

    searches = [
        _Search(
            start,
            partial(precondition, neighbor),
            float(slope @ precondition(neighbor, slope)),
            tolerance,
        )
        for neighbor, slope, start in zip(neighbors, slopes, starts, strict=True)
    ]
    for done in range(steps):
        running = [k for k, search in enumerate(searches) if not search.ended]
        if not running:
            break
        found = gradients([searches[k].trial for k in running], [neighbors[k] for k in running])
        for k, (risk, gradient) in zip(running, found, strict=True):
            searches[k].report(*objective(risk, gradient, searches[k].trial))
        if on_round is not None:
            on_round(done + 1, steps)
    return [search.result() for search in searches]


class _Search:
    """One minimization that is told values and gradients at the points it asks for."""

    def __init__(
        self,
        start: Vector,
        precondition: Callable[[Vector], Vector],
        scale: float,
        tolerance: float,
    ) -> None:
        self.trial, self.ended = start.clone(), scale == 0.0
        self._precondition, self._scale, self._tolerance = precondition, scale, tolerance
        self._pairs: list[tuple[Vector, Vector]] = []
        self._best: tuple[Vector, float, Vector] | None = None  # point, value, gradient
        self._direction, self._length, self._count, self._residual = start * 0.0, 1.0, 0, 0.0

    def report(self, value: float, gradient: Vector) -> None:
        self._count += 1
        if self._best is not None and not self._accepts(value):
            self._length /= 2
            self.ended = self._length < _SHORTEST
            self.trial = self._best[0] + self._length * self._direction
            return
        if self._best is not None:
            step, change = self.trial - self._best[0], gradient - self._best[2]
            if float(step @ change) > 0.0:
                self._pairs = [*self._pairs[1 - _MEMORY :], (step, change)]
        self._best = (self.trial, value, gradient)
        preconditioned = self._precondition(gradient)
        self._residual = math.sqrt(max(float(gradient @ preconditioned), 0.0) / self._scale)
        self.ended = self._residual <= self._tolerance
        if not self.ended:
            inverse = self._inverse(gradient) if self._pairs else preconditioned
            self._length, self._direction = 1.0, -inverse
            self.trial = self.trial + self._direction

    def result(self) -> Refit:
        point = self.trial if self._best is None else self._best[0]
        gradient = point * 0.0 if self._best is None else self._best[2]
        return Refit(
            delta=point,
            gradient_norm=float(gradient.norm()),
            residual=self._residual,
            n_gradients=self._count,
        )

    def _accepts(self, value: float) -> bool:
        assert self._best is not None
        _, before, gradient = self._best
        slope = self._length * float(gradient @ self._direction)
        rounding = 1e-6 * abs(before)  # of losses in single precision
        return math.isfinite(value) and value <= before + _SUFFICIENT * slope + rounding

    def _inverse(self, vector: Vector) -> Vector:
        """The two loops of L-BFGS around the preconditioner."""
        result, factors = vector.clone(), []
        for step, change in reversed(self._pairs):
            factor = float(step @ result) / float(step @ change)
            factors.append(factor)
            result = result - factor * change
        result = self._precondition(result)
        for (step, change), factor in zip(self._pairs, reversed(factors), strict=True):
            back = float(change @ result) / float(step @ change)
            result = result + (factor - back) * step
        return result
