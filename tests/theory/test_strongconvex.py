"""Corrected stabilities: limits, inexact optimizers, frozen A, and curvature at a point."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.optimize import brentq

from lodrop_theory import (
    CurvatureInputs,
    local_stability,
    remove_one_stability,
    repair_dropout_rate,
    replace_one_stability,
    strong_convexity,
)
from tests.theory.enumerable import squared_loss
from tests.theory.strategies import convex_curvatures, magnitudes

SMALL = 1 + 1e-9


@given(curvature=convex_curvatures())
def test_the_fixed_normalization_is_half(curvature) -> None:
    removed = remove_one_stability(curvature).value
    assert replace_one_stability(curvature).value == removed
    halved = remove_one_stability(curvature, fixed_normalization=True).value
    assert halved == pytest.approx(float(removed) / 2, rel=1e-14)


@given(curvature=convex_curvatures(), excess=magnitudes(-12, 2))
def test_inexact_optimizer_oracle(curvature, excess) -> None:
    value = replace_one_stability(curvature, suboptimality=excess).value
    with mp.workdps(60):
        p, rho = mpf(float(curvature.dropout_rate)), mpf(float(curvature.lipschitz))
        mu = mpf(float(curvature.hessian_min_eig)) + 2 * mpf(float(curvature.penalty)) * (
            2 * p - p**2
        )
        exact = 2 * rho**2 / (mu * mpf(float(curvature.n_train)))
        exact += 2 * rho * mp.sqrt(2 * mpf(excess) / mu)
        assert exact <= mpf(float(value)) <= exact * (1 + mpf(2) ** -45)


@given(seed=st.integers(0, 2**32 - 1), kappa=st.floats(0.05, 1), excess=st.floats(1e-6, 0.1))
def test_inexact_solutions_of_a_ridge_problem_obey_it(seed, kappa, excess) -> None:
    rng = np.random.default_rng(seed)
    problem = squared_loss(rng.uniform(-1, 1, (4, 2)), rng.choice([-1.0, 1.0], 4), kappa)
    loss, solutions = [], []
    for counts in ((2, 1, 1, 0), (1, 1, 1, 1)):
        exact = problem.minimizer(counts)
        hessian = np.einsum("k,kij->ij", np.array(counts) / 4, problem.hessians)
        hessian = hessian + 2 * kappa * np.eye(2)
        direction = rng.normal(size=2)
        step = np.sqrt(2 * excess / (direction @ hessian @ direction))
        solutions.append(exact + step * direction)  # its objective is `excess` above the minimum
        loss.append(problem.loss(solutions[-1]))
    # affine gradients on the segment: the norm is largest at an end
    reach = max(problem.gradient_norms(w).max() for w in solutions) * SMALL
    minimizers = [problem.minimizer(c) for c in ((2, 1, 1, 0), (1, 1, 1, 1))]
    reach = max(reach, *(problem.gradient_norms(w).max() for w in minimizers))
    curvature = CurvatureInputs(
        n_train=4, dropout_rate=0, lipschitz=reach, hessian_min_eig=2 * kappa, penalty=0
    )
    allowed = replace_one_stability(curvature, suboptimality=excess).value
    assert np.abs(loss[0] - loss[1]).max() <= allowed * SMALL


@given(seed=st.integers(0, 2**32 - 1), rate=st.floats(0.01, 0.9), penalty=st.floats(0.01, 3))
def test_frozen_factor_scales_the_penalty_by_its_smallest_singular_value(seed, rate, penalty):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(2, 4))
    sigma = float(np.linalg.svd(a, compute_uv=False)[-1])
    inputs = CurvatureInputs(
        n_train=5, dropout_rate=rate, lipschitz=1, hessian_min_eig=0, penalty=penalty
    )
    # the Hessian of penalty * s * ||B A||^2 in B is I (x) 2 penalty s A A'
    kappa = penalty * (2 * rate - rate**2)
    exact = 2 * kappa * np.linalg.eigvalsh(a @ a.T)[0]
    mu = strong_convexity(inputs, min_singular_value=sigma)
    assert float(mu) == pytest.approx(exact, rel=1e-9)
    failing = replace(inputs, hessian_min_eig=-2 * exact)
    result = replace_one_stability(failing, min_singular_value=sigma)
    assert not result.applicable
    assert "min_singular_value^2" in str(result.failed_hypothesis)


@given(curvature=convex_curvatures())
def test_local_stability_reduces_to_the_global_one(curvature) -> None:
    flat = replace_one_stability(curvature).value
    local = local_stability(curvature, hessian_lipschitz=0.0)
    assert local.applicable
    assert flat <= local.value <= flat * (1 + 1e-6)


@given(
    rho=st.floats(0.1, 3), mu=st.floats(0.1, 5), n=st.integers(2, 1000), share=st.floats(0, 0.999)
)
def test_local_stability_is_the_smaller_root(rho, mu, n, share) -> None:
    slope = share * mu**2 * n / (4 * rho)
    curvature = CurvatureInputs(
        n_train=n, dropout_rate=0, lipschitz=rho, hessian_min_eig=mu, penalty=0
    )
    value = float(local_stability(curvature, hessian_lipschitz=slope).value)
    top = mu / slope if slope > 1e-9 else 1e6  # where t (mu - M t / 2) is largest
    root = brentq(lambda t: t * (mu - slope * t / 2) - 2 * rho / n, 0, top, xtol=1e-15)
    assert value == pytest.approx(rho * root, rel=1e-4)
    assert value >= rho * root * (1 - 1e-9)


@given(seed=st.integers(0, 2**32 - 1))
def test_local_stability_holds_for_a_curved_problem(seed) -> None:
    # one parameter, losses -z w + w^2/2 + a cos(w): second derivative 1 - a cos(w), slope <= a
    rng = np.random.default_rng(seed)
    a, n = 0.5, 8
    answers = rng.uniform(-1, 1, n)
    other = answers.copy()
    other[0] = rng.uniform(-1, 1)

    def solve(z):  # the derivative is increasing: one minimizer
        return brentq(lambda w: w - z.mean() - a * np.sin(w), -4, 4, xtol=1e-14)

    v, u = solve(answers), solve(other)
    # the part of the loss that is not shared has gradient -z: only it enters through `lipschitz`
    curvature = CurvatureInputs(
        n_train=n, dropout_rate=0, lipschitz=1.0, hessian_min_eig=1 - a * np.cos(v), penalty=0
    )
    result = local_stability(curvature, hessian_lipschitz=a)
    if result.applicable:
        assert abs(u - v) <= float(result.value) * SMALL


def test_local_stability_names_its_own_repair() -> None:
    curvature = CurvatureInputs(
        n_train=10, dropout_rate=0.1, lipschitz=1, hessian_min_eig=0, penalty=1
    )
    result = local_stability(curvature, hessian_lipschitz=1.0)
    assert not result.applicable
    assert result.value == np.inf
    assert str(result.failed_hypothesis).startswith("curvature that lasts")
    repaired = replace(curvature, dropout_rate=result.repair_dropout_rate)
    assert strong_convexity(repaired) ** 2 > 4 * 1.0 * 1.0 / 10
    at = replace(curvature, dropout_rate=float(result.repair_dropout_rate) * (1 + 1e-9))
    assert local_stability(at, hessian_lipschitz=1.0).applicable
    assert result.repair_dropout_rate > repair_dropout_rate(curvature)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("suboptimality", -1.0), ("suboptimality", float("nan")), ("min_singular_value", 0.0)],
)
def test_keywords_outside_their_range_are_refused(keyword, value) -> None:
    curvature = CurvatureInputs(
        n_train=10, dropout_rate=0.1, lipschitz=1, hessian_min_eig=0, penalty=1
    )
    with pytest.raises(ValueError, match=f"`{keyword}` must"):
        replace_one_stability(curvature, **{keyword: value})
