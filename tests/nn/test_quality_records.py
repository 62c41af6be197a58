"""The records of the ablation and of AdaLoRA, and what is drawn from them, against the splits."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from paper_figures import fig09_ablation, tab06_adalora
from paper_figures._comparison import BENCHMARKS
from tests.benchmarks.quality.ablation import SUBSETS
from tests.benchmarks.quality.adapters import RANK
from tests.benchmarks.quality.arms import ARMS, P


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """The records by name."""
    names = "ablation", "adalora", "quality"
    return {name: json.loads((BENCHMARKS / f"{name}.json").read_text()) for name in names}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(np.mean(values)), float(np.mean(values) - half), float(np.mean(values) + half)


def by_key(rows: Sequence[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[key] for key in keys): row for row in rows}


def test_arms_that_were_known_have_the_scores_of_the_comparison(content: dict[str, Any]) -> None:
    known = {
        (r["data"], r["seed"], r["arm"], r["predictor"]): r
        for r in content["quality"]["splits"]
        if r["epoch"] == "last" and not r["tempered"]
    }
    compared = 0
    for row in content["ablation"]["splits"]:
        name = {0.0: "mean", P: "ensemble"}.get(row["test_rate"])
        other = known.get((row["data"], row["seed"], row["arm"], name))
        if other is not None:
            compared += 1
            for measure in ("nll", "accuracy", "ece", "brier", "gap"):
                assert row[measure] == pytest.approx(other[measure], rel=1e-5), row
    assert compared == 3 * 4 * 5  # arms, data sets (one of them trained twice), seeds
    for row in content["adalora"]["splits"]:
        if row["adapter"] == "lora":
            arm = "example-balanced" if row["dropout"] else "lora"
            other = known[row["data"], row["seed"], arm, row["predictor"]]
            assert row["nll"] == pytest.approx(other["nll"], rel=1e-5)


def test_a_drawn_difference_is_that_of_the_single_splits(content: dict[str, Any]) -> None:
    splits = by_key(content["ablation"]["splits"], "data", "seed", "arm", "test_rate")
    points = [p for p in fig09_ablation.compute() if p.row in ("nll", "ece")]
    assert len(points) == 2 * (2 * 4 + 2 * 2) * 2  # measures, rates by data set, arms
    for p in points:
        ours = [splits[p.data, s, p.arm, p.test_rate][p.row] for s in range(5)]
        base = [splits[p.data, s, "lora", 0.0][p.row] for s in range(5)]
        np.testing.assert_allclose((p.value, p.low, p.high), interval(ours), atol=1e-5)
        if (p.arm, p.test_rate) == ("lora", 0.0):
            assert np.isnan(p.difference)
            continue
        expected = interval(np.subtract(ours, base))
        found = p.difference, p.difference_low, p.difference_high
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert p.bar_low <= p.value <= p.bar_high


def test_counts_end_at_the_ensemble_and_never_rise(content: dict[str, Any]) -> None:
    counts = by_key(content["ablation"]["counts"], "data", "seed", "arm", "n_masks")
    splits = by_key(content["ablation"]["splits"], "data", "seed", "arm", "test_rate")
    for (data, seed, arm, _), row in counts.items():
        if (data, seed, arm, P) in splits:
            ensemble = splits[data, seed, arm, P]["nll"]
            assert counts[data, seed, arm, 16]["nll"] == pytest.approx(ensemble, rel=1e-5)
        risks = [counts[data, seed, arm, n]["nll"] for n in SUBSETS]
        assert all(more <= fewer + 1e-6 for fewer, more in pairwise(risks)), row
    for p in fig09_ablation.compute():
        if p.row == "count":
            some = [counts[p.data, s, p.arm, p.n_masks]["nll"] for s in range(5)]
            off = [counts[p.data, s, p.arm, 0]["nll"] for s in range(5)]
            found = p.difference, p.difference_low, p.difference_high
            np.testing.assert_allclose(found, interval(np.subtract(some, off)), atol=1e-5)


def test_a_printed_difference_is_that_of_the_single_splits(content: dict[str, Any]) -> None:
    keys = "data", "seed", "adapter", "dropout", "predictor"
    splits = by_key(content["adalora"]["splits"], *keys)
    lines = {(x.data, x.adapter, x.dropout, x.predictor): x for x in tab06_adalora.compute()}
    assert len(lines) == 3 * 6  # data sets and the pool, predictors of four arms
    for (data, adapter, dropout, predictor), line in lines.items():
        places = [
            (d, s) for d in ("movie-reviews", "sarcasm") for s in range(5) if data in (d, "pooled")
        ]
        assert line.n == len(places)
        ours = [splits[*place, adapter, dropout, predictor] for place in places]
        for name, cell in line.values.items():
            expected = interval([row[name] for row in ours])
            np.testing.assert_allclose((cell.mean, cell.low, cell.high), expected, atol=1e-5)
        off = [splits[*place, adapter, False, "mean"] for place in places]
        for name, cell in line.differences["minus no dropout"].items():
            if not dropout:
                assert np.isnan(cell.mean)
                continue
            pairs = [a[name] - b[name] for a, b in zip(ours, off, strict=True)]
            np.testing.assert_allclose((cell.mean, cell.low, cell.high), interval(pairs), atol=1e-5)
    assert {line.rows for line in lines.values()} == {1.0}


def test_adalora_spends_its_budget_unevenly(content: dict[str, Any]) -> None:
    kept = [row["ranks"] for row in content["adalora"]["ranks"]]
    assert len(kept) == 20
    assert all(sum(ranks) == RANK * len(ranks) for ranks in kept)
    assert any(len(set(ranks)) > 1 for ranks in kept)
    for data in ("movie-reviews", "sarcasm"):
        trials = [r for r in content["adalora"]["trials"] if r["data"] == data]
        nearest = min(trials, key=lambda r: abs(r["train_nll"] - r["lora_train_nll"]["mean"]))
        assert nearest["learning_rate"] == ARMS["adalora"].learning_rate
