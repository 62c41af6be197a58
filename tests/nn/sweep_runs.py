"""Sweeps of runs that take no time or tiny models, for tests in one process and in several.

Run as a module it does a sweep that a test kills: STORE, LOG, WORKERS and the kind of runs.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lodrop_nn.sweep.batching import run_unit
from lodrop_nn.sweep.engine_local import run_sweep
from lodrop_nn.sweep.grid import SweepConfig, SweepRun
from lodrop_nn.sweep.store import RecordStore

# Three units of four runs each: those of a seed are trained together.
SWEEP = SweepConfig(
    common={"seed": [0, 1, 2], "n_train": 8, "n_test": 8, "batch_size": 4},
    grid=({"dropout_rate": [0.0, 0.1, 0.3, 0.5]},),
)


def tiny_sweep(folder: Path) -> SweepConfig:
    """Real runs on a checkpoint in ``folder/model``."""
    small = {
        **{"model": str(folder / "model"), "target_modules": ["query"], "adapted_layers": [1]},
        **{"rank": 2, "n_train": 8, "n_test": 8, "batch_size": 4, "epochs": 2, "n_masks_test": 2},
    }
    grid = ({"dropout_rate": [0.0, 0.3], "seed": [0, 1, 2, 3]},)
    return SweepConfig(common=small, grid=grid, n_masks_along=1)


def note(text: str) -> None:
    """One line in the log, whole also when several processes write."""
    with open(os.environ["SWEEP_LOG"], "a", encoding="utf-8") as log:
        log.write(f"{text}\n")


def noted_runs(word: str) -> list[str]:
    """Names of the runs that the log tells a word about, in its order."""
    path = Path(os.environ["SWEEP_LOG"])
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[1] for line in lines if line.startswith(word)]


def pretend(
    runs: Sequence[SweepRun], *, on_progress: Callable[[float], None] | None = None
) -> list[dict[str, Any]]:
    """Records of runs that only wait."""
    for run in runs:
        note(f"begin {run.run_id}")
        time.sleep(float(os.environ.get("SWEEP_SECONDS", "0")))
    return [{"run_id": run.run_id, "seconds": {"train": 1.0}} for run in runs]


def end_the_process(runs: Sequence[SweepRun], **_: Any) -> list[dict[str, Any]]:
    """What a segmentation fault does."""
    os._exit(3)


def really(
    runs: Sequence[SweepRun], *, on_progress: Callable[[float], None] | None = None
) -> list[dict[str, Any]]:
    """Records of runs of a tiny model on made-up rows."""
    import lodrop_nn.data as data
    from tests.nn.test_compare import tiny_reviews

    data.DATA_SETS["movie-reviews"] = tiny_reviews  # in a process of its own
    for run in runs:
        note(f"begin {run.run_id}")
    return run_unit(runs, on_progress=on_progress)


if __name__ == "__main__":
    place, workers, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if kind == "really":
        run_sweep(tiny_sweep(place), RecordStore(f"{place}/store"), execute=really, max_replicas=1)
    else:
        from tests.nn.sweep_runs import pretend as execute  # under the name that workers import

        run_sweep(SWEEP, RecordStore(f"{place}/store"), execute=execute, workers=workers)
