"""Endpoint propagation: exact over the box, and one budget of failure probability."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory import (
    CurvatureInputs,
    Estimate,
    TailInputs,
    curvature_bounds,
    lin2024_bound,
)
from lodrop_theory.intervals import Interval, bound_over_intervals, interval_of_estimate
from tests.theory.strategies import magnitudes

MEASURED = ("lipschitz", "hessian_min_eig", "penalty", "loss_range")


def curvature_bound(name):
    """One of the bounds from curvature, as a function of the two inputs."""

    def bound(curvature, tail, **standing):
        results = curvature_bounds(curvature, tail, **standing)
        return next(r for r in results if r.bound == name)

    return bound


BOUNDS = {
    name: curvature_bound(name)
    for name in ("lin2024", "two-stability", "uniform-tail", "l2-stability")
}


@st.composite
def boxes(draw):
    box = {}
    for name in MEASURED:
        low = draw(magnitudes(-3, 3))
        width = draw(st.one_of(st.just(0.0), st.floats(0, 1)))
        if name == "hessian_min_eig":
            low -= draw(st.sampled_from([0.0, 1.0]))
        box[name] = Interval(
            lower=low, upper=low + abs(low) * width, delta=draw(st.floats(0, 0.02))
        )
    return box


@pytest.mark.parametrize("name", BOUNDS)
@given(
    box=boxes(),
    rate=st.floats(0, 0.9),
    n=st.integers(1, 10**6),
    inside=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_the_corners_enclose_the_box_and_are_attained(name, box, rate, n, inside) -> None:
    fixed = {"n_train": n, "dropout_rate": rate, "delta": 0.1}
    found = bound_over_intervals(**fixed, **box, bound=BOUNDS[name])
    low, high = found.gap
    assert low <= high

    def gap_at(shares):
        point = {
            k: float(v.lower + s * (v.upper - v.lower))
            for (k, v), s in zip(box.items(), shares, strict=True)
        }
        point = {k: min(max(x, float(box[k].lower)), float(box[k].upper)) for k, x in point.items()}
        curvature = CurvatureInputs(
            n_train=n, dropout_rate=rate, **{k: point[k] for k in MEASURED[:3]}
        )
        tail = TailInputs(n_train=n, loss_range=point["loss_range"], delta=found.delta_bound)
        return BOUNDS[name](curvature, tail).gap

    slack = 1 + 1e-12  # the rounding of mu is not monotone to the last ulp
    assert low <= gap_at(inside) * slack
    assert gap_at(inside) <= high * slack
    assert gap_at([1, 0, 0, 1]) == high
    assert gap_at([0, 1, 1, 0]) == low


@given(box=boxes(), delta=st.floats(0.09, 0.9))
def test_the_budget_adds_up(box, delta) -> None:
    found = bound_over_intervals(n_train=100, dropout_rate=0.5, delta=delta, **box)
    assert found.spent == {name: box[name].delta for name in MEASURED}
    assert found.delta_bound + sum(found.spent.values()) <= delta
    assert found.delta_bound == pytest.approx(delta - sum(found.spent.values()), rel=1e-12)
    assert found.worst.delta == delta
    assert found.worst.rows()[0]["delta"] == delta
    assert "each interval misses with at most its failure probability" in found.worst.hypotheses[-1]


def test_numbers_alone_are_the_bound_itself() -> None:
    numbers = {"lipschitz": 1.0, "hessian_min_eig": 0.1, "penalty": 1.0}
    found = bound_over_intervals(
        n_train=100,
        dropout_rate=0.5,
        loss_range=1.0,
        delta=0.05,
        empirical_risk=0.25,
        certified=True,
        **numbers,
    )
    direct = lin2024_bound(
        CurvatureInputs(n_train=100, dropout_rate=0.5, **numbers),
        TailInputs(n_train=100, loss_range=1.0, delta=0.05, empirical_risk=0.25),
        certified=True,
    )
    for corner in (found.best, found.worst):
        assert (corner.gap, corner.risk, corner.kind) == (direct.gap, direct.risk, "certificate")
    assert found.spent == {}


def test_a_risk_over_mask_draws_enters_by_its_upper_end() -> None:
    risk = Interval(lower=0.2, upper=0.3, delta=0.01)
    found = bound_over_intervals(
        n_train=100,
        dropout_rate=0.5,
        lipschitz=1,
        hessian_min_eig=0,
        penalty=1,
        loss_range=1,
        delta=0.05,
        empirical_risk=risk,
    )
    assert found.worst.risk - found.worst.gap == pytest.approx(0.3)
    assert found.best.risk - found.best.gap == pytest.approx(0.2)
    assert found.delta_bound == pytest.approx(0.04)


def test_a_box_that_reaches_no_curvature_is_unbounded() -> None:
    found = bound_over_intervals(
        n_train=100,
        dropout_rate=0.5,
        lipschitz=1,
        hessian_min_eig=Interval(lower=-2, upper=0, delta=0),
        penalty=1,
        loss_range=1,
        delta=0.05,
    )
    low, high = found.gap
    assert np.isfinite(low)
    assert high == np.inf
    assert found.worst.kind == "not applicable"


def test_a_spent_budget_is_refused() -> None:
    wide = Interval(lower=0.5, upper=1, delta=0.05)
    with pytest.raises(ValueError, match=r"`delta` must exceed what the intervals spend, 0\.05"):
        bound_over_intervals(
            n_train=100,
            dropout_rate=0.5,
            lipschitz=wide,
            hessian_min_eig=0,
            penalty=1,
            loss_range=1,
            delta=0.05,
        )


def test_a_statement_in_expectation_keeps_no_delta() -> None:
    found = bound_over_intervals(
        n_train=100,
        dropout_rate=0.5,
        lipschitz=Interval(lower=0.5, upper=1, delta=0.01),
        hessian_min_eig=0,
        penalty=1,
        loss_range=1,
        delta=0.05,
        bound=curvature_bound("expectation"),
    )
    assert found.worst.bound == "expectation"
    assert found.worst.delta is None


def test_estimates_become_intervals_only_if_they_have_one() -> None:
    measured = Estimate(value=1.0, low=0.9, high=1.2, level=0.99, n_draws=10, method="m")
    found = interval_of_estimate(measured)
    assert (float(found.lower), float(found.upper)) == (0.9, 1.2)
    assert found.delta == pytest.approx(0.01)
    sure = Estimate(value=1.0, low=0.9, high=1.2, n_draws=10, method="residual")
    assert interval_of_estimate(sure).delta == 0
    with pytest.raises(ValueError, match="`estimate` must have an interval"):
        interval_of_estimate(Estimate(value=1.0, n_draws=10, method="m"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lower": 2}, "`lower` must be <= `upper`"),
        ({"upper": np.inf}, "`upper` must be finite"),
        ({"delta": 1.0}, "`delta` must be one number"),
        ({"delta": -0.1}, "`delta` must be one number"),
    ],
)
def test_intervals_that_are_none_are_refused(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        Interval(**{"lower": 0, "upper": 1, "delta": 0.1, **changes})
