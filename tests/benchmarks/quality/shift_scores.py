"""How predictors trained on movie reviews fare on sentences of other kinds.

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.quality.shift_scores     (after shift)
Reads   runs/quality (records, logits, shift)
Writes  tests/benchmarks/records/shift.json

The rows are the same for all seeds: intervals over seeds are about training, those over groups
(reviews, articles, single tweets) about the rows. Temperatures are fitted to validation rows of
movie reviews. Nothing is corrected for the number of comparisons.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats

from lodrop_nn.data import load_data, split
from lodrop_nn.data.amazon_reviews import AMAZON_REVIEWS
from lodrop_nn.data.nyt_editorials import NYT_EDITORIALS
from lodrop_nn.data.tweets import TWEETS
from lodrop_nn.measure.calibration import top_label
from lodrop_nn.measure.environment import environment
from lodrop_theory.records import write_bytes_atomically
from tests.benchmarks.quality import records, reliability
from tests.benchmarks.quality.evaluate import Float64Array, nll
from tests.benchmarks.quality.final import (
    Final,
    finals,
    held_out,
    paired_table,
    variant,
)
from tests.benchmarks.quality.people import counts, uncertainties
from tests.benchmarks.quality.predictors import Variant, at_temperature, fit_temperature
from tests.benchmarks.quality.problem import MAX_LENGTH, N_TEST, N_TRAIN, N_VALIDATION
from tests.benchmarks.quality.row_groups import RowLosses, over_groups, row_losses
from tests.benchmarks.quality.shift import (
    AWAY,
    HOME,
    N_ROWS,
    away_data,
    runs_at_home,
    truncated_shares,
)
from tests.benchmarks.quality.summarize import OUT, Split, mean_interval, rounded
from tests.benchmarks.quality.train import MEMBERS

SCHEMA = 1
COVERAGE = 0.8
FEW_VOTES = 10
ENSEMBLES = ("example-balanced", "n4", "peft-lora-dropout", "seeds-4")
COMPARED = (
    variant("lora"),
    variant("lora", tempered=True),
    *(variant(arm) for arm in ENSEMBLES[:-1]),
    *(variant(arm, "ensemble", tempered=t) for arm in ENSEMBLES for t in (False, True)),
)
SHARED = ("nll", "accuracy", "brier", "ece", "overconfidence", "accuracy_at_80")  # with home
RATED = {data.name: data for data in (AMAZON_REVIEWS, NYT_EDITORIALS, TWEETS)}


def accuracy_at_coverage(predicted: Float64Array, labels: NDArray[np.int64]) -> float:
    """Accuracy of the most confident 80% of the rows; ties as they come."""
    confidence, correct = top_label(predicted, labels)
    kept = np.argsort(-confidence, kind="stable")[: round(COVERAGE * len(labels))]
    return float(correct[kept].mean())


def auroc(inside: Float64Array, outside: Float64Array) -> float:
    """Chance that a row from elsewhere is the more uncertain one, ties counted half."""
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    above = ranks[len(inside) :].sum() - len(outside) * (len(outside) + 1) / 2
    return float(above / (len(inside) * len(outside)))


def measures(final: Final, one: Variant, rows: str, labels: NDArray[np.int64]) -> dict[str, float]:
    """Scores of one variant on one set of rows, "test" for those of movie reviews.

    Of a tempered variant also the temperature that these rows would choose, and their NLL at it:
    what is lost by carrying the temperature over is the difference. Where predictions are worse
    than none the temperature runs to the end of its range, 54.6: do not average it.
    """
    predicted = final.predicted(rows, tempered=one.tempered)
    found = reliability.measures(predicted, labels)
    found["accuracy_at_80"] = accuracy_at_coverage(predicted, labels)
    if one.tempered:
        averaged = final.predicted(rows, tempered=False)
        own = fit_temperature(averaged, labels)
        found |= {"temperature": final.temperature, "own_temperature": own}
        found["own_nll"] = nll(at_temperature(averaged, own), labels)
        found["temperature_loss"] = found["nll"] - found["own_nll"]
    elif rows != "test":
        home = uncertainties(final.members["test"])
        for name, values in uncertainties(final.members[rows]).items():
            found[f"auroc_{name}"] = auroc(home[name], values)
    return found


def with_equal_members(final: Final) -> Final:
    """The same predictor with as many members on all rows."""
    fewer = {rows: each[:MEMBERS] for rows, each in final.members.items()}
    return Final(members=fewer, temperature=final.temperature)


def collect(
    folder: Path, away: Mapping[str, Any]
) -> tuple[
    dict[Split, dict[Variant, dict[str, float]]], dict[tuple[str, Variant], list[RowLosses]]
]:
    """Measures by set of rows and seed, and losses of rows by set and variant, seed after seed."""
    by_seed: dict[int, dict[str, Any]] = defaultdict(dict)
    for record in runs_at_home(folder):
        by_seed[record["config"]["seed"]][record["config"]["arm"]["name"]] = record
    found: dict[Split, dict[Variant, dict[str, float]]] = defaultdict(dict)
    losses: dict[tuple[str, Variant], list[RowLosses]] = defaultdict(list)
    rows = load_data(HOME)
    for seed, arms in sorted(by_seed.items()):
        parts = held_out(split(rows, N_TRAIN, N_TEST + N_VALIDATION, seed))
        each = finals(folder, arms, parts["validation"].labels)
        for one in COMPARED:
            final = with_equal_members(each[one.arm, one.predictor])
            found[HOME, seed][one] = measures(final, one, "test", parts["test"].labels)
            for name, data in away.items():
                found[name, seed][one] = measures(final, one, name, data.labels)
                predicted = final.predicted(name, tempered=one.tempered)
                losses[name, one].append(row_losses(predicted, data.labels))
            found["cost of shift", seed][one] = {
                key: float(np.mean([found[name, seed][one][key] for name in away]))
                - found[HOME, seed][one][key]
                for key in SHARED
            }
    return dict(found), losses


def results_of(folder: Path) -> dict[str, Any]:
    """The record without its environment."""
    away = {name: away_data(name) for name in AWAY}
    votes = {name: RATED[name].votes() for name in AWAY}
    groups = {name: [votes[name][t].group for t in data.texts] for name, data in away.items()}
    clear = {name: counts(votes[name], d.texts)[1] >= FEW_VOTES for name, d in away.items()}
    found, losses = collect(folder, away)
    seeds = sorted({seed for _, seed in found})
    names = dict.fromkeys(name for name, _ in found)
    units: dict[str, list[list[Split]]] = {name: [[(name, s)] for s in seeds] for name in names}
    units["pooled"] = [[(name, seed) for name in AWAY] for seed in seeds]
    archives = [
        np.load(folder / "shift" / f"{r['run_id']}.npz")["error"] for r in runs_at_home(folder)
    ]
    cut = truncated_shares()
    return {
        "protocol": {
            "trained_on": HOME,
            "rows": N_ROWS,
            "members": MEMBERS,
            "max_length": MAX_LENGTH,
            "coverage": COVERAGE,
            "few_votes": FEW_VOTES,
            "interval": "Student 95% over seeds; pooled: of means over the three sets",
            "over_groups": "mean over seeds; percentile bootstrap 95% of reviews or articles",
            "largest_difference_of_recomputed_logits": float(max(archives)),
        },
        "data": [
            {
                "data": name,
                "rows": len(data),
                "groups": len(set(groups[name])),
                "positive": float(data.labels.mean()),
                "clear": float(clear[name].mean()),
                "truncated": cut[name],
            }
            for name, data in away.items()
        ],
        "table": paired_table(found, units),
        "clear_accuracy": [
            {
                "data": name,
                **vars(one),
                **mean_interval([float(s["accuracy"][clear[name]].mean()) for s in each]),
            }
            for (name, one), each in losses.items()
        ],
        "over_groups": over_groups(losses, groups, clear),
        "splits": [
            {"data": name, "seed": seed, **vars(one), **each}
            for (name, seed), some in found.items()
            for one, each in some.items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.shift_scores")
    parser.add_argument("--runs", type=Path, default=records.RUNS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    results = {"schema": SCHEMA, "environment": environment(), **results_of(options.runs)}
    text = json.dumps(rounded(results), indent=1, sort_keys=True, allow_nan=False) + "\n"
    path = options.out / "shift.json"
    write_bytes_atomically(path, text.encode())
    Console().print(f"{path}: {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
