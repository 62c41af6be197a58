"""SGD, information, covering, compression, dropout objective, symmetry, frozen A: each exactly."""

from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import factorial, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.optimize import minimize_scalar

from lodrop_theory import (
    CurvatureInputs,
    TailInputs,
    lin2024_stability,
    remove_one_stability,
    replace_one_stability,
    strong_convexity,
    update_sparsity,
)
from lodrop_theory.bounds.covering import covering_bound, low_rank_dimension
from lodrop_theory.bounds.dropout_stability import dropout_stability
from lodrop_theory.bounds.from_stability import stability_bounds
from lodrop_theory.bounds.frozen_a import frozen_a_curvature
from lodrop_theory.bounds.hardt2016 import sgd_stability
from lodrop_theory.bounds.lotfi2023 import compression_bound, compression_kl_bound
from lodrop_theory.bounds.transverse import gauge_dimension, transverse_stability
from lodrop_theory.bounds.xu2017 import information_bound, parameter_information_nats
from lodrop_theory.inputs import (
    CompressionInputs,
    CoveringInputs,
    DropoutCurvatureInputs,
    InformationInputs,
    SgdInputs,
    TransverseInputs,
)
from lodrop_theory.kl_inverse import binary_kl_inverse
from tests.theory.enumerable import masked_squared_loss, multisets, world
from tests.theory.strategies import counts, magnitudes

SMALL = 1 + 1e-9
seeds = st.integers(0, 2**31)


@given(seed=seeds, n=st.integers(1, 3), steps=st.integers(1, 4), share=st.floats(0.1, 1))
@settings(max_examples=25)
def test_sgd_is_as_stable_as_it_says(seed, n, steps, share) -> None:
    # half-squared loss of a linear model; the mean is over all sequences of examples
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n + 1, 2)), rng.normal(size=n + 1)
    smoothness = float((x**2).sum(1).max())
    rates = share * 2 / smoothness * rng.uniform(0.2, 1, steps)
    visited = []

    def run(rows, order):
        w = np.zeros(2)
        for rate, i in zip(rates, order, strict=True):
            visited.append(w)
            w = w - rate * (x[rows[i]] @ w - y[rows[i]]) * x[rows[i]]
        visited.append(w)
        return w

    change = np.zeros(n + 1)
    for order in product(range(n), repeat=steps):
        one = run(list(range(n)), order)
        other = run([n, *range(1, n)], order)
        change += 0.5 * (x @ one - y) ** 2 - 0.5 * (x @ other - y) ** 2
    gradients = (np.array(visited) @ x.T - y)[:, :, None] * x  # affine in w: largest at an end
    inputs = SgdInputs(
        n_train=n,
        lipschitz=float(np.linalg.norm(gradients, axis=-1).max()),
        smoothness=smoothness,
        largest_step_size=float(rates.max()),
        step_size_sum=float(rates.sum()),
    )
    result = sgd_stability(inputs)
    assert result.applicable or share > 1 - 1e-12
    assert np.abs(change).max() / n**steps <= float(result.value) * SMALL


def test_sgd_with_too_large_a_step_is_not_applicable() -> None:
    inputs = SgdInputs(
        n_train=10, lipschitz=1, smoothness=4, largest_step_size=[0.5, 0.51], step_size_sum=1
    )
    result = sgd_stability(inputs)
    assert result.applicable.tolist() == [True, False]
    assert result.value[1] == np.inf
    assert result.failed_hypothesis == "steps of at most 2 / smoothness"


@given(seed=seeds, n=st.integers(1, 8), hypotheses=st.integers(1, 4))
@settings(max_examples=30)
def test_information_bounds_the_mean_gap(seed, n, hypotheses) -> None:
    rng = np.random.default_rng(seed)
    chances, table = rng.dirichlet(np.ones(3)), np.round(rng.uniform(0, 1, (hypotheses, 3)))
    mean_gap, mass = 0.0, np.zeros(hypotheses)
    for sample in multisets(3, n):
        weight = factorial(n) / prod(map(factorial, sample)) * np.prod(chances ** np.array(sample))
        chosen = int(np.argmin(table @ np.array(sample)))
        mean_gap += weight * (table[chosen] @ (chances - np.array(sample) / n))
        mass[chosen] += weight
    inside = mass[mass > 0]
    nats = max(float(-(inside * np.log(inside)).sum()), 0.0)  # a function of S: I = H
    inputs = InformationInputs(n_train=n, loss_range=1, information_nats=nats)
    result = information_bound(inputs)
    assert abs(mean_gap) <= float(result.gap) * SMALL + 1e-12
    assert (result.statement, result.risk) == ("expectation", None)
    assert np.log(hypotheses) <= parameter_information_nats(1, max(np.log2(hypotheses), 1))


@given(
    n=counts,
    d=st.integers(1, 10**6),
    rho=magnitudes(-6, 3),
    nu=magnitudes(-3, 3),
    k=st.integers(1, 99),
)
def test_covering_oracle_and_radius(n, d, rho, nu, k) -> None:
    inputs = CoveringInputs(
        n_train=n, loss_range=1, delta=0.05, lipschitz=rho, norm_bound=nu, dimension=d, n_modules=k
    )
    top = nu * np.sqrt(k)
    fixed = covering_bound(inputs, cover_radius=top / 3)
    with mp.workdps(50):
        radius = mpf(float(top / 3))
        nats = mpf(d) * mp.log(9 * mpf(nu) * mp.sqrt(k) / radius) + mp.log(1 / mpf(0.05))
        exact = 2 * mpf(rho) * radius + mp.sqrt(nats / (2 * mpf(n)))
        assert exact <= mpf(float(fixed.gap)) <= exact * (1 + mpf(2) ** -44)
    grid = top * np.geomspace(1e-12, 1, 400)
    best = float(covering_bound(inputs, cover_radius=grid).gap.min())
    assert float(covering_bound(inputs).gap) <= best * 1.05
    assert fixed.free_parameters == ("cover_radius",)
    assert covering_bound(inputs).free_parameters == ()
    with pytest.raises(ValueError, match="`cover_radius` must be at most"):
        covering_bound(inputs, cover_radius=top * 1.01)


def test_low_rank_dimension() -> None:
    assert low_rank_dimension(2, [(3, 4), (5, 6)]) == 2 * 8 + 2 * 12
    assert low_rank_dimension(9, [(3, 4)]) == 3 * 8  # the rank is at most the smaller side
    with pytest.raises(ValueError, match="`rank`"):
        low_rank_dimension(0, [(3, 4)])


def test_the_prior_over_lengths_adds_up_to_one_and_the_printed_one_does_not() -> None:
    ours = sum(Fraction(1, k * (k + 1)) for k in range(1, 2001))
    assert ours == 1 - Fraction(1, 2001)
    assert sum(Fraction(1, k * k) for k in range(1, 4)) > 1


@given(seed=seeds, n=st.integers(1, 8), delta=st.floats(0.05, 0.9), free=st.booleans())
@settings(max_examples=30)
def test_compression_holds_for_all_codes_at_once(seed, n, delta, free) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.array([1, 2, 3, 3]) if free else np.repeat([1, 2, 3], [2, 4, 8])
    chances = rng.dirichlet(np.ones(3))
    table = np.round(rng.uniform(0, 1, (len(lengths), 3)))
    failed = 0.0
    for sample in multisets(3, n):
        weight = factorial(n) / prod(map(factorial, sample)) * np.prod(chances ** np.array(sample))
        inputs = CompressionInputs(
            n_train=n,
            loss_range=1,
            delta=delta,
            code_length_bits=lengths,
            empirical_risk=np.clip(table @ np.array(sample) / n, 0, 1),
        )
        root = compression_bound(inputs, self_delimiting=free)
        inverse = compression_kl_bound(inputs, self_delimiting=free)
        assert np.all(inverse.risk <= root.risk * SMALL)
        failed += weight * bool(np.any(inverse.risk < table @ chances - 1e-12))
    assert failed <= delta


@given(n=counts, bits=st.integers(1, 10**9), delta=magnitudes(-300, -0.1), risk=st.floats(0, 1))
def test_compression_oracle(n, bits, delta, risk) -> None:
    inputs = CompressionInputs(
        n_train=n, loss_range=1, delta=delta, code_length_bits=bits, empirical_risk=risk
    )
    with mp.workdps(50):
        nats = bits * mp.log(2) + mp.log(mpf(bits) * (bits + 1)) - mp.log(mpf(delta))
        exact = mp.sqrt(nats / (2 * mpf(n)))
        gap = mpf(float(compression_bound(inputs).gap))
        assert exact <= gap <= exact * (1 + mpf(2) ** -44)
    kl = float(binary_kl_inverse(risk, float(nats / n)))
    assert float(compression_kl_bound(inputs).risk) == pytest.approx(kl, rel=1e-9)


@given(
    seed=seeds,
    n=st.integers(2, 5),
    rate=st.floats(0.05, 0.9),
    delta=st.floats(0.02, 0.5),
)
@settings(max_examples=25)
def test_dropout_objective_needs_no_penalty(seed, n, rate, delta) -> None:
    rng = np.random.default_rng(seed)
    chances, points = rng.dirichlet(np.ones(3)), rng.uniform(-1, 1, (3, 2))
    problem = masked_squared_loss(points, rng.choice([-1.0, 1.0], 3), rate, 0.0)
    here = world(chances, n, lambda c: problem.loss(problem.minimizer(c)))
    samples = multisets(3, n)
    inputs = DropoutCurvatureInputs(
        n_train=n,
        dropout_rate=rate,
        dropout_lipschitz=max(problem.gradient_norms(problem.minimizer(c)).max() for c in samples),
        dropout_min_eig=min(problem.smallest_eigenvalue(c) for c in samples),
    )
    stability = dropout_stability(inputs, certified=True)
    assert here.uniform_replace <= float(stability.value) * SMALL
    tail = TailInputs(n_train=n, loss_range=here.loss_range, delta=delta)
    results = stability_bounds(stability, tail, predictor="gibbs", certified=True)
    expectation, *others = results
    assert abs(here.weight @ here.gap) <= float(expectation.gap) * SMALL
    assert all(here.violation(float(r.gap)) <= delta for r in others)
    assert [r.kind for r in results] == ["certificate"] * 4 + ["plug-in"]
    assert {r.predictor for r in results} == {"gibbs"}


def test_stability_of_a_removed_example_is_not_taken_for_a_replaced_one() -> None:
    curvature = CurvatureInputs(
        n_train=10, dropout_rate=0.5, lipschitz=1, hessian_min_eig=0, penalty=1
    )
    tail = TailInputs(n_train=10, loss_range=1, delta=0.1)
    for stability in (remove_one_stability(curvature), lin2024_stability(curvature)):
        with pytest.raises(ValueError, match="replacement of one example"):
            stability_bounds(stability, tail, predictor="mean")
    with pytest.raises(ValueError, match="`n_train` must be the same"):
        stability_bounds(
            replace_one_stability(curvature), replace(tail, n_train=11), predictor="mean"
        )
    flat = replace(curvature, dropout_rate=0.0)
    for result in stability_bounds(replace_one_stability(flat), tail, predictor="mean"):
        assert (result.kind, result.gap) == ("not applicable", np.inf)


@given(seed=seeds, n=st.integers(2, 30), sided=st.booleans())
@settings(max_examples=40)
def test_transverse_stability_across_a_hyperbola(seed, n, sided) -> None:
    # LoRA of one number, w = b a: loss (b a - t)^2 / 2, orbits b a = const under GL(1)
    rng = np.random.default_rng(seed)
    answers = rng.uniform(0.5, 1.5, n)
    other = answers.copy()
    other[0] = rng.uniform(0.5, 1.5)
    levels = answers.mean(), other.mean()
    stretch = np.exp(rng.uniform(-1, 1, 2))  # where on its orbit each solution lies
    v, u = (
        np.array([np.sqrt(c) * s, np.sqrt(c) / s]) for c, s in zip(levels, stretch, strict=True)
    )

    def nearest(point, level):
        def squared(t):
            return (point[0] - np.exp(t)) ** 2 + (point[1] - level * np.exp(-t)) ** 2

        start = np.log(point[0])
        t = minimize_scalar(
            squared, bounds=(start - 1, start + 1), method="bounded", options={"xatol": 1e-12}
        ).x
        return np.array([np.exp(t), level * np.exp(-t)])

    feet = nearest(u, levels[0]), nearest(v, levels[1])
    a, b = np.linalg.norm(u - feet[0]), np.linalg.norm(v - feet[1])
    growth = (levels[0] - levels[1]) ** 2  # twice what each objective exceeds its minimum by
    if min(a, b) < 1e-7:
        return
    mu = growth / a**2 if sided else growth / max(a, b) ** 2
    rho = 0.0
    for start, end in ((u, feet[0]), (v, feet[1])):
        for point in np.linspace(start, end, 50):
            residual = np.abs(point[0] * point[1] - np.append(answers, other[0]))
            rho = max(rho, float(residual.max() * np.linalg.norm(point)))
    inputs = TransverseInputs(n_train=n, lipschitz=rho, transverse_min_eig=mu)
    change = (
        np.abs(
            (levels[1] - np.append(answers, other[0])) ** 2
            - (levels[0] - np.append(answers, other[0])) ** 2
        ).max()
        / 2
    )
    assert change <= float(transverse_stability(inputs, both_sides=not sided).value) * (1 + 1e-6)


def test_transverse_form_and_gauge() -> None:
    inputs = TransverseInputs(n_train=100, lipschitz=1, transverse_min_eig=[2.0, 0.0, -1.0])
    both, one = (transverse_stability(inputs, both_sides=side) for side in (True, False))
    np.testing.assert_allclose(both.value, [0.01, np.inf, np.inf])
    np.testing.assert_allclose(one.value, [0.02, np.inf, np.inf])
    assert both.kind.tolist() == ["plug-in", "not applicable", "not applicable"]


@pytest.mark.parametrize("ridge", [False, True])
@pytest.mark.parametrize(("rank", "kept"), [(1, 1), (2, 2), (3, 3), (3, 1), (3, 2)])
def test_gauge_dimension_is_the_rank_of_the_tangent_space(rank, kept, ridge) -> None:
    rng = np.random.default_rng(rank)
    b, a = rng.normal(size=(5, rank)), rng.normal(size=(rank, 4))
    if ridge:  # at a minimum with a ridge the factors are balanced and have the update's rank
        b[:, kept:], a[kept:] = 0, 0
    tangents = []
    for i, j in product(range(rank), repeat=2):
        x = np.zeros((rank, rank))
        x[i, j] = 1
        x = x - x.T if ridge else x
        tangents.append(np.concatenate([(x @ a).ravel(), (-b @ x).ravel()]))
    expected = gauge_dimension(rank, factor_ridge=ridge, update_rank=kept)
    assert np.linalg.matrix_rank(np.array(tangents)) == expected


@given(
    seed=seeds,
    rate=st.floats(0, 0.9),
    penalty=st.sampled_from([0.0, 0.3, 2.0]),
    scaling=magnitudes(-1, 1),
    shift=st.floats(-3, 3),
)
def test_frozen_a_is_safe_in_the_coordinates_of_b(seed, rate, penalty, scaling, shift) -> None:
    rng = np.random.default_rng(seed)
    a, rows = rng.normal(size=(2, 4)), 3
    half = rng.normal(size=(rows * 4, rows * 4))
    hessian = half @ half.T / 12 + shift * np.eye(rows * 4)
    slope = rng.normal(size=rows * 4)
    jacobian = scaling * np.kron(np.eye(rows), a.T)  # vec of B (rows first) to vec of s B A
    inputs = CurvatureInputs(
        n_train=10,
        dropout_rate=rate,
        lipschitz=float(np.linalg.norm(slope)),
        hessian_min_eig=float(np.linalg.eigvalsh(hessian)[0]),
        penalty=penalty,
    )
    in_b = frozen_a_curvature(inputs, [a], scaling=scaling)
    total = hessian + 2 * penalty * float(update_sparsity(rate)) * np.eye(rows * 4)
    true = float(np.linalg.eigvalsh(jacobian.T @ total @ jacobian)[0])
    assert float(strong_convexity(in_b)) <= true + 1e-9 * (1 + abs(true))
    assert np.linalg.norm(jacobian.T @ slope) <= float(in_b.lipschitz) * SMALL


def test_frozen_a_with_orthonormal_rows_changes_nothing() -> None:
    inputs = CurvatureInputs(
        n_train=10, dropout_rate=0.5, lipschitz=1, hessian_min_eig=-0.2, penalty=1
    )
    in_b = frozen_a_curvature(inputs, [np.eye(2, 4), np.eye(2, 3)], scaling=1.0)
    for name in ("lipschitz", "hessian_min_eig", "penalty"):
        assert float(getattr(in_b, name)) == pytest.approx(float(getattr(inputs, name)), rel=1e-12)
    for flat in ([np.ones((2, 4))], [np.ones((3, 2))], []):
        with pytest.raises(ValueError, match="`lora_A` must hold"):
            frozen_a_curvature(inputs, flat, scaling=1.0)
