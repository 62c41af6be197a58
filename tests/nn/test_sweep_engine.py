"""Sweeps that are interrupted, killed, shared and resumed: every run is done once."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
import typer
from rich.console import Console
from typer.testing import CliRunner

from lodrop_nn.sweep.cli import sweep as command
from lodrop_nn.sweep.engine_local import run_sweep
from lodrop_nn.sweep.status import status_of
from lodrop_nn.sweep.store import RecordStore
from tests.nn.checkpoints import BERT_LIKE, save_checkpoint
from tests.nn.sweep_runs import SWEEP, end_the_process, noted_runs, pretend, tiny_sweep

IDS = [run.run_id for run in SWEEP.runs()]


@pytest.fixture(autouse=True)
def _log(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SWEEP_LOG", str(tmp_path / "log"))


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(str(tmp_path / "store"))


@pytest.mark.parametrize("url", ["memory://sweep-twice", None])
def test_a_finished_sweep_runs_nothing_again(url, tmp_path: Path):
    store = RecordStore(url or str(tmp_path / "store"))
    quiet = Console(quiet=True)
    first = run_sweep(SWEEP, store, execute=pretend, console=quiet)
    second = run_sweep(SWEEP, store, execute=pretend)
    assert noted_runs("begin") == IDS
    assert set(first.records) == set(second.records) == set(IDS)
    assert not first.left
    assert list(first.in_work) == []


def test_an_interrupt_gives_back_what_was_in_work(store: RecordStore):
    def interrupted(runs, **_):
        if len(noted_runs("begin")) >= 4:
            raise KeyboardInterrupt
        return pretend(runs)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(SWEEP, store, execute=interrupted)
    status = status_of(SWEEP, store)
    assert len(status.records) == 4
    assert not status.in_work
    run_sweep(SWEEP, store, execute=pretend)
    assert noted_runs("begin") == IDS


def test_a_run_that_fails_is_told_and_tried_again(store: RecordStore):
    bad = IDS[5]

    def failing(runs, **_):
        if bad in [run.run_id for run in runs]:
            raise ValueError("no such run")
        return pretend(runs)

    status = run_sweep(SWEEP, store, execute=failing)
    assert status.failures == {bad: "ValueError: no such run"}
    assert [run.run_id for run in status.left] == [bad]
    assert "failed, 1 runs: ValueError: no such run" in status.lines()
    assert run_sweep(SWEEP, store, execute=pretend).left == []
    assert Counter(noted_runs("begin")) == Counter(IDS)


def test_a_damaged_record_is_done_anew_and_kept(store: RecordStore, tmp_path: Path):
    run_sweep(SWEEP, store, execute=pretend)
    path = tmp_path / "store" / f"{IDS[2]}.json"
    path.write_text(path.read_text()[:20])
    status = status_of(SWEEP, store)
    assert list(status.damaged) == [path.name]
    assert f"records that cannot be trusted: {path.name}" in status.lines()
    assert not run_sweep(SWEEP, store, execute=pretend).left
    assert noted_runs("begin") == [*IDS, IDS[2]]
    assert len(store.damaged()) == 1


def test_what_another_worker_holds_is_done_last(tmp_path: Path):
    """One that has gone silent, on this machine or another, is waited for until its lease ends."""
    store = RecordStore(str(tmp_path / "store"), lease_seconds=1.0)
    assert store.leases.take(IDS[1]) is not None
    assert list(status_of(SWEEP, store).in_work) == [IDS[1]]
    status = run_sweep(SWEEP, store, execute=pretend)
    assert not status.left
    assert noted_runs("begin") == [*(run_id for run_id in IDS if run_id != IDS[1]), IDS[1]]


def test_what_another_worker_finishes_is_not_done_again(store: RecordStore):
    lease = store.leases.take(IDS[-1])
    assert lease is not None

    def finish():
        with store.leases.renewing([lease]):
            time.sleep(0.3)
            store.write(IDS[-1], {"run_id": IDS[-1], "seconds": {"train": 1.0}})

    other = threading.Thread(target=finish)
    other.start()
    assert not run_sweep(SWEEP, store, execute=pretend).left
    other.join()
    assert noted_runs("begin") == IDS[:-1]


def test_several_processes_share_the_work(store: RecordStore, monkeypatch):
    monkeypatch.setenv("SWEEP_SECONDS", "0.05")
    status = run_sweep(SWEEP, store, execute=pretend, workers=2, max_replicas=2)
    assert not status.left
    assert Counter(noted_runs("begin")) == Counter(IDS)
    assert not multiprocessing.active_children()


def test_what_cannot_be_is_refused(store: RecordStore):
    with pytest.raises(ValueError, match="`workers`"):
        run_sweep(SWEEP, store, workers=0)
    with pytest.raises(ValueError, match="`store` must be one that all workers see"):
        run_sweep(SWEEP, RecordStore("memory://"), workers=2)


# -- kills -----------------------------------------------------------------------------------


class Killed(SystemExit):
    """The end of a simulated process; threads say nothing about it."""


class Dying:
    """A file system that a process reaches so many times before it is killed, and never after."""

    def __init__(self, fs, calls: int) -> None:
        self._fs, self.left = fs, calls

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            if self.left == 0:
                raise Killed
            self.left -= 1
            return getattr(self._fs, name)(*args, **kwargs)

        return call


def test_a_kill_at_any_point_loses_and_doubles_no_run():
    """Between any two calls of the store; what was in work then is begun once more."""
    small = replace(SWEEP, common={**SWEEP.common, "seed": 0})
    ids = [run.run_id for run in small.runs()]
    for calls in itertools.count():
        Path(os.environ["SWEEP_LOG"]).unlink(missing_ok=True)
        store = RecordStore(f"memory://killed/{calls}", lease_seconds=60.0)
        sound = store._fs
        store._fs = store.leases._fs = Dying(sound, calls)
        try:
            run_sweep(small, store, execute=pretend, max_replicas=2)
            break
        except Killed:
            store._fs = store.leases._fs = sound
            store.leases._clock = lambda: time.time() + 61.0  # its leases have ended
        done, begun = store.names(), noted_runs("begin")
        assert all(store.is_done(run_id) for run_id in done)
        assert 0 <= len(begun) - len(done) <= 2  # one unit
        assert not run_sweep(small, store, execute=pretend, max_replicas=2).left
        assert store.names() == set(ids)
        assert Counter(noted_runs("begin")) == Counter([*ids, *(set(begun) - done)])
    assert calls > 50


def begin(folder: Path, workers: int, kind: str, seconds: str = "0") -> subprocess.Popen:
    arguments = [sys.executable, "-m", "tests.nn.sweep_runs", str(folder), str(workers), kind]
    environment = {**os.environ, "SWEEP_SECONDS": seconds}
    return subprocess.Popen(arguments, env=environment, start_new_session=True)


def wait_until(true) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def records_of(folder: Path) -> dict[str, int]:
    return {p.stem: p.stat().st_mtime_ns for p in (folder / "store").glob("*.json")}


@pytest.mark.slow
def test_a_killed_sweep_of_real_runs_is_resumed(tmp_path: Path):
    """What was finished is never touched again; the run in work at most is begun twice."""
    save_checkpoint(transformers.BertConfig(**BERT_LIKE), tmp_path / "model")
    ids = [run.run_id for run in tiny_sweep(tmp_path).runs()]
    process = begin(tmp_path, 1, "really")
    wait_until(lambda: len(records_of(tmp_path)) >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before, begun = records_of(tmp_path), noted_runs("begin")
    assert 2 <= len(before) < len(ids)
    assert begin(tmp_path, 1, "really").wait() == 0
    after = records_of(tmp_path)
    assert before.items() <= after.items()
    status = status_of(tiny_sweep(tmp_path), RecordStore(str(tmp_path / "store")))
    assert not status.failures
    assert set(after) == set(ids)
    assert sorted(noted_runs("begin")) == sorted([*ids, *(set(begun) - set(before))])
    assert not list((tmp_path / "store" / "claims").iterdir())


@pytest.mark.parametrize("victim", ["all", "the first process"])
def test_a_killed_sweep_of_several_processes_is_resumed(victim: str, tmp_path: Path):
    process = begin(tmp_path, 2, "pretend", "0.2")
    wait_until(lambda: records_of(tmp_path))
    if victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid, signal.SIGKILL)  # its workers end by themselves
    process.wait()
    wait_until(lambda: not alive_in_group(process.pid))
    before = records_of(tmp_path)
    assert 0 < len(before) < len(IDS)
    assert begin(tmp_path, 2, "pretend").wait() == 0
    after = records_of(tmp_path)
    assert before.items() <= after.items()
    assert set(after) == set(IDS)
    begun = Counter(noted_runs("begin"))
    assert all(begun[run_id] == 1 for run_id in before)


def alive_in_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_worker_is_replaced(store: RecordStore, tmp_path: Path):
    """The sweep goes on and loses nothing."""
    process = begin(tmp_path, 2, "pretend", "0.2")
    wait_until(lambda: records_of(tmp_path))
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True
    )
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    assert process.wait() == 0
    assert set(records_of(tmp_path)) == set(IDS)


def test_runs_that_kill_their_workers_end_the_sweep(store: RecordStore):
    with pytest.raises(ChildProcessError, match=r"12 runs are left.*\[3, 3, 3, 3\]"):
        run_sweep(SWEEP, store, execute=end_the_process, workers=2)
    assert not run_sweep(SWEEP, store, execute=pretend).left


# -- the command -----------------------------------------------------------------------------

app = typer.Typer()
app.command()(command)


@pytest.fixture
def grid(tmp_path: Path, monkeypatch) -> Path:
    from lodrop_nn.sweep import training
    from tests.nn.test_compare import tiny_reviews

    monkeypatch.setattr(training, "load_data", lambda name: tiny_reviews())
    save_checkpoint(transformers.BertConfig(**BERT_LIKE), tmp_path / "model")
    file = tmp_path / "grid.toml"
    file.write_text(f"""
n_masks_along = 1
[common]
model = "{tmp_path / "model"}"
target_modules = ["query"]
adapted_layers = [1]
n_train = 8
n_test = 8
epochs = 2
n_masks_test = 2
seed = [0, 1]
[[grid]]
method = ["lora", "frozen-A-dropout"]
dropout_rate = 0.3
""")
    return file


def test_the_command_says_what_there_is_to_do_and_does_it(grid: Path, tmp_path: Path):
    arguments = [str(grid), "--store", str(tmp_path / "store")]
    dry = CliRunner().invoke(app, [*arguments, "--dry-run"], catch_exceptions=False)
    assert dry.exit_code == 0
    assert "4 runs: 0 done, 4 to do" in dry.output
    assert "unknown until a run is done" in dry.output
    assert not (tmp_path / "store").exists()
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "4 runs: 4 done, 0 to do" in done.output
    for text in ("method", "frozen-A-dropout", "test NLL", "2/2"):
        assert text in done.output
    assert len(list((tmp_path / "store" / "sweeps").glob("*.json"))) == 1
    wider = grid.read_text().replace("seed = [0, 1]", "seed = [0, 1, 2]")
    grid.write_text(wider)
    dry = CliRunner().invoke(app, [*arguments, "--dry-run"], catch_exceptions=False)
    assert "6 runs: 4 done, 2 to do" in dry.output
    assert "expected for one worker: 0." in dry.output


def test_runs_that_are_left_are_exit_code_1(grid: Path, tmp_path: Path):
    grid.write_text(grid.read_text().replace("n_test = 8", "n_test = 8000"))
    result = CliRunner().invoke(app, [str(grid), "--store", str(tmp_path / "store")])
    assert result.exit_code == 1
    assert "failed, 4 runs: ValueError: `n_train` + `n_test` must be" in result.output


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", [], "`grid` must have at least one table"),
        ("[[grid]]\ndropout_rate = 0.1\ndata = 'nowhere'", [], "`data` must be one of"),
        ("[[grid]]\ndropout_rate = 0.1", ["--engine", "slurm"], "`engine` must be"),
        ("[[grid]]\ndropout_rate = 0.1", ["--lease-seconds", "0"], "`seconds` must be"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(content, options, message, tmp_path: Path):
    file = tmp_path / "grid.toml"
    file.write_text(content)
    arguments = [str(file), "--store", str(tmp_path / "store"), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output
