"""From a record to its bounds: conservative ends, standing, agreement with the direct calls."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory import (
    CurvatureInputs,
    HoldOutInputs,
    TailInputs,
    evaluate_record,
    hold_out_bound,
    lin2024_bound,
    stability_of_record,
)
from lodrop_theory.evaluate import NEGATIVE_PENALTY, theorem44_floor
from tests.factories import estimate, predictor_scores, run_record


def record(**changes):
    """A run whose estimates have intervals, so that the ends differ from the values."""
    fields = {
        "loss_range": estimate(3.6636),
        "lipschitz": estimate(1.0, 1.0),
        "hessian_min_eig": estimate(-0.01, 0.01),
        "penalty": estimate(1.0, 0.5),
        "predictors": {
            "gibbs": predictor_scores(0.3, 0.5),
            "ensemble": predictor_scores(0.25, 0.45),
            "mean": predictor_scores(0.2, 0.46),
        },
    }
    return run_record(**{"dropout_rate": 0.3, **fields, **changes})


NAMES = [
    ("lin2024", "mean"),
    ("two-stability", "mean"),
    ("uniform-tail", "mean"),
    ("expectation", "mean"),
    ("l2-stability", "mean"),
    ("hold-out", "gibbs"),
    ("hold-out", "ensemble"),
    ("hold-out", "mean"),
    ("hold-out+jensen", "ensemble"),
]


def test_every_bound_is_there_with_its_predictor_and_standing() -> None:
    results = evaluate_record(record(), delta=0.05)
    assert [(r.bound, r.predictor) for r in results] == NAMES
    assert [r.kind for r in results] == ["plug-in"] * 5 + ["certificate"] * 4


def test_each_estimate_enters_by_its_conservative_end() -> None:
    paper = evaluate_record(record(), delta=0.05)[0]
    curvature = CurvatureInputs(
        n_train=256, dropout_rate=0.3, lipschitz=2.0, hessian_min_eig=-0.02, penalty=0.5
    )
    tail = TailInputs(n_train=256, loss_range=3.6636, delta=0.05, empirical_risk=0.2)
    direct = lin2024_bound(curvature, tail)
    assert paper.gap == direct.gap
    assert paper.risk == direct.risk
    assert paper.gap >= theorem44_floor(3.6636, 256, 0.05)


@pytest.mark.parametrize("predictor", ["gibbs", "ensemble", "mean"])
def test_hold_out_reads_the_held_out_mean_of_its_own_predictor(predictor: str) -> None:
    run = record()
    scores = run.predictors[predictor]
    direct = hold_out_bound(
        HoldOutInputs(
            n_test=512,
            loss_range=3.6636,
            delta=0.1,
            held_out_risk=scores.population_risk.value,
            empirical_risk=scores.empirical_risk.value,
        ),
        predictor=predictor,
    )
    found = [
        r
        for r in evaluate_record(run, delta=0.1)
        if (r.bound, r.predictor) == ("hold-out", predictor)
    ]
    assert [r.risk for r in found] == [direct.risk]


def test_the_ensemble_may_be_bounded_through_gibbs() -> None:
    results = {(r.bound, r.predictor): r for r in evaluate_record(record(), delta=0.05)}
    carried, gibbs = results["hold-out+jensen", "ensemble"], results["hold-out", "gibbs"]
    assert carried.risk == gibbs.risk
    assert carried.risk > results["hold-out", "ensemble"].risk  # 0.5 > 0.45 held out


@pytest.mark.parametrize(("penalty", "warned"), [(None, False), (estimate(0.1, 0.3), True)])
def test_a_penalty_that_is_missing_or_negative_counts_as_zero(penalty, warned) -> None:
    results = evaluate_record(record(penalty=penalty), delta=0.05)
    assert float(results[0].inputs["penalty"]) == 0.0
    assert [r.kind for r in results[:5]] == ["not applicable"] * 5
    assert (NEGATIVE_PENALTY in results[0].caveats) == warned
    assert np.isnan(results[0].repair_dropout_rate)
    assert "no dropout rate" in str(results[0].remedy)
    assert [r.kind for r in results[5:]] == ["certificate"] * 4


def test_curvature_bounds_carry_the_caveat_of_the_gauge() -> None:
    for result in evaluate_record(record(), delta=0.05)[:5]:
        assert any("(B G, G^-1 A)" in c for c in result.caveats)


def test_stabilities_of_a_record() -> None:
    paper, removed, halved, replaced = stability_of_record(record())
    mu = -0.02 + 2 * 0.5 * 0.51
    assert float(paper.value) == pytest.approx(2 * 4 / (mu * 256))
    assert paper.value == removed.value == replaced.value
    assert halved.value == pytest.approx(float(paper.value) / 2)
    assert {s.kind for s in (paper, removed, halved, replaced)} == {"plug-in"}


@given(delta=st.floats(1e-300, 0.99))
def test_smaller_delta_is_never_tighter(delta: float) -> None:
    tight = evaluate_record(record(), delta=0.99)
    for loose, other in zip(evaluate_record(record(), delta=delta), tight, strict=True):
        assert loose.gap >= other.gap * (1 - 1e-14)


@pytest.mark.parametrize("delta", [0.0, 1.0, float("nan"), -0.1])
def test_delta_outside_its_range_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="`delta` must"):
        evaluate_record(record(), delta=delta)


def test_delta_has_no_default() -> None:
    with pytest.raises(TypeError, match="delta"):
        evaluate_record(record())  # type: ignore[call-arg]


def test_a_run_without_dropout_is_evaluated() -> None:
    results = evaluate_record(
        record(dropout_rate=0.0, penalty=None, hessian_min_eig=estimate(0.1)), delta=0.05
    )
    assert results[0].applicable  # convex already: no penalty needed
