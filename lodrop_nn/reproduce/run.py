"""One run of a preset, and its record."""

import datetime
import json
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lodrop_nn.measure.environment import environment
from lodrop_nn.reproduce.benchmark_rows import BenchmarkRows
from lodrop_nn.reproduce.best_epoch import BestEpoch
from lodrop_nn.reproduce.evaluation import scores_of
from lodrop_nn.reproduce.methods import n_trained, put_method_on
from lodrop_nn.reproduce.models import load_base
from lodrop_nn.reproduce.plan import Run, has_masks, schedule
from lodrop_nn.reproduce.task import PreparedTask
from lodrop_nn.reproduce.training import OnStep, train
from lodrop_theory.records import RecordError, content_hash, write_bytes_atomically

KIND, SCHEMA = "reproduction", 1


def run(
    wanted: Run,
    rows: BenchmarkRows,
    task: PreparedTask,
    *,
    device_batch: int | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Train and score one run, on the GPU where there is one.

    Args:
        wanted: The run.
        rows: Its rows.
        task: The same, tokenized.
        device_batch: Rows that go through the model together; None takes the batch.
        on_step: Called after each step with the steps done and the steps in all.

    Returns:
        The record; nothing is written. Its scores are those of the mean predictor (masks off;
        without masks, the model itself) and, under LoRA Dropout, of the ensemble.
    """
    preset, method, seed = wanted.preset, wanted.method, wanted.seed
    steps = schedule(preset, len(task.train), wanted.max_steps)
    base = load_base(preset, method, seed)
    model = put_method_on(base, preset, method, steps, seed)
    n_parameters = n_trained(model)
    best = None
    if preset.select == "best":
        best = BestEpoch(lambda trained: scores_of(trained, task), preset.metrics[0])
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            model,
            task,
            preset,
            method,
            steps,
            seed=seed,
            folder=Path(folder),
            device_batch=device_batch,
            best=best,
            on_step=on_step,
        )
    start = time.perf_counter()
    scores = {"mean": scores_of(model, task)}
    if has_masks(method):
        scores["ensemble"] = scores_of(model, task, n_masks=preset.n_masks_test, seed=seed)
    seconds = {"train": trained.seconds, "evaluate": time.perf_counter() - start}
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "run_id": wanted.run_id,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "task": preset.task,
        "config": dict(wanted.as_json()),
        "settings_from": dict(preset.sources),
        "data": rows.source,
        "environment": environment(next(model.parameters()).device),
        "n_train": len(rows.train),
        "n_train_features": len(task.train),
        "n_evaluation": {name: len(each) for name, each in rows.evaluation.items()},
        "n_trained_parameters": n_parameters,
        "n_steps": trained.n_steps,
        "n_tokens": trained.n_tokens,
        "training_loss": trained.loss,
        "seconds": seconds,
        "scores": {predictor: _finite(each) for predictor, each in scores.items()},
        "epoch_scores": [_finite(each) for each in trained.epoch_scores],
        "notes": [*rows.caveats, *_notes(wanted)],
    }


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores with None for those that are not defined, as a correlation with a constant."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def _notes(wanted: Run) -> list[str]:
    notes = []
    if wanted.preset.select == "best":
        notes.append(
            "The epoch was chosen on the evaluation rows: the scores are optimistic as estimates "
            "for new rows."
        )
    if wanted.max_steps is not None:
        notes.append(f"Training was cut to {wanted.max_steps} steps.")
    return notes


def record_path(wanted: Run, folder: Path) -> Path:
    """Where the record of a run lies."""
    return folder / "records" / f"{wanted.run_id}.json"


def write_run_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record with its digest, atomically."""
    content = {**record, "digest": content_hash(record)}
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_bytes_atomically(path, text.encode())


def read_run_record(path: Path) -> dict[str, Any]:
    """Read and verify a record.

    Raises:
        RecordError: If the file is no complete record of this kind, or was edited.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("digest")
        kind = content["kind"], content["schema"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise RecordError(f"{path} must be a complete JSON record, got {error!r}.") from error
    if kind != (KIND, SCHEMA):
        raise RecordError(f"{path} must be of kind {KIND!r}, schema {SCHEMA}, got {kind}.")
    if digest != content_hash(content):
        raise RecordError(f"{path} was edited after it was written: its `digest` does not match.")
    found: dict[str, Any] = content
    return found


def finished(wanted: Run, folder: Path) -> dict[str, Any] | None:
    """The record of a run, or None if it is still to do.

    Raises:
        RecordError: If there is a file, but it cannot be trusted.
    """
    path = record_path(wanted, folder)
    if not path.exists():
        return None
    record = read_run_record(path)
    if record["run_id"] != wanted.run_id:
        raise RecordError(f"{path} must be the record of run {wanted.run_id}.")
    return record
