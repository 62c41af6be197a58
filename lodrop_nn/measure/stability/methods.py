"""The methods that were asked for, one after the other, on one neighborhood."""

from collections.abc import Callable, Iterable
from itertools import chain, islice

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from lodrop_nn.measure.stability.changes import (
    Changes,
    evaluated_changes,
    linear_changes,
    smoothing_factors,
)
from lodrop_nn.measure.stability.exact import ExactMethods, Moves
from lodrop_nn.measure.stability.gauss_newton import (
    gauss_newton_by_weight,
    gauss_newton_moves,
    influence_products,
    trace_gap,
)
from lodrop_nn.measure.stability.neighborhood import Neighborhood
from lodrop_nn.measure.stability.objective import Objective
from lodrop_nn.measure.stability.segments import lipschitz_segment
from lodrop_nn.measure.stability.settings import StabilitySettings
from lodrop_nn.measure.stability.subspace import NegativeCurvature, Subspace
from lodrop_nn.measure.stability.summary import ratio_of_means, stability_estimates
from lodrop_theory.records import Estimate, StabilityEstimates, StabilityMethod

# Shares of the time on a network, as measured on MiniLM: what comes before, then each method.
_BEFORE = 8
_SHARES: dict[StabilityMethod, int] = {
    "gauss-newton": 12,
    "influence": 1,
    "newton": 40,
    "refit": 60,
}


class Methods:
    """Changes of the loss by each method.

    Args:
        near: The solution.
        settings: Which methods, and how exactly.
        objective: What is minimized.
        on_step: Called as ``on_step(done, total)``.
        known: Where products with the exact Hessian are known already.

    Attributes:
        exact: Newton and refit, with the products that they spent.
        notes: What did not work, in words.
        trace_gap: Expected gap to first order, where the gradients of all rows are at hand.
    """

    def __init__(
        self,
        near: Neighborhood,
        settings: StabilitySettings,
        objective: Objective,
        on_step: Callable[[int, int], None] | None,
        known: Subspace | None = None,
    ) -> None:
        self._near, self._settings, self._objective = near, settings, objective
        self._on_step, self._done = on_step, _BEFORE
        self._changes: dict[StabilityMethod, tuple[Changes, str]] = {}
        self._moves: Moves = []
        self._solvers = gauss_newton_by_weight(
            near.span, near.base, near.rows.n_train, objective.ridge_curvature
        )
        self.exact = ExactMethods(near, settings, self._solvers, objective.ridge_curvature, known)
        self.notes: list[str] = []
        self.trace_gap: Estimate | None = None

    def run(self, *, pass_over: bool) -> None:
        """Run them all; first those that show whether the solution is a minimum.

        Args:
            pass_over: Whether those are left out, and a note made, where it is none.

        Raises:
            NegativeCurvature: If the solution is no minimum, and that is not passed over.
            ValueError: If no method works here.
        """
        wanted = self._settings.methods
        self._report(0.0)
        if "newton" in wanted:
            try:
                self._newton_and_refit()
            except NegativeCurvature as error:
                if not pass_over:
                    raise
                self.notes.append(
                    f"newton and refit were left out: the solution is no minimum, {error}"
                )
        if self._near.is_complete:
            self._influence()
            if "gauss-newton" in wanted:
                self._gauss_newton()
        elif {"gauss-newton", "influence"} & set(wanted):
            self.notes.append(
                "gauss-newton and influence were left out: the Jacobian of all "
                f"{len(self._near.rows)} rows does not fit max_bytes = {self._settings.max_bytes}"
            )
        if self._on_step is not None:
            self._on_step(1000, 1000)
        if not self._changes:
            raise ValueError(f"`settings` must leave a method that works, got: {self.notes}.")

    def estimates(self) -> dict[StabilityMethod, StabilityEstimates]:
        """The stabilities of each method that was run."""
        return {
            name: stability_estimates(changes, self._settings.level, method)
            for name, (changes, method) in self._changes.items()
        }

    def ratio(self, name: StabilityMethod) -> Estimate | None:
        """Mean |change| of a method over that of the refits, on the refitted examples."""
        if name not in self._changes or "refit" not in self._changes:
            return None
        true = self._changes["refit"][0]
        count = len(true.removed)
        found = self._changes[name][0].first(count)
        return ratio_of_means(
            np.abs(found.removed),
            np.abs(true.removed),
            self._settings.level,
            f"mean |change at the removed example| by {name} over that of {count} refits",
        )

    def lipschitz_segment(self) -> Estimate:
        """Largest gradient norm on the way to the solutions without one example."""
        near = self._near
        moves = [pair[0] for pair in self._moves[: self._settings.n_exact]]
        return lipschitz_segment(
            near.model,
            near.rows,
            near.draw,
            moves,
            near.jacobian.norms(),
            vectorized=near.jacobian.method != "loop",
        )

    def _influence(self) -> None:
        near, settings = self._near, self._settings
        n, matrix = near.rows.n_train, near.curvature.matrix
        if matrix is None:
            solver = self._solvers[1.0 / n]
            products, hessian = influence_products(near.span, near.jacobian, solver), "Gauss-Newton"
        else:
            products, hessian = self._dense_products(matrix), "exact"
        self.trace_gap = trace_gap(products, n, settings.level, hessian)
        if "influence" in settings.methods:
            factors = smoothing_factors(near.logits, near.rows.labels, settings.smoothing)
            changes = linear_changes(near.draw, products, factors, near.losses)
            self._keep("influence", changes, f"influence functions, {hessian} Hessian")

    def _dense_products(
        self, matrix: Float64[Tensor, "n_parameters n_parameters"]
    ) -> Float64[Tensor, "rows rows"]:
        gradients = self._near.jacobian.gradients()
        full = matrix + self._objective.ridge_curvature * torch.eye(len(matrix)).to(matrix)
        return gradients @ torch.linalg.solve(full, gradients.T)

    def _gauss_newton(self) -> None:
        near, total = self._near, len(self._near.draw.left_out)
        moves = gauss_newton_moves(near.span, self._solvers, near.draw)
        first = list(islice(moves, self._settings.n_exact))
        self._moves = self._moves or first
        changes = self._evaluated(chain(first, moves), lambda n: n / total, "gauss-newton")
        self._keep("gauss-newton", changes, "Newton step, Gauss-Newton Hessian of the neighbor")

    def _newton_and_refit(self) -> None:
        settings = self._settings
        newton = self.exact.newton(lambda done, most: self._report(0.9 * done / most, "newton"))
        self._moves = newton.moves
        self._keep("newton", self._evaluated(newton.moves), newton.method)
        if "refit" in settings.methods:
            refits = self.exact.refits(
                newton.moves[: settings.n_refits],
                self._objective.min_eig.value,
                lambda done, most: self._report(0.95 * done / most, "refit"),
            )
            self._keep("refit", self._evaluated(refits.moves), refits.method)

    def _evaluated(
        self,
        moves: Iterable[tuple[Tensor, Tensor]],
        fraction: Callable[[int], float] | None = None,
        name: StabilityMethod | None = None,
    ) -> Changes:
        near, count = self._near, 0

        def on_example() -> None:
            nonlocal count
            count += 1
            if fraction is not None:
                self._report(fraction(count), name)

        return evaluated_changes(
            near.model,
            near.rows,
            near.draw,
            near.losses,
            moves,
            self._settings.smoothing,
            on_example,
        )

    def _keep(self, name: StabilityMethod, changes: Changes, method: str) -> None:
        self._changes[name] = (changes, method)
        self._report(1.0, name)
        self._done += _SHARES[name]

    def _report(self, fraction: float, name: StabilityMethod | None = None) -> None:
        if self._on_step is None:
            return
        total = _BEFORE + sum(_SHARES[each] for each in self._settings.methods)
        done = self._done + (0.0 if name is None else fraction * _SHARES[name])
        self._on_step(min(round(1000 * done / total), 1000), 1000)
