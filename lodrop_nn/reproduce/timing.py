"""What a training step and an evaluated row cost on this machine, measured."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lodrop_nn.measure.environment import environment
from lodrop_nn.reproduce.cost import UnitCost
from lodrop_nn.reproduce.evaluation import scores_of
from lodrop_nn.reproduce.methods import put_method_on
from lodrop_nn.reproduce.models import load_base
from lodrop_nn.reproduce.plan import Method, has_masks, schedule
from lodrop_nn.reproduce.preset import Preset
from lodrop_nn.reproduce.task import Features, PreparedTask
from lodrop_nn.reproduce.training import train

_N_STEPS, _N_ROWS = 4, 32  # the first step is slower than the others, and left out


def measure_unit_cost(
    preset: Preset, method: Method, task: PreparedTask, *, device_batch: int | None = None
) -> UnitCost:
    """Time a few training steps and evaluated rows of a method, on a model that is thrown away.

    Args:
        preset: The task's settings.
        method: The method.
        task: The task.
        device_batch: Rows that go through the model together; None takes the batch.

    Returns:
        Seconds per step (three steps after one that warms up, on batches drawn as in training)
        and per evaluated row, by all predictors of the method (rows spread over all lengths).
    """
    steps = schedule(preset, len(task.train), _N_STEPS)
    model = put_method_on(load_base(preset, method, 0), preset, method, steps, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            model, task, preset, method, steps, seed=0, folder=Path(folder),
            device_batch=device_batch,
        )  # fmt: skip
    some = replace(
        task,
        splits=tuple(
            replace(split, features=_spread(split.features), score=lambda outputs: {})
            for split in task.splits
        ),
    )
    n_rows = sum(len(split.features) for split in some.splits)
    start = time.perf_counter()
    scores_of(model, some)
    if has_masks(method):
        scores_of(model, some, n_masks=preset.n_masks_test)
    seconds = (time.perf_counter() - start) / n_rows
    where = environment(next(model.parameters()).device)
    device = where["cpu"] if where["device"] == "cpu" else where["device"]
    return UnitCost(
        step_seconds=trained.step_seconds[1:] or trained.step_seconds,
        row_seconds=seconds,
        hardware=f"{device}, {where['torch_threads']} threads, {preset.precision}",
    )


def _spread(features: Sequence[Features]) -> list[Features]:
    """Some features, evenly over the order of their lengths."""
    ordered = sorted(features, key=lambda each: len(each["input_ids"]))
    places = np.linspace(0, len(ordered) - 1, min(_N_ROWS, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]
