"""A grid of runs: nothing finished is lost or done twice, and the whole way works end to end."""

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import transformers
import typer
from rich.console import Console
from typer.testing import CliRunner

from lodrop_nn.cli import compare, report
from lodrop_nn.compare import run as grid
from lodrop_nn.config import RunConfig
from lodrop_nn.data.classification import TextClassificationData
from lodrop_theory import RecordError, read_record, update_sparsity
from tests.factories import run_record
from tests.nn.checkpoints import BERT_LIKE, save_checkpoint

CONFIGS = [RunConfig(dropout_rate=p, seed=s) for s in (0, 1) for p in (0.0, 0.3)]


def console() -> Console:
    return Console(file=StringIO(), width=100)


@pytest.fixture
def calls(monkeypatch):
    """Runs that take no time; the list of what was run."""
    done = []

    def fake(config, **_):
        done.append(config)
        return run_record(config.dropout_rate, config.seed)

    monkeypatch.setattr(grid, "run", fake)
    return done


def test_a_finished_grid_runs_nothing_again(calls, tmp_path: Path):
    first = grid.compare_runs(CONFIGS, tmp_path, console=console())
    second = grid.compare_runs(CONFIGS, tmp_path, console=console())
    assert calls == CONFIGS
    assert [r.run_id for r in first] == [r.run_id for r in second] == [c.run_id for c in CONFIGS]


def test_an_interrupt_loses_no_finished_run(calls, monkeypatch, tmp_path: Path):
    def interrupted(config, **_):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(config)
        return run_record(config.dropout_rate, config.seed)

    with monkeypatch.context() as patch:
        patch.setattr(grid, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grid.compare_runs(CONFIGS, tmp_path, console=console())
    assert len(list((tmp_path / "records").glob("*.json"))) == 2
    grid.compare_runs(CONFIGS, tmp_path, console=console())
    assert calls == CONFIGS


def test_widening_the_grid_keeps_what_is_there(calls, tmp_path: Path):
    grid.compare_runs(CONFIGS[:2], tmp_path, console=console())
    grid.compare_runs(CONFIGS, tmp_path, console=console())
    assert calls == CONFIGS


@pytest.mark.parametrize("damage", ["truncated", "edited", "another run's"])
def test_a_record_that_cannot_be_trusted_stops_the_grid(calls, tmp_path: Path, damage: str):
    grid.compare_runs(CONFIGS, tmp_path, console=console())
    path = grid.record_path(CONFIGS[0], tmp_path)
    text = path.read_text()
    if damage == "truncated":
        path.write_text(text[: len(text) // 2])
    elif damage == "edited":
        path.write_text(text.replace('"n_train": 256', '"n_train": 255'))
    else:
        path.write_text(grid.record_path(CONFIGS[1], tmp_path).read_text())
    with pytest.raises(RecordError, match=path.name):
        grid.compare_runs(CONFIGS, tmp_path, console=console())


app = typer.Typer()
app.command()(compare)
app.command()(report)


def tiny_reviews() -> TextClassificationData:
    """Texts over the tokenizer's words; the label is whether 'good' comes first."""
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "film", "dull"])
    texts = tuple({" ".join(rng.choice(words, size=rng.integers(1, 8))) for _ in range(200)})
    labels = np.array([int(t.startswith("good")) for t in texts], dtype=np.int64)
    return TextClassificationData(
        texts=texts,
        labels=labels,
        vote_shares=None,
        name="movie-reviews",
        n_classes=2,
        source="here",
        licence_note="none",
        caveats=("made up",),
    )


def test_the_command_goes_from_configuration_to_report(monkeypatch, tmp_path: Path):
    folder = save_checkpoint(transformers.BertConfig(**BERT_LIKE), tmp_path / "model")
    monkeypatch.setattr(grid, "load_data", lambda name: tiny_reviews())
    out = tmp_path / "out"
    command = [
        "compare",
        *("--model", folder, "--out", str(out), "--dropout-rates", "0,.5", "--seeds", "2"),
        *("--n-train", "16", "--n-test", "24", "--epochs", "2", "--n-masks-test", "4"),
        *("--adapted-layers", "1", "--target-modules", "query,value", "--rank", "2"),
    ]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for title in ("Risk:", "Held-out scores", "Measured", "Stability", "Bounds", "Paired"):
        assert title in result.output
    records = [read_record(path) for path in sorted((out / "records").glob("*.json"))]
    assert len(records) == 4
    assert {(r.dropout_rate, r.config["seed"]) for r in records} == {
        (p, s) for p in (0.0, 0.5) for s in (0, 1)
    }
    for record in records:
        realized = record.update_sparsity
        expected = float(update_sparsity(record.dropout_rate))
        assert realized.value == pytest.approx(expected, abs=0.05)
        assert "made up" in record.notes
        if record.dropout_rate == 0.0:
            assert record.predictors["gibbs"].population_risk.value == pytest.approx(
                record.predictors["mean"].population_risk.value
            )
    for suffix in ("png", "pdf", "html"):
        assert (out / f"comparison.{suffix}").stat().st_size > 1000
    again = CliRunner().invoke(app, ["report", str(out)], catch_exceptions=False)
    assert again.exit_code == 0
    assert "Paired" in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--dropout-rates", "0,1"], "`dropout_rate` must be in [0, 1), got 1.0"),
        (["compare", "--dropout-rates", "a"], "`dropout-rates` must be numbers"),
        (["compare", "--delta", "0"], "`delta` must be in (0, 1)"),
        (["compare", "--mask-scope", "token"], "`mask-scope` must be 'batch' or 'example'"),
        (["compare", "--precision", "fp8"], "`precision` must be"),
        (["compare", "--adapted-layers", "x"], "`adapted-layers` must be 'all'"),
        (["report", "/nowhere"], "`folder` must hold records"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "lodrop_theory.cli", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


_KILLED = """
import sys, time
from pathlib import Path
from rich.console import Console
from lodrop_nn.cli import compare, report
from lodrop_nn.compare import run as grid
from tests.factories import run_record
from tests.nn.test_compare import CONFIGS

def slow(config, **_):
    time.sleep(0.5)
    return run_record(config.dropout_rate, config.seed)

grid.run = slow
grid.compare_runs(CONFIGS, Path(sys.argv[1]), console=Console(quiet=True))
"""


def test_a_kill_leaves_whole_records_only(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], cwd=os.getcwd())
    records = tmp_path / "records"
    deadline = time.monotonic() + 60
    while not list(records.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = list(records.glob("*.json"))
    assert 1 <= len(found) < len(CONFIGS)
    assert all(json.loads(path.read_text())["digest"] for path in found)
    assert all(read_record(path) for path in found)
