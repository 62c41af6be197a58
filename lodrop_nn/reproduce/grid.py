"""Runs that have no record yet, one after the other; each is kept as soon as it is finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lodrop_nn.reproduce.benchmark_rows import BenchmarkRows
from lodrop_nn.reproduce.load import load_rows, prepare
from lodrop_nn.reproduce.models import load_tokenizer, model_name
from lodrop_nn.reproduce.plan import Method, Run
from lodrop_nn.reproduce.preset import Preset
from lodrop_nn.reproduce.run import finished, record_path, run, write_run_record
from lodrop_nn.reproduce.task import PreparedTask


@dataclass(frozen=True, kw_only=True)
class LoadedTask:
    """A preset with its data.

    Attributes:
        preset: The task.
        rows: Its rows.
        features: The same, tokenized.
        model: What records call the base model.
    """

    preset: Preset
    rows: BenchmarkRows
    features: PreparedTask
    model: str


def load_task(preset: Preset, files: Path | None, n_rows: int | None = None) -> LoadedTask:
    """Load and tokenize the rows of a preset.

    Args:
        preset: The task.
        files: Folder with the benchmark's own files; None asks the hub.
        n_rows: Only so many rows of each split; None for all.

    Raises:
        BenchmarkDataError: If the rows cannot be had.
        ModelUnavailableError: If the tokenizer cannot.
    """
    rows = load_rows(preset, files, n_rows)
    features = prepare(rows, load_tokenizer(preset), preset)
    return LoadedTask(preset=preset, rows=rows, features=features, model=model_name(preset))


def runs_of(task: LoadedTask, methods: Sequence[Method], max_steps: int | None = None) -> list[Run]:
    """All runs of a task: each method with each seed, seed by seed."""
    return [
        Run(
            preset=task.preset,
            method=method,
            seed=seed,
            rows=task.rows.digest,
            model=task.model,
            max_steps=max_steps,
        )
        for seed in range(task.preset.seeds)
        for method in methods
    ]


def run_all(
    task: LoadedTask,
    runs: Sequence[Run],
    out: Path,
    *,
    console: Console,
    device_batch: int | None = None,
) -> list[Mapping[str, Any]]:
    """Records of runs; runs what is missing, one record file per finished run.

    Interrupt it at any time: the runs that were finished stay, and the next call continues.

    Args:
        task: The task of all runs.
        runs: What is wanted.
        out: Records go to ``out/records/<run_id>.json``.
        console: Where progress is drawn.
        device_batch: Rows that go through the model together; None takes the batch.

    Raises:
        RecordError: If a file in the way of a record cannot be trusted.
    """
    records = {each.run_id: finished(each, out) for each in runs}
    pending = [each for each in runs if records[each.run_id] is None]
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        for number, wanted in enumerate(pending, start=1):
            label = f"{task.preset.task} {wanted.method} seed {wanted.seed}"
            bar = progress.add_task(f"{label} ({number} of {len(pending)})", total=1)
            record = run(
                wanted,
                task.rows,
                task.features,
                device_batch=device_batch,
                on_step=partial(_advance, progress, bar),
            )
            write_run_record(record, record_path(wanted, out))
            records[wanted.run_id] = record
            progress.remove_task(bar)
            progress.console.print(_line(label, record), highlight=False)
    return [record for record in records.values() if record is not None]


def _advance(progress: Progress, bar: TaskID, step: int, n_steps: int) -> None:
    progress.update(bar, completed=step, total=n_steps)


def _line(label: str, record: Mapping[str, Any]) -> str:
    first = next(iter(record["scores"]["mean"]))
    scores = [f"{name} {values[first]:.4f}" for name, values in record["scores"].items()]
    return f"{label}: {first} {', '.join(scores)}; {record['seconds']['train']:.0f} s"
