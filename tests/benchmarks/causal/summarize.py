"""Gaps of text and label by dropout rate and predictor, and what dropout changes, over seeds.

Run     python -m tests.benchmarks.causal.summarize
Reads   runs/causal
Writes  tests/benchmarks/records/causal.json; prints the table
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lodrop_theory.records import PREDICTORS, write_bytes_atomically
from tests.benchmarks.causal.__main__ import RUNS
from tests.benchmarks.quality import records
from tests.benchmarks.quality.summarize import mean_interval, rounded

OUT = records.ROOT / "tests" / "benchmarks" / "records" / "causal.json"
SCHEMA = 1
# What varies from run to run; all else of a configuration must agree.
VARIED = ("seed", "dropout_rate")
GAPS = ("text_nll", "label_nll", "word_nll")
Row = Mapping[str, Any]


def split_rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per seed, rate and predictor: training and held-out scores, and their gaps."""
    rows = []
    for record in found:
        train, test = record["scores"]["train"], record["scores"]["test"]
        for predictor in PREDICTORS:
            scores = {f"test_{k}": v for k, v in test[predictor].items()}
            scores |= {f"train_{k}": v for k, v in train[predictor].items()}
            for name in GAPS:
                scores[f"gap_{name}"] = scores[f"test_{name}"] - scores[f"train_{name}"]
            measured = record["language"][predictor]
            rows.append(
                {
                    "seed": record["config"]["seed"],
                    "dropout_rate": record["config"]["dropout_rate"],
                    "predictor": predictor,
                    "scores": scores,
                    "measured": {
                        name: measured[name] for name in ("generalization_gap", "test_nll")
                    },
                }
            )
    return sorted(rows, key=lambda r: (str(r["dropout_rate"]), r["predictor"], r["seed"]))


def table(rows: Sequence[Row], traced: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per rate and predictor: means over seeds and paired differences.

    "minus p=0" is the difference to training without dropout, "minus base" that to the model before
    fine-tuning, "minus mean" that to the mean predictor of the same adapter. "minus p=0 stopped" is
    that to the best of the scored epochs without dropout (2, 4 and 8), chosen on the held-out rows
    themselves and so in favour of p = 0: a description.
    """
    scores: dict[tuple[float | None, str], dict[int, Mapping[str, float]]] = defaultdict(dict)
    for row in rows:
        # Without masks the predictors agree.
        if row["dropout_rate"] or row["predictor"] == "mean":
            scores[row["dropout_rate"], row["predictor"]][row["seed"]] = row["scores"]
    made = []
    for (rate, predictor), by_seed in scores.items():
        references = {
            "minus p=0": scores.get((0.0, "mean"), {}),
            "minus base": scores.get((None, "mean"), {}),
            "minus mean": scores[rate, "mean"],
            "minus p=0 stopped": stopped(traced),
        }
        cells: dict[str, Any] = {}
        for measure in next(iter(by_seed.values())):
            cell = {"value": mean_interval([each[measure] for each in by_seed.values()])}
            for name, other in references.items():
                pairs = [s for s in sorted(by_seed) if measure in other.get(s, {})]
                if pairs and other is not by_seed:
                    cell[name] = mean_interval(
                        [by_seed[s][measure] - other[s][measure] for s in pairs]
                    )
            cells[measure] = cell
        made.append({"dropout_rate": rate, "predictor": predictor, "measures": cells})
    return made


def stopped(traced: Sequence[Row]) -> dict[int, dict[str, float]]:
    """Least held-out losses on the way without dropout, by seed; each at an epoch of its own."""
    least: dict[int, dict[str, float]] = defaultdict(dict)
    for row in traced:
        if row["dropout_rate"] == 0:
            for name in ("text_nll", "label_nll"):
                known = least[row["seed"]].get(f"test_{name}", row[name])
                least[row["seed"]][f"test_{name}"] = min(known, row[name])
    return least


def traces(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Held-out scores of the mean predictor on the way, the last epoch included."""
    rows = []
    for record in found:
        config = record["config"]
        if config["dropout_rate"] is None:
            continue
        at = {**record["trace"], str(config["epochs"]): record["scores"]["test"]["mean"]}
        for epoch, scores in at.items():
            rows.append(
                {
                    "seed": config["seed"],
                    "dropout_rate": config["dropout_rate"],
                    "epoch": int(epoch),
                    **{name: scores[name] for name in ("text_nll", "label_nll", "label_accuracy")},
                }
            )
    return sorted(rows, key=lambda r: (r["dropout_rate"], r["seed"], r["epoch"]))


def costs(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Processor milliseconds per token and pass, means over runs by rate."""
    by_rate: dict[float, list[dict[str, float]]] = defaultdict(list)
    for record in found:
        config, seconds, n = record["config"], record["seconds"], record["n_tokens"]
        if config["dropout_rate"] is None:
            continue
        members = config["n_masks"] if config["dropout_rate"] else 0
        by_rate[config["dropout_rate"]].append(
            {
                "train_ms_per_token": 1e3 * seconds["train"] / (config["epochs"] * n["train"]),
                "score_ms_per_token": 1e3 * seconds["scores"] / ((1 + members) * sum(n.values())),
                "stored_states_ms_per_token": 1e3 * seconds["stored_states"] / sum(n.values()),
                "train_seconds": seconds["train"],
                "score_seconds": seconds["scores"],
            }
        )
    return {
        str(rate): {"runs": len(some)} | {k: float(np.mean([s[k] for s in some])) for k in some[0]}
        for rate, some in sorted(by_rate.items())
    }


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of the committed record.

    Raises:
        ValueError: If there is no run, or runs differ in more than the seed and the rate.
    """
    protocols = [{k: v for k, v in r["config"].items() if k not in VARIED} for r in found]
    if not found or any(each != protocols[0] for each in protocols):
        raise ValueError("the runs must be at least one, of one protocol; summarize others apart.")
    places: dict[str, Any] = defaultdict(set)
    for record in found:
        for key, value in record["environment"].items():
            places[key].add(value)
    rows, traced = split_rows(found), traces(found)
    first = found[0]
    return {
        "schema": SCHEMA,
        "protocol": {
            **protocols[0],
            "n_parameters": first["n_parameters"],
            "predictors": "mean: masks off; gibbs: mean over the members of each member's score, "
            "but its ECE is that of the members' predictions pooled; "
            "ensemble: probabilities averaged over the members, the same for all rows",
            "text_nll": "nats per token of the sentence; label_nll: softmax over the two words; "
            "word_nll: the label word among all tokens",
            "base": "dropout_rate null: the model before fine-tuning",
        },
        "environment": {key: sorted(values, key=str) for key, values in sorted(places.items())},
        "costs": costs(found),
        "table": table(rows, traced),
        "splits": rows,
        "traces": traced,
    }


def lines(content: Mapping[str, Any]) -> list[str]:
    """The table in short."""
    shown = ("gap_text_nll", "test_text_nll", "gap_label_nll", "test_label_nll", "test_label_ece")
    made = []
    for row in content["table"]:
        made.append(f"p = {row['dropout_rate']}, {row['predictor']}")
        for measure in shown:
            cells = [f"{name} {_cell(cell)}" for name, cell in row["measures"][measure].items()]
            made.append(f"    {measure}: {'; '.join(cells)}")
    return made


def _cell(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.causal.summarize")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    content = rounded(summary(list(records.read_all(options.runs))))
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_bytes_atomically(options.out, text.encode())
    for line in lines(content):
        Console().print(line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
