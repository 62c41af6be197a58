"""Predictions under masks from adapters that were trained without them, or at another rate.

Each finished run of the two arms below gets the logits of an ensemble at the rates that it was not
scored at: 16 members on the test rows and 8 on the training rows at p = 0.5, and 8 members on the
test rows at the lower rates, on two data sets of the three. Masks are those of the other arms'
ensembles (same seed and law).

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.quality.masked     (after the runs)
Writes  runs/quality/masked

It may be killed at any time: a run that has its file for a rate is not repeated.
"""

import argparse
import dataclasses
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file

from lodrop_theory.records import write_bytes_atomically
from tests.benchmarks.quality import records
from tests.benchmarks.quality.__main__ import BLOCKS
from tests.benchmarks.quality.adapters import ShortModel, build
from tests.benchmarks.quality.arms import ARMS, P
from tests.benchmarks.quality.evaluate import mean_logits, member_logits
from tests.benchmarks.quality.problem import Problem, load_problem
from tests.benchmarks.quality.train import MEMBERS, MEMBERS_AT_END

ARMS_MASKED = ("lora", "example-balanced")
LOW_RATES, LOW_RATES_ON = (0.1, 0.3), ("movie-reviews", "sarcasm")
TOLERANCE = 1e-3  # in logits, of what the stored weights give to what the run gave


def path_of(folder: Path, run_id: str, rate: float) -> Path:
    """Where the predictions of a run under masks of a rate lie."""
    return folder / "masked" / f"{run_id}-{rate}.npz"


def rates_of(config: Mapping[str, Any]) -> tuple[float, ...]:
    """The rates of the test masks that a run of these arms has not been scored at."""
    low = LOW_RATES if config["data"] in LOW_RATES_ON else ()
    return low if config["arm"]["dropout_rate"] == P else (*low, P)


def predict(
    problem: Problem,
    weights: Mapping[str, torch.Tensor],
    expected: NDArray[np.float32],
    rate: float,
) -> dict[str, NDArray[np.float32]]:
    """Logits of the members by rows ("test", "train"), shape (members, n, K).

    Args:
        problem: The split.
        weights: The trained parameters.
        expected: Logits of the mean predictor on the test rows, as the run left them.
        rate: Dropout rate of the masks.

    Raises:
        RuntimeError: If the weights do not give the expected logits.
    """
    arm = dataclasses.replace(ARMS["lora"], dropout_rate=rate)
    model, bank = build(problem, arm)
    unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    short = ShortModel(model)
    with short.shortened(problem.blocks):
        error = np.abs(mean_logits(short, bank, problem.test) - expected).max()
        if unknown or not error <= TOLERANCE:
            raise RuntimeError(
                f"the stored weights of {problem.data}, seed {problem.seed}, must give the "
                f"logits of their run: off by {error:.2g}; unknown weights: {unknown}."
            )
        if rate != P:
            return {"test": member_logits(short, bank, arm, problem.test, MEMBERS)}
        return {
            "test": member_logits(short, bank, arm, problem.test, MEMBERS_AT_END),
            "train": member_logits(short, bank, arm, problem.train, MEMBERS),
        }


def _todo(folder: Path) -> list[tuple[dict[str, Any], float]]:
    """Finished runs and the rates that they lack, those of one split together."""
    some = [
        (record, rate)
        for record in records.read_all(folder)
        if record["config"]["arm"]["name"] in ARMS_MASKED
        for rate in rates_of(record["config"])
        if not path_of(folder, record["run_id"], rate).is_file()
    ]
    return sorted(some, key=lambda task: (task[0]["config"]["data"], task[0]["config"]["seed"]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.masked")
    parser.add_argument("--out", type=Path, default=records.RUNS)
    folder = parser.parse_args().out
    torch.set_num_threads(1)
    console, current = Console(), None
    todo = _todo(folder)
    for place, (record, rate) in enumerate(todo):
        config, began = record["config"], time.perf_counter()
        split = config["data"], config["seed"]
        if current is None or (current.data, current.seed) != split:
            current = load_problem(*split, BLOCKS)
        name, arm = record["run_id"], config["arm"]["name"]
        found = predict(
            current,
            load_file(folder / "weights" / f"{name}.safetensors"),
            records.read_logits(folder, name)[f"test.mean.{config['epochs']}"],
            rate,
        )
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **found)
        write_bytes_atomically(path_of(folder, name, rate), buffer.getvalue())
        console.print(
            f"[{place + 1}/{len(todo)}] {split} {arm} {rate}: {time.perf_counter() - began:.0f} s",
            highlight=False,
            markup=False,
        )


if __name__ == "__main__":
    main()
