"""The table of bounds, and what the smallest of several costs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodrop_theory import (
    CurvatureInputs,
    HoldOutInputs,
    TailInputs,
    UniformStabilityInputs,
    curvature_bounds,
    expectation_bound,
    hold_out_bound,
    uniform_bound,
)
from lodrop_theory.bounds.bousquet2020 import uniform_log_bound
from lodrop_theory.bounds.from_stability import stability_bounds
from lodrop_theory.bounds.maurer2004 import pac_bayes_kl_bound, pac_bayes_quadratic_bound
from lodrop_theory.bounds.strongconvex import replace_one_stability
from lodrop_theory.clopper_pearson import clopper_pearson_upper
from lodrop_theory.compare import FIXED_COLUMNS, compare, minimum, minimum_at
from lodrop_theory.inputs import PacBayesInputs

CURVATURE = CurvatureInputs(
    n_train=1000, dropout_rate=[0.0, 0.3, 0.5], lipschitz=1, hessian_min_eig=0, penalty=1
)
TAIL = TailInputs(n_train=1000, loss_range=1, delta=0.05, empirical_risk=0.1)


def pac_bayes(kl_nats=3.0, delta=0.05, bound=pac_bayes_kl_bound):
    return bound(
        PacBayesInputs(n_train=1000, loss_range=1, delta=delta, empirical_risk=0.1, kl_nats=kl_nats)
    )


def held_out(delta=0.05, predictor="mean", risk=0.15):
    inputs = HoldOutInputs(
        n_test=500, loss_range=1, delta=delta, held_out_risk=risk, empirical_risk=0.1
    )
    return hold_out_bound(inputs, predictor=predictor, certified=True)


def test_a_table_has_the_same_columns_in_every_row() -> None:
    table = compare(curvature_bounds(CURVATURE, TAIL), held_out(), [pac_bayes()])
    assert len(table) == 5 * 3 + 2
    assert table.columns[: len(FIXED_COLUMNS)] == FIXED_COLUMNS
    assert all(tuple(row) == table.columns for row in table)
    json.dumps(list(table), allow_nan=False)
    first = table[0]
    assert (first["kind"], first["gap"], first["free_parameters"]) == (
        "not applicable",
        None,
        ["penalty"],
    )
    assert first["remedy"]
    assert first["depends_on_dropout_rate"]
    assert not table[15]["depends_on_dropout_rate"]
    assert [row["predictor"] for row in table][-2:] == ["mean", "gibbs"]
    assert str(table).splitlines()[1].split()[:4] == ["lin2024", "inf", "inf", "mean"]


def test_pandas_is_optional() -> None:
    pandas = pytest.importorskip("pandas")
    frame = compare(curvature_bounds(CURVATURE, TAIL)).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.shape[0] == 15
    assert frame.loc[1, "gap"] == curvature_bounds(CURVATURE, TAIL)[0].gap[1]


def test_only_bounds_belong_in_a_table() -> None:
    with pytest.raises(TypeError, match="`results` must be bounds"):
        compare([1.0])  # type: ignore[list-item]
    assert len(compare()) == 0


def test_bounds_of_one_gap_cost_nothing() -> None:
    stability = replace_one_stability(CURVATURE, certified=True)
    results = stability_bounds(stability, TAIL, predictor="mean", certified=True)[1:4]
    best = minimum(results)
    assert np.all(best.delta == 0.05)
    assert np.array_equal(best.gap, np.min([r.gap for r in results], axis=0))
    assert best.kind.tolist() == ["not applicable", "certificate", "certificate"]
    assert "they share one event" in best.caveats[-1]


def test_one_inequality_in_two_forms_costs_nothing_and_two_priors_cost_two() -> None:
    forms = [pac_bayes(bound=b) for b in (pac_bayes_kl_bound, pac_bayes_quadratic_bound)]
    assert minimum(forms).delta == 0.05
    assert minimum(forms).risk == forms[0].risk
    priors = minimum(pac_bayes(3.0), pac_bayes(2.0))
    assert float(priors.delta) == pytest.approx(0.1)
    assert "2 different events" in priors.caveats[-1]


def test_different_training_risks_are_different_events() -> None:
    inputs = UniformStabilityInputs(
        n_train=100, loss_range=1, delta=0.05, uniform_stability=0.01, empirical_risk=0.1
    )
    other = uniform_bound(replace(inputs, empirical_risk=0.2))
    assert float(minimum(uniform_bound(inputs), other).delta) == pytest.approx(0.1)


def test_a_plug_in_spoils_the_certificate_only_where_it_is_smallest() -> None:
    good, tight = held_out(), replace(held_out(), gap=np.asarray(0.01), certified=False)
    assert minimum(good, tight).kind == "plug-in"
    loose = replace(held_out(), gap=np.asarray(0.5), certified=False)
    assert minimum(good, loose).kind == "certificate"


def test_expectations_have_no_delta_to_pay() -> None:
    inputs = UniformStabilityInputs(
        n_train=100, loss_range=1, delta=0.05, uniform_stability=[0.01, 0.2]
    )
    other = expectation_bound(replace(inputs, uniform_stability=0.1))
    best = minimum(expectation_bound(inputs), other)
    assert best.gap.tolist() == [0.01, 0.1]
    assert best.delta is None


@pytest.mark.parametrize(
    ("results", "match"),
    [
        ([], "at least one bound"),
        ([held_out(), held_out(predictor="gibbs")], "one predictor"),
        ([held_out(delta=0.5), held_out(delta=0.6)], "add up to less than 1"),
        (
            [
                held_out(),
                expectation_bound(
                    UniformStabilityInputs(
                        n_train=10, loss_range=1, delta=0.1, uniform_stability=0.1
                    )
                ),
            ],
            "one statement",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(results, match) -> None:
    with pytest.raises(ValueError, match=match):
        minimum(results)


@given(delta=st.floats(1e-6, 0.5), kl=st.floats(0, 50))
@settings(max_examples=20)
def test_minimum_at_never_spends_more_than_delta(delta: float, kl: float) -> None:
    best = minimum_at(
        [
            lambda d: pac_bayes(kl, d),
            lambda d: pac_bayes(kl, d, pac_bayes_quadratic_bound),
            lambda d: held_out(d, "gibbs"),
        ],
        delta=delta,
    )
    assert best.delta <= delta
    halves = pac_bayes(kl, delta / 2).risk, held_out(delta / 2, "gibbs").risk
    assert float(best.risk) == pytest.approx(float(min(halves)), rel=1e-9)


def test_the_union_is_needed_where_it_is_paid() -> None:
    # Two test sets of one coin each. At delta = 0.4 the exact limit after no error is 0.6.
    delta, true = 0.4, 0.6 + 1e-6
    limit = [float(clopper_pearson_upper(error, 1, delta)) for error in (0, 1)]
    chance = [1 - true, true]
    single = sum(chance[e] for e in (0, 1) if limit[e] < true)
    either = sum(
        chance[a] * chance[b] for a in (0, 1) for b in (0, 1) if min(limit[a], limit[b]) < true
    )
    assert single <= delta < either <= 2 * delta


def test_uniform_log_joins_the_same_event() -> None:
    inputs = UniformStabilityInputs(
        n_train=10**5, loss_range=1, delta=0.05, uniform_stability=2e-3, empirical_risk=0.1
    )
    best = minimum(uniform_bound(inputs), uniform_log_bound(inputs))
    assert best.gap == uniform_log_bound(inputs).gap
    assert best.delta == 0.05
    assert best.title == "Smallest of: uniform-tail, uniform-log-tail"
