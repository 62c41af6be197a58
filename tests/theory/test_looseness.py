"""The bound table and the slack: cells equal their formulas, factors multiply to the ratio."""

import json
import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodrop_theory import bound_table, evaluate_record, looseness
from lodrop_theory.records import STABILITY_METHODS
from lodrop_theory.solvable import exact_law, memorizer
from lodrop_theory.stability_table import FALSE_LEMMA, FORMS
from tests.factories import (
    estimate,
    exact,
    full_record,
    run_record,
    run_records,
    stability_measurement,
)
from tests.theory.exact_records import exact_record

READ_STABILITY = [form for form in FORMS if form not in ("pac-bayes", "hold-out")]
CHAIN = [
    "theorem",
    "point values",
    "repaired lemma",
    "across the orbits",
    "measured stability",
    "true refits",
    "retraining",
    "mean square",
    "no tail",
    "no sampling noise",
    "signed change",
    "measured gap",
]


def convex_record(**changes):
    """A run to which Theorem 4.4 applies."""
    return full_record(
        **{"hessian_min_eig": estimate(0.1, 0.05), "penalty": estimate(0.01, 0.005), **changes}
    )


# the table


@given(run=run_records(), delta=st.floats(1e-9, 0.9))
@settings(max_examples=10)
def test_every_cell_has_a_number_or_a_reason(run, delta) -> None:
    table = bound_table(run, delta=delta)
    assert [s.name for s in table] == [
        "theorem",
        "plug-in",
        "transverse",
        "trace",
        *STABILITY_METHODS,
        "none",
    ]
    for source in table:
        assert list(source.cells) == list(FORMS)
        for cell in source.cells.values():
            assert (cell.value is None) == (cell.kind == "empty")
            assert (cell.reason is None) == (cell.kind in ("plug-in", "certificate"))
            assert (cell.value == math.inf) == (cell.kind == "not applicable")
    json.dumps(table.rows(), allow_nan=False)


def test_rows_agree_with_the_bounds_of_the_record() -> None:
    run = convex_record()
    found = {(r.bound, r.predictor): r for r in evaluate_record(run, delta=0.05)}
    table = bound_table(run, delta=0.05)
    theorem = table["theorem"].cells
    assert theorem["paper"].value == found["lin2024", "mean"].gap
    for form in READ_STABILITY[1:]:
        assert theorem[form].value == found[form, "mean"].gap
    none = table["none"].cells
    assert none["hold-out"].value == found["hold-out", "mean"].gap
    assert none["pac-bayes"].value == found["pac-bayes-kl", "gibbs"].gap
    assert {none[form].kind for form in READ_STABILITY} == {"empty"}
    for source in table:  # stated once
        if source.name != "none":
            assert source.cells["hold-out"].value is source.cells["pac-bayes"].value is None


@given(size=st.floats(0, 10), delta=st.floats(1e-6, 0.9))
@settings(max_examples=15)
def test_cells_of_a_measured_stability_to_50_digits(size: float, delta: float) -> None:
    found = replace(
        stability_measurement(("newton",)).estimates["newton"],
        pointwise_stability=exact(size),
        hypothesis_stability=exact(size / 2),
        replace_one_in=exact(size / 3),
        replace_one_out=exact(size / 4),
    )
    run = full_record(
        stability=replace(stability_measurement(("newton",)), estimates={"newton": found})
    )
    cells = bound_table(run, delta=delta)["newton"].cells
    with mpmath.workdps(50):
        b, c, n, d, v = map(mpmath.mpf, (size, run.loss_range.value, run.n_train, delta, 0.7))
        paper = mpmath.sqrt((c**2 + 12 * c * n * b) / (2 * n * d))
        two = mpmath.sqrt((c**2 + 2 * c * n * (3 * b / 2 + 2 * b)) / (2 * n * d))
        within, out = mpmath.mpf(found.replace_one_in.value), mpmath.mpf(size / 4)
        square = mpmath.sqrt(v / n + out**2 / 2) + out / mpmath.sqrt(2) + within
        expected = {"paper": paper, "two-stability": two, "l2-stability": square / mpmath.sqrt(d)}
        g = max(within, out)
        expected["uniform-tail"] = g + (2 * n * g + c) * mpmath.sqrt(-mpmath.log(d) / (2 * n))
        expected["expectation"] = within
    for form, value in expected.items():
        assert cells[form].value == pytest.approx(float(value), rel=1e-12, abs=1e-300), form


def test_reference_the_size_of_rte() -> None:
    """Design value of Theorem 4.4: n = 2490, C = rho = lambda = 1, delta = 0.05, p = 0.1: 0.508."""
    run = run_record(
        dropout_rate=0.1,
        n_train=2490,
        loss_range=exact(1.0),
        lipschitz=exact(1.0),
        hessian_min_eig=exact(0.0),
        penalty=exact(1.0),
    )
    cells = bound_table(run, delta=0.05)["theorem"].cells
    assert round(cells["paper"].value, 3) == 0.508
    assert cells["two-stability"].value < cells["paper"].value  # 10 C n b for 12 C n b


def test_the_lemma_as_printed_is_broken_by_the_memorizer_and_is_no_bound() -> None:
    law = exact_law([1 / 12] * 12, 4, memorizer)
    run = exact_record(law)
    delta = 0.4
    table = bound_table(run, delta=delta)
    printed, repaired = (table["refit"].cells[form] for form in ("paper", "two-stability"))
    assert law.violation(printed.value) == pytest.approx(1.0)
    assert law.violation(repaired.value) <= delta
    assert (printed.kind, printed.reason) == ("as printed", FALSE_LEMMA)
    assert not any("printed" in r.bound for r in evaluate_record(run, delta=delta))
    assert "!" in str(table)


def test_the_trace_fills_the_expected_gap_alone_and_as_an_estimate() -> None:
    cells = bound_table(full_record(), delta=0.05)["trace"].cells
    assert (cells["expectation"].value, cells["expectation"].kind) == (0.3, "estimate")
    assert {cells[f].kind for f in FORMS if f != "expectation"} == {"empty"}
    assert "bounds no mean of absolute ones" in str(cells["two-stability"].reason)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10)
def test_remove_one_across_the_orbits_is_half_of_replace_one(seed: int) -> None:
    """Both factors of a product trained on half squares: growth, slopes and losses by brute force.

    With the growth that holds at the compared solutions and the slopes between each and the nearest
    point of the other orbit, no loss changes by more than rho^2 / (mu_t n).
    """
    rng = np.random.default_rng(seed)
    n = 6
    targets = rng.uniform(1.0, 2.0, n)
    grid = np.exp(np.linspace(-3, 3, 20_001))

    def orbit(product: float) -> np.ndarray:
        return np.stack([grid, product / grid], axis=1)

    def nearest(point: np.ndarray, product: float) -> np.ndarray:
        points = orbit(product)
        return points[np.argmin(((points - point) ** 2).sum(1))]

    def slope(start: np.ndarray, end: np.ndarray) -> float:
        at = start + np.linspace(0, 1, 200)[:, None] * (end - start)
        residual = np.abs(at[:, :1] * at[:, 1:] - targets)
        return float((residual * np.linalg.norm(at, axis=1)[:, None]).max())

    whole, rest = targets.mean(), targets[1:].mean()
    a = float(np.exp(rng.uniform(-0.5, 0.5)))
    v, u = np.array([a, whole / a]), np.array([a, rest / a])  # of S, and of S without the first
    near_v, near_u = nearest(v, rest), nearest(u, whole)
    distance = np.linalg.norm(u - near_u), np.linalg.norm(v - near_v)
    # F_S(u) - min F_S, and the same for the others, still divided by n
    growth = (rest - whole) ** 2, (n - 1) / n * (rest - whole) ** 2
    mu = min(g / d**2 for g, d in zip(growth, distance, strict=True))
    rho = max(slope(u, near_u), slope(v, near_v))
    changes = np.abs((whole - targets) ** 2 - (rest - targets) ** 2) / 2
    assert changes.max() <= rho**2 / (mu * n) * (1 + 1e-6)
    run = full_record(
        n_train=n, lipschitz=exact(rho), transverse_min_eig=exact(float(mu)), loss_range=exact(4.0)
    )
    cells = bound_table(run, delta=0.05)["transverse"].cells
    assert cells["expectation"].value == pytest.approx(2 * rho**2 / (mu * n))
    b = rho**2 / (mu * n)
    paper = math.sqrt((16 + 12 * 4 * n * b) / (2 * n * 0.05))
    assert cells["paper"].value == pytest.approx(paper)
    assert cells["two-stability"].value == pytest.approx(
        math.sqrt((16 + 10 * 4 * n * b) / (2 * n * 0.05))
    )


# the slack


@given(run=run_records(), delta=st.floats(1e-9, 0.9))
@settings(max_examples=10)
def test_the_factors_multiply_to_bound_over_gap(run, delta) -> None:
    found = looseness(run, delta=delta)
    assert [link.level for link in found] == CHAIN
    if found.log10_total is None:
        assert run.predictors["mean"].generalization_gap.value <= 0
    elif math.isinf(found.log10_total):
        assert found.log10_explained == math.inf
    else:
        assert found.log10_explained == pytest.approx(found.log10_total, abs=1e-9)
    json.dumps(found.rows(), allow_nan=False)


@given(
    gap=st.floats(1e-6, 3.0),
    delta=st.floats(1e-9, 0.9),
    rho=st.floats(1e-3, 1e3),
    methods=st.sets(st.sampled_from(STABILITY_METHODS)),
    across=st.none() | st.floats(-1, 1),
)
@settings(max_examples=20)
def test_they_do_so_whatever_was_measured(gap, delta, rho, methods, across) -> None:
    run = convex_record(
        lipschitz=exact(rho),
        stability=stability_measurement(tuple(methods)) if methods else None,
        transverse_min_eig=None if across is None else estimate(across),
    )
    mean = replace(run.predictors["mean"], generalization_gap=estimate(gap))
    found = looseness(replace(run, predictors={**run.predictors, "mean": mean}), delta=delta)
    theorem = evaluate_record(run, delta=delta)[0]
    assert found.log10_total == pytest.approx(math.log10(float(theorem.gap) / gap))
    assert found.log10_explained == pytest.approx(found.log10_total, abs=1e-9)
    assert found.log10_finite == found.log10_explained
    for link in found:  # nothing is dropped: a level has a factor, or says why not
        assert link.level == "theorem" or (link.log10 is None) == (link.reason is not None)
    levels = {link.level: link for link in found}
    steps = {"newton", "gauss-newton", "influence"}
    for name, some in (("measured stability", steps), ("true refits", {"refit"})):
        assert (levels[name].log10 is None) == (not methods & some)
    assert (levels["mean square"].log10 is None) == (not methods)


def test_each_factor_is_the_ratio_that_its_name_says() -> None:
    run = convex_record()
    table, found = bound_table(run, delta=0.04), looseness(run, delta=0.04)
    values = {link.level: link.value for link in found}
    factors = {link.level: link.log10 for link in found}
    assert values["theorem"] == table["theorem"].cells["paper"].value
    assert values["repaired lemma"] == table["plug-in"].cells["two-stability"].value
    assert factors["no tail"] == pytest.approx(-math.log10(0.04) / 2)  # Chebyshev, exactly
    assert values["no sampling noise"] == table["retrain"].cells["expectation"].value
    estimates = run.stability.estimates["retrain"]
    assert values["signed change"] == estimates.replace_one_gap.value
    assert factors["signed change"] == pytest.approx(math.log10(1.5))  # rms 1.5 s, mean s
    assert values["measured gap"] == run.predictors["mean"].generalization_gap.value


def test_with_exact_numbers_the_last_factor_is_chance_alone() -> None:
    """Down to the signed change, which *is* the mean gap over the law of all samples."""
    law = exact_law([0.2, 0.3, 0.5], 6, lambda c: (c == 0).astype(float))
    found = {link.level: link for link in looseness(exact_record(law), delta=0.1)}
    assert found["signed change"].value == pytest.approx(law.mean_gap, rel=1e-9)
    assert found["no tail"].value >= math.sqrt(float(law.chance @ law.generalization_gap**2))
    assert found["no sampling noise"].value >= law.mean_gap


@pytest.mark.parametrize("gap", [0.0, -0.2])
def test_a_gap_that_is_not_positive_has_no_ratio(gap: float) -> None:
    run = convex_record()
    mean = replace(run.predictors["mean"], generalization_gap=estimate(gap))
    found = looseness(replace(run, predictors={**run.predictors, "mean": mean}), delta=0.05)
    assert found.log10_total is None
    assert found.links[-1].log10 is None
    assert "has no logarithm" in str(found.links[-1].reason)
    top, bottom = found.links[0].value, found.links[-2].value
    assert found.log10_explained == pytest.approx(math.log10(top / bottom))
    assert "is not positive" in found.summary()


def test_a_signed_change_that_is_not_positive_is_passed_over() -> None:
    measured = stability_measurement(("refit",))
    some = replace(measured.estimates["refit"], replace_one_gap=estimate(-0.01))
    run = convex_record(stability=replace(measured, estimates={"refit": some}))
    found = looseness(run, delta=0.05)
    assert found.links[-2].log10 is None
    assert found.links[-1].above == "no sampling noise"
    assert "all that was passed over" in found.links[-1].paid_for
    assert found.log10_explained == pytest.approx(found.log10_total)


def test_a_theorem_that_is_not_applicable_is_infinitely_loose_and_says_why() -> None:
    found = looseness(full_record(), delta=0.05)
    assert [link.log10 for link in found][:4] == [None, None, None, math.inf]
    assert "strong convexity" in str(found.links[0].reason)
    assert found.log10_total == found.log10_explained == math.inf
    finite = math.log10(found.links[3].value / found.links[-1].value)
    assert found.log10_finite == pytest.approx(finite)
    assert "infinite" in found.summary()
    bare = looseness(run_record(), delta=0.05)
    assert bare.links[-1].log10 == math.inf
    assert bare.links[-1].above == "repaired lemma"
    assert "no level between" in bare.summary()


def test_text_and_data_frames() -> None:
    run = convex_record()
    table, found = bound_table(run, delta=0.05), looseness(run, delta=0.05)
    assert len(table.to_pandas()) == len(table.sources) * len(FORMS)
    assert list(found.to_pandas()["level"]) == CHAIN
    assert str(table).splitlines()[0].split()[0] == "source"
    assert max(map(len, str(table).splitlines())) <= 100
    assert max(map(len, str(found).splitlines())) <= 110
    assert f"log10 = {found.log10_total:+.2f}" in str(found)


@pytest.mark.parametrize("delta", [0.0, 1.0, float("nan")])
def test_delta_outside_its_range_is_refused(delta) -> None:
    for function in (bound_table, looseness):
        with pytest.raises(ValueError, match="`delta` must"):
            function(full_record(), delta=delta)
