"""The audit: every hypothesis answered, "holds" only where it does, numbers with their standing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from lodrop_theory import audit, evaluate_record, read_record
from lodrop_theory.assumptions.table import COLUMNS
from tests.factories import (
    estimate,
    exact,
    full_record,
    posterior_points,
    run_record,
    run_records,
    stability_measurement,
)

COMMITTED = Path(__file__).parents[2] / "paper_figures" / "records" / "movie-reviews"
STATUSES = {"holds", "violated", "plug-in", "unchecked"}
# What may hold: proved, or exact by construction. A new entry needs a proof, not a number.
MAY_HOLD = {
    "bounded loss",
    "no symmetry in the trained coordinates",
    "proved Lipschitz constant",
    "one lambda",
    "scaling of the masks at evaluation",
    "constants of the training loss serve the loss of record",
    "a derived stability at every point",
    "stationary point of the measured objective",
    "loss convex in the averaged output",
    "independent draws of the posterior",
    "exact divergence",
}


def status(run, name: str) -> str:
    return {h.name: h.status for h in audit(run)}[name]


def evidence(run, name: str) -> str:
    return {h.name: h.evidence for h in audit(run)}[name]


@given(run=run_records())
@settings(max_examples=12)
def test_every_sentence_of_every_theorem_is_answered(run) -> None:
    table = audit(run)
    for result in evaluate_record(run, delta=0.05):
        for sentence in result.hypotheses:
            answers = [h for h in table if sentence in h.statements and result.bound in h.bounds]
            assert answers, (result.bound, sentence)
    needed = {(r.bound, s) for r in evaluate_record(run, delta=0.5) for s in r.hypotheses}
    for h in table:  # and nothing is answered that no theorem of the run asks
        for sentence in h.statements:
            assert any((bound, sentence) in needed for bound in h.bounds)


@given(run=run_records())
@settings(max_examples=12)
def test_what_holds_is_proved_and_every_row_is_whole(run) -> None:
    for h in audit(run):
        assert h.status in STATUSES
        assert h.evidence
        assert "nan" not in h.evidence
        assert (h.remedy is None) == (h.status == "holds"), h.name
        assert h.status != "holds" or h.name in MAY_HOLD
        assert list(h.row()) == list(COLUMNS)
    json.dumps(audit(run).rows(), allow_nan=False)


def test_all_subjects_are_there() -> None:
    names = {h.name for h in audit(full_record())}
    for subject in ("energy", "stationarity", "curvature"):
        assert f"strong convexity, lambda by {subject}" in names
    assert names >= MAY_HOLD | {
        "independent training rows",
        "symmetric algorithm",
        "exact minimizers",
        "Lipschitz constant at the solution",
        "Lipschitz constant on the segments",
        "growth across the gauge orbits",
        "held-out rows untouched",
        "prior independent of the sample",
    }
    assert {h.status for h in audit(full_record())} == STATUSES


def test_what_was_not_measured_is_named_last() -> None:
    names = [h.name for h in audit(run_record())]
    assert names[-4:] == [
        "curvature across the gauge orbits",
        "curvature under masks",
        "stability near the solution",
        "randomized adapter",
    ]
    assert all(h.bounds == () for h in list(audit(run_record()))[-4:])


@pytest.mark.parametrize(
    ("smallest", "expected"),
    [
        (estimate(-0.5, 0.1), "violated"),
        (estimate(-0.1, 0.2), "plug-in"),
        (estimate(0.5), "plug-in"),
    ],
)
def test_strong_convexity_is_violated_only_if_even_the_favorable_end_is(smallest, expected) -> None:
    run = full_record(hessian_min_eig=smallest, penalty=estimate(0.001, 0.0005))
    assert status(run, "strong convexity, lambda by energy") == expected


def test_each_estimator_of_lambda_is_judged_by_its_own_value() -> None:
    """Mu = -0.2 + 2 lambda 0.51: 0.2 is enough, 0.002 and -0.001 (which counts as 0) are not."""
    run = full_record(hessian_min_eig=estimate(-0.2))
    found = {h.name.rpartition(" ")[2]: h for h in audit(run) if "lambda by" in h.name}
    assert {name: h.status for name, h in found.items()} == {
        "energy": "violated",
        "stationarity": "violated",
        "curvature": "plug-in",
    }
    assert "mu in [0.004, 0.004]" in found["curvature"].evidence
    assert "mu in [-0.2, -0.2]" in found["stationarity"].evidence
    assert found["energy"].estimate == run.penalty
    none = full_record(penalty_curvature=None)
    assert status(none, "strong convexity, lambda by curvature") == "unchecked"
    assert "strong convexity" in {h.name for h in audit(full_record(0.0))}


@pytest.mark.parametrize(
    ("count", "expected"), [(768, "violated"), (0, "holds"), (None, "unchecked")]
)
def test_a_gauge_refutes_strong_convexity(count, expected) -> None:
    run = full_record(gauge_dimension=count, transverse_min_eig=estimate(0.1))
    assert status(run, "no symmetry in the trained coordinates") == expected
    said = evidence(run, "no symmetry in the trained coordinates")
    assert "-0.2 [-0.21, -0.2] in the trained coordinates, 0.1 across the orbits" in said


def test_the_gradient_costs_what_the_theorem_says() -> None:
    """2 rho |g| / mu, because eps <= |g|^2 / (2 mu) and the theorem adds 2 rho sqrt(2 eps / mu)."""
    run = full_record(
        hessian_min_eig=exact(0.5),
        penalty=exact(0.0),
        lipschitz=exact(3.0),
        gradient_norm=exact(0.01),
    )
    assert "add at most 2 rho |g| / mu = 0.12" in evidence(run, "exact minimizers")
    assert status(run, "exact minimizers") == "plug-in"
    stopped = full_record(0.0, hessian_min_eig=estimate(-0.1), gradient_norm=estimate(0.01))
    assert status(stopped, "exact minimizers") == "violated"
    assert status(run_record(0.3), "exact minimizers") == "plug-in"  # that of the penalty is not 0


def test_a_larger_gradient_between_solutions_refutes_the_one_at_the_solution() -> None:
    segment = replace(stability_measurement(), lipschitz_segment=estimate(25.0))
    smaller = replace(stability_measurement(), lipschitz_segment=estimate(15.0))
    name = "Lipschitz constant at the solution"
    assert status(full_record(lipschitz=estimate(20.0), stability=segment), name) == "violated"
    assert status(full_record(lipschitz=estimate(20.0), stability=smaller), name) == "plug-in"


@pytest.mark.parametrize(
    ("proved", "expected"),
    [(exact(9.0), "holds"), (exact(400.0), "plug-in"), (estimate(9.0), "plug-in")],
)
def test_a_proved_constant_answers_for_the_bounds_only_if_they_read_as_much(
    proved, expected
) -> None:
    run = full_record(lipschitz=exact(20.0), lipschitz_bound=proved)
    assert status(run, "proved Lipschitz constant") == expected
    assert proved.method in evidence(run, "proved Lipschitz constant")
    assert status(full_record(lipschitz_bound=None), "proved Lipschitz constant") == "unchecked"


def test_estimators_of_lambda_that_are_apart_refute_one_lambda() -> None:
    apart = full_record(penalty=estimate(0.1, 0.01), penalty_kkt=estimate(0.2, 0.01))
    near = full_record(penalty=estimate(0.1, 0.06), penalty_kkt=estimate(0.2, 0.06))
    assert status(apart, "one lambda") == "violated"
    assert "intervals apart: energy and stationarity" in evidence(apart, "one lambda")
    assert status(near, "one lambda") == "plug-in"
    assert status(full_record(), "one lambda") == "plug-in"
    assert "of differing sign" in evidence(full_record(), "one lambda")
    assert status(full_record(0.0), "one lambda") == "holds"


@pytest.mark.parametrize(
    ("config", "notes", "expected"),
    [
        ({"rescale": True}, (), "holds"),
        ({"rescale": False}, ("the mean predictor applies (1 - p)^2 of the update.",), "holds"),
        ({"rescale": False}, (), "unchecked"),
        ({}, (), "unchecked"),
    ],
)
def test_scaling_of_the_masks(config, notes, expected) -> None:
    run = run_record(config=config, notes=notes)
    assert status(run, "scaling of the masks at evaluation") == expected


def test_what_is_not_exact_does_not_hold() -> None:
    assert status(run_record(loss_range=estimate(3.66, 0.1)), "bounded loss") == "plug-in"
    assert status(run_record(loss_range=exact(3.66)), "bounded loss") == "holds"
    guessed = tuple(replace(p, kl_nats=estimate(p.kl_nats.value)) for p in posterior_points())
    assert status(full_record(posterior=guessed), "exact divergence") == "plug-in"
    undrawn = tuple(replace(p, error_rate=estimate(0.1)) for p in posterior_points())
    name = "independent draws of the posterior"
    assert status(full_record(posterior=undrawn), name) == "plug-in"
    assert status(full_record(), name) == "holds"
    origin = full_record(stability=stability_measurement(center="origin"))
    assert status(origin, "stationary point of the measured objective") == "plug-in"
    assert status(full_record(config={}), "loss convex in the averaged output") == "unchecked"


def test_the_audit_of_one_bound_is_a_part_of_the_whole() -> None:
    whole = audit(full_record())
    hold_out = whole.of("hold-out")
    assert 0 < len(hold_out) < len(whole)
    assert {h.name for h in hold_out} <= {h.name for h in whole}
    assert "held-out rows untouched" in {h.name for h in hold_out}
    assert "exact minimizers" not in {h.name for h in hold_out}
    with pytest.raises(ValueError, match="`bound` must be one of"):
        whole.of("none such")


def test_text_and_data_frame_say_the_same() -> None:
    table = audit(full_record())
    lines, frame = str(table).splitlines(), table.to_pandas()
    assert lines[0].split() == ["hypothesis", "status", "evidence"]
    assert max(map(len, lines)) <= 140
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == len(table)
    for h in table:
        assert any(line.startswith(h.name) and h.status in line for line in lines)


def test_every_committed_run_lacks_strong_convexity() -> None:
    for path in COMMITTED.glob("*.json"):
        table = audit(read_record(path))
        assert table.of("lin2024")
        convexity = [h for h in table if "strong convexity" in h.name]
        assert convexity[0].status == "violated"
        assert convexity[0].bounds[0] == "lin2024"
