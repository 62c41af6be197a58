"""Newton steps against dense solves, refits against their starts, and how both are summed up."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from lodrop_nn.measure.evaluation import mean_predictor, trained_parameters
from lodrop_nn.measure.hessian_products import HessianOfSum
from lodrop_nn.measure.stability.changes import Changes
from lodrop_nn.measure.stability.curvature import ExactHessians
from lodrop_nn.measure.stability.dual import Span
from lodrop_nn.measure.stability.gauss_newton import gauss_newton_by_weight, solve_each
from lodrop_nn.measure.stability.jacobian import contrast_jacobian
from lodrop_nn.measure.stability.neighbors import Neighbor
from lodrop_nn.measure.stability.newton import newton_steps
from lodrop_nn.measure.stability.refits import refit
from lodrop_nn.measure.stability.replica_gradients import coupled_gradients
from lodrop_nn.measure.stability.rows import Rows
from lodrop_nn.measure.stability.subspace import NegativeCurvature, Subspace
from lodrop_nn.measure.stability.summary import ratio_of_means, stability_estimates
from tests.nn.classifiers import adapted_classifier, padded_batches

N = 6
NEIGHBORS = [
    Neighbor(n_train=N, left_out=2),
    Neighbor(n_train=N, left_out=4),
    Neighbor(n_train=N, left_out=2, replaced_by=7),
]


class Parts:
    """A tiny BERT at a random point, and the pieces of a measurement."""

    def __init__(self, model: PeftModel, mu: float, *, dense: bool) -> None:
        self.model = model
        self.rows = Rows(self.model, padded_batches(N), padded_batches(2, seed=3))
        numbers = range(len(self.rows))
        self.span = Span(contrast_jacobian(self.model, self.rows, numbers), numbers)
        self.curvature = ExactHessians(self.model, self.rows, dense=dense)
        self.solvers = gauss_newton_by_weight(self.span, range(N), N, mu)
        self.subspace = Subspace(self.span, self.curvature, self.solvers, mu)
        self.mu = mu
        mean = self.curvature.mean_gradient
        self.slopes = [
            sum(
                (gain * self.span.gradient(row) for row, gain in each.changes.items()),
                mean * (each.weight if each.replaced_by is None else 0.0),
            )
            for each in NEIGHBORS
        ]

    def hessian(self, neighbor: Neighbor) -> Tensor:
        """Of the objective on a neighbor, from the definition."""
        numbers = [*range(N), *[row for row in neighbor.changes if row >= N]]
        weights = [neighbor.weight + neighbor.changes.get(row, 0.0) for row in range(N)]
        weights += [neighbor.weight] * (len(numbers) - N)
        batch = self.rows.batch(numbers)

        def loss() -> Tensor:
            logits = self.model(batch["input_ids"], batch["attention_mask"]).logits
            losses = cross_entropy(logits, batch["labels"], reduction="none")
            return (torch.tensor(weights, dtype=torch.float64) * losses).sum()

        parameters = list(trained_parameters(self.model).values())
        matrix = HessianOfSum([loss], parameters).dense()
        return matrix + self.mu * torch.eye(len(matrix), dtype=torch.float64)

    def newton(self, most_products: int) -> list[Tensor]:
        precondition = partial(solve_each, self.span, self.solvers)
        starts = [-vector for vector in precondition(NEIGHBORS, self.slopes)]
        steps = newton_steps(
            NEIGHBORS,
            self.slopes,
            starts,
            self.subspace,
            self.curvature,
            precondition,
            self.mu,
            most_products=most_products,
            tolerance=1e-8,
        )
        assert all(step.residual <= 1e-8 for step in steps)
        return [step.delta for step in steps]


@pytest.mark.parametrize("dense", [True, False])
def test_newton_steps_are_those_of_the_dense_hessians(dense: bool) -> None:
    model, bank = adapted_classifier("bert", 0.3)
    with mean_predictor(model, bank, padded_batches(N)):
        parts = Parts(model, 20.0, dense=dense)
        steps = parts.newton(150)
        for neighbor, slope, step in zip(NEIGHBORS, parts.slopes, steps, strict=True):
            exact = -torch.linalg.solve(parts.hessian(neighbor), slope)
            torch.testing.assert_close(step, exact, rtol=1e-5, atol=1e-8)
        # What the refits are preconditioned with is symmetric and positive.
        stream = torch.Generator().manual_seed(0)
        vectors = torch.randn(2, len(steps[0]), dtype=torch.float64, generator=stream)
        u, v = vectors
        images = [parts.subspace.precondition(NEIGHBORS[2], each) for each in (u, v)]
        torch.testing.assert_close(u @ images[1], v @ images[0], rtol=1e-6, atol=1e-9)
        assert float(u @ images[0]) > 0.0


def test_no_slope_no_step() -> None:
    model, bank = adapted_classifier("bert", 0.3)
    with mean_predictor(model, bank, padded_batches(N)):
        parts = Parts(model, 20.0, dense=False)
        parts.slopes = [0.0 * slope for slope in parts.slopes]
        assert all(not step.any() for step in parts.newton(5))


@pytest.mark.parametrize("dense", [True, False])
def test_negative_curvature_is_found(dense: bool) -> None:
    model, bank = adapted_classifier("bert", 0.3)
    with mean_predictor(model, bank, padded_batches(N)):
        parts = Parts(model, 0.5, dense=dense)
        with pytest.raises(NegativeCurvature, match="curvature is -"):
            parts.newton(150)


def test_a_refit_does_not_depend_on_its_start() -> None:
    model, bank = adapted_classifier("bert", 0.3)
    batches = padded_batches(N)
    with mean_predictor(model, bank, batches):
        parts = Parts(model, 20.0, dense=True)
        newton = parts.newton(1)
        stream = torch.Generator().manual_seed(1)
        far = [0.05 * torch.randn(len(s), dtype=torch.float64, generator=stream) for s in newton]
        found = []
        with coupled_gradients(model, parts.rows, 3) as (gradients, how):
            assert how == "coupled replicas"
            for starts in (newton, far, [torch.zeros_like(s) for s in newton]):
                refits = refit(
                    NEIGHBORS,
                    gradients,
                    parts.slopes,
                    parts.curvature.mean_gradient,
                    parts.mu,
                    parts.subspace.precondition,
                    starts,
                    steps=60,
                    tolerance=1e-9,
                )
                assert all(each.residual <= 1e-9 for each in refits)
                found.append([each.delta for each in refits])
    for other in found[1:]:
        for here, there in zip(found[0], other, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-8)


@given(seed=st.integers(0, 2**31), scale=st.floats(1.0, 50.0))
def test_refits_find_a_minimum_that_full_steps_miss(seed: int, scale: float) -> None:
    """Losses log cosh are so flat far out that steps by a wrong curvature overshoot."""
    stream = torch.Generator().manual_seed(seed)
    center = scale * torch.randn(4, dtype=torch.float64, generator=stream)
    mu, mean = 0.1, torch.zeros(4, dtype=torch.float64)

    def gradients(
        points: Sequence[Tensor], neighbors: Sequence[Neighbor]
    ) -> list[tuple[float, Tensor]]:
        moved = [point - center for point in points]
        logs = [torch.logaddexp(x, -x).sum().item() for x in moved]
        return list(zip(logs, [torch.tanh(x) for x in moved], strict=True))

    (found,) = refit(
        NEIGHBORS[:1],
        gradients,
        [torch.tanh(-center)],
        mean,
        mu,
        lambda neighbor, vector: vector / (0.2 * mu),  # steps that are far too long
        [torch.zeros(4, dtype=torch.float64)],
        steps=400,
        tolerance=1e-6,
    )
    slope = torch.tanh(found.delta - center) + mu * found.delta
    assert float(slope.norm()) <= 1e-4
    assert found.gradient_norm == pytest.approx(float(slope.norm()), abs=1e-12)


@given(
    seed=st.integers(0, 2**31),
    n_examples=st.integers(2, 8),
    n_fresh=st.integers(1, 4),
    factor=st.floats(0.1, 10.0),
)
def test_how_changes_are_summed_up(seed: int, n_examples: int, n_fresh: int, factor: float) -> None:
    stream = np.random.default_rng(seed)
    changes = Changes(
        loss=stream.uniform(size=n_examples),
        removed=stream.normal(size=n_examples),
        removed_fresh=stream.normal(size=(n_examples, n_fresh)),
        replaced=stream.normal(size=n_examples),
        replaced_fresh=stream.normal(size=(n_examples, n_fresh)),
    )
    found = stability_estimates(changes, 0.9, "of a test")

    assert found.pointwise_stability.value == pytest.approx(np.abs(changes.removed).mean())
    assert found.hypothesis_stability.value <= found.remove_one_out.value + 1e-12
    assert found.remove_one_out.value**2 == pytest.approx((changes.removed_fresh**2).mean())
    assert found.replace_one_in.value >= abs(found.replace_one_gap.value) - 1e-12
    assert found.leave_one_out_risk.value == pytest.approx((changes.loss + changes.removed).mean())
    for estimate in vars(found).values():
        assert estimate.low <= estimate.value <= estimate.high
        assert (estimate.level, estimate.provenance) == (0.9, "plug-in")
        assert estimate.n_draws == n_examples  # fresh rows of one example count once

    true = np.abs(changes.removed)
    ratio = ratio_of_means(factor * true, true, 0.9, "of a test")
    assert ratio is not None
    assert ratio.value == pytest.approx(factor)
    assert ratio.high - ratio.low == pytest.approx(0.0, abs=1e-9 * factor)
    assert ratio_of_means(true, 0.0 * true, 0.9, "of a test") is None
