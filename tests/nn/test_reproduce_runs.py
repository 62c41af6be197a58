"""Each method on each family, end to end: tiny models of the real architectures, local files."""

import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lodrop_nn.reproduce import run as single
from lodrop_nn.reproduce.grid import LoadedTask, run_all, runs_of
from lodrop_nn.reproduce.plan import METHODS, Method, Run, has_masks
from lodrop_nn.reproduce.tables import results_table
from lodrop_nn.reproduce.timing import measure_unit_cost
from lodrop_theory import RecordError
from tests.nn.benchmark_files import FAMILIES, Home

pytestmark = [
    # peft 0.19 looks for the base model's config on the hub, which models made here do not have.
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    # peft 0.21 takes AdaLoRA's `rank_pattern` for LoRA's and says that its keys match nothing.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match"),
]

STEPS = 3
CASES = [(family, method) for family in FAMILIES for method in METHODS]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    return Home.made(tmp_path_factory.mktemp("home"))


def wanted(task: LoadedTask, method: Method, max_steps: int = STEPS) -> Run:
    (found,) = runs_of(task, [method], max_steps)
    return found


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_run_trains_and_scores(family: str, method: Method, home: Home) -> None:
    task = home.task(family)
    state = torch.get_rng_state()
    record = single.run(wanted(task, method), task.rows, task.features)
    assert torch.equal(torch.get_rng_state(), state)
    assert record["n_steps"] == STEPS
    assert math.isfinite(record["training_loss"])
    assert set(record["scores"]) == ({"mean", "ensemble"} if has_masks(method) else {"mean"})
    for scores in record["scores"].values():
        assert set(task.preset.metrics) <= set(scores)
        assert all(0.0 <= value <= 1.0 for value in scores.values())
    json.dumps(record, allow_nan=False)


def test_the_same_run_gives_the_same_scores_and_weights(home: Home) -> None:
    task = home.task("glue")
    one, two = (
        single.run(wanted(task, "lora+dropout"), task.rows, task.features) for _ in range(2)
    )
    assert one["scores"] == two["scores"]
    assert one["training_loss"] == two["training_loss"]


def test_scores_of_a_chosen_epoch_are_said_to_be_optimistic(home: Home) -> None:
    task = home.task("glue", select="best", epochs=2)
    (run,) = runs_of(task, ["lora+dropout"])
    record = single.run(run, task.rows, task.features)
    assert len(record["epoch_scores"]) == 2
    best = max(record["epoch_scores"], key=lambda scores: scores["accuracy"])
    assert record["scores"]["mean"]["accuracy"] == best["accuracy"]
    assert any("optimistic" in note for note in record["notes"])


# -- records ------------------------------


def test_finished_runs_are_kept_and_not_run_again(home: Home, tmp_path: Path, monkeypatch) -> None:
    task, calls = home.task("glue"), []
    real = single.run

    def counted(*arguments, **options):
        calls.append(arguments[0].run_id)
        return real(*arguments, **options)

    monkeypatch.setattr("lodrop_nn.reproduce.grid.run", counted)
    runs = runs_of(task, ["bitfit", "lora"], 1)
    with (tmp_path / "log").open("w") as log:
        first = run_all(task, runs[:1], tmp_path, console=Console(file=log))
        both = run_all(task, runs, tmp_path, console=Console(file=log))
    assert calls == [each.run_id for each in runs]
    assert [each["run_id"] for each in both] == calls
    assert both[0] == first[0] == single.read_run_record(single.record_path(runs[0], tmp_path))


def test_a_score_that_is_not_defined_does_not_lose_the_run(home: Home, monkeypatch, tmp_path):
    """As Pearson's correlation with a constant prediction."""
    task = home.task("glue")
    monkeypatch.setattr(single, "scores_of", lambda *_, **__: {"accuracy": math.nan, "ece": 0.5})
    record = single.run(wanted(task, "bitfit", 1), task.rows, task.features)
    single.write_run_record(record, tmp_path / "r.json")
    assert record["scores"]["mean"] == {"accuracy": None, "ece": 0.5}
    assert list(results_table([record]).columns[3].cells) == ["not defined"]


@pytest.mark.parametrize("damage", ["truncated", "edited", "another run's", "another kind"])
def test_a_record_that_cannot_be_trusted_is_refused(damage: str, home: Home, tmp_path: Path):
    task = home.task("glue")
    one, two = runs_of(task, ["bitfit", "lora"], 1)
    record = {"kind": single.KIND, "schema": single.SCHEMA, "run_id": one.run_id, "n_steps": 5}
    path = single.record_path(one, tmp_path)
    single.write_run_record(record, path)
    assert single.finished(one, tmp_path) == record
    assert single.finished(two, tmp_path) is None
    if damage == "truncated":
        path.write_text(path.read_text()[:40])
    elif damage == "edited":
        path.write_text(path.read_text().replace('"n_steps": 5', '"n_steps": 6'))
    elif damage == "another kind":
        single.write_run_record({**record, "kind": "run"}, path)
    else:
        single.write_run_record({**record, "run_id": two.run_id}, path)
    with pytest.raises(RecordError, match=path.name):
        single.finished(one, tmp_path)


def test_unit_costs_are_measured_on_the_real_thing(home: Home) -> None:
    task = home.task("glue")
    unit = measure_unit_cost(task.preset, "lora+dropout", task.features)
    assert len(unit.step_seconds) == 3
    assert min(*unit.step_seconds, unit.row_seconds) > 0.0
    assert "threads, fp32" in unit.hardware
