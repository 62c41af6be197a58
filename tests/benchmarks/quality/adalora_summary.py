"""LoRA Dropout on AdaLoRA beside LoRA Dropout on LoRA: scores, paired differences and costs.

Run     python -m tests.benchmarks.quality.adalora_summary     (after the runs and the costs)
Reads   runs/quality
Writes  tests/benchmarks/records/adalora.json
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from lodrop_nn.measure.environment import environment
from tests.benchmarks.quality import records
from tests.benchmarks.quality.__main__ import config_of
from tests.benchmarks.quality.ablation import MEASURES, Row, labels_of, predictor, summary, write
from tests.benchmarks.quality.adalora_cost import NAME as COST
from tests.benchmarks.quality.adapters import RANK
from tests.benchmarks.quality.arms import ARMS
from tests.benchmarks.quality.evaluate import nll, probabilities
from tests.benchmarks.quality.summarize import LEVEL, OUT, mean_interval
from tests.benchmarks.quality.train import EPOCHS, MEMBERS

DATA = ("movie-reviews", "sarcasm")
SEEDS, TRIAL_SEED = range(5), 5
TRIAL_RATES = (1e-3, 3e-3, 1e-2)
# Arms by adapter and whether they were trained with LoRA Dropout.
CELLS = {
    "lora": ("lora", False),
    "example-balanced": ("lora", True),
    "adalora": ("adalora", False),
    "adalora-dropout": ("adalora", True),
}
PROTOCOL = {
    "arms": {arm: list(cell) for arm, cell in CELLS.items()},
    "learning_rate": "of AdaLoRA: that of the trial whose training NLL is nearest to LoRA's",
    "train_nll": f"of the same predictor, ensembles with {MEMBERS} masks",
    "gap": f"test NLL minus training NLL, ensembles with {MEMBERS} masks on both",
    "minus no dropout": "minus the same adapter trained without, masks off, same split",
    "minus lora": "minus LoRA trained and predicted in the same way, same split",
    "minus plain lora": "minus LoRA trained without dropout, same split",
    "interval": f"Student, level {LEVEL}, over seeds; pooled: over pairs of data set and seed",
}
REFERENCES: Mapping[str, Row] = {
    "minus no dropout": {"dropout": False, "predictor": "mean"},
    "minus lora": {"adapter": "lora"},
    "minus plain lora": {"adapter": "lora", "dropout": False, "predictor": "mean"},
}


def read(folder: Path, data: str, seed: int, arm: Any) -> dict[str, Any]:
    """The record of a run.

    Raises:
        RuntimeError: If it has not been made.
    """
    record = records.read(folder, records.run_id(config_of(data, seed, arm, EPOCHS)))
    if record is None:
        raise RuntimeError(f"the run of {arm.name} on {data}, seed {seed}, must be finished first.")
    return record


def scored(folder: Path, data: str, seed: int) -> Iterator[Row]:
    """Scores of the four arms and their predictors on one split, at the last epoch."""
    labels = labels_of(data, seed)
    for arm, (adapter, dropout) in CELLS.items():
        record = read(folder, data, seed, ARMS[arm])
        logits = records.read_logits(folder, record["run_id"])
        for name, key in (("mean", "mean"), ("ensemble", "members")):
            if f"test.{key}.{EPOCHS}" not in logits:
                continue
            test, fitted = (logits[f"{rows}.{key}.{EPOCHS}"] for rows in ("test", "train"))
            eight = test[:MEMBERS] if test.ndim == 3 else test
            yield {
                "data": data,
                "seed": seed,
                "adapter": adapter,
                "dropout": dropout,
                "predictor": name,
                **predictor(
                    probabilities(test), labels, probabilities(fitted), probabilities(eight)
                ),
            }


def ranks(folder: Path, data: str, seed: int, arm: str) -> Row:
    """Ranks that AdaLoRA kept.

    Raises:
        RuntimeError: If their sum is not the budget.
    """
    record = read(folder, data, seed, ARMS[arm])
    weights = load_file(folder / "weights" / f"{record['run_id']}.safetensors")
    kept = [int((w != 0).sum()) for name, w in sorted(weights.items()) if ".lora_E." in name]
    if sum(kept) != RANK * len(kept):
        raise RuntimeError(f"{arm} must end with {RANK} ranks per layer on average, got {kept}.")
    return {"data": data, "seed": seed, "arm": arm, "ranks": kept}


def trials(folder: Path) -> list[Row]:
    """Training NLL at each learning rate on a split of its own, and LoRA's on the five splits."""
    rows = []
    for data in DATA:
        of_lora = [read(folder, data, s, ARMS["lora"])["final"]["train_mean_nll"] for s in SEEDS]
        lora = mean_interval(of_lora)
        labels = labels_of(data, TRIAL_SEED)
        for rate in TRIAL_RATES:
            arm = dataclasses.replace(ARMS["adalora"], learning_rate=rate)
            record = read(folder, data, TRIAL_SEED, arm)
            logits = records.read_logits(folder, record["run_id"])
            rows.append(
                {
                    "data": data,
                    "seed": TRIAL_SEED,
                    "learning_rate": rate,
                    "train_nll": record["final"]["train_mean_nll"],
                    "test_nll": nll(probabilities(logits[f"test.mean.{EPOCHS}"]), labels["test"]),
                    "lora_train_nll": lora,
                }
            )
    return rows


def costs(folder: Path) -> dict[str, Any]:
    """Rows and processor time of training, over LoRA's."""
    timed = json.loads((folder / COST).read_text(encoding="utf-8"))
    turns = timed["seconds_per_step"]
    found: dict[str, Any] = {"environment": timed["environment"], "turns": len(turns)}
    for arm in CELLS:
        rows = [
            read(folder, data, seed, ARMS[arm])["rows_trained"]
            / read(folder, data, seed, ARMS["lora"])["rows_trained"]
            for data in DATA
            for seed in SEEDS
        ]
        ratios = [turn[arm] / turn["lora"] for turn in turns]
        found[arm] = {
            "rows_over_lora": float(np.mean(rows)),
            "seconds_per_step": float(np.median([turn[arm] for turn in turns])),
            "time_over_lora": float(np.median(ratios)),
            "time_over_lora_low": min(ratios),
            "time_over_lora_high": max(ratios),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.adalora_summary")
    parser.add_argument("--runs", type=Path, default=records.RUNS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    folder = options.runs
    places = [(data, seed) for data in DATA for seed in SEEDS]
    splits = [row for place in places for row in scored(folder, *place)]
    made = [read(folder, *place, ARMS[arm]) for place in places for arm in CELLS]
    where = {key for record in made for key in record["environment"]}
    runs = {key: sorted({record["environment"][key] for record in made}, key=str) for key in where}
    config = config_of(DATA[0], 0, ARMS["adalora"], EPOCHS)
    content = {
        "schema": records.SCHEMA,
        "environment": {**environment(), "runs": runs},
        "protocol": {**PROTOCOL, "adalora": config["adalora"], "rate": config["learning_rate"]},
        "splits": splits,
        "table": summary(splits, ("adapter", "dropout", "predictor"), MEASURES, REFERENCES),
        "trials": trials(folder),
        "ranks": [
            ranks(folder, *place, arm) for place in places for arm in ("adalora", "adalora-dropout")
        ],
        "costs": costs(folder),
    }
    write(options.out / "adalora.json", content)


if __name__ == "__main__":
    main()
