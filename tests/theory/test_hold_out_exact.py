"""Hold-out bounds: order, oracles, and coverage as an exact sum over binomial outcomes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy import stats

from lodrop_theory.bounds.clopper1934 import clopper_pearson_bound
from lodrop_theory.bounds.hold_out import hold_out_bound, hold_out_kl_bound
from lodrop_theory.bounds.majority_vote import majority_vote_bound
from lodrop_theory.bounds.maurer2009 import empirical_bernstein_bound
from lodrop_theory.inputs import BernsteinHoldOutInputs, BinaryHoldOutInputs, HoldOutInputs
from tests.theory.strategies import counts, magnitudes


@given(n=st.integers(1, 10**9), share=st.floats(0, 1), delta=st.floats(1e-9, 0.9))
def test_order_of_the_hold_out_bounds(n: int, share: float, delta: float) -> None:
    k = round(share * min(n, 10**6))
    scores = HoldOutInputs(n_test=n, loss_range=1, delta=delta, held_out_risk=k / n)
    exact = clopper_pearson_bound(
        BinaryHoldOutInputs(n_test=n, n_errors=k, delta=delta), predictor="mean"
    ).risk
    kl = hold_out_kl_bound(scores, predictor="mean").risk
    hoeffding = hold_out_bound(scores, predictor="mean").risk
    assert exact <= kl * (1 + 1e-12) + 1e-15
    assert kl <= hoeffding * (1 + 1e-12) + 1e-15


@given(
    n=counts.filter(lambda x: x > 1),
    c=magnitudes(-5, 5),
    delta=magnitudes(-12, -0.1),
    spread=st.floats(0, 1),
)
def test_bernstein_oracle_and_printed_form(n, c, delta, spread) -> None:
    variance = spread * c**2 / 4
    x = BernsteinHoldOutInputs(
        n_test=n, loss_range=c, delta=delta, held_out_risk=0, sample_variance=variance
    )
    value = mpf(float(empirical_bernstein_bound(x, predictor="mean").risk))
    with mp.workdps(50):
        m, c, d, v = (mpf(float(y)) for y in (n, c, delta, variance))
        log = mp.log(2 / d)
        exact = mp.sqrt(2 * v * log / m) + c * log * (2 / mp.sqrt(m * (m - 1)) + 1 / (3 * m))
        printed = mp.sqrt(2 * v * log / m) + 7 * c * log / (3 * (m - 1))
        assert exact <= value <= exact * (1 + mpf(2) ** -44)
        assert value <= printed * (1 + mpf(2) ** -44)


# SciPy's binomial mass overflows at rates near the smallest float.
RATES = st.just(0.0) | st.floats(1e-200, 1)


@given(n=st.integers(2, 60), delta=st.floats(0.01, 0.9), p=RATES)
@settings(max_examples=40)
def test_coverage_is_an_exact_sum(n: int, delta: float, p: float) -> None:
    k = np.arange(n + 1)
    scores = {"n_test": n, "loss_range": 1, "delta": delta, "held_out_risk": k / n}
    variance = k * (n - k) / (n * (n - 1.0))
    risks = {
        "hoeffding": hold_out_bound(HoldOutInputs(**scores), predictor="mean"),
        "kl": hold_out_kl_bound(HoldOutInputs(**scores), predictor="mean"),
        "exact": clopper_pearson_bound(
            BinaryHoldOutInputs(n_test=n, n_errors=k, delta=delta), predictor="mean"
        ),
        "bernstein": empirical_bernstein_bound(
            BernsteinHoldOutInputs(**scores, sample_variance=variance), predictor="mean"
        ),
    }
    chance = stats.binom.pmf(k, n, p)
    for name, result in risks.items():
        missed = float(chance[np.asarray(result.risk) < p].sum())
        assert missed <= delta * (1 + 1e-9), name


def test_bernstein_wins_where_the_variance_is_small() -> None:
    x = BernsteinHoldOutInputs(
        n_test=10_000, loss_range=1, delta=0.05, held_out_risk=0.1, sample_variance=1e-4
    )
    hoeffding = hold_out_bound(
        HoldOutInputs(n_test=10_000, loss_range=1, delta=0.05, held_out_risk=0.1), predictor="mean"
    )
    assert empirical_bernstein_bound(x, predictor="mean").gap < hoeffding.gap / 5


@given(low=st.floats(-3, 3), c=magnitudes(-2, 2), share=st.floats(0, 1))
def test_kl_form_moves_with_the_interval(low: float, c: float, share: float) -> None:
    unit = HoldOutInputs(n_test=500, loss_range=1, delta=0.05, held_out_risk=share)
    moved = replace(unit, loss_range=c, held_out_risk=low + c * share)
    there = hold_out_kl_bound(moved, predictor="mean", loss_min=low).risk
    expected = low + c * float(hold_out_kl_bound(unit, predictor="mean").risk)
    assert float(there) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_the_gap_is_counted_from_the_training_risk_if_given() -> None:
    x = BinaryHoldOutInputs(n_test=100, n_errors=10, delta=0.05, empirical_risk=0.02)
    result = clopper_pearson_bound(x, predictor="mean", certified=True)
    plain = clopper_pearson_bound(replace(x, empirical_risk=None), predictor="mean")
    assert float(result.risk) == pytest.approx(float(plain.risk), rel=1e-12)
    assert float(result.gap) == pytest.approx(float(plain.risk) - 0.02, rel=1e-9)
    assert result.kind == "certificate"
    assert len(plain.caveats) == len(result.caveats) + 1


def test_majority_vote_doubles_the_gibbs_risk_and_nothing_else_is_taken() -> None:
    x = BinaryHoldOutInputs(n_test=100, n_errors=10, delta=0.05)
    gibbs = clopper_pearson_bound(x, predictor="gibbs", certified=True)
    vote = majority_vote_bound(gibbs)
    assert 2 * gibbs.risk <= vote.risk <= 2 * gibbs.risk * (1 + 1e-13)
    assert (vote.predictor, vote.kind) == ("ensemble", "certificate")
    with pytest.raises(ValueError, match="must be a bound for 'gibbs'"):
        majority_vote_bound(clopper_pearson_bound(x, predictor="mean"))


@given(voters=st.integers(1, 9), classes=st.integers(2, 4), seed=st.integers(0, 2**31))
def test_a_wrong_vote_has_at_least_half_of_its_voters_wrong(voters, classes, seed) -> None:
    answers = np.random.default_rng(seed).integers(0, classes, (50, voters))
    votes = (answers[:, :, None] == np.arange(classes)).sum(1)
    wrong_vote = votes.argmax(1) != 0
    wrong_share = (answers != 0).mean(1)
    assert np.all(wrong_share[wrong_vote] >= 0.5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: BinaryHoldOutInputs(n_test=5, n_errors=6, delta=0.1), "`n_errors` must be"),
        (
            lambda: BernsteinHoldOutInputs(
                n_test=1, loss_range=1, delta=0.1, held_out_risk=0, sample_variance=0
            ),
            "`n_test` must be at least 2",
        ),
        (
            lambda: hold_out_kl_bound(
                HoldOutInputs(n_test=5, loss_range=1, delta=0.1, held_out_risk=1.5),
                predictor="mean",
            ),
            "`held_out_risk` must be in",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, match) -> None:
    with pytest.raises(ValueError, match=match):
        call()
