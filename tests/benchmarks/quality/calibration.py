"""Are predicted probabilities to be taken at their word, and what do people say?

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.quality.calibration     (after the runs)
Reads   runs/quality (records, logits)
Writes  tests/benchmarks/records/calibration.json

Last epoch, test rows; 12 epochs but where the name says else. Differences are to plain LoRA on
the same rows; nothing is corrected for the number of comparisons.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from lodrop_nn.data import load_data, split
from lodrop_nn.data.movie_reviews import MOVIE_REVIEWS
from lodrop_nn.measure.calibration import top_label
from lodrop_nn.measure.environment import environment
from lodrop_theory.records import write_bytes_atomically
from tests.benchmarks.quality import people, records, reliability
from tests.benchmarks.quality.final import Final, finals, held_out, paired_table, variant
from tests.benchmarks.quality.predictors import SEEDS_4, Variant
from tests.benchmarks.quality.problem import N_TEST, N_TRAIN, N_VALIDATION
from tests.benchmarks.quality.summarize import OUT, Split, finished, mean_interval, rounded
from tests.benchmarks.quality.train import EPOCHS

SCHEMA = 1
DATA = ("movie-reviews", "trec", "sarcasm")
LONG = "trec, 36 epochs"  # of runs that have fitted their rows; stands apart from the pool
COMPARED = (
    variant("lora"),
    variant("lora", tempered=True),
    variant("example-balanced"),
    variant("example-balanced", "ensemble"),
    variant("example-balanced", "ensemble", tempered=True),
    variant("peft-lora-dropout"),
    variant("peft-lora-dropout", "ensemble"),
    variant("seeds-4", "ensemble"),
)
ARMS = {one.arm for one in COMPARED} | set(SEEDS_4)


class Collected:
    """Measures of all splits, and what curves are made of.

    Attributes:
        found: Measures by split and variant.
        predicted: Probabilities of the test rows, by data set and variant, seed after seed.
        labels: Labels of those rows, by data set.
        shares: Vote shares of those rows, seed after seed.
        floors: Floors of the measures against votes, and the ceiling of ranks, by seed.
    """

    def __init__(self) -> None:
        self.found: dict[Split, dict[Variant, dict[str, float]]] = {}
        self.predicted: dict[tuple[str, Variant], list[Any]] = defaultdict(list)
        self.labels: dict[str, list[Any]] = defaultdict(list)
        self.shares: list[Any] = []
        self.floors: list[dict[str, float]] = []

    def add(self, where: Split, test: Any, each: Mapping[tuple[str, str], Final]) -> None:
        """The variants of one split."""
        data = where[0]
        self.labels[data].append(test.labels)
        scores = self.found.setdefault(where, {})
        for one in COMPARED:
            if (one.arm, one.predictor) not in each:
                continue
            final = each[one.arm, one.predictor]
            predicted = final.predicted("test", tempered=one.tempered)
            self.predicted[data, one].append(predicted)
            scores[one] = reliability.measures(predicted, test.labels)
            if one.tempered:
                scores[one]["temperature"] = final.temperature

    def add_people(
        self, where: Split, counts: Any, prior: Any, each: Mapping[tuple[str, str], Final]
    ) -> None:
        """Measures against votes, of a split that was added before."""
        positive, voted = counts
        self.shares.append(positive / voted)
        self.floors.append(
            people.vote_floors(positive, voted, prior) | people.rank_ceiling(positive, voted)
        )
        for one in COMPARED:
            predicted = self.predicted[where[0], one][-1]
            scores = self.found[where][one]
            scores |= people.vote_measures(predicted, positive, voted)
            if not one.tempered:
                members = each[one.arm, one.predictor].members["test"]
                scores |= people.uncertainty_measures(members, positive, voted)


def collect(folder: Path, runs: Mapping[Split, Mapping[str, dict[str, Any]]]) -> Collected:
    """All that the record needs of the splits."""
    collected, votes = Collected(), MOVIE_REVIEWS.votes()
    prior = people.fit_prior(*people.counts(votes, list(votes)))
    for data in (*DATA, LONG):
        rows = load_data(data.split(",")[0])
        for where in sorted(split_ for split_ in runs if split_[0] == data):
            parts = held_out(split(rows, N_TRAIN, N_TEST + N_VALIDATION, where[1]))
            arms = {arm: record for arm, record in runs[where].items() if arm in ARMS}
            each = finals(folder, arms, parts["validation"].labels)
            collected.add(where, parts["test"], each)
            if data == MOVIE_REVIEWS.name:
                counts = people.counts(votes, parts["test"].texts)
                collected.add_people(where, counts, prior, each)
    return collected


def curves(collected: Collected) -> list[dict[str, Any]]:
    """Reliability curves by data set and variant."""
    made = []
    for (data, one), predicted in collected.predicted.items():
        labels = collected.labels[data]
        confidence, correct = zip(*map(top_label, predicted, labels), strict=True)
        row = {
            "data": data,
            **vars(one),
            "equal_mass": reliability.mean_curve(confidence, correct),
            "equal_width": reliability.pooled_curve(predicted, labels),
        }
        if data == MOVIE_REVIEWS.name:
            q = [each[:, 1] for each in predicted]
            row["votes"] = reliability.mean_curve(q, collected.shares)
        made.append(row)
    return made


def results_of(collected: Collected) -> dict[str, Any]:
    """The record without its environment."""
    splits = sorted(collected.found)
    groups = {data: [[s] for s in splits if s[0] == data] for data in (*DATA, LONG)}
    groups["pooled"] = [[s] for s in splits if s[0] in DATA]
    votes = MOVIE_REVIEWS.votes()
    positive, voted = people.counts(votes, list(votes))
    names = collected.floors[0]
    return {
        "protocol": {
            "epochs": EPOCHS,
            "rows": {"train": N_TRAIN, "validation": N_VALIDATION, "test": N_TEST},
            "bins": reliability.N_BINS,
            "bins_of_equal_mass": reliability.MASS_BINS,
            "interval": "Student 95% over seeds; of pooled rows over pairs of data set and seed",
            "equal_width": "rows of all seeds together, Clopper-Pearson 95%",
            "temperature": "least NLL on the validation rows, eight members of sixteen",
        },
        "table": paired_table(collected.found, groups),
        "curves": curves(collected),
        "votes": {
            "prior": list(people.fit_prior(positive, voted)),
            "floors": {n: mean_interval([f[n] for f in collected.floors]) for n in names},
        },
        "splits": [
            {"data": data, "seed": seed, **vars(one), **each}
            for (data, seed), some in sorted(collected.found.items())
            for one, each in some.items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.calibration")
    parser.add_argument("--runs", type=Path, default=records.RUNS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    runs, places = finished(options.runs)
    results = {
        "schema": SCHEMA,
        "environment": {**environment(), "runs": places},
        **results_of(collect(options.runs, runs)),
    }
    text = json.dumps(rounded(results), indent=1, sort_keys=True, allow_nan=False) + "\n"
    path = options.out / "calibration.json"
    write_bytes_atomically(path, text.encode())
    Console().print(f"{path}: {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
