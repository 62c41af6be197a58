"""The ends of the domain: no warning (they are errors here), no silent nan, exact limits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf

from lodrop_theory import (
    CurvatureInputs,
    HoldOutInputs,
    L2StabilityInputs,
    TailInputs,
    TwoStabilityInputs,
    UniformStabilityInputs,
    curvature_bounds,
    expectation_bound,
    hold_out_bound,
    l2_stability_bound,
    lin2024_bound,
    local_stability,
    remove_one_stability,
    repair_dropout_rate,
    replace_one_stability,
    strong_convexity,
    theorem44_floor,
    two_stability_bound,
    uniform_bound,
)
from lodrop_theory.grids import GAP_FORMULAS, gap_grid
from lodrop_theory.planner import elasticities
from tests.theory.strategies import magnitudes

LAST_RATE = float(np.nextafter(1.0, 0.0))
TINY, LARGEST = 5e-324, float(np.finfo(np.float64).max)

counts = st.sampled_from([1, 2, 3, 10**6, 10**15])
rates = st.one_of(
    st.sampled_from([0.0, TINY, 1e-300, 1e-16, 0.5, 1 - 1e-15, LAST_RATE]), st.floats(0, LAST_RATE)
)
sizes = st.one_of(st.sampled_from([0.0, TINY, 1e-160, 1.0, 1e160, LARGEST]), magnitudes(-320, 308))
signed = st.tuples(st.sampled_from([-1.0, 1.0]), sizes).map(lambda x: x[0] * x[1])
# A subnormal C has no digits left to divide by sqrt(n): no nan (test_lin2024), and no more.
ranges = st.one_of(st.sampled_from([1e-150, 1.0, 1e160, LARGEST]), magnitudes(-150, 308))
deltas = st.one_of(st.sampled_from([1e-300, 0.5, LAST_RATE]), magnitudes(-300, -0.001))


@st.composite
def numbers(draw):
    return {
        "n_train": draw(counts),
        "dropout_rate": draw(rates),
        "lipschitz": draw(sizes),
        "hessian_min_eig": draw(signed),
        "penalty": draw(sizes),
        "loss_range": draw(ranges),
        "delta": draw(deltas),
    }


def split(n):
    names = ("n_train", "dropout_rate", "lipschitz", "hessian_min_eig", "penalty")
    return (
        CurvatureInputs(**{k: n[k] for k in names}),
        TailInputs(**{k: n[k] for k in ("n_train", "loss_range", "delta")}),
    )


def exact_mu(n) -> mpf:
    with mp.workdps(700):  # the terms may be 600 decades apart; the rest has no cancellation
        p = mpf(n["dropout_rate"])
        return mpf(n["hessian_min_eig"]) + 2 * mpf(n["penalty"]) * (2 * p - p * p)


def exact_gaps(n) -> list[mpf]:
    """The five bounds of `curvature_bounds`, for mu > 0."""
    mu, rho, count = exact_mu(n), mpf(n["lipschitz"]), mpf(n["n_train"])
    c, delta = mpf(n["loss_range"]), mpf(n["delta"])
    g = 2 * rho**2 / (mu * count)
    log = mp.log(1 / delta)
    return [
        mp.sqrt((c**2 + 24 * c * rho**2 / mu) / (2 * count * delta)),
        mp.sqrt((c**2 / (2 * count) + 5 * c * g) / delta),
        g + (2 * count * g + c) * mp.sqrt(log / (2 * count)),
        g,
        (mp.sqrt(c**2 / (4 * count) + g**2 / 2) + g / mp.sqrt(2) + g) / mp.sqrt(delta),
    ]


@given(n=numbers())
def test_curvature_bounds_at_the_ends_are_upper_bounds_and_never_nan(n) -> None:
    curvature, tail = split(n)
    results = curvature_bounds(curvature, tail)
    with mp.workdps(50):
        mu = exact_mu(n)
        exact = exact_gaps(n) if mu > 0 else [mp.inf] * 5
        noise = (abs(mpf(n["hessian_min_eig"])) + abs(mu)) * mpf(2) ** -44
        clean = mu > noise * mpf(10) ** 6 and mpf(10) ** -290 < mu < mpf(10) ** 300
        for result, value in zip(results, exact, strict=True):
            gap = float(result.gap)
            assert not np.isnan(gap)
            assert gap >= 0
            assert gap == np.inf or mpf(gap) >= value
            if clean and max(exact) < mpf(10) ** 300:
                # not infinite, and sharp, whenever all five are well inside float64
                assert mpf(gap) <= value * (1 + mpf(10) ** -4) + mpf(10) ** -140
            assert result.rows()


@given(n=numbers(), slope=sizes)
def test_stabilities_at_the_ends_are_never_nan(n, slope) -> None:
    curvature, _ = split(n)
    for result in (
        remove_one_stability(curvature),
        remove_one_stability(curvature, suboptimality=slope),
        replace_one_stability(curvature, suboptimality=slope),
        local_stability(curvature, hessian_lipschitz=slope),
    ):
        assert not np.isnan(result.value)
        assert result.value >= 0
        assert result.applicable or result.value == np.inf
    rate = repair_dropout_rate(curvature)
    assert np.isnan(rate) or strong_convexity(replace(curvature, dropout_rate=rate)) > 0


@given(n=counts, c=ranges, delta=deltas, a=sizes, b=sizes, share=st.floats(0, 1))
def test_bounds_from_stabilities_at_the_ends_are_never_nan(n, c, delta, a, b, share) -> None:
    common = {"n_train": n, "loss_range": c, "delta": delta, "empirical_risk": share}
    uniform = UniformStabilityInputs(uniform_stability=a, **common)
    results = [
        two_stability_bound(
            TwoStabilityInputs(hypothesis_stability=a, pointwise_stability=b, **common)
        ),
        uniform_bound(uniform),
        expectation_bound(uniform),
        l2_stability_bound(L2StabilityInputs(replace_one_out=a, replace_one_in=b, **common)),
        hold_out_bound(
            HoldOutInputs(n_test=n, loss_range=c, delta=delta, held_out_risk=a), predictor="mean"
        ),
    ]
    for result in results:
        assert not np.isnan(result.gap)
        assert result.gap >= 0
        assert result.risk is None or not np.isnan(result.risk)


@given(n=numbers())
def test_elasticities_at_the_ends_stay_in_their_ranges(n) -> None:
    found = elasticities(*split(n))
    if not found.applicable:
        return
    assert 0 <= found.lipschitz <= 1
    assert 0.5 <= found.loss_range <= 1
    assert found.penalty <= 0
    assert found.dropout_rate <= 0
    assert not np.isnan(found.hessian_min_eig)


@given(n=numbers())
def test_grids_at_the_ends_agree_with_the_bounds(n) -> None:
    results = {r.bound: r for r in curvature_bounds(*split(n))}
    with mp.workdps(50):
        mu = exact_mu(n)
        for formula, value in zip(
            GAP_FORMULAS, exact_gaps(n) if mu > 0 else [mp.inf] * 5, strict=True
        ):
            gap = gap_grid(formula, **n)
            assert not np.isnan(gap)
            assert gap == np.inf or mpf(float(gap)) >= value
            noise = abs(mpf(n["hessian_min_eig"])) * mpf(10) ** -9
            if mu > noise:
                assert gap == pytest.approx(float(results[formula.bound].gap), rel=1e-4)


# ---- exact limits

BASE = {
    "n_train": 1000,
    "dropout_rate": 0.5,
    "lipschitz": 1.0,
    "hessian_min_eig": 0.5,
    "penalty": 1.0,
    "loss_range": 2.0,
    "delta": 0.05,
}


def gap(**changes) -> float:
    return float(lin2024_bound(*split({**BASE, **changes})).gap)


def test_without_slope_the_floor_is_left_exactly() -> None:
    floor = float(theorem44_floor(2.0, 1000, 0.05))
    for changes in ({"lipschitz": 0.0}, {"lipschitz": TINY}, {"penalty": LARGEST}):
        assert floor <= gap(**changes) <= floor * (1 + 1e-14)


def test_no_dropout_is_the_limit_of_little_dropout() -> None:
    assert gap(dropout_rate=0.0) == gap(dropout_rate=TINY) == gap(dropout_rate=1e-300)
    assert gap(dropout_rate=0.0) == gap(penalty=0.0)


def test_dropout_near_one_is_the_limit_of_full_sparsity() -> None:
    with mp.workdps(50):
        limit = mp.sqrt((4 + 48 / mpf("2.5")) / (2000 * mpf(0.05)))
        assert limit <= mpf(gap(dropout_rate=LAST_RATE)) <= limit * (1 + mpf(10) ** -14)


def test_a_curvature_that_just_vanishes_is_not_applicable() -> None:
    edge = {"hessian_min_eig": -1.5, "penalty": 1.0, "dropout_rate": 0.5}  # mu = 0
    assert gap(**edge) == np.inf
    assert gap(**{**edge, "hessian_min_eig": -1.5 + 1e-10}) < np.inf
    assert gap(hessian_min_eig=-LARGEST, penalty=1e300) == np.inf


def test_one_example_and_all_of_them() -> None:
    assert gap(n_train=1) == pytest.approx(gap(n_train=10**12) * 1e6, rel=1e-12)
    assert np.isfinite(gap(n_train=10**15, delta=1e-300))
    # a delta of 1e-300 costs Chebyshev a factor of 1e149, the tail a root of a logarithm
    tails = {d: curvature_bounds(*split({**BASE, "delta": d}))[2].gap for d in (0.05, 1e-300)}
    assert tails[1e-300] / tails[0.05] < 20 < gap(delta=1e-300) / gap()
