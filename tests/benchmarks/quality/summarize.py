"""Paired differences between the arms, over data sets and seeds.

Run     python -m tests.benchmarks.quality.summarize
Reads   runs/quality
Writes  tests/benchmarks/records/quality.json; prints the pooled table
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from lodrop_nn.data import load_data, split
from tests.benchmarks.quality import records
from tests.benchmarks.quality.predictors import SEEDS_4, Variant, variants
from tests.benchmarks.quality.problem import N_TEST, N_TRAIN, N_VALIDATION
from tests.benchmarks.quality.train import EPOCHS

OUT = records.ROOT / "tests" / "benchmarks" / "records"
MEASURES = ("nll", "accuracy", "ece", "brier", "gap")
LEVEL = 0.95
LAPLACE = "laplace-full-ggn"
Split = tuple[str, int]  # data set, with its epochs where they are not the usual ones; seed
Scores = Mapping[Split, Mapping[Variant, Mapping[str, float]]]


def references(variant: Variant) -> dict[str, Variant]:
    """What a variant is compared to, by name."""
    rule, tempered = variant.epoch, variant.tempered
    return {
        "lora": Variant(arm="lora", predictor="mean", epoch=rule, tempered=tempered),
        "n4": Variant(arm="n4", predictor=variant.predictor, epoch=rule, tempered=tempered),
        "lora stopped": Variant(arm="lora", predictor="mean", epoch="best", tempered=False),
        "lora stopped and tempered": Variant(
            arm="lora", predictor="mean", epoch="best", tempered=True
        ),
    }


def mean_interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean with Student's interval; no interval for fewer than two values."""
    found = np.asarray(values, dtype=np.float64)
    n, mean = len(found), float(found.mean())
    low = high = None
    if n > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * found.std(ddof=1) / np.sqrt(n))
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "n": n}


def finished(folder: Path) -> tuple[dict[Split, dict[str, dict[str, Any]]], dict[str, Any]]:
    """Records by split and arm, and where they were made."""
    runs: dict[Split, dict[str, dict[str, Any]]] = defaultdict(dict)
    places: dict[str, Any] = defaultdict(set)
    for record in records.read_all(folder):
        config = record["config"]
        if "adalora" in config["arm"]:  # summarized by itself
            continue
        label = config["data"]
        if config["epochs"] != EPOCHS:
            label += f", {config['epochs']} epochs"
        runs[label, config["seed"]][config["arm"]["name"]] = record
        for key, value in record["environment"].items():
            places[key].add(value)
    return runs, {key: sorted(values, key=str) for key, values in sorted(places.items())}


def scored(folder: Path, runs: Mapping[Split, Mapping[str, dict[str, Any]]]) -> Scores:
    """Test scores of every variant on every split."""
    texts = {label: load_data(label.split(",")[0]) for label, _ in runs}
    made = {}
    for (data, seed), arms in sorted(runs.items()):
        train, held_out = split(texts[data], N_TRAIN, N_TEST + N_VALIDATION, seed)
        labels = {
            "train": train.labels,
            "test": held_out.labels[:N_TEST],
            "validation": held_out.labels[N_TEST:],
        }
        made[data, seed] = variants(folder, arms, labels)
    return made


def rows(found: Scores) -> list[dict[str, Any]]:
    """One row per variant and data set, and one with all data sets pooled."""
    every = sorted({v for each in found.values() for v in each}, key=str)
    groups = {data: [s for s in found if s[0] == data] for data, _ in found}
    groups["pooled"] = [s for s in found if "," not in s[0]]
    table = []
    for group, splits in groups.items():
        for variant in every:
            here = [s for s in splits if variant in found[s]]
            if not here:
                continue
            row: dict[str, Any] = {"data": group, **vars(variant), "measures": {}}
            for measure in MEASURES:
                known = [s for s in here if measure in found[s][variant]]
                if not known:
                    continue
                cell = {"value": mean_interval([found[s][variant][measure] for s in known])}
                for name, reference in references(variant).items():
                    pairs = [s for s in known if measure in found[s].get(reference, {})]
                    if pairs and reference != variant:
                        cell[f"minus {name}"] = mean_interval(
                            [
                                found[s][variant][measure] - found[s][reference][measure]
                                for s in pairs
                            ]
                        )
                row["measures"][measure] = cell
            table.append(row)
    return table


def costs(runs: Mapping[Split, Mapping[str, dict[str, Any]]]) -> dict[str, Any]:
    """What training took, and how well the training rows were fitted, by arm."""
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for arms in runs.values():
        for arm, record in arms.items():
            by_arm[arm].append(record)
    summary = {}
    for arm, some in sorted(by_arm.items()):
        summary[arm] = {"runs": len(some)}
        for key in ("rows_trained", "train_seconds", "evaluation_seconds", "update_square"):
            summary[arm][key] = float(np.mean([r[key] for r in some]))
        for key in ("train_mean_nll", "train_members_nll"):
            known = [r["final"][key] for r in some if key in r["final"]]
            if known:
                summary[arm][key] = float(np.mean(known))
        decays = [r["decay"] for r in some if "decay" in r]
        if decays:
            summary[arm]["decay"] = decays
    for arm, ratios in rows_over_lora(runs).items():
        summary.setdefault(arm, {})["rows_over_lora"] = float(np.mean(ratios))
    return summary


def rows_over_lora(runs: Mapping[Split, Mapping[str, dict[str, Any]]]) -> dict[str, list[float]]:
    """Rows that an arm trained on, over those of plain LoRA on the same split."""
    found: dict[str, list[float]] = defaultdict(list)
    for arms in runs.values():
        passed = {arm: record["rows_trained"] for arm, record in arms.items()}
        if all(arm in passed for arm in SEEDS_4):
            passed["seeds-4"] = sum(passed[arm] for arm in SEEDS_4)
        if LAPLACE in passed and "lora" in passed:  # built around a finished run
            passed[LAPLACE] = passed["lora"]
        if "lora" in passed:
            for arm, rows in passed.items():
                found[arm].append(rows / passed["lora"])
    return found


def rounded(value: Any) -> Any:
    """The same content with numbers of six significant digits: more would be noise."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def as_markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """The pooled rows, one table per epoch rule."""
    parts = []
    for rule in ("last", "best"):
        lines = [
            f"Epoch: {rule}. Pooled over data sets and seeds; paired differences, 95% intervals.\n",
            "| arm | NLL | ECE | accuracy | NLL minus lora | NLL minus n4 | NLL minus lora, "
            "stopped and tempered | splits |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in table:
            if row["data"] == "pooled" and row["epoch"] == rule:
                measures = row["measures"]
                means = (measures[m]["value"]["mean"] for m in ("nll", "ece", "accuracy"))
                names = ("lora", "n4", "lora stopped and tempered")
                differences = (_cell(measures["nll"].get(f"minus {name}")) for name in names)
                label = f"{row['arm']}, {row['predictor']}" + ", tempered" * row["tempered"]
                cells = [label, *(f"{m:.3f}" for m in means), *differences]
                lines.append(f"| {' | '.join(cells)} | {measures['nll']['value']['n']} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    if found["low"] is None:
        return f"{found['mean']:+.3f}"
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.summarize")
    parser.add_argument("--runs", type=Path, default=records.RUNS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    runs, places = finished(options.runs)
    found = scored(options.runs, runs)
    table = rows(found)
    splits = [
        {"data": data, "seed": seed, **vars(variant), **each}
        for (data, seed), some in found.items()
        for variant, each in some.items()
    ]
    results = {
        "schema": records.SCHEMA,
        "environment": places,
        "costs": costs(runs),
        "table": table,
        "splits": splits,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(results), sort_keys=True, allow_nan=False) + "\n"
    (options.out / "quality.json").write_text(text, encoding="utf-8")
    print(as_markdown(table))


if __name__ == "__main__":
    main()
