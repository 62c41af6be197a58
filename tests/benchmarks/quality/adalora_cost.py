"""Processor time of a training step of LoRA and AdaLoRA, with LoRA Dropout and without.

The runs were made at different times on a machine that had other work; here the four arms take
turns, and what is kept is a ratio within each turn.

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.quality.adalora_cost
Writes  runs/quality/adalora_cost.json
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from lodrop_nn.measure.environment import environment
from lodrop_theory.records import write_bytes_atomically
from tests.benchmarks.quality import records, train
from tests.benchmarks.quality.__main__ import BLOCKS
from tests.benchmarks.quality.arms import ARMS
from tests.benchmarks.quality.problem import Problem, Rows, load_problem

NAME = "adalora_cost.json"
TIMED = ("lora", "example-balanced", "adalora", "adalora-dropout")
DATA, N_ROWS, TURNS = "movie-reviews", 64, 7


def first(rows: Rows, n: int) -> Rows:
    """The first rows."""
    examples = dataclasses.replace(
        rows.examples, input_ids=rows.examples.input_ids[:n], labels=rows.examples.labels[:n]
    )
    return Rows(examples=examples, frozen=rows.frozen[:n])


def turns(problem: Problem, n_turns: int) -> list[dict[str, float]]:
    """Processor seconds per step by arm, in each turn."""
    n_steps = -(-len(problem.train.examples) // train.BATCH)
    return [
        {arm: train.run(problem, ARMS[arm], epochs=1).train_seconds / n_steps for arm in TIMED}
        for _ in range(n_turns)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.adalora_cost")
    parser.add_argument("--out", type=Path, default=records.RUNS)
    folder = parser.parse_args().out
    torch.set_num_threads(1)
    whole = load_problem(DATA, 0, BLOCKS)
    few = first(whole.test, 2)  # scores are not timed
    problem = dataclasses.replace(whole, train=first(whole.train, N_ROWS), validation=few, test=few)
    turns(problem, 1)  # warm-up
    content: dict[str, Any] = {
        "environment": environment(),
        "data": DATA,
        "batch_size": train.BATCH,
        "seconds_per_step": turns(problem, TURNS),
    }
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_bytes_atomically(folder / NAME, text.encode("utf-8"))


if __name__ == "__main__":
    main()
