"""What the adapters trained on movie reviews predict on sentences of other kinds.

Run        OMP_NUM_THREADS=1 nice -n 10 python -m tests.benchmarks.quality.shift   (after the runs)
Summarize  python -m tests.benchmarks.quality.shift_scores
Reads      runs/quality (records, weights)
Writes     runs/quality/shift, the logits of each run

Product reviews, editorials and tweets were rated by people in the same way as the movie reviews
(Hutto & Gilbert 2014), so that text and topic change and the question does not. It may be killed
at any time: a run whose logits are there is not repeated.
"""

import argparse
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file

from lodrop_nn.data import Examples, load_base_model, load_data, split, tokenize
from lodrop_nn.data.classification import TextClassificationData
from lodrop_theory.records import write_bytes_atomically
from tests.benchmarks.quality import records
from tests.benchmarks.quality.__main__ import BLOCKS
from tests.benchmarks.quality.adapters import ShortModel, build, trained
from tests.benchmarks.quality.arms import ARMS
from tests.benchmarks.quality.evaluate import mean_logits, member_logits
from tests.benchmarks.quality.predictors import SEEDS_4
from tests.benchmarks.quality.problem import (
    MAX_LENGTH,
    N_TEST,
    N_TRAIN,
    N_VALIDATION,
    Problem,
    Rows,
    frozen_parts,
)
from tests.benchmarks.quality.train import EPOCHS, MEMBERS

HOME = "movie-reviews"
AWAY = ("amazon-reviews", "nyt-editorials", "tweets")
N_ROWS, ROWS_SEED = 300, 0
# The arms that are compared, and the other three adapters of "four seeds".
COMPARED = ("lora", "example-balanced", "n4", "peft-lora-dropout")
EVALUATED = (*COMPARED, *SEEDS_4[1:])
CHECKED_ROWS, CHECKED_MEMBERS = 64, 2
Logits = dict[str, NDArray[np.float32]]


def chosen_rows(n_rows: int, size: int = N_ROWS) -> NDArray[np.int64]:
    """The rows of a data set that are evaluated, the same for every run."""
    return np.random.default_rng(ROWS_SEED).permutation(n_rows)[:size]


def away_data(name: str) -> TextClassificationData:
    """The evaluated rows of a data set from elsewhere."""
    data = load_data(name)
    return data.take(chosen_rows(len(data)))


def runs_at_home(folder: Path) -> list[dict[str, Any]]:
    """Records of the finished runs on movie reviews whose arms are evaluated, by seed and arm."""
    found = [
        record
        for record in records.read_all(folder)
        if record["config"]["data"] == HOME
        and record["config"]["epochs"] == EPOCHS
        and record["config"]["arm"]["name"] in EVALUATED
    ]
    return sorted(
        found, key=lambda r: (r["config"]["seed"], EVALUATED.index(r["config"]["arm"]["name"]))
    )


def away_rows() -> dict[str, Rows]:
    """Rows by data set, with what the frozen blocks make of them: it is the same for all seeds."""
    base, tokenizer = load_base_model("minilm-l6", 2, 0)
    made = {}
    for name in AWAY:
        examples = tokenize(away_data(name), tokenizer, max_length=MAX_LENGTH)
        made[name] = Rows(examples=examples, frozen=frozen_parts(base, examples, min(BLOCKS)))
    return made


def home_problem(seed: int) -> Problem:
    """What an adapter of that seed is built for, with the few test rows that are checked."""
    rows = load_data(HOME)
    test = split(rows, N_TRAIN, N_TEST + N_VALIDATION, seed)[1].take(range(CHECKED_ROWS))
    base, tokenizer = load_base_model("minilm-l6", rows.n_classes, seed)
    examples = tokenize(test, tokenizer, max_length=MAX_LENGTH)
    known = Rows(examples=examples, frozen=frozen_parts(base, examples, min(BLOCKS)))
    return Problem(
        data=HOME,
        seed=seed,
        n_classes=rows.n_classes,
        blocks=BLOCKS,
        train=known,
        validation=known,
        test=known,
    )


def truncated_shares() -> dict[str, float]:
    """Share of the evaluated rows that are longer than what the models read."""
    _, tokenizer = load_base_model("minilm-l6", 2, 0)
    shares = {}
    for name in AWAY:
        examples: Examples = tokenize(away_data(name), tokenizer, max_length=512)
        shares[name] = float(np.mean([len(ids) > MAX_LENGTH for ids in examples.input_ids]))
    return shares


def predicted(
    record: dict[str, Any], home: Problem, away: dict[str, Rows], folder: Path
) -> tuple[Logits, float]:
    """Logits of one run on every set, and how far its stored ones are from those made now.

    The distance is over the checked test rows: of the mean and, where masks and not passes make
    the members, of two of them (the noise of a pass depends on which rows share a batch).

    Raises:
        RuntimeError: If the weights do not fit the arm.
    """
    arm = ARMS[record["config"]["arm"]["name"]]
    model, bank = build(home, arm)
    weights = load_file(folder / "weights" / f"{record['run_id']}.safetensors")
    if set(weights) != set(trained(model)):
        raise RuntimeError(f"the weights of {record['run_id']} must be those of {arm.name}.")
    model.load_state_dict(weights, strict=False)
    short, stored = ShortModel(model.eval()), records.read_logits(folder, record["run_id"])
    logits: Logits = {}
    with short.shortened(home.blocks):
        again = mean_logits(short, bank, home.test)
        error = float(np.abs(again - stored[f"test.mean.{EPOCHS}"][:CHECKED_ROWS]).max())
        if arm.ensemble == "masks":
            members = member_logits(short, bank, arm, home.test, CHECKED_MEMBERS)
            known = stored[f"test.members.{EPOCHS}"][:CHECKED_MEMBERS, :CHECKED_ROWS]
            error = max(error, float(np.abs(members - known).max()))
        for name, rows in away.items():
            logits[f"{name}.mean"] = mean_logits(short, bank, rows)
            if arm.ensemble:
                logits[f"{name}.members"] = member_logits(short, bank, arm, rows, MEMBERS)
    return logits, error


def remaining(folder: Path) -> Iterator[dict[str, Any]]:
    """Runs whose logits elsewhere are not there yet, the costliest rival last."""
    for record in sorted(runs_at_home(folder), key=lambda r: r["config"]["arm"]["name"] == "n4"):
        if not (folder / "shift" / f"{record['run_id']}.npz").exists():
            yield record


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.shift")
    parser.add_argument("--runs", type=Path, default=records.RUNS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, todo = Console(), list(remaining(options.runs))
    away, home = (away_rows() if todo else {}), None
    for place, record in enumerate(todo):
        seed, start = record["config"]["seed"], time.process_time()
        if home is None or home.seed != seed:
            home = home_problem(seed)
        logits, error = predicted(record, home, away, options.runs)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, error=np.float64(error), **logits)
        path = options.runs / "shift" / f"{record['run_id']}.npz"
        write_bytes_atomically(path, buffer.getvalue())
        console.print(
            f"[{place + 1}/{len(todo)}] seed {seed} {record['config']['arm']['name']}: "
            f"{time.process_time() - start:.0f} s, stored logits within {error:.1e}",
            highlight=False,
            markup=False,
        )


if __name__ == "__main__":
    main()
