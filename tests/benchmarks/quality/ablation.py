"""Dropout in training against dropout at test time, and how many masks a prediction needs.

Four arms, as in Figure 4 of Lin et al. (2024, arXiv:2404.09610): trained without or with masks
(`lora`, `example-balanced`), predicted with masks off or by an ensemble over masks. Differences are
paired: the same rows, the same seed, for the ensembles the same masks.

Run     python -m tests.benchmarks.quality.ablation     (after `quality.masked`)
Reads   runs/quality
Writes  tests/benchmarks/records/ablation.json
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lodrop_nn.data import load_data, split
from lodrop_nn.measure.environment import environment
from lodrop_theory.records import write_bytes_atomically
from tests.benchmarks.quality import records
from tests.benchmarks.quality.arms import P
from tests.benchmarks.quality.evaluate import Float32Array, Float64Array, nll, probabilities, scores
from tests.benchmarks.quality.masked import ARMS_MASKED, path_of, rates_of
from tests.benchmarks.quality.problem import N_TEST, N_TRAIN, N_VALIDATION
from tests.benchmarks.quality.summarize import LEVEL, OUT, finished, mean_interval, rounded
from tests.benchmarks.quality.train import MEMBERS

MEASURES = ("nll", "accuracy", "ece", "brier", "train_nll", "gap")
SUBSETS = (1, 2, 4, 8, 16)
COUNTED = ("lora", "batch", "example-balanced", "n4")  # arms whose test masks are counted
PROTOCOL = {
    "arms": {"trained without": "lora", "trained with": "example-balanced"},
    "test_rate": "0: masks off; else an ensemble over n_masks masks of that rate",
    "gap": f"test NLL minus training NLL, ensembles with {MEMBERS} masks on both",
    "train_nll": f"of the same predictor, ensembles with {MEMBERS} masks",
    "counts": "NLL of the mean over n_masks of 16 masks, averaged over all such subsets",
    "minus neither": "minus lora with masks off, same split",
    "minus masks off": "minus the same adapters with masks off",
    "minus trained without": "minus lora under the same masks at test time",
    "interval": f"Student, level {LEVEL}, over seeds; pooled: over pairs of data set and seed",
}
Labels = Mapping[str, NDArray[np.int64]]
Row = dict[str, Any]


def subset_nll(members: Float32Array, labels: NDArray[np.int64], size: int) -> float:
    """NLL of the mean over ``size`` members, averaged over all subsets of that size. Nats.

    Args:
        members: Logits, shape (members, n, K).
        labels: Shape (n,).
        size: 1 to the number of members.
    """
    chosen = np.stack([probabilities(each)[np.arange(len(labels)), labels] for each in members])
    subsets = np.array(list(combinations(range(len(members)), size)))
    is_in = np.zeros((len(subsets), len(members)))
    np.put_along_axis(is_in, subsets, 1 / size, axis=1)
    return float(-np.log(is_in @ chosen).mean())


def predictor(
    test: Float64Array, labels: Labels, train: Float64Array | None, eight: Float64Array
) -> dict[str, float]:
    """Scores on the test rows; fit and gap where the training rows were predicted."""
    found = scores(test, labels["test"])
    if train is not None:
        found["train_nll"] = nll(train, labels["train"])
        found["gap"] = nll(eight, labels["test"]) - found["train_nll"]
    return found


def split_rows(
    folder: Path, arms: Mapping[str, Mapping[str, Any]], labels: Labels
) -> tuple[list[Row], list[Row]]:
    """Scores by arm and test rate, and NLL by arm and number of test masks, of one split."""
    by_rate: list[Row] = []
    by_count: list[Row] = []
    for arm in (name for name in COUNTED if name in arms):
        record = arms[arm]
        name, last = record["run_id"], record["config"]["epochs"]
        logits = records.read_logits(folder, name)
        mean = probabilities(logits[f"test.mean.{last}"])
        fitted = probabilities(logits[f"train.mean.{last}"])
        members = {
            rows: {P: logits[f"{rows}.members.{last}"]}
            for rows in ("train", "test")
            if f"{rows}.members.{last}" in logits
        }
        if arm in ARMS_MASKED:
            for rate in rates_of(record["config"]):
                with np.load(path_of(folder, name, rate)) as archive:
                    for rows in archive.files:
                        members.setdefault(rows, {})[rate] = archive[rows]
            off = predictor(mean, labels, fitted, mean)
            by_rate.append({"arm": arm, "test_rate": 0.0, "n_masks": 0, **off})
            for rate, each in sorted(members["test"].items()):
                train = members["train"].get(rate)
                found = predictor(
                    probabilities(each),
                    labels,
                    None if train is None else probabilities(train),
                    probabilities(each[:MEMBERS]),
                )
                by_rate.append({"arm": arm, "test_rate": rate, "n_masks": len(each), **found})
        by_count.append({"arm": arm, "n_masks": 0, "nll": nll(mean, labels["test"])})
        for size in SUBSETS:
            value = subset_nll(members["test"][P], labels["test"], size)
            by_count.append({"arm": arm, "n_masks": size, "nll": value})
    return by_rate, by_count


def summary(
    rows: Sequence[Row],
    keys: Sequence[str],
    measures: Sequence[str],
    references: Mapping[str, Mapping[str, Any]],
) -> list[Row]:
    """Means and paired differences by data set, and over the data sets of equal length.

    Args:
        rows: One per split and predictor.
        keys: Fields that name a predictor.
        measures: Fields to average.
        references: By name of the difference, what distinguishes the row to subtract.
    """
    at = {(r["data"], r["seed"], *(r[key] for key in keys)): r for r in rows}
    table = []
    for group, here in _groups(rows):
        for which in dict.fromkeys(tuple(r[key] for key in keys) for r in here):
            some = [r for r in here if tuple(r[key] for key in keys) == which]
            if len({(r["data"], r["seed"]) for r in here}) > len(some):
                continue  # the pool holds what was predicted on all its splits
            row: Row = {"data": group, **dict(zip(keys, which, strict=True)), "measures": {}}
            for measure in measures:
                known = [r for r in some if measure in r]
                if not known:
                    continue
                cell = {"value": mean_interval([r[measure] for r in known])}
                for name, changed in references.items():
                    others = [{**r, **changed} for r in known]
                    ends = [at.get((o["data"], o["seed"], *(o[k] for k in keys))) for o in others]
                    pairs = [
                        r[measure] - end[measure]
                        for r, end in zip(known, ends, strict=True)
                        if end is not None and end is not r and measure in end
                    ]
                    if pairs:
                        cell[name] = mean_interval(pairs)
                row["measures"][measure] = cell
            table.append(row)
    return table


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for data in dict.fromkeys(r["data"] for r in rows):
        yield data, [r for r in rows if r["data"] == data]
    yield "pooled", [r for r in rows if "," not in r["data"]]


def labels_of(data: str, seed: int) -> Labels:
    """Labels of the training and the test rows of a split."""
    texts = load_data(data.partition(",")[0])
    train, held_out = split(texts, N_TRAIN, N_TEST + N_VALIDATION, seed)
    return {"train": train.labels, "test": held_out.labels[:N_TEST]}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a summary: numbers of six digits, keys sorted."""
    text = json.dumps(rounded(content), indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_bytes_atomically(path, text.encode("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.ablation")
    parser.add_argument("--runs", type=Path, default=records.RUNS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    runs, places = finished(options.runs)
    splits: list[Row] = []
    counts: list[Row] = []
    for (data, seed), arms in sorted(runs.items()):
        by_rate, by_count = split_rows(options.runs, arms, labels_of(data, seed))
        splits += [{"data": data, "seed": seed, **row} for row in by_rate]
        counts += [{"data": data, "seed": seed, **row} for row in by_count]
    off: Row = {"test_rate": 0.0, "n_masks": 0}
    content = {
        "schema": records.SCHEMA,
        "environment": {**environment(), "runs": places},
        "protocol": PROTOCOL,
        "splits": splits,
        "table": summary(
            splits,
            ("arm", "test_rate", "n_masks"),
            MEASURES,
            {
                "minus neither": {"arm": "lora", **off},
                "minus masks off": off,
                "minus trained without": {"arm": "lora"},
            },
        ),
        "counts": counts,
        "counts_table": summary(
            counts, ("arm", "n_masks"), ("nll",), {"minus masks off": {"n_masks": 0}}
        ),
    }
    write(options.out / "ablation.json", content)


if __name__ == "__main__":
    main()
