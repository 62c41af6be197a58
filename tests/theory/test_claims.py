"""One test per claim of the paper: each asserts what the claim's evidence says."""

import ast
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory import (
    CurvatureInputs,
    TailInputs,
    curvature_bounds,
    lin2024_bound,
    strong_convexity,
    theorem44_floor,
    update_sparsity,
)
from lodrop_theory.claims import CLAIMS, claims_table
from lodrop_theory.solvable import (
    CONTENDERS,
    FactorRegression,
    FrozenARegression,
    GroundTruth,
    balanced_factors,
    exact_law,
    factor_hessian,
    hold,
    memorizer,
    truth_of_regression,
)
from tests.theory.strategies import convex_curvatures, deltas, scales
from tests.theory.test_solvable_frozen_a import masked_outputs, regressions

ROOT = Path(__file__).parents[2]


def test_every_claim_has_its_test() -> None:
    assert [claim.name for claim in CLAIMS] == [f"C{k}" for k in range(1, 8)]
    for claim in CLAIMS:
        path, _, name = claim.test.partition("::")
        names = {
            node.name
            for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
        }
        assert name in names
        assert name.startswith(f"test_{claim.name.lower()}_")
        assert (claim.verdict == "holds") == (claim.repair is None)


def test_the_table_is_well_formed() -> None:
    lines = claims_table().splitlines()
    assert len(lines) == len(CLAIMS) + 2
    columns = {line.replace("\\|", "").count("|") for line in lines}
    assert columns == {7}
    for claim, line in zip(CLAIMS, lines[2:], strict=True):
        assert line.startswith(f"| {claim.name} |")
        assert f"| {claim.verdict} |" in line


@given(rate=st.floats(0, 0.99), seed=st.integers(0, 2**32 - 1))
def test_c1_sparsity(rate, seed) -> None:
    update = np.random.default_rng(seed).standard_normal((2, 3))
    dropped, squares = np.zeros_like(update), 0.0
    for bits in product((0, 1), repeat=5):
        mask = np.array(bits)
        chance = np.prod(np.where(mask, 1 - rate, rate))
        kept = mask[:2, None] * mask[2:]
        dropped += chance * (kept == 0)
        squares += chance * np.sum((kept * update) ** 2)
    np.testing.assert_allclose(dropped, update_sparsity(rate), rtol=1e-12, atol=1e-15)
    assert squares == pytest.approx((1 - rate) ** 2 * np.sum(update**2), rel=1e-12)


@given(problem=regressions(), n=st.integers(2, 8), rate=st.floats(0, 0.9))
def test_c2_stability(problem, n, rate) -> None:
    atoms = len(problem.inputs)
    truth = truth_of_regression(problem, np.full(atoms, 1 / atoms), n)
    curvature, exact = truth.curvature, truth.stabilities
    promised = 2 * float(curvature.lipschitz) ** 2 / (float(strong_convexity(curvature)) * n)
    assert exact.pointwise_stability <= promised
    assert max(exact.uniform_removal, exact.uniform_stability) <= promised

    # both factors trained: r^2 zero eigenvalues, whatever the rate
    rng = np.random.default_rng(n)
    rank = 2
    hidden = FrozenARegression(
        inputs=rng.uniform(-1, 1, (3, 3)),
        targets=rng.standard_normal((3, 3)),
        factor=np.eye(3),
        dropout_rate=rate,
        rescale=True,
        penalty=0.1,
    )
    if rate == 0:
        hidden = FrozenARegression(**{**vars(hidden), "inputs": np.eye(3)})
    both, counts = FactorRegression(full=hidden, rank=rank), np.array([[1, 1, 1]])
    try:
        best = both.minimizer(counts)[0]
    except ValueError:  # hardly any dropout and nearly dependent inputs: not even D is convex
        return
    b, a = balanced_factors(best, rank)
    hessian = both.hessian(counts)[0]
    gradient = (best - hidden.minimizer(counts)[0]) @ hessian
    values = np.abs(np.linalg.eigvalsh(factor_hessian(b, a, hessian, gradient)))
    assert np.sum(values < 1e-8 * values.max()) >= rank**2


def test_c3_lemma() -> None:
    n, delta = 4, 0.5
    law = exact_law(np.full(16, 1 / 16), n, memorizer)
    exact = law.stabilities
    assert exact.pointwise_stability == 0
    printed = np.sqrt((1 + 12 * n * exact.pointwise_stability) / (2 * n * delta))
    assert law.violation(printed) == pytest.approx(1, abs=1e-12)
    repaired = CONTENDERS["two-stability, exact"].bound(GroundTruth(law=law), delta)
    assert law.violation(repaired.gap) == 0
    b1, b2 = exact.hypothesis_stability, exact.pointwise_stability
    formula = np.sqrt((1 + 2 * n * (3 * b1 + 2 * b2)) / (2 * n * delta))
    assert float(repaired.gap) == pytest.approx(formula, rel=1e-9)


@given(problem=regressions(), n=st.integers(2, 8), delta=st.floats(0.01, 0.5))
def test_c4_theorem(problem, n, delta) -> None:
    atoms = len(problem.inputs)
    truth = truth_of_regression(problem, np.full(atoms, 1 / atoms), n)
    verdicts = {v.contender: v for v in hold(truth, delta=delta)}
    paper = verdicts["lin2024"]
    assert paper.holds
    assert paper.slack > 5
    assert paper.gap >= float(theorem44_floor(truth.law.loss_range, n, delta))
    assert verdicts["two-stability, curvature"].gap <= paper.gap


@given(curvature=convex_curvatures(), loss_range=scales, delta=deltas)
def test_c4_theorem_is_beaten_wherever_it_says_something(curvature, loss_range, delta) -> None:
    """Not vacuous means g <= C delta / 6 for the stability g, and there the first order wins.

    With C = 1: (1/(2 sqrt n) + (1 + sqrt 2) g)^2 = 1/(4n) + 2.42 g / sqrt n + 5.83 g^2 is at most
    1/(2n) + 6 g, because 2.42 + 5.83 / 6 < 6.
    """
    tail = TailInputs(n_train=curvature.n_train, loss_range=loss_range, delta=delta)
    paper, *_, square = curvature_bounds(curvature, tail)
    if paper.gap <= tail.loss_range:
        assert square.gap <= paper.gap * (1 + 1e-12)


def mean_gaps(inputs, targets, rates, **setting) -> list[float]:
    """Expected gap of the objective's own loss for 6 examples of a uniform population."""
    gaps = []
    for rate in rates:
        problem = FrozenARegression(
            inputs=np.array(inputs),
            targets=np.array(targets),
            factor=np.eye(len(inputs[0])),
            dropout_rate=rate,
            rescale=True,
            **setting,
        )
        law = exact_law(np.full(len(inputs), 1 / len(inputs)), 6, problem.algorithm())
        gaps.append(law.mean_gap)
    return gaps


def test_c5_gap_in_p() -> None:
    rates = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9]
    # the bound falls: lipschitz and C held fixed, as the claim has it
    curvature = CurvatureInputs(
        n_train=6, dropout_rate=rates, lipschitz=1, hessian_min_eig=0.1, penalty=1
    )
    bound = lin2024_bound(curvature, TailInputs(n_train=6, loss_range=1, delta=0.1))
    assert (np.diff(bound.gap) < 0).all()
    # the gap does not: y = x, penalized ...
    exact = mean_gaps([[1.0], [0.5]], [[1.0], [0.5]], rates, masked=False, penalty=1.0)
    assert exact[0] == pytest.approx(0, abs=1e-15)
    assert min(exact[1:]) > 0.003
    # ... and y = x_1, with the masks themselves and next to no other penalty
    masked = mean_gaps(
        [[1.0, 0.0], [1.0, 1.0]], [[1.0], [1.0]], [0.001, 0.3], masked=True, penalty=1e-3
    )
    assert masked[1] > 2 * masked[0] > 0

    # the repair: a fixed design, every one of the 2^n signs of the noise
    rng = np.random.default_rng(0)
    n, noise = 6, 0.7
    x, truth = rng.standard_normal((n, 3)), rng.standard_normal(n)
    signs = noise * np.array(list(product((-1.0, 1.0), repeat=n)))
    optimism = []
    for rate in rates:
        kappa = 2 * float(update_sparsity(rate))
        smoother = x @ np.linalg.solve(x.T @ x + n * kappa * np.eye(3), x.T)
        fitted = (truth + signs) @ smoother.T
        inside = 0.5 * np.mean((truth + signs - fitted) ** 2)
        fresh = 0.5 * np.mean((truth - fitted) ** 2) + 0.5 * noise**2
        optimism.append(fresh - inside)
        assert optimism[-1] == pytest.approx(noise**2 * np.trace(smoother) / n, rel=1e-9)
    assert (np.diff(optimism) < 0).all()


@given(problem=regressions(masked=True))
def test_c6_jensen(problem) -> None:
    weights = np.random.default_rng(0).standard_normal(
        (1, *problem.targets.T.shape[:1], len(problem.factor))
    )
    draws = list(masked_outputs(problem, weights[0]))
    mean = sum(chance * z for chance, z in draws)
    ensemble = 0.5 * np.sum((problem.targets - mean) ** 2, axis=1)
    gibbs = sum(c * 0.5 * np.sum((problem.targets - z) ** 2, axis=1) for c, z in draws)
    half_trace = sum(c * 0.5 * np.sum((z - mean) ** 2, axis=1) for c, z in draws)
    assert (ensemble <= gibbs + 1e-12).all()
    np.testing.assert_allclose(gibbs - ensemble, half_trace, rtol=1e-9, atol=1e-12)
    # another convex loss of the same outputs: the logistic one
    label = np.sign(problem.targets)
    members = sum(c * np.logaddexp(0, -label * z) for c, z in draws)
    assert (np.logaddexp(0, -label * mean) <= members + 1e-12).all()


def test_c7_calibration() -> None:
    """Two fair bits; the label is 1 with probability (a + b) / 2. Each member reads one bit."""
    atoms = np.array(list(product((0, 1), repeat=2)))
    chance = atoms.mean(axis=1)  # of the label 1, at each of four equally likely atoms
    members = 0.25 + 0.5 * atoms.T  # E[label | one bit]
    ensemble = members.mean(axis=0)

    def calibration_error(forecast: np.ndarray) -> float:
        levels = np.unique(forecast)
        return sum(
            np.mean(forecast == level) * abs(chance[forecast == level].mean() - level)
            for level in levels
        )

    def squared_loss(forecast: np.ndarray) -> float:
        return float(np.mean(chance * (1 - forecast) ** 2 + (1 - chance) * forecast**2))

    assert [calibration_error(member) for member in members] == [0, 0]
    assert calibration_error(ensemble) == 0.125
    assert squared_loss(ensemble) < min(squared_loss(member) for member in members)
