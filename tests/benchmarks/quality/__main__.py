"""Run the arms; see the package."""

import argparse
import math
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tests.benchmarks.quality import adalora, records, train
from tests.benchmarks.quality import problem as problems
from tests.benchmarks.quality.adapters import LORA_ALPHA, RANK, TARGETS, knows_law
from tests.benchmarks.quality.arms import ARMS, WAVES, Arm
from tests.benchmarks.quality.evaluate import nll, probabilities, scores

DATA = ("movie-reviews", "trec", "sarcasm")
SEEDS = range(5)
# Mean tokens of a row: what a run costs beside its arm.
TOKENS = {"movie-reviews": 26.5, "trec": 13.5, "sarcasm": 14.8}
BLOCKS = (4, 5)
LATER_FIELDS = ("adalora", "learning_rate")
Run = tuple[str, int, Arm]


def config_of(data: str, seed: int, arm: Arm, epochs: int) -> dict[str, Any]:
    """All that defines a run."""
    n_steps = epochs * math.ceil(problems.N_TRAIN / train.BATCH)
    return {
        "arm": _named(arm),
        "data": data,
        "seed": seed,
        "model": "minilm-l6",
        "blocks": list(BLOCKS),
        "target_modules": list(TARGETS),
        "rank": RANK,
        "lora_alpha": LORA_ALPHA,
        "n_train": problems.N_TRAIN,
        "n_validation": problems.N_VALIDATION,
        "n_test": problems.N_TEST,
        "max_length": problems.MAX_LENGTH,
        "epochs": epochs,
        "batch_size": train.BATCH,
        "learning_rate": arm.learning_rate or train.LEARNING_RATE,
        "members": train.MEMBERS,
        "members_at_end": train.MEMBERS_AT_END,
        **({"adalora": adalora.settings(RANK, n_steps)} if arm.adalora else {}),
    }


def _named(arm: Arm) -> dict[str, Any]:
    """What tells an arm from others; later fields count where they are set, to keep run ids."""
    defaults = {each.name: each.default for each in fields(arm)}
    return {
        key: value
        for key, value in asdict(arm).items()
        if key != "cost" and not (key in LATER_FIELDS and value == defaults[key])
    }


def planned(
    shard: int, n_shards: int, arms: list[str], data_sets: list[str], seeds: Sequence[int] = SEEDS
) -> list[Run]:
    """The runs of one process, important ones first; what depends on a run stays with it."""
    return [
        (data, seed, arm)
        for wave in WAVES
        for seed in seeds
        for place, data in enumerate(DATA)
        if (seed * len(DATA) + place) % n_shards == shard
        for arm in wave
        if arm.name in arms and data in data_sets and knows_law(arm)
    ]


def decay_weight(folder: Path, config: dict[str, Any], source: Arm) -> dict[str, float]:
    """What the masks of a finished run add to its training risk, per squared update."""
    wanted = config_of(config["data"], config["seed"], source, config["epochs"])
    record = records.read(folder, records.run_id(wanted))
    if record is None:
        raise RuntimeError(f"the run of {source.name} on {config['data']} must be finished first.")
    final = record["final"]
    added = final["train_members_nll"] - final["train_mean_nll"]
    return {
        "decay": max(added, 0.0) / record["update_square"],
        "decay_added_risk": added,
        "decay_update_square": record["update_square"],
    }


def results_of(problem: problems.Problem, finished: train.Finished) -> dict[str, Any]:
    """Scores of every checkpoint, and what the run cost."""
    labels = {
        name: getattr(problem, name).labels.numpy() for name in ("train", "validation", "test")
    }
    trace: dict[str, dict[str, dict[str, float]]] = {}
    for key, logits in finished.logits.items():
        rows, predictor, epoch = key.split(".")
        name = "ensemble" if predictor == "members" else "mean"
        at = trace.setdefault(epoch, {})
        at[f"{rows}.{name}"] = scores(probabilities(logits), labels[rows])
        if predictor == "members":
            each = [nll(probabilities(member), labels[rows]) for member in logits]
            at[f"{rows}.gibbs"] = {"nll": sum(each) / len(each)}
            if len(logits) > train.MEMBERS:
                eight = probabilities(logits[: train.MEMBERS])
                at[f"{rows}.ensemble{train.MEMBERS}"] = scores(eight, labels[rows])
    last = trace[max(trace, key=int)]
    names = {"train.mean": "train_mean_nll", "train.gibbs": "train_members_nll"}
    final = {name: last[key]["nll"] for key, name in names.items() if key in last}
    return {
        "trace": trace,
        "final": final,
        "epoch_losses": finished.epoch_losses,
        "train_seconds": finished.train_seconds,
        "evaluation_seconds": finished.evaluation_seconds,
        "rows_trained": finished.rows_trained,
        "update_square": finished.update_square,
    }


def remaining(runs: list[Run], folder: Path, epochs: int) -> Iterator[Run]:
    """Runs without a record."""
    for data, seed, arm in runs:
        if records.read(folder, records.run_id(config_of(data, seed, arm, epochs))) is None:
            yield data, seed, arm


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality")
    parser.add_argument("--shard", default="0/1", help="this process and how many there are")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=DATA)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--learning-rate", type=float, default=None, help="another one")
    parser.add_argument("--epochs", type=int, default=train.EPOCHS, help="a multiple of 6")
    parser.add_argument("--out", type=Path, default=records.RUNS)
    parser.add_argument("--commit", default=None, help="where the tree has no git repository")
    parser.add_argument("--limit", type=int, default=None, help="stop after so many runs")
    options = parser.parse_args()
    shard, n_shards = map(int, options.shard.split("/"))
    torch.set_num_threads(1)
    console, where = Console(), provenance(options.commit)
    epochs, folder = options.epochs, options.out
    plan = planned(shard, n_shards, options.arms, options.data, options.seeds)
    if options.learning_rate is not None:
        plan = [
            (data, seed, replace(arm, learning_rate=options.learning_rate))
            for data, seed, arm in plan
        ]
    todo = list(remaining(plan, folder, epochs))[: options.limit]
    units = [arm.cost * TOKENS[data] for data, _, arm in todo]
    start, current = time.perf_counter(), None
    for place, (data, seed, arm) in enumerate(todo):
        if current is None or (current.data, current.seed) != (data, seed):
            current = problems.load_problem(data, seed, BLOCKS)
        began = time.perf_counter()
        config = config_of(data, seed, arm, epochs)
        source = arm.decay_from
        decay = decay_weight(folder, config, ARMS[source]) if source is not None else {}
        finished = train.run(current, arm, decay=decay.get("decay", 0.0), epochs=epochs)
        results = {**results_of(current, finished), **decay}
        records.write(folder, config, results, finished.logits, finished.weights, where)
        now = time.perf_counter()
        left = (now - start) / sum(units[: place + 1]) * sum(units[place + 1 :])
        console.print(
            f"[{place + 1}/{len(todo)}] {data} {seed} {arm.name}: {now - began:.0f} s, "
            f"test NLL {results['trace'][str(epochs)]['test.mean']['nll']:.3f}; "
            f"{left / 60:.0f} min left",
            highlight=False,
            markup=False,
        )


def provenance(commit: str | None) -> dict[str, Any]:
    """The commit at the start (the tree may differ) and a hash of the sources that run."""
    if commit is None:
        command = ["git", "-C", str(records.ROOT), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return {"commit": commit, "source_sha256": records.source_hash()}


if __name__ == "__main__":
    main()
