"""Both factors trained: an exact global minimum, and a Hessian that is never positive."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from lodrop_theory.solvable import (
    FactorRegression,
    FrozenARegression,
    GroundTruth,
    balanced_factors,
    exact_law,
    factor_hessian,
    gauge_directions,
    hold,
    multisets,
    transverse_min_eig,
)

seeds = st.integers(0, 2**32 - 1)


def full_rank(seed: int, *, rate: float, atoms: int = 3, features: int = 3, outputs: int = 3):
    rng = np.random.default_rng(seed)
    return FrozenARegression(
        inputs=rng.uniform(-1, 1, (atoms, features)),
        targets=rng.standard_normal((atoms, outputs)),
        factor=np.eye(features),
        dropout_rate=rate,
        rescale=True,
        penalty=0.1,
    )


def objective_in_update(problem: FactorRegression, counts: np.ndarray):
    """Row Hessian and minimizer of the objective in D, for one training set."""
    return problem.hessian(counts[None])[0], problem.full.minimizer(counts[None])[0]


def excess(d, hessian, center) -> float:
    return 0.5 * float(np.sum(((d - center) @ hessian) * (d - center)))


@settings(max_examples=20)
@given(seed=seeds, rate=st.floats(0.1, 0.8), rank=st.integers(1, 2))
def test_no_other_start_ends_lower(seed, rate, rank) -> None:
    problem = FactorRegression(full=full_rank(seed, rate=rate), rank=rank)
    counts = np.array([2, 1, 1])
    hessian, center = objective_in_update(problem, counts)
    best = problem.minimizer(counts[None])[0]
    assert np.linalg.matrix_rank(best, tol=1e-9) <= rank
    lowest = excess(best, hessian, center)
    rng = np.random.default_rng(seed)

    def value(flat):
        b, a = flat[: 3 * rank].reshape(3, rank), flat[3 * rank :].reshape(rank, 3)
        pull = (b @ a - center) @ hessian
        gradient = np.concatenate([(pull @ a.T).ravel(), (b.T @ pull).ravel()])
        return excess(b @ a, hessian, center), gradient

    found = min(
        minimize(value, rng.standard_normal(6 * rank), jac=True, tol=1e-12).fun for _ in range(4)
    )
    assert found >= lowest - 1e-9
    assert found == pytest.approx(lowest, abs=1e-5)


@given(seed=seeds)
def test_full_rank_is_the_convex_problem(seed) -> None:
    full = full_rank(seed, rate=0.3)
    counts = multisets(3, 3)
    problem = FactorRegression(full=full, rank=3)
    np.testing.assert_allclose(problem.minimizer(counts), full.minimizer(counts), atol=1e-8)


@given(seed=seeds, rank=st.integers(1, 2))
def test_factor_hessian_is_the_second_derivative(seed, rank) -> None:
    rng = np.random.default_rng(seed)
    k, d = 3, 2
    root = rng.standard_normal((d, d))
    hessian, center = root @ root.T + np.eye(d), rng.standard_normal((k, d))
    b, a = rng.standard_normal((k, rank)), rng.standard_normal((rank, d))
    move = rng.standard_normal((k + d) * rank)
    step_b, step_a = move[: k * rank].reshape(k, rank), move[k * rank :].reshape(rank, d)

    def along(t):
        return excess((b + t * step_b) @ (a + t * step_a), hessian, center)

    # a polynomial of degree 4 in t: its second derivative from five points, exactly
    values = [along(t) for t in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    second = float(np.dot([-1 / 12, 4 / 3, -5 / 2, 4 / 3, -1 / 12], values))
    matrix = factor_hessian(b, a, hessian, (b @ a - center) @ hessian)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert move @ matrix @ move == pytest.approx(second, rel=1e-7, abs=1e-7)


@given(seed=seeds, rank=st.integers(1, 2), rate=st.floats(0.05, 0.9))
def test_gauge_makes_the_hessian_singular_at_every_rate(seed, rank, rate) -> None:
    problem = FactorRegression(full=full_rank(seed, rate=rate), rank=rank)
    counts = np.array([2, 1, 1])
    hessian, center = objective_in_update(problem, counts)
    best = problem.minimizer(counts[None])[0]
    singular = np.linalg.svd(best, compute_uv=False)
    if singular[rank - 1] < 0.05:  # a minimum of smaller rank has another gauge
        return
    b, a = balanced_factors(best, rank)
    np.testing.assert_allclose(b @ a, best, atol=1e-10)
    matrix = factor_hessian(b, a, hessian, (best - center) @ hessian)
    gauge = gauge_directions(b, a)
    np.testing.assert_allclose(gauge @ gauge.T, np.eye(rank**2), atol=1e-10)
    scale = np.abs(matrix).max()
    np.testing.assert_allclose(matrix @ gauge.T, 0, atol=1e-9 * scale)
    values = np.linalg.eigvalsh(matrix)
    assert np.sum(np.abs(values) < 1e-9 * scale) >= rank**2
    # at a global minimum nothing is negative, and across the orbit the rest is the spectrum
    assert transverse_min_eig(matrix, gauge) > -1e-9 * scale
    np.testing.assert_allclose(
        transverse_min_eig(matrix, gauge), np.sort(values)[rank**2], atol=1e-8 * scale
    )


@given(seed=seeds)
def test_the_usual_start_is_a_saddle(seed) -> None:
    """At B = 0 the block of A is 0 and the cross block is not: one eigenvalue is negative."""
    problem = FactorRegression(full=full_rank(seed, rate=0.3), rank=2)
    hessian, center = objective_in_update(problem, np.array([2, 1, 1]))
    a = np.random.default_rng(seed).standard_normal((2, 3))
    matrix = factor_hessian(np.zeros((3, 2)), a, hessian, -center @ hessian)
    values = np.linalg.eigvalsh(matrix)
    assert values[0] < 0 < values[-1]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_ridge_on_the_factors_leaves_the_rotations(rank: int) -> None:
    """With H = h I the ridged minimum is a soft-thresholded SVD; r(r-1)/2 zeros remain."""
    rng = np.random.default_rng(5)
    h, ridge = 2.0, 0.1
    left, singular, right = np.linalg.svd(3 * rng.standard_normal((4, 3)), full_matrices=False)
    center = (left * singular) @ right
    # the least ||A||^2 + ||B||^2 for a product D is twice its nuclear norm
    best = (left[:, :rank] * (singular[:rank] - 2 * ridge / h)) @ right[:rank]
    b, a = balanced_factors(best, rank)
    raw = factor_hessian(b, a, h * np.eye(3), h * (best - center))
    penalized = np.linalg.eigvalsh(raw + 2 * ridge * np.eye(len(raw)))
    assert np.sum(np.abs(penalized) < 1e-9) == rank * (rank - 1) // 2
    assert penalized[0] > -1e-9
    if rank > 1:
        assert np.linalg.eigvalsh(raw)[0] == pytest.approx(-2 * ridge, abs=1e-9)


@given(seed=seeds, rate=st.floats(0.1, 0.8), n=st.integers(2, 7), delta=st.floats(0.02, 0.5))
def test_bounds_for_any_algorithm_survive_the_factors(seed, rate, n, delta) -> None:
    problem = FactorRegression(full=full_rank(seed, rate=rate), rank=1)
    probabilities = np.random.default_rng(seed).dirichlet(np.full(3, 3.0))
    law = exact_law(probabilities, n, problem.algorithm())
    verdicts = hold(GroundTruth(law=law), delta=delta)
    assert len(verdicts) >= 4
    assert all(verdict.holds for verdict in verdicts)


def test_dropout_still_steadies_the_factors() -> None:
    """Measured, not proved: stability and gap fall with the rate when both factors are trained."""
    stability, gap = [], []
    for rate in (0.05, 0.2, 0.5):
        many = []
        for seed in range(8):
            problem = FactorRegression(full=full_rank(seed, rate=rate), rank=1)
            law = exact_law(np.full(3, 1 / 3), 8, problem.algorithm(n_masks=np.inf))
            many.append((law.stabilities.replace_one_in, law.mean_gap))
        stability.append(np.mean([m[0] for m in many]))
        gap.append(np.mean([m[1] for m in many]))
    assert stability == sorted(stability, reverse=True)
    assert gap == sorted(gap, reverse=True)


def test_refuses_bad_input() -> None:
    full = full_rank(0, rate=0.3)
    with pytest.raises(ValueError, match="`rank` must be at most"):
        FactorRegression(full=full, rank=4)
    frozen = FrozenARegression(
        inputs=full.inputs,
        targets=full.targets,
        factor=2 * np.eye(3),
        dropout_rate=0.3,
        rescale=True,
    )
    with pytest.raises(ValueError, match=r"`full\.factor` must be the identity"):
        FactorRegression(full=frozen, rank=1)
