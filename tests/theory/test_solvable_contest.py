"""Every bound against exact truth, on problems that Hypothesis draws; and the negative controls."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr

from lodrop_theory import BoundResult, strong_convexity
from lodrop_theory.bounds.dropout_stability import dropout_stability
from lodrop_theory.inputs import DropoutCurvatureInputs
from lodrop_theory.solvable import (
    CONTENDERS,
    Contender,
    GroundTruth,
    exact_law,
    hold,
    masked_sign_risk,
    memorizer,
    sign_classifier,
    truth_of_hold_out,
    truth_of_regression,
)
from tests.theory.test_solvable_enumerable import Table, populations, seeds
from tests.theory.test_solvable_frozen_a import regressions

deltas = st.floats(0.005, 0.5)


@st.composite
def truths(draw: st.DrawFn) -> GroundTruth:
    problem = draw(regressions())
    seed, n = draw(seeds), draw(st.integers(2, 10))
    probabilities = np.random.default_rng(seed).dirichlet(np.full(len(problem.inputs), 3.0))
    return truth_of_regression(problem, probabilities, n)


@given(truth=truths(), delta=deltas)
def test_no_bound_is_violated(truth, delta) -> None:
    verdicts = hold(truth, delta=delta)
    can = {name for name, contender in CONTENDERS.items() if contender.can_enter(truth)}
    assert {v.contender for v in verdicts} == can
    assert len(can) >= 9
    for verdict in verdicts:
        assert verdict.holds, verdict
    # second-moment bounds promise more than coverage
    for name in ("lin2024", "two-stability, exact", "l2-stability, exact"):
        gap = float(CONTENDERS[name].bound(truth, delta).gap)
        assert truth.law.second_moment <= delta * gap**2


@given(truth=truths(), delta=deltas)
def test_exact_stabilities_never_loosen_a_bound(truth, delta) -> None:
    gaps = {v.contender: v.gap for v in hold(truth, delta=delta)}
    for theorem in ("two-stability", "l2-stability", "uniform-tail", "expectation"):
        assert gaps[f"{theorem}, exact"] <= gaps[f"{theorem}, curvature"] * (1 + 1e-9)
    # the repaired lemma gives no more than the paper's formula
    assert gaps["two-stability, curvature"] <= gaps["lin2024"] * (1 + 1e-9)


@given(truth=truths())
def test_stability_is_what_the_curvature_promises(truth) -> None:
    """Proposition 4.2 and its uniform forms: exact <= 2 lipschitz^2 / (mu n)."""
    curvature, exact = truth.curvature, truth.stabilities
    mu, n = float(strong_convexity(curvature)), truth.law.n_train
    promised = 2 * float(curvature.lipschitz) ** 2 / (mu * n)
    assert exact.pointwise_stability <= exact.uniform_removal <= promised
    assert exact.uniform_stability <= promised
    assert exact.hypothesis_stability <= promised
    # the form without lambda: the strong convexity of what was minimized, whatever its source
    direct = DropoutCurvatureInputs(
        n_train=n,
        dropout_rate=curvature.dropout_rate,
        dropout_lipschitz=curvature.lipschitz,
        dropout_min_eig=mu,
    )
    assert exact.uniform_stability <= float(dropout_stability(direct).value)


@given(probabilities=populations(), n=st.integers(1, 5), seed=seeds, delta=deltas)
def test_bounds_from_exact_stabilities_hold_for_any_algorithm(
    probabilities, n, seed, delta
) -> None:
    law = exact_law(probabilities, n, Table(len(probabilities), seed))
    for verdict in hold(GroundTruth(law=law), delta=delta):
        assert verdict.holds, verdict


@given(truth=truths(), n_test=st.integers(2, 12), delta=deltas)
def test_hold_out_bounds_hold_for_what_was_trained(truth, n_test, delta) -> None:
    worst = int(np.argmax(truth.law.generalization_gap))
    interval = (float(truth.law.loss.min()), float(truth.law.loss.max()))
    tested = truth_of_hold_out(truth.law, worst, n_test, loss_interval=interval)
    verdicts = {v.contender: v for v in hold(tested, delta=delta)}
    assert {"hold-out", "hold-out-kl", "empirical-bernstein"} <= verdicts.keys()
    for verdict in verdicts.values():
        assert verdict.holds, verdict


@given(probabilities=populations(), n_test=st.integers(2, 12), seed=seeds, delta=deltas)
def test_hold_out_bounds_hold_for_errors(probabilities, n_test, seed, delta) -> None:
    wrong = np.random.default_rng(seed).integers(0, 2, len(probabilities)).astype(float)
    law = exact_law(probabilities, n_test, lambda counts: np.broadcast_to(wrong, counts.shape))
    truth = GroundTruth(law=law, loss_interval=(0.0, 1.0), held_out=True)
    verdicts = {v.contender: v for v in hold(truth, delta=delta)}
    for verdict in verdicts.values():
        assert verdict.holds, verdict
    ordered = [verdicts[name].gap for name in ("clopper-pearson", "hold-out-kl", "hold-out")]
    assert ordered == sorted(ordered)


@given(
    seed=seeds,
    features=st.integers(1, 2),
    rate=st.floats(0, 0.8),
    noise=st.floats(0.3, 3),
    n=st.integers(1, 8),
    delta=deltas,
)
def test_pac_bayes_holds_for_masked_noisy_weights(seed, features, rate, noise, n, delta) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-1, 1, (4, features)), rng.choice([-1.0, 1.0], 4)
    algorithm, divergence = sign_classifier(x, y, dropout_rate=rate, noise_scale=noise)
    law = exact_law(rng.dirichlet(np.full(4, 3.0)), n, algorithm)
    kl = divergence(law.counts)
    truth = GroundTruth(law=law, loss_interval=(0.0, 1.0), kl_nats=kl)
    verdicts = {v.contender: v for v in hold(truth, delta=delta)}
    assert {"pac-bayes-kl", "catoni", "mcallester2013"} <= verdicts.keys()
    for verdict in verdicts.values():
        assert verdict.holds, verdict
    # what the theorem is really about: E exp(n kl(R_hat || R) - KL) <= 2 sqrt(n)
    r, q = law.population_risk, law.empirical_risk
    inside = rel_entr(q, r) + rel_entr(1 - q, 1 - r)
    assert law.chance @ np.exp(n * inside - kl) <= 2 * math.sqrt(n) * (1 + 1e-9)


def printed_lemma(truth: GroundTruth, delta: float) -> BoundResult:
    """Lemma 4.3 as printed, from the pointwise stability alone: false."""
    c, n = truth.law.loss_range, truth.law.n_train
    beta = truth.stabilities.pointwise_stability
    return BoundResult(
        bound="printed",
        title="Lemma 4.3 as printed",
        source="Lin et al. 2024, arXiv:2404.09610v1, Lemma 4.3",
        statement="probability",
        predictor="mean",
        gap=math.sqrt((c**2 + 12 * c * n * beta) / (2 * n * delta)),
        loss_range=c,
        delta=delta,
    )


def test_the_contest_can_say_no() -> None:
    """Negative control: the memorizer breaks the pointwise-only lemma, and nothing else."""
    truth = GroundTruth(law=exact_law(np.full(16, 1 / 16), 4, memorizer))
    entered = {"printed": Contender(needs=("stabilities",), bound=printed_lemma), **CONTENDERS}
    verdicts = {v.contender: v for v in hold(truth, delta=0.5, contenders=entered)}
    assert not verdicts.pop("printed").holds
    assert verdicts
    assert all(v.holds for v in verdicts.values())


def test_a_contender_needs_its_inputs() -> None:
    law = exact_law(np.full(2, 0.5), 2, memorizer)
    names = {v.contender for v in hold(GroundTruth(law=law), delta=0.1)}
    assert not any("curvature" in name for name in names)
    assert "hold-out" not in names
    assert "l2-stability, exact" in names


@given(
    seed=seeds,
    features=st.integers(1, 3),
    rate=st.floats(0, 0.9),
    noise=st.floats(0.1, 3),
)
def test_masked_sign_risk_is_a_risk(seed, features, rate, noise) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-1, 1, (4, features)), rng.choice([-1.0, 1.0], 4)
    w = rng.standard_normal((3, features))
    risk = masked_sign_risk(w, x, y, dropout_rate=rate, noise_scale=noise)
    assert ((risk >= rate - 1e-12) & (risk <= 1)).all()
    flipped = masked_sign_risk(w, x, -y, dropout_rate=rate, noise_scale=noise)
    # the two labels share what is not an error for both: an output or all inputs dropped
    both = rate + (1 - rate) * rate**features
    np.testing.assert_allclose(risk + flipped, 1 + both, rtol=1e-12)


def test_masked_sign_risk_agrees_with_draws() -> None:
    rng = np.random.default_rng(0)
    x, y, w, p, sigma = np.array([[1.0, -0.5]]), np.ones(1), np.array([[0.8, 0.2]]), 0.3, 0.7
    many = 200_000
    masks = rng.random((many, 2)) >= p
    kept = rng.random(many) >= p
    noisy = w + sigma * rng.standard_normal((many, 2))
    errors = ~(kept & ((noisy * masks * x).sum(axis=1) > 0))
    exact = masked_sign_risk(w, x, y, dropout_rate=p, noise_scale=sigma)[0, 0]
    assert abs(errors.mean() - exact) < 5 * np.sqrt(exact * (1 - exact) / many)


def test_refuses_bad_input() -> None:
    ones = np.ones((1, 1))
    with pytest.raises(ValueError, match="`labels` must be -1 or 1"):
        masked_sign_risk(ones, ones, np.zeros(1), dropout_rate=0.1, noise_scale=1.0)
    with pytest.raises(ValueError, match="at most 12 features"):
        masked_sign_risk(
            np.ones((1, 13)), np.ones((1, 13)), np.ones(1), dropout_rate=0.1, noise_scale=1.0
        )
    with pytest.raises(ValueError, match="`delta` must be in"):
        hold(GroundTruth(law=exact_law([1.0], 1, memorizer)), delta=0.0)
