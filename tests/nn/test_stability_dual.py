"""The Gauss-Newton Hessian of the examples against dense matrices and against autograd."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad, jacrev
from torch.nn.functional import cross_entropy

from lodrop_nn.measure.evaluation import mean_predictor, trained_parameters
from lodrop_nn.measure.stability.changes import gradient_products
from lodrop_nn.measure.stability.dual import DualGaussNewton, Span
from lodrop_nn.measure.stability.gauss_newton import (
    gauss_newton_by_weight,
    gauss_newton_moves,
    influence_products,
    trace_gap,
)
from lodrop_nn.measure.stability.jacobian import (
    ContrastJacobian,
    contrast_jacobian,
    contrasts,
    softmax_geometry,
)
from lodrop_nn.measure.stability.neighbors import Neighbor, draw_neighbors
from lodrop_nn.measure.stability.rows import Rows
from tests.nn.classifiers import KINDS, adapted_classifier, padded_batches

TRAIN, FRESH = padded_batches(7, batch_size=3), padded_batches(4, seed=1)
# Llama normalizes in single precision whatever the dtype of the model.
TOLERANCE = {"bert": {"rtol": 1e-7, "atol": 1e-9}, "llama": {"rtol": 1e-3, "atol": 1e-5}}


def random_jacobian(
    n_rows: int, n_classes: int, n_parameters: int, seed: int, scale: float = 1.0
) -> ContrastJacobian:
    stream = torch.Generator().manual_seed(seed)
    options = {"dtype": torch.float64, "generator": stream}
    logits = torch.randn(n_rows, n_classes, **options)
    labels = torch.randint(0, n_classes, (n_rows,), generator=stream)
    slopes, roots = softmax_geometry(logits, labels)
    jacobian = scale * torch.randn(n_rows, n_classes - 1, n_parameters, **options)
    return ContrastJacobian(jacobian=jacobian, slopes=slopes, roots=roots, method="random")


def dense_hessian(
    jacobian: ContrastJacobian, weights: Sequence[float], ridge_curvature: float
) -> Tensor:
    total = ridge_curvature * torch.eye(jacobian.jacobian.shape[-1], dtype=torch.float64)
    for weight, c, root in zip(weights, jacobian.jacobian, jacobian.roots, strict=True):
        total = total + weight * c.T @ root @ root.T @ c
    return total


def weights_on(neighbor: Neighbor, n_rows: int) -> list[float]:
    weights = [neighbor.weight] * neighbor.n_train + [0.0] * (n_rows - neighbor.n_train)
    for row, gain in neighbor.changes.items():
        weights[row] += gain
    return weights


@given(
    seed=st.integers(0, 2**31),
    n_train=st.integers(2, 6),
    n_classes=st.integers(2, 4),
    n_parameters=st.integers(1, 25),
    ridge=st.floats(1e-2, 10.0),
    replaced=st.booleans(),
    data=st.data(),
)
def test_the_dual_solve_is_the_dense_one(
    seed: int,
    n_train: int,
    n_classes: int,
    n_parameters: int,
    ridge: float,
    replaced: bool,
    data: st.DataObject,
) -> None:
    n_rows = n_train + 2
    jacobian = random_jacobian(n_rows, n_classes, n_parameters, seed)
    span = Span(jacobian, range(n_rows))
    neighbor = Neighbor(
        n_train=n_train,
        left_out=data.draw(st.integers(0, n_train - 1)),
        replaced_by=data.draw(st.integers(n_train, n_rows - 1)) if replaced else None,
    )
    dual = DualGaussNewton(span, range(n_train), neighbor.weight, ridge)
    dense = dense_hessian(jacobian, weights_on(neighbor, n_rows), ridge)
    stream = torch.Generator().manual_seed(seed + 1)
    vector = torch.randn(n_parameters, dtype=torch.float64, generator=stream)
    combination = torch.randn(len(span.gram), 2, dtype=torch.float64, generator=stream)

    exact = torch.linalg.solve(dense, vector)
    torch.testing.assert_close(dual.solve(vector, neighbor.changes), exact, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        span.expand(dual.solve_in_span(combination, neighbor.changes)),
        torch.linalg.solve(dense, span.expand(combination)),
        rtol=1e-6,
        atol=1e-7,
    )
    plain = dense_hessian(jacobian, [neighbor.weight] * n_train + [0.0] * (n_rows - n_train), ridge)
    torch.testing.assert_close(
        dual.solve(vector), torch.linalg.solve(plain, vector), rtol=1e-6, atol=1e-8
    )


@given(seed=st.integers(0, 2**31), n_classes=st.integers(2, 5))
def test_contrasts_lose_nothing_of_the_cross_entropy(seed: int, n_classes: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_classes, dtype=torch.float64, generator=stream)
    label = torch.randint(0, n_classes, (1,), generator=stream)[0]
    slopes, roots = softmax_geometry(logits[None], label[None])
    q = contrasts(n_classes)
    torch.testing.assert_close(slopes[0] @ q, grad(cross_entropy)(logits, label))
    curvature = jacrev(grad(cross_entropy))(logits, label)
    torch.testing.assert_close(q.T @ roots[0] @ roots[0].T @ q, curvature, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vectorized", [None, False])
def test_jacobians_are_autograds(kind: str, vectorized: bool | None) -> None:
    model, bank = adapted_classifier(kind, 0.4)
    rows = Rows(model, TRAIN, FRESH)
    numbers = [9, 0, 4]
    with mean_predictor(model, bank, TRAIN):
        found = contrast_jacobian(model, rows, numbers, vectorized=vectorized)
        gradients = []
        for number in numbers:
            batch = rows.batch([number])
            logits = model(batch["input_ids"], batch["attention_mask"]).logits
            loss = cross_entropy(logits, batch["labels"])
            parts = torch.autograd.grad(loss, list(trained_parameters(model).values()))
            gradients.append(torch.cat([part.flatten() for part in parts]))
    torch.testing.assert_close(found.gradients(), torch.stack(gradients), **TOLERANCE[kind])
    torch.testing.assert_close(found.norms(), found.gradients().norm(dim=1))


def test_jacobians_at_a_moved_point() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    rows = Rows(model, TRAIN, FRESH)
    point = {name: p.detach() for name, p in trained_parameters(model).items()}
    size = sum(p.numel() for p in point.values())
    stream = torch.Generator().manual_seed(0)
    move = 0.1 * torch.randn(size, dtype=torch.float64, generator=stream)
    with mean_predictor(model, bank, TRAIN):
        found = contrast_jacobian(model, rows, [2], moved=move).gradients()[0]
        pieces = move.split([p.numel() for p in point.values()])
        moved = {
            name: p + piece.reshape(p.shape)
            for (name, p), piece in zip(point.items(), pieces, strict=True)
        }
        batch = rows.batch([2])

        def loss(at: dict[str, Tensor]) -> Tensor:
            inputs = (batch["input_ids"], batch["attention_mask"])
            return cross_entropy(functional_call(model, at, inputs).logits, batch["labels"])

        expected = torch.cat([part.flatten() for part in jacrev(loss)(moved).values()])
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_moves_influence_and_expected_gap_are_those_of_dense_matrices() -> None:
    n, n_rows, mu = 6, 10, 0.3
    jacobian = random_jacobian(n_rows, 3, 8, seed=5)
    span, gradients = Span(jacobian, range(n_rows)), jacobian.gradients()
    solvers = gauss_newton_by_weight(span, range(n), n, mu)
    draw = draw_neighbors(n, n, n_rows - n, 2, seed=0)
    mean = gradients[:n].mean(0)

    for (removed, replaced), without, other in zip(
        gauss_newton_moves(span, solvers, draw), draw.removed(n), draw.replaced(n), strict=True
    ):
        i, z = without.left_out, other.replaced_by
        assert z is not None
        dense = dense_hessian(jacobian, weights_on(without, n_rows), mu)
        slope = (mean - gradients[i]) / (n - 1)
        torch.testing.assert_close(removed, -torch.linalg.solve(dense, slope))
        dense = dense_hessian(jacobian, weights_on(other, n_rows), mu)
        slope = (gradients[z] - gradients[i]) / n
        torch.testing.assert_close(replaced, -torch.linalg.solve(dense, slope))

    dense = dense_hessian(jacobian, [1 / n] * n + [0.0] * (n_rows - n), mu)
    expected = gradients @ torch.linalg.solve(dense, gradients.T)
    products = influence_products(span, jacobian, solvers[1 / n])
    torch.testing.assert_close(products, expected)
    kernel = span.gram
    torch.testing.assert_close(gradient_products(jacobian.slopes, kernel), gradients @ gradients.T)
    centered = gradients[:n] - mean
    trace = torch.trace(torch.linalg.solve(dense, centered.T @ centered / (n - 1))) / n
    assert trace_gap(products, n, 0.95, "of a test").value == pytest.approx(float(trace))


@given(
    n_train=st.integers(2, 20),
    n_fresh=st.integers(2, 30),
    hand=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_what_is_drawn(n_train: int, n_fresh: int, hand: int, seed: int) -> None:
    draw = draw_neighbors(n_train, n_train, n_fresh, hand, seed)
    assert sorted(draw.left_out.tolist()) == list(range(n_train))
    for z, fresh in zip(draw.replaced_by.tolist(), draw.felt_at.tolist(), strict=True):
        assert len({z, *fresh}) == 1 + len(fresh) == 1 + min(hand, n_fresh - 1)
        assert all(n_train <= row < n_train + n_fresh for row in (z, *fresh))
    again = draw_neighbors(n_train, n_train, n_fresh, hand, seed)
    assert torch.equal(draw.felt_at, again.felt_at)
