"""Theorem 4.4 and Proposition 4.2 of the LoRA Dropout paper: law, oracle, sandwich, reference."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mpmath import mp, mpf

from lodrop_theory import (
    CurvatureInputs,
    HoldOutInputs,
    TailInputs,
    curvature_bounds,
    ensemble_bound,
    hold_out_bound,
    lin2024_bound,
    lin2024_stability,
    repair_dropout_rate,
    strong_convexity,
    theorem44_floor,
)
from tests.theory.strategies import convex_curvatures, curvatures, tails

LAST_RATE = float(np.nextafter(1.0, 0.0))

# The printed table: C = 1, delta = .05, lipschitz = 1, penalty = 1, hessian_min_eig = 0.
RATES = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, LAST_RATE]
TABLE = {
    2490: [0.063, 0.706, 0.508, 0.371, 0.314, 0.261, 0.239, 0.228],
    8551: [0.034, 0.381, 0.274, 0.200, 0.169, 0.141, 0.129, 0.123],
    67349: [0.012, 0.136, 0.098, 0.071, 0.060, 0.050, 0.046, 0.044],
    392702: [0.005, 0.056, 0.040, 0.030, 0.025, 0.021, 0.019, 0.018],
}


def exact_mu(inputs: CurvatureInputs) -> mpf:
    """The formula of Proposition 4.2, in 60 digits."""
    p = mpf(float(inputs.dropout_rate))
    return mpf(float(inputs.hessian_min_eig)) + 2 * mpf(float(inputs.penalty)) * (2 * p - p**2)


@pytest.mark.parametrize("n", TABLE)
def test_reference_table(n: int) -> None:
    curvature = CurvatureInputs(
        n_train=n, dropout_rate=RATES, lipschitz=1, hessian_min_eig=0, penalty=1
    )
    result = lin2024_bound(curvature, TailInputs(n_train=n, loss_range=1, delta=0.05))
    floor, *gaps = TABLE[n]
    assert round(float(theorem44_floor(1, n, 0.05)), 3) == floor
    assert np.round(result.gap, 3).tolist() == gaps


@given(curvature=curvatures(), data=st.data())
def test_against_the_oracle(curvature: CurvatureInputs, data: st.DataObject) -> None:
    tail = data.draw(tails(n_train=curvature.n_train))
    result = lin2024_bound(curvature, tail)
    stability = lin2024_stability(curvature)
    with mp.workdps(700):
        mu, n = exact_mu(curvature), mpf(float(curvature.n_train))
        c, rho = mpf(float(tail.loss_range)), mpf(float(curvature.lipschitz))
        # 16 ulps of the terms are given away, so a mu inside that noise counts as not positive
        p = float(curvature.dropout_rate)
        noise = 40 * mpf(2) ** -52 * (abs(mpf(float(curvature.hessian_min_eig))) + abs(mu))
        if mu <= 0:
            assert not result.applicable
        if not result.applicable:
            assert mu <= noise + mpf(10) ** -300
            assert result.gap == np.inf
            assert result.vacuous
            assert result.kind == stability.kind == "not applicable"
            return
        beta = 2 * rho**2 / (mu * n)
        gap = mp.sqrt((c**2 + 12 * c * n * beta) / (2 * n * mpf(float(tail.delta))))
        assert mpf(float(stability.value)) >= beta
        assert mpf(float(result.gap)) >= gap
        if noise < mu * mpf(10) ** -6 and p > 1e-290:
            assert mpf(float(stability.value)) <= beta * (1 + mpf(10) ** -4) + mpf(10) ** -300
            assert mpf(float(result.gap)) <= gap * (1 + mpf(10) ** -4)


@given(curvature=convex_curvatures(), data=st.data())
def test_sharp_to_a_few_ulps_without_cancellation(curvature, data) -> None:
    tail = data.draw(tails(n_train=curvature.n_train))
    with mp.workdps(60):
        ratio = 24 * mpf(float(curvature.lipschitz)) ** 2 / exact_mu(curvature)
        c = mpf(float(tail.loss_range))
        n, delta = mpf(float(tail.n_train)), mpf(float(tail.delta))
        gap = mp.sqrt((c**2 + c * ratio) / (2 * n * delta))
        assert gap <= mpf(float(lin2024_bound(curvature, tail).gap)) <= gap * (1 + mpf(2) ** -46)


MONOTONE = [
    ("dropout_rate", lambda v: (1 + v) / 2, False),
    ("lipschitz", lambda v: 2 * v, True),
    ("hessian_min_eig", lambda v: v + 1, False),
    ("penalty", lambda v: 2 * v, False),
]


@pytest.mark.parametrize(("name", "more", "grows"), MONOTONE)
@given(curvature=curvatures(), data=st.data())
def test_monotone_in_the_curvature(name, more, grows, curvature, data) -> None:
    tail = data.draw(tails(n_train=curvature.n_train))
    moved = replace(curvature, **{name: more(getattr(curvature, name))})
    before, after = lin2024_bound(curvature, tail).gap, lin2024_bound(moved, tail).gap
    slack = 1 + 1e-12  # the outward rounding of mu is not monotone to the last ulp
    assert after <= before * slack if not grows else after >= before / slack


@given(curvature=convex_curvatures(), data=st.data(), factor=st.integers(2, 100))
def test_more_data_or_a_larger_delta_never_loosens(curvature, data, factor) -> None:
    tail = data.draw(tails(n_train=curvature.n_train))
    n = np.asarray(curvature.n_train) * factor
    gap = lin2024_bound(curvature, tail).gap
    more = lin2024_bound(replace(curvature, n_train=n), replace(tail, n_train=n)).gap
    assert more <= gap
    delta = 1 - (1 - np.asarray(tail.delta)) / 2
    assert lin2024_bound(curvature, replace(tail, delta=delta)).gap <= gap


@given(curvature=curvatures(), data=st.data())
def test_never_below_the_floor_and_at_the_floor_without_slope(curvature, data) -> None:
    tail = data.draw(tails(n_train=curvature.n_train))
    floor = theorem44_floor(tail.loss_range, tail.n_train, tail.delta)
    assert lin2024_bound(curvature, tail).gap >= floor
    flat = replace(curvature, lipschitz=0, hessian_min_eig=1)
    assert lin2024_bound(flat, tail).gap == pytest.approx(float(floor), rel=1e-14)


@given(curvature=convex_curvatures(), data=st.data())
def test_repaired_lemma_gives_no_more_than_the_theorem(curvature, data) -> None:
    paper, two, *_ = curvature_bounds(curvature, data.draw(tails(n_train=curvature.n_train)))
    assert (two.bound, paper.bound) == ("two-stability", "lin2024")
    assert two.gap <= paper.gap * (1 + 1e-14)


@given(curvature=curvatures())
def test_repair_is_the_smallest_rate_that_repairs(curvature) -> None:
    rate = repair_dropout_rate(curvature)
    low, weight = float(curvature.hessian_min_eig), 2 * float(curvature.penalty)
    if np.isnan(rate):
        assert not strong_convexity(replace(curvature, dropout_rate=LAST_RATE)) > 0
        return
    assert 0 <= rate < 1
    assert strong_convexity(replace(curvature, dropout_rate=rate)) > 0
    if low > 0:
        assert rate == 0
    elif rate > 1e-15 and -low < weight * (1 - 1e-9):
        # a hair below it the exact mu is no longer positive
        with mp.workdps(60):
            below = mpf(float(rate)) * (1 - mpf(10) ** -5)
            assert mpf(low) + mpf(weight) * (2 * below - below**2) <= 0


def test_repair_of_the_boundary_cases() -> None:
    at = CurvatureInputs(
        n_train=10, dropout_rate=0, lipschitz=1, hessian_min_eig=[0, -1, -2, -1, 1], penalty=1
    )
    np.testing.assert_allclose(
        repair_dropout_rate(at), [0, 1 - np.sqrt(0.5), np.nan, 1 - np.sqrt(0.5), 0], atol=1e-15
    )
    assert np.isnan(repair_dropout_rate(replace(at, penalty=0, hessian_min_eig=0)))


def test_not_applicable_says_why_and_what_helps() -> None:
    hopeless = CurvatureInputs(
        n_train=10, dropout_rate=0.5, lipschitz=1, hessian_min_eig=-4, penalty=1
    )
    result = lin2024_bound(hopeless, TailInputs(n_train=10, loss_range=1, delta=0.1))
    assert result.failed_hypothesis is not None
    assert result.failed_hypothesis.startswith("strong convexity")
    assert "`penalty` must exceed |hessian_min_eig| / 2 = 2" in str(result.remedy)
    curable = lin2024_stability(replace(hopeless, hessian_min_eig=-1.5, dropout_rate=0.1))
    assert curable.remedy == "raise `dropout_rate` to 0.5 or above"


def test_never_certified_by_default() -> None:
    curvature = CurvatureInputs(
        n_train=10, dropout_rate=[0.0, 0.5], lipschitz=1, hessian_min_eig=0, penalty=1
    )
    tail = TailInputs(n_train=10, loss_range=1, delta=0.1)
    assert lin2024_bound(curvature, tail).kind.tolist() == ["not applicable", "plug-in"]
    vouched = lin2024_bound(curvature, tail, certified=True)
    assert vouched.kind.tolist() == ["not applicable", "certificate"]


def test_inputs_that_disagree_about_n_are_refused() -> None:
    curvature = CurvatureInputs(
        n_train=10, dropout_rate=0.5, lipschitz=1, hessian_min_eig=0, penalty=1
    )
    with pytest.raises(ValueError, match="`n_train` must be the same number"):
        lin2024_bound(curvature, TailInputs(n_train=11, loss_range=1, delta=0.1))


@given(risk=st.floats(0, 1), certified=st.booleans(), vouched=st.booleans())
def test_jensen_carries_the_gibbs_bound_over(risk, certified, vouched) -> None:
    inputs = HoldOutInputs(n_test=50, loss_range=1, delta=0.1, held_out_risk=risk)
    gibbs = hold_out_bound(inputs, predictor="gibbs", certified=certified)
    ensemble = ensemble_bound(gibbs, certified=vouched)
    assert ensemble.risk == gibbs.risk
    assert ensemble.predictor == "ensemble"
    assert ensemble.certified == (certified and vouched)
    assert "Theorem 4.5" in ensemble.source
    with pytest.raises(ValueError, match="must be a bound for 'gibbs'"):
        ensemble_bound(ensemble)


@given(
    curvature=curvatures(),
    delta=st.floats(1e-300, 0.5),
    rho=st.sampled_from([0.0, 1e-308, 1e-160, 1e160, 1.7e308]),
    c=st.sampled_from([5e-324, 1e-160, 1e160, 1.7e308]),
)
def test_no_nan_and_no_warning_at_the_ends_of_float64(curvature, delta, rho, c) -> None:
    extreme = replace(curvature, lipschitz=rho, n_train=10**15)
    tail = TailInputs(n_train=10**15, loss_range=c, delta=delta, empirical_risk=0.0)
    for result in curvature_bounds(extreme, tail):
        assert not np.isnan(result.gap)
        assert result.gap >= 0
        assert result.rows()  # every number has a JSON form
    assume(strong_convexity(extreme) > 0)
    assert lin2024_bound(extreme, tail).gap >= theorem44_floor(c, 10**15, delta)
