"""The report of one record: all that was measured, in 80 columns, marked as what it is."""

import subprocess
import sys
from dataclasses import fields, replace
from io import StringIO

import pytest
from hypothesis import given, settings
from rich.console import Console

from lodrop_nn.report.measurement import interval, measured_tables, number, show_measurement
from lodrop_nn.report.verdicts import verdict_tables
from lodrop_theory import Estimate, RunRecord, evaluate_record
from lodrop_theory.assumptions import audit
from lodrop_theory.records import PredictorMeasurement, StabilityEstimates, StabilityMeasurement
from lodrop_theory.slack import looseness
from lodrop_theory.stability_table import bound_table
from tests.factories import estimate, exact, full_record, run_record, run_records


def printed(record: RunRecord, width: int = 80) -> str:
    text = StringIO()
    show_measurement(record, 0.05, Console(file=text, width=width))
    return text.getvalue()


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_full_record_fits_80_columns(rate: float) -> None:
    assert max(map(len, printed(full_record(rate)).splitlines())) <= 80


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_digit_is_cut(width: int) -> None:
    assert "…" not in printed(full_record(), width)


@settings(max_examples=10)
@given(run_records())
def test_any_record_has_a_table_of_what_was_measured(record: RunRecord) -> None:
    tables = {table.title: table for table in measured_tables(record)}
    assert ("Stabilities by method, in nats" in tables) == (record.stability is not None)
    assert any("randomized adapter" in title for title in tables) == bool(record.posterior)
    assert all(len(row) == len(t.columns) for t in tables.values() for row in t.rows)


def marked(holder, kind: type, start: int) -> dict[str, Estimate]:
    """A number of its own for each estimate of an object that the report could leave out."""
    names = [f.name for f in fields(kind) if isinstance(getattr(holder, f.name), Estimate)]
    return {name: estimate(float(start + k) + 0.125) for k, name in enumerate(names)}


def test_every_estimate_of_a_record_is_shown() -> None:
    record = full_record()
    top = marked(record, RunRecord, 100)
    scores = {
        name: marked(each, PredictorMeasurement, 200 + 20 * k)
        for k, (name, each) in enumerate(record.predictors.items())
    }
    objective = marked(record.stability, StabilityMeasurement, 300)
    methods = {
        name: marked(each, StabilityEstimates, 400 + 10 * k)
        for k, (name, each) in enumerate(record.stability.estimates.items())
    }
    estimates = {n: replace(e, **methods[n]) for n, e in record.stability.estimates.items()}
    record = replace(
        record,
        **top,
        predictors={n: replace(e, **scores[n]) for n, e in record.predictors.items()},
        stability=replace(record.stability, **objective, estimates=estimates),
    )
    cells = {
        cell.split("\n")[0]
        for table in measured_tables(record)
        for row in table.rows
        for cell in row
    }
    everything = [top, objective, *scores.values(), *methods.values()]
    unshown = {
        name
        for group in everything
        for name, each in group.items()
        if number(each.value) not in cells
    }
    # The variance is a number for one bound; NLL on the training rows is its risk, unsmoothed.
    assert unshown == {"sample_variance", "train_nll"}


def test_certificates_are_what_the_theory_says_and_in_its_units() -> None:
    record = full_record()
    results = [r for r in evaluate_record(record, delta=0.05) if r.kind == "certificate"]
    shown = verdict_tables(record, 0.05)[0]
    assert [row[:2] for row in shown.rows] == [(r.bound, r.predictor) for r in results]
    assert [row[3].split()[0] for row in shown.rows] == [f"{float(r.gap):.3f}" for r in results]
    units = {row[0]: row[2] for row in shown.rows}
    assert units["hold-out"] == units["pac-bayes-kl"] == "nats"
    assert units["clopper-pearson"] == units["pac-bayes-kl/0-1"] == "errors"


def test_hypotheses_bounds_and_slack_are_those_of_the_theory() -> None:
    record = full_record()
    _, hypotheses, by_source, slack = verdict_tables(record, 0.05)
    assert sorted(hypotheses.rows) == sorted((h.name, h.status) for h in audit(record))
    assert hypotheses.rows[0][1] == "violated"
    violated = sum(h.status == "violated" for h in audit(record))
    assert hypotheses.title.startswith(f"Hypotheses: {violated} violated")
    texts = {row[0]: row for row in bound_table(record, delta=0.05).texts()[1]}
    assert all(row == texts[row[0]][: len(row)] for row in by_source.rows)
    assert [row[0] for row in slack.rows] == [link.level for link in looseness(record, delta=0.05)]


def test_a_record_of_the_first_schema_is_shown_without_what_it_lacks() -> None:
    text = printed(run_record())
    assert "Stabilities" not in text
    assert "debiased" not in text
    assert "hold-out" in text


def test_notes_are_not_markup() -> None:
    note = "[red]a note[/red] with [brackets]"
    assert f"- {note}" in printed(full_record(notes=(note,)))


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (0.0, "0.000"),
        (0.0012, "0.001"),
        (0.0001, "1.00e-04"),
        (-12.3456, "-12.346"),
        (1234.5, "1.23e+03"),
    ],
)
def test_numbers_keep_three_digits(value: float, cell: str) -> None:
    assert number(value) == cell


def test_an_interval_is_shown_where_there_is_one() -> None:
    assert interval(estimate(0.5)) == ""
    assert interval(exact(0.5)) == "exact"
    assert interval(estimate(0.5, 0.25)) == "[0.250, 0.750]"


def test_the_report_of_a_measurement_needs_no_torch() -> None:
    code = (
        "import sys, lodrop_nn.report.measurement, lodrop_nn.cli_measure;"
        "bad = {'torch', 'transformers', 'peft'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
