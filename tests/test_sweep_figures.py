"""The figures of the sweeps and of the stability runs say what the committed records say."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lodrop_nn.sweep.grid import SweepConfig
from lodrop_theory import read_record
from lodrop_theory.evaluate import evaluate_record
from paper_figures import (
    _comparison,
    _stability,
    _sweeps,
    fig07_gap_along_training,
    fig10_sensitivity,
    fig15_n_and_rank,
    fig16_bounds_on_one_run,
    fig17_choice_of_rate,
    fig20_measured_along_rate,
    fig21_decay_at_same_kappa,
)

TABLES = sorted(path.stem for path in _sweeps.RECORDS.glob("*.csv"))


def student(values) -> tuple[float, float, float]:
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return np.mean(values), np.mean(values) - half, np.mean(values) + half


@pytest.mark.parametrize("grid", TABLES)
def test_a_table_holds_the_runs_of_its_grid(grid):
    declared = {run.run_id for run in SweepConfig.from_file(_sweeps.GRIDS / f"{grid}.toml").runs()}
    table = pd.read_csv(_sweeps.RECORDS / f"{grid}.csv", dtype={"run_id": str})
    assert set(table.run_id) == declared
    assert set(table.seed) == set(range(5))
    assert not table.duplicated(["run_id", "epoch", "predictor"]).any()
    assert table.diverged_after.isna().all()
    assert (table.epoch <= table.epochs).all()
    # Jensen: the ensemble is at most the mean of its members, on every set of rows.
    wide = table.pivot(index=["run_id", "epoch"], columns="predictor", values="test_nll")
    assert (wide.ensemble <= wide.gibbs + 1e-5).all()


def test_every_committed_run_of_the_stability_sweep_is_sound():
    declared = SweepConfig.from_file(_sweeps.GRIDS / "stability.toml").runs()
    paths = {path.stem: path for path in _stability.RECORDS.glob("*.json")}
    assert set(paths) == {run.run_id for run in declared}
    for run in declared:
        record = read_record(paths[run.run_id])
        assert record.config == run.config.as_json()
        assert record.stability is not None


def test_a_curve_is_the_mean_over_the_seeds():
    table = pd.concat(pd.read_csv(_sweeps.RECORDS / f"{g}.csv") for g in ("rates", "rates_trec"))
    table = table[table.method.isin(["lora", "lora-dropout"]) & (table.predictor == "mean")]
    points = fig07_gap_along_training.compute()
    assert {p.n for p in points} == {5}
    run = set(zip(table.data, table.dropout_rate, strict=True))
    assert {(p.data, p.dropout_rate) for p in points} == run
    assert {(data, 0.5) for data in _sweeps.DATA} <= run
    for p in points[::17]:
        here = (table.data == p.data) & (table.dropout_rate == p.dropout_rate)
        values = table[here & (table.epoch == p.epoch)][p.measure]
        np.testing.assert_allclose((p.value, p.low, p.high), student(values), rtol=1e-9)


def test_a_sensitivity_is_the_paired_difference():
    table = pd.read_csv(_sweeps.RECORDS / "rates.csv")
    last = table[(table.epoch == 12) & (table.data == "sarcasm")].set_index("seed")
    lora = last[(last.method == "lora") & (last.predictor == "mean")]
    ours = last[(last.method == "lora-dropout") & (last.predictor == "ensemble")]
    for measure in fig10_sensitivity.MEASURES:
        for p in fig10_sensitivity.compute():
            key = (p.panel, p.data, p.predictor, p.measure)
            if key != ("p", "sarcasm", "ensemble", measure) or p.x == 0:
                continue
            values = ours[ours.dropout_rate == p.x][measure] - lora[measure]
            np.testing.assert_allclose((p.value, p.low, p.high), student(values), rtol=1e-9)


def test_the_reference_of_each_panel_differs_from_itself_by_nothing():
    points = fig10_sensitivity.compute()
    references = [p for p in points if (p.panel, p.x, p.predictor) == ("p", 0, "mean")]
    assert len(references) == 9
    assert all(p.value == p.low == p.high == 0 for p in references)
    assert {p.n for p in points} == {5}


def test_four_masks_against_one_is_the_paired_difference():
    content = json.loads((_comparison.BENCHMARKS / "quality.json").read_text(encoding="utf-8"))
    splits = pd.DataFrame(content["splits"])
    last = splits[(splits.epoch == "last") & ~splits.tempered & (splits.data == "sarcasm")]
    for p in fig10_sensitivity.compute():
        if (p.panel, p.data, p.measure) == ("N", "sarcasm", "test_nll"):
            of = {
                arm: last[(last.arm == arm) & (last.predictor == p.predictor)].set_index("seed").nll
                for arm in ("n4", "batch")
            }
            expected = student(of["n4"] - of["batch"])
            np.testing.assert_allclose((p.value, p.low, p.high), expected, atol=2e-5)


def test_the_floor_is_that_of_the_theorem_and_every_size_has_its_seeds():
    points = fig15_n_and_rank.compute()
    run = read_record(next(iter(_stability.RECORDS.glob("*.json"))))
    for p in points:
        if p.measure == "floor":
            expected = run.loss_range.value / math.sqrt(2 * p.x * _comparison.DELTA)
            assert p.value == pytest.approx(expected)
        else:
            assert p.n == 5
            assert p.low < p.value < p.high
    sizes = {p.x for p in points if p.axis == "n_train"}
    assert {64, 128, 256, 512, 1024, 2048} <= sizes
    assert {p.x for p in points if p.axis == "rank"} == {2, 8, 32}


def test_every_bound_in_nats_is_in_the_figure_of_one_run():
    (run,) = (r for r in fig16_bounds_on_one_run._measured.read() if r.dropout_rate == 0.5)
    points = {(p.name, p.source, p.predictor): p for p in fig16_bounds_on_one_run.compute()}
    for bound in evaluate_record(run, delta=_comparison.DELTA):
        name, _, source = bound.bound.partition("/")
        if source in fig16_bounds_on_one_run.SOURCES and name != "clopper-pearson":
            point = points[name, source, str(bound.predictor)]
            assert point.value == float(bound.gap)
            assert point.kind == str(bound.kind)


def test_a_rule_gives_up_what_its_choices_do():
    points = {(p.panel, p.series): p for p in fig17_choice_of_rate.compute() if p.panel == "regret"}
    risks: dict[int, dict[float, float]] = {}
    for run in _stability.read():
        value = run.predictors["mean"].population_risk.value
        risks.setdefault(run.config["seed"], {})[run.dropout_rate] = value
    for point in points.values():
        chosen = [float(rate) for rate in point.chosen.split()]
        lost = [
            of_seed[rate] - min(of_seed.values())
            for of_seed, rate in zip(risks.values(), chosen, strict=True)
        ]
        assert point.value == pytest.approx(np.mean(lost))
        assert point.n == 5
    assert set(points["regret", "always 0"].chosen.split()) == {"0"}


def test_every_measured_number_along_the_rate_is_that_of_a_record():
    points = fig20_measured_along_rate.compute()
    runs = {(run.dropout_rate, run.config["seed"]): run for run in _stability.read()}
    for p in points:
        run = runs[p.dropout_rate, p.seed]
        if p.panel in ("lipschitz", "curvature", "penalty"):
            assert p.value == getattr(run, p.series).value
        if p.series == "measured gap":
            assert p.value == run.predictors["mean"].generalization_gap.value
    assert {p.panel for p in points} == set(fig20_measured_along_rate.PANELS)


def test_the_penalty_and_the_masks_are_compared_to_the_same_runs():
    content = json.loads((_comparison.BENCHMARKS / "quality.json").read_text(encoding="utf-8"))
    splits = pd.DataFrame(content["splits"])
    last = splits[(splits.epoch == "last") & ~splits.tempered].set_index("seed")
    lora = last[(last.arm == "lora") & (last.predictor == "mean")]
    for p in fig21_decay_at_same_kappa.compute():
        ours = last[(last.arm == p.arm) & (last.predictor == p.predictor) & (last.data == p.data)]
        values = ours[p.measure] - lora[lora.data == p.data][p.measure]
        np.testing.assert_allclose((p.value, p.low, p.high), student(values), atol=2e-5)
        assert p.n == 5
