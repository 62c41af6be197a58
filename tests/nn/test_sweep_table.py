"""The tidy table of a sweep, and paired differences between arms."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from lodrop_nn.sweep.cli import sweep as command
from lodrop_nn.sweep.grid import SweepConfig, SweepRun
from lodrop_nn.sweep.scores import EpochScores, ScoreRecord
from lodrop_nn.sweep.store import RecordStore
from lodrop_nn.sweep.table import MEASURES, SETTINGS, paired_differences, score_table
from lodrop_theory.records import Estimate, PredictorMeasurement
from tests.factories import predictor_scores

WHERE = {"device": "cpu", "cpu": "AMD EPYC", "torch": "2.13.0"}


def a_record(run: SweepRun, test_nll: float = 0.5, epochs: tuple[int, ...] = (2, 3)):
    measured: PredictorMeasurement = predictor_scores(0.1, 0.4)
    measured = replace(
        measured, test_nll=Estimate(value=test_nll, method="made up", n_draws=2), vote_distance=None
    )
    predictors = dict.fromkeys(("gibbs", "ensemble", "mean"), measured)
    return ScoreRecord(
        run_id=run.run_id,
        created="2026-01-01T00:00:00+00:00",
        config=run.config.as_json(),
        method="lora",
        environment=WHERE,
        n_parameters=7,
        epoch_losses=(1.0,),
        scores=tuple(EpochScores(epoch=e, n_masks=2, predictors=predictors) for e in epochs),
        diverged_after=None if epochs else 4,
        seconds={"train": 1.5, "scores": 1.0},
        n_together=1,
    )


SWEEP = SweepConfig(common={"seed": [0, 1]}, grid=({"method": "lora"},))


def test_a_row_per_run_epoch_and_predictor():
    first, second = SWEEP.runs()
    table = score_table([a_record(first, 0.25), a_record(second, epochs=())])
    assert len(table) == 2 * 3 + 1
    assert {*SETTINGS, *MEASURES, "device"} <= set(table.columns)
    rows = table[table.run_id == first.run_id]
    assert set(zip(rows.epoch, rows.predictor, strict=True)) == {
        (epoch, name) for epoch in (2, 3) for name in ("gibbs", "ensemble", "mean")
    }
    assert (rows.test_nll == 0.25).all()
    assert (rows.mask_law == "iid").all()  # which a configuration leaves out
    assert rows.vote_distance.isna().all()
    (diverged,) = table[table.run_id == second.run_id].to_dict("records")
    assert diverged["diverged_after"] == 4
    assert np.isnan(diverged["test_nll"])


def test_no_record_is_an_empty_table():
    assert score_table([]).empty


@given(st.lists(st.tuples(*[st.floats(-2, 2, width=32)] * 2), min_size=2, max_size=6))
def test_a_difference_is_that_of_the_seeds(pairs):
    rows = [
        {"data": "a", "seed": seed, "method": method, "nll": value}
        for seed, pair in enumerate(pairs)
        for method, value in zip(("lora", "ours"), pair, strict=True)
    ]
    # A seed that only one arm has counts for nothing.
    rows.append({"data": "a", "seed": 99, "method": "ours", "nll": 1e6})
    found = paired_differences(
        pd.DataFrame(rows), "nll", arms=["method"], reference={"method": "lora"}
    )
    ours = found[found.method == "ours"].iloc[0]
    differences = [second - first for first, second in pairs]
    half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(differences)
    assert ours.n_seeds == len(pairs)
    assert ours.difference == pytest.approx(np.mean(differences), abs=1e-9)
    assert ours.high - ours.low == pytest.approx(2 * half, abs=1e-9)
    assert ours.value == pytest.approx(np.mean([second for _, second in pairs]), abs=1e-9)
    assert found[found.method == "lora"].difference.tolist() == [0.0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"measure": "brier"}, "none named \\['brier'\\]"),
        ({"reference": {"rank": 8}}, "`reference` must name"),
        ({"arms": [], "reference": {}}, "one row per seed"),
        ({"reference": {"method": "typo"}}, "`reference` must be the values of some row"),
    ],
)
def test_what_cannot_be_paired_is_refused(changes, text):
    table = pd.DataFrame(
        [(0, "x", "lora", 1.0), (0, "x", "ours", 2.0)], columns=["seed", "data", "method", "nll"]
    )
    asked = {"measure": "nll", "arms": ["method"], "reference": {"method": "lora"}, **changes}
    with pytest.raises(ValueError, match=text):
        paired_differences(table, **asked)


def test_the_command_writes_the_table_once_all_is_done(tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text('[common]\nseed = [0, 1]\n[[grid]]\nmethod = "lora"\n')
    store = RecordStore(str(tmp_path / "store"))
    first, second = SWEEP.runs()
    store.write(first.run_id, a_record(first).as_json())
    path, app = tmp_path / "scores.csv", typer.Typer()
    app.command()(command)
    arguments = [str(grid), "--store", str(tmp_path / "store"), "--table", str(path)]
    path.write_text("a table of before")
    partly = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert "is not written: 1 runs are left" in " ".join(partly.output.split())
    assert path.read_text() == "a table of before"
    store.write(second.run_id, a_record(second).as_json())
    result = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert set(pd.read_csv(path).run_id) == {first.run_id, second.run_id}
    grid.write_text('measure = "stability"\n' + grid.read_text())
    refused = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert refused.exit_code == 2
    assert "`table` must be left out unless" in refused.output
