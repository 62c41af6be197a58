"""LoRA Dropout regression with a frozen A, against the enumeration of all masks."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory import masked_update_covariance, strong_convexity
from lodrop_theory.solvable import FrozenARegression, multisets


@st.composite
def regressions(draw: st.DrawFn, **fixed) -> FrozenARegression:
    """Small problems with a factor of random rank and scale."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    atoms, features, outputs = (draw(st.integers(*ends)) for ends in ((2, 4), (1, 3), (1, 2)))
    rank = draw(st.integers(1, features))
    turned, _ = np.linalg.qr(rng.standard_normal((features, rank)))
    numbers = {
        "inputs": rng.uniform(-1, 1, (atoms, features)),
        "targets": rng.choice([-1.0, 1.0], (atoms, outputs)),
        "factor": turned.T * rng.uniform(0.5, 2, (rank, 1)),
        "dropout_rate": draw(st.floats(0.01, 0.9)),
        "rescale": draw(st.booleans()),
        "penalty": draw(st.sampled_from([0.05, 0.3, 1.0])),
        "masked": draw(st.booleans()),
    }
    return FrozenARegression(**{**numbers, **fixed})


def random_weights(problem: FrozenARegression, seed: int = 0) -> np.ndarray:
    shape = (2, problem.targets.shape[1], len(problem.factor))
    return np.random.default_rng(seed).standard_normal(shape)


def masked_outputs(problem: FrozenARegression, b: np.ndarray):
    """Probability and outputs, shape (K, k), of every draw of both masks."""
    p, q = problem.dropout_rate, 1 - problem.dropout_rate
    scale = 1 / q if problem.rescale else 1.0
    features, outputs = problem.inputs.shape[1], problem.targets.shape[1]
    for bits in product((0, 1), repeat=features + outputs):
        mask = np.array(bits)
        chance = float(np.prod(np.where(mask, q, p)))
        update = scale**2 * mask[features:, None] * (b @ problem.factor) * mask[:features]
        yield chance, problem.inputs @ update.T


@given(problem=regressions(masked=True))
def test_loss_is_the_mean_over_all_masks(problem) -> None:
    weights = random_weights(problem)
    for at, b in enumerate(weights):
        draws = list(masked_outputs(problem, b))
        losses = [c * 0.5 * np.sum((problem.targets - z) ** 2, axis=1) for c, z in draws]
        mean = sum(c * z for c, z in draws)
        ensemble = 0.5 * np.sum((problem.targets - mean) ** 2, axis=1)
        gibbs = problem.loss(weights)[at]
        np.testing.assert_allclose(gibbs, sum(losses), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(problem.loss(weights, n_masks=np.inf)[at], ensemble, rtol=1e-10)
        # N draws: the variance of the mean is that of one over N, and so is the excess
        np.testing.assert_allclose(
            problem.loss(weights, n_masks=4)[at], ensemble + (gibbs - ensemble) / 4, rtol=1e-10
        )


@given(problem=regressions(masked=True))
def test_the_variance_is_that_of_the_mask_laws(problem) -> None:
    weights = random_weights(problem)
    covariance = masked_update_covariance(
        problem.dropout_rate, weights[0] @ problem.factor, problem.inputs, rescale=problem.rescale
    )
    excess = problem.loss(weights)[0] - problem.loss(weights, n_masks=np.inf)[0]
    traces = np.trace(covariance, axis1=1, axis2=2)
    np.testing.assert_allclose(2 * excess, traces, rtol=1e-9, atol=1e-12)


@given(problem=regressions(), n=st.integers(2, 5))
def test_the_minimizer_is_stationary_and_best(problem, n) -> None:
    counts = multisets(len(problem.inputs), n)
    best = problem.minimizer(counts)

    def objective(weights):
        s = problem.dropout_rate * (2 - problem.dropout_rate)
        size = np.sum((weights @ problem.factor) ** 2, axis=(1, 2))
        return np.sum(counts * problem.loss(weights), axis=1) / n + problem.penalty * s * size

    here = objective(best)
    rng = np.random.default_rng(n)
    for _ in range(3):
        step = rng.standard_normal(best.shape)
        there, back = objective(best + 1e-3 * step), objective(best - 1e-3 * step)
        # the objective is quadratic: a central difference has no error but rounding
        np.testing.assert_allclose((there - back) / 2e-3, 0, atol=1e-7 * (1 + here.max()))
        assert (there > here).all()


@given(problem=regressions(masked=True, penalty=0.0), n=st.integers(2, 4))
def test_both_scalings_are_one_problem(problem, n) -> None:
    """Without rescaling the minimizer is larger by (1-p)^-2 and every loss is the same."""
    counts = multisets(len(problem.inputs), n)
    scaled, plain = replace(problem, rescale=True), replace(problem, rescale=False)
    try:
        best, larger = scaled.minimizer(counts), plain.minimizer(counts)
    except ValueError:  # one frozen feature that is almost nowhere
        return
    q = 1 - problem.dropout_rate
    np.testing.assert_allclose(larger, best / q**2, rtol=1e-6, atol=1e-9)
    for n_masks in (1, 3, np.inf):
        np.testing.assert_allclose(
            plain.loss(larger, n_masks=n_masks), scaled.loss(best, n_masks=n_masks), rtol=1e-6
        )


@given(problem=regressions(), n=st.integers(2, 5))
def test_curvature_is_on_the_safe_side_and_close(problem, n) -> None:
    curvature = problem.curvature(n)
    sizes = [multisets(len(problem.inputs), size) for size in (n, n - 1)]
    weights = np.concatenate([problem.minimizer(c) for c in sizes])
    # gradients by central differences of the loss, exact for a quadratic
    norms = np.zeros((len(weights), len(problem.inputs)))
    for i, j in np.ndindex(weights.shape[1:]):
        step = np.zeros(weights.shape[1:])
        step[i, j] = 1e-3
        change = problem.loss(weights + step) - problem.loss(weights - step)
        norms += (change / 2e-3) ** 2
    assert float(curvature.lipschitz) == pytest.approx(np.sqrt(norms).max(), rel=1e-6, abs=1e-8)
    # mu of the inputs is at most the smallest eigenvalue of any penalized Hessian
    smallest = min(
        np.linalg.eigvalsh(
            np.einsum("k,krs->rs", row / row.sum(), problem.atom_hessians) + problem.penalty_hessian
        )[0]
        for counts in sizes
        for row in counts
    )
    mu = float(strong_convexity(curvature))
    assert 0 < mu <= smallest
    if np.allclose(problem.factor @ problem.factor.T, np.eye(len(problem.factor))):
        assert mu == pytest.approx(smallest, rel=1e-5, abs=1e-6)


def test_whitened_inputs_penalize_as_the_paper_says() -> None:
    """On the corners of a cube the masks add lambda (2p - p^2) ||D||^2, lambda = 1/(2 (1-p)^2)."""
    corners = np.array(list(product((-1.0, 1.0), repeat=2)))
    p = 0.3
    problem = FrozenARegression(
        inputs=corners, targets=corners[:, :1], factor=np.eye(2), dropout_rate=p, rescale=True
    )
    weights = random_weights(problem)
    added = (problem.loss(weights) - problem.loss(weights, n_masks=np.inf)).mean(axis=1)
    squares = np.sum(weights**2, axis=(1, 2))
    np.testing.assert_allclose(added, (2 * p - p**2) * squares / (2 * (1 - p) ** 2), rtol=1e-12)


def test_refuses_bad_input() -> None:
    good = {
        "inputs": np.ones((2, 3)),
        "targets": np.ones((2, 1)),
        "factor": np.eye(3),
        "dropout_rate": 0.0,
        "rescale": True,
    }
    with pytest.raises(ValueError, match="must have shapes"):
        FrozenARegression(**{**good, "targets": np.ones((3, 1))})
    with pytest.raises(ValueError, match="`dropout_rate` must be in"):
        FrozenARegression(**{**good, "dropout_rate": 1.0})
    with pytest.raises(ValueError, match="`factor` must have full row rank"):
        FrozenARegression(**{**good, "factor": np.ones((2, 3))})
    with pytest.raises(ValueError, match="strongly convex"):
        FrozenARegression(**good).minimizer(np.array([[1, 1]]))
