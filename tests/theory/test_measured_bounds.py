"""Bounds from what a run measured: against exact truth, 50 digits, and the older bounds."""

from dataclasses import replace

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodrop_theory import evaluate_record
from lodrop_theory.measured_stability import NO_SUPREMUM, measured_stability_bounds
from lodrop_theory.randomized_adapter import posterior_bounds, smoothing_of
from lodrop_theory.records import STABILITY_METHODS
from lodrop_theory.solvable import exact_law, memorizer
from tests.factories import (
    estimate,
    exact,
    full_record,
    posterior_points,
    run_record,
    stability_measurement,
)
from tests.theory.exact_records import exact_record

SIX = (
    "two-stability",
    "l2-stability",
    "uniform-tail",
    "expectation",
    "leave-one-out",
    "l2-leave-one-out",
)


def bounds(run, delta=0.05):
    return {(r.bound, r.predictor): r for r in evaluate_record(run, delta=delta)}


def random_algorithm(seed: int, scale: float):
    """Losses around those of the atoms, moved at random by each training set."""

    def losses(counts: np.ndarray) -> np.ndarray:
        base = np.random.default_rng(seed).uniform(0, 1, counts.shape[1])
        moved = [np.random.default_rng([seed, *row]).uniform(-1, 1, len(row)) for row in counts]
        return base + scale * np.array(moved)

    return losses


# validity


@given(seed=st.integers(0, 10**6), scale=st.sampled_from((0.0, 0.01, 0.3)), even=st.booleans())
@settings(max_examples=15)
def test_with_exact_stabilities_every_bound_covers_the_exact_law(seed, scale, even) -> None:
    law = exact_law([0.2, 0.3, 0.5], 8, memorizer if even else random_algorithm(seed, scale))
    for delta in (0.02, 0.2):
        found = {r.bound: r for r in measured_stability_bounds(exact_record(law), delta=delta)}
        for name in ("two-stability/refit", "l2-stability/refit"):
            assert law.violation(float(found[name].gap)) <= delta
        for name in ("leave-one-out/refit", "l2-leave-one-out/refit"):
            margin = float(found[name].risk) - law.leave_one_out_risk[0] + 1e-12
            over = law.population_risk - law.leave_one_out_risk > margin
            assert float(law.chance[over].sum()) <= delta
        assert abs(law.mean_gap) <= float(found["expectation/refit"].gap) + 1e-12


def test_a_randomized_predictor_of_known_risk_is_covered_at_its_best_scale() -> None:
    """200 runs of a coin of known bias: training losses and draws of the posterior simulated."""
    rng, delta, missed, tightest = np.random.default_rng(0), 0.2, 0, 1.0
    base = full_record(config={})  # no smoothing: error rates alone
    rates = (0.3, 0.1, 0.2)  # true error rates of three randomized predictors, by noise scale
    for _ in range(200):
        points = []
        for point, rate in zip(posterior_points(), rates, strict=True):
            training = rng.random(256) < rate
            drawn = float(np.mean(rng.choice(training, 64)))
            points.append(
                replace(
                    point,
                    kl_nats=exact(0.5),
                    error_rate=estimate(drawn, n_draws=64),
                    empirical_risk=estimate(drawn, n_draws=64),
                )
            )
        run = replace(base, posterior=tuple(points))
        found = posterior_bounds(run, delta=delta)[0]
        truth = {p.noise_std: rate for p, rate in zip(points, rates, strict=True)}
        missed += float(found.risk) < truth[float(found.inputs["noise_std"])]
        tightest = min(tightest, float(found.risk))
    assert missed <= 200 * delta
    assert 0.1 < tightest < 0.5


# oracle


def mp_kl_inverse(q, nats):
    """Largest p with kl(q || p) <= nats, by bisection in 50 digits."""
    low, high = q, mpmath.mpf(1)
    for _ in range(160):
        middle = (low + high) / 2
        kl = (q * mpmath.log(q / middle) if q else 0) + (1 - q) * mpmath.log((1 - q) / (1 - middle))
        low, high = (middle, high) if kl <= nats else (low, middle)
    return high


@pytest.mark.parametrize("delta", [0.05, 1e-6])
def test_grid_and_draws_are_paid_for_to_50_digits(delta: float) -> None:
    """G scales: ln G and ln 1/(0.9 delta) in the divergence, ln (G / 0.1 delta) for the draws."""
    run = full_record()
    with mpmath.workdps(50):
        d, grid = mpmath.mpf(delta), len(run.posterior)
        risks = []
        for point in run.posterior:
            drawn = mp_kl_inverse(
                mpmath.mpf(point.error_rate.value),
                mpmath.log(grid / (d / 10)) / point.error_rate.n_draws,
            )
            nats = (
                mpmath.mpf(point.kl_nats.value)
                + mpmath.log(2 * mpmath.sqrt(run.n_train) * grid / (mpmath.mpf(9) / 10 * d))
            ) / run.n_train
            risks.append(mp_kl_inverse(drawn, nats))
        best = float(min(risks))
    found = bounds(run, delta)["pac-bayes-kl/0-1", "gibbs"]
    assert best <= float(found.risk) <= best * (1 + 1e-9)
    assert float(found.delta) == delta


@pytest.mark.parametrize("smoothing", [0.05, 0.3])
def test_the_smoothed_loss_starts_where_its_formula_says(smoothing: float) -> None:
    classes, a = 4, smoothing
    length = float(mpmath.log(1 + (1 - a) * classes / a))
    config = {**run_record().config, "smoothing": a}
    run = full_record(loss_range=exact(length), config=config)
    found = bounds(run)["pac-bayes-kl", "gibbs"]
    smallest = -float(mpmath.log(1 - a + mpmath.mpf(a) / classes))
    assert smallest - 1e-12 <= float(found.inputs["loss_min"]) <= smallest
    assert float(found.risk) <= smallest + length * (1 + 1e-12)


# sandwich


def test_one_scale_is_cheaper_than_the_same_scale_in_a_grid() -> None:
    run = full_record()
    in_grid = bounds(run)["pac-bayes-kl", "gibbs"]
    best = next(p for p in run.posterior if p.noise_std == float(in_grid.inputs["noise_std"]))
    alone = bounds(replace(run, posterior=(best,)))["pac-bayes-kl", "gibbs"]
    assert float(alone.risk) < float(in_grid.risk)
    for point in run.posterior:  # and the one that was taken is the smallest of the grid
        others = replace(run, posterior=(point,) * 3)
        assert float(in_grid.risk) <= float(bounds(others)["pac-bayes-kl", "gibbs"].risk) + 1e-12


def test_the_vote_pays_twice_and_jensen_nothing() -> None:
    found = bounds(full_record())
    gibbs, vote = found["pac-bayes-kl/0-1", "gibbs"], found["pac-bayes-kl/0-1+vote", "ensemble"]
    assert float(vote.risk) == pytest.approx(2 * float(gibbs.risk))
    carried = found["pac-bayes-kl+jensen", "ensemble"]
    assert carried.risk == found["pac-bayes-kl", "gibbs"].risk


def test_hold_out_bounds_that_know_more_are_tighter_where_they_should_be() -> None:
    few = replace(full_record().predictors["mean"], n_errors=5, sample_variance=estimate(0.01))
    run = full_record()
    run = replace(run, predictors={**run.predictors, "mean": few})
    found = bounds(run)
    rough = found["hold-out", "mean"]
    assert found["empirical-bernstein", "mean"].risk < rough.risk
    limit = 5 / 512 + np.sqrt(np.log(20) / (2 * 512))
    assert 5 / 512 < float(found["clopper-pearson", "mean"].risk) < limit
    assert found["clopper-pearson", "mean"].kind == "certificate"
    assert ("clopper-pearson", "gibbs") not in found


# laws


def test_the_list_grows_in_its_order_and_old_rows_stay() -> None:
    old = evaluate_record(run_record(), delta=0.05)
    new = evaluate_record(full_record(), delta=0.05)
    assert len(old) == 9
    for before, after in zip(old, new[:9], strict=True):
        assert (before.bound, before.predictor, before.kind) == (
            after.bound,
            after.predictor,
            after.kind,
        )
        assert (before.gap == after.gap) or (np.isinf(before.gap) and np.isinf(after.gap))
    names = [r.bound for r in new[9:]]
    by_method = [f"{b}/{m}" for m in STABILITY_METHODS for b in SIX]
    assert names[: len(by_method)] == by_method
    rest = names[len(by_method) :]
    assert [n.partition("/")[2] for n in rest[:10]] == ["transverse"] * 5 + ["dropout"] * 5
    assert rest[10:14] == [
        "pac-bayes-kl",
        "pac-bayes-kl+jensen",
        "pac-bayes-kl/0-1",
        "pac-bayes-kl/0-1+vote",
    ]
    assert set(rest[14:]) == {"clopper-pearson", "empirical-bernstein"}
    assert len({(r.bound, r.predictor) for r in new}) == len(new)
    assert len({(r.title, r.predictor) for r in new}) == len(new)


@pytest.mark.parametrize(
    ("part", "gone"),
    [
        ({"stability": None}, lambda name: name.partition("/")[2] in STABILITY_METHODS),
        ({"transverse_min_eig": None}, lambda name: name.endswith("/transverse")),
        ({"dropout_min_eig": None}, lambda name: name.endswith("/dropout")),
        ({"dropout_lipschitz": None}, lambda name: name.endswith("/dropout")),
        ({"posterior": ()}, lambda name: name.startswith("pac-bayes")),
    ],
)
def test_without_a_measurement_its_rows_and_no_others_are_missing(part, gone) -> None:
    names = [(r.bound, r.predictor) for r in evaluate_record(full_record(), delta=0.05)]
    left = [(r.bound, r.predictor) for r in evaluate_record(full_record(**part), delta=0.05)]
    assert left == [each for each in names if not gone(each[0])]
    assert len(left) < len(names)


def test_only_what_is_a_certificate_is_called_one() -> None:
    kinds = {(r.bound, r.predictor): r.kind for r in evaluate_record(full_record(), delta=0.05)}
    for (name, _), kind in kinds.items():
        expected = name.startswith(("hold-out", "pac-bayes", "clopper", "empirical"))
        assert (kind == "certificate") == expected, name
    guessed = tuple(replace(p, kl_nats=estimate(p.kl_nats.value)) for p in posterior_points())
    of_some_rows = tuple(
        replace(p, empirical_risk=estimate(0.3), error_rate=estimate(0.1))
        for p in posterior_points()
    )
    for points in (guessed, of_some_rows):
        plug_in = evaluate_record(full_record(posterior=points), delta=0.05)
        assert {r.kind for r in plug_in if r.bound.startswith("pac-bayes")} == {"plug-in"}


def test_each_result_says_where_its_stability_came_from() -> None:
    for result in measured_stability_bounds(full_record(), delta=0.05):
        method = result.bound.partition("/")[2]
        assert any("one training set" in c for c in result.caveats)
        whose = "training run, at" if method == "retrain" else "training risk, masks off, plus"
        assert any(whose in c for c in result.caveats)
        assert (NO_SUPREMUM in result.caveats) == result.bound.startswith("uniform-tail")
    newton = [
        r for r in measured_stability_bounds(full_record(), delta=0.05) if "newton" in r.bound
    ]
    assert any("0.95 times as large" in c for c in newton[0].caveats)


@given(delta=st.floats(1e-12, 0.5), half=st.floats(0.0, 0.01))
@settings(max_examples=20)
def test_measured_bounds_grow_with_the_width_of_the_intervals_and_fall_with_delta(
    delta, half
) -> None:
    measured = stability_measurement(("refit",))
    found = measured.estimates["refit"]
    wider = replace(
        found,
        **{
            name: replace(e, low=e.low - half, high=e.high + half)
            for name, e in vars(found).items()
        },
    )
    narrow = full_record(stability=measured)
    wide = full_record(stability=replace(measured, estimates={"refit": wider}))
    for a, b, c in zip(
        measured_stability_bounds(narrow, delta=delta),
        measured_stability_bounds(wide, delta=delta),
        measured_stability_bounds(wide, delta=delta / 2),
        strict=True,
    ):
        assert a.gap <= b.gap <= c.gap * (1 + 1e-14)


def test_a_variance_beyond_its_range_is_that_of_the_range() -> None:
    measured = replace(stability_measurement(("refit",)), loss_variance=estimate(1e9))
    run = full_record(stability=measured)
    found = {r.bound: r for r in measured_stability_bounds(run, delta=0.05)}
    limit = run.loss_range.upper**2 / 4
    assert float(found["l2-stability/refit"].inputs["loss_variance"]) == limit


def test_the_smoothing_is_found_wherever_the_configuration_keeps_it() -> None:
    assert smoothing_of({"smoothing": 0.05}) == 0.05
    assert smoothing_of({"measure": {"smoothing": 0.1}, "rank": 8}) == 0.1
    assert smoothing_of({"smoothing": 1.5}) is None
    names = [r.bound for r in evaluate_record(full_record(config={}), delta=0.05)]
    assert "pac-bayes-kl/0-1" in names
    assert "pac-bayes-kl" not in names
