"""Calibration of the compared predictors: by labels, by votes of people, and as recorded."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from lodrop_nn.data.rated import SentenceVotes
from lodrop_nn.measure.calibration import calibration_error
from paper_figures import fig08_calibration as figure
from paper_figures._predictors import PREDICTORS
from tests.benchmarks.quality import people, records, reliability
from tests.benchmarks.quality.calibration import COMPARED, DATA, Collected, curves
from tests.benchmarks.quality.final import REFERENCE, finals, held_out, paired_table, variant
from tests.benchmarks.quality.predictors import SEEDS_4, variants
from tests.benchmarks.quality.summarize import OUT

SIZES = {"train": 20, "validation": 40, "test": 60}
ARMS = (*SEEDS_4, "example-balanced")


def made_up_runs(folder: Path, seed: int, data: str = "movie-reviews"):
    """Records with random logits of two classes, and the labels of their rows."""
    rng = np.random.default_rng(seed)
    labels = {rows: rng.integers(0, 2, n) for rows, n in SIZES.items()}
    runs = {}
    for arm in ARMS:
        signal = {rows: np.stack([-known, known], -1) for rows, known in labels.items()}
        logits = {}
        for rows, n in SIZES.items():
            for epoch in (6, 12):
                noise = rng.normal(0, 2, (n, 2))
                logits[f"{rows}.mean.{epoch}"] = (signal[rows] + noise).astype(np.float32)
                if arm == "example-balanced":
                    members = 16 if (rows, epoch) == ("test", 12) else 8
                    each = signal[rows] + noise + rng.normal(0, 1, (members, n, 2))
                    logits[f"{rows}.members.{epoch}"] = each.astype(np.float32)
        config = {"data": data, "seed": seed, "epochs": 12, "arm": {"name": arm}}
        path = records.write(folder, config, {}, logits, {}, {})
        runs[arm] = records.read(folder, path.stem)
    return runs, labels


# -- predictors ------------------------------------------------------------------------------


def test_final_predictors_are_the_last_ones_of_the_comparison(tmp_path) -> None:
    runs, labels = made_up_runs(tmp_path, 0)
    known = variants(tmp_path, runs, labels)
    found = finals(tmp_path, runs, labels["validation"])
    assert ("seeds-4", "ensemble") in found
    for (arm, predictor), final in found.items():
        if arm in SEEDS_4[1:]:
            continue
        for tempered in (False, True):
            predicted = final.predicted("test", tempered=tempered)
            scores = reliability.measures(predicted, labels["test"])
            expected = known[variant(arm, predictor, tempered=tempered)]
            for name in ("nll", "accuracy", "ece", "brier"):
                assert scores[name] == pytest.approx(expected[name], rel=1e-6)
    assert found["example-balanced", "ensemble"].members["test"].shape == (16, 60, 2)


def test_differences_are_paired_and_their_intervals_students() -> None:
    other = variant("seeds-4", "ensemble")
    lora, mine = [0.1, 0.5, 0.9, 0.4], [0.2, 0.4, 1.3, 0.6]
    found = {
        ("a", seed): {REFERENCE: {"nll": lora[seed]}, other: {"nll": mine[seed], "more": 1.0}}
        for seed in range(4)
    }
    table = paired_table(found, {"each": [[s] for s in found], "two": [list(found)[:2]] * 2})
    row = next(r for r in table if r["data"] == "each" and r["arm"] == "seeds-4")
    difference = np.subtract(mine, lora)
    low, high = stats.t.interval(0.95, 3, difference.mean(), stats.sem(difference))
    cell = row["measures"]["nll"]["minus lora"]
    assert (cell["mean"], cell["low"], cell["high"], cell["n"]) == pytest.approx(
        (difference.mean(), low, high, 4)
    )
    assert "minus lora" not in row["measures"]["more"]
    two = next(r for r in table if r["data"] == "two" and r["arm"] == "seeds-4")
    assert two["measures"]["nll"]["value"]["mean"] == pytest.approx(0.3)
    assert two["measures"]["nll"]["value"]["n"] == 2
    assert not any("minus lora" in r["measures"]["nll"] for r in table if r["arm"] == "lora")


# -- bins ------------------------------------------------------------------------------------


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=60), n_bins=st.integers(1, 9))
def test_bins_of_equal_mass_part_the_rows_by_rank(values, n_bins) -> None:
    values = np.array(values)
    bins = reliability.mass_bins(values, n_bins)
    assert sorted(np.concatenate(bins).tolist()) == list(range(len(values)))
    assert max(map(len, bins)) - min(map(len, bins)) <= 1
    filled = [values[rows] for rows in bins if len(rows)]
    assert all(one.max() <= other.min() for one, other in pairwise(filled))


@given(seed=st.integers(0, 999), n_bins=st.integers(1, 20))
def test_the_error_in_bins_of_equal_mass_is_between_the_mean_gap_and_the_mean_size(
    seed, n_bins
) -> None:
    rng = np.random.default_rng(seed)
    predicted, observed = rng.random(40), rng.integers(0, 2, 40).astype(float)
    found = reliability.equal_mass_error(predicted, observed, n_bins)
    gap = observed - predicted
    assert abs(gap.mean()) - 1e-12 <= found <= np.abs(gap).mean() + 1e-12


def test_a_mean_curve_keeps_the_means_of_each_seed() -> None:
    rng = np.random.default_rng(0)
    predicted = [rng.random(32) for _ in range(3)]
    observed = [rng.random(32) for _ in range(3)]
    curve = reliability.mean_curve(predicted, observed, 8)
    assert np.mean([b["observed"]["mean"] for b in curve]) == pytest.approx(np.mean(observed))
    assert np.mean([b["predicted"]["mean"] for b in curve]) == pytest.approx(np.mean(predicted))
    assert sum(b["rows"] for b in curve) == 96
    lowest = [np.sort(p)[:4].mean() for p in predicted]
    assert curve[0]["predicted"]["mean"] == pytest.approx(np.mean(lowest))


@pytest.mark.parametrize("confidence", [0.6, 0.93])
def test_the_error_if_calibrated_is_that_of_a_binomial_count(confidence) -> None:
    n = 50
    counts = np.arange(n + 1)
    sizes = np.abs(counts / n - confidence)
    exact = stats.binom.pmf(counts, n, confidence) @ sizes
    drawn = reliability.calibrated_errors(np.full(n, confidence))
    assert abs(drawn.mean() - exact) < 5 * drawn.std() / len(drawn) ** 0.5
    assert np.isin(drawn.round(9), sizes.round(9)).all()


def test_the_errors_if_calibrated_are_those_of_the_library() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.5, 1, 80)
    right = np.random.default_rng(reliability.DRAW_SEED).random((reliability.DRAWS, 80))
    labels = (right[0] >= confidence).astype(np.int64)
    predicted = np.stack([confidence, 1 - confidence], -1)
    expected = calibration_error(predicted, labels, n_bins=reliability.N_BINS)
    assert reliability.calibrated_errors(confidence)[0] == pytest.approx(expected)


# -- people ----------------------------------------------------------------------------------


@given(v=st.integers(0, 1000).map(lambda k: k / 1000), m=st.integers(2, 30))
def test_the_floor_of_the_brier_score_is_unbiased(v: float, m: int) -> None:
    k = np.arange(m + 1)
    each = [
        people.vote_floors(np.array([one]), np.array([m]), (0.5, 0.5))["vote_brier"] for one in k
    ]
    assert stats.binom.pmf(k, m, v) @ each == pytest.approx(2 * v * (1 - v) / m, abs=1e-12)


@given(k=st.integers(0, 12), more=st.integers(0, 12), a=st.floats(0.2, 3), b=st.floats(0.2, 3))
@settings(max_examples=20)
def test_floors_under_a_beta_law_are_its_integrals(k: int, more: int, a: float, b: float) -> None:
    positive, voted = np.array([k + 1]), np.array([k + more + 2])
    floors = people.vote_floors(positive, voted, (a, b))
    law = stats.beta(a + k + 1, b + more + 1)
    share = float(positive[0] / voted[0])

    def mean(f) -> float:
        return integrate.quad(lambda v: law.pdf(v) * f(v), 0, 1, points=[share], limit=200)[0]

    assert floors["vote_distance"] == pytest.approx(mean(lambda v: abs(v - share)), abs=1e-6)
    entropy = mean(lambda v: special.entr(v) + special.entr(1 - v))
    assert floors["vote_cross_entropy"] == pytest.approx(entropy, abs=1e-6)


def test_a_predictor_that_knows_the_votes_to_come_reaches_the_floors() -> None:
    rng, n = np.random.default_rng(0), 8_000
    voted = rng.integers(2, 21, n)
    v = rng.beta(0.4, 0.6, n)
    positive = rng.binomial(voted, v)
    a, b = people.fit_prior(positive, voted)
    assert (a, b) == pytest.approx((0.4, 0.6), rel=0.1)
    floors = people.vote_floors(positive, voted, (a, b))
    knows = people.vote_measures(np.stack([1 - v, v], -1), positive, voted)
    for name in ("vote_distance", "vote_brier", "vote_cross_entropy"):
        assert knows[name] == pytest.approx(floors[name], rel=0.03)
    assert floors["binomial_distance"] < floors["vote_distance"]
    too_sure = np.clip(1.6 * (v - 0.5) + 0.5, 0.001, 0.999)
    errs = people.vote_measures(np.stack([1 - too_sure, too_sure], -1), positive, voted)
    assert errs["vote_brier"] > 1.2 * floors["vote_brier"]
    assert errs["vote_ece"] > 5 * errs["vote_ece_calibrated"]


def test_the_error_by_votes_of_a_calibrated_predictor_is_what_is_said() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(150):
        v = rng.beta(0.8, 0.8, 300)
        voted = rng.integers(10, 20, 300)
        positive = rng.binomial(voted, v)
        found.append(people.vote_measures(np.stack([1 - v, v], -1), positive, voted))
    mean = {name: np.mean([f[name] for f in found]) for name in found[0]}
    assert mean["vote_ece"] == pytest.approx(mean["vote_ece_calibrated"], rel=0.05)


def test_a_single_vote_has_no_noise_to_estimate() -> None:
    with pytest.raises(ValueError, match="`voted` must be >= 2, got 1"):
        people.vote_floors(np.array([1]), np.array([1]), (1, 1))


def test_votes_are_counted_in_the_order_of_the_texts() -> None:
    vote = {"neutral": 3, "total": 1, "group": "1"}
    votes = {
        "a": SentenceVotes(positive=4, negative=1, **vote),
        "b": SentenceVotes(positive=2, negative=0, **vote),
    }
    positive, voted = people.counts(votes, ["b", "a"])
    assert (positive.tolist(), voted.tolist()) == ([2, 4], [2, 5])


def test_the_ceiling_of_ranks_is_high_for_many_votes_and_none_without_differences() -> None:
    rng, n = np.random.default_rng(0), 500
    v = rng.uniform(0, 1, n)
    many = np.full(n, 2000)
    assert people.rank_ceiling(rng.binomial(many, v), many)["ceiling"] > 0.97
    few = np.full(n, 12)
    middle = people.rank_ceiling(rng.binomial(few, v), few)
    assert middle["halves"] < middle["reliability"] < middle["ceiling"] < 0.97
    assert abs(people.rank_ceiling(rng.binomial(few, 0.3), few)["halves"]) < 0.1


def test_uncertainties_rank_people_by_what_members_say() -> None:
    # Members that differ where people do: the mutual information ranks them, the entropy does not.
    share = np.array([0.5, 0.4, 0.2, 0.1])
    spread = 0.45 * share / 0.5
    members = np.stack([0.5 - spread, 0.5 + spread]) - 0.01 * np.arange(4)[::-1] / 3
    found = people.uncertainty_measures(
        np.stack([1 - members, members], -1), (20 * share).astype(int), np.full(4, 20)
    )
    assert found["rank_mutual_information"] == pytest.approx(1)
    assert found["rank_expected_entropy"] == pytest.approx(-1)
    assert found["rank_entropy"] == pytest.approx(-1)
    assert found["rank_gain"] == pytest.approx(2)
    one = people.uncertainty_measures(
        np.stack([1 - members, members], -1)[:1], (20 * share).astype(int), np.full(4, 20)
    )
    assert set(one) == {"rank_entropy"}


def test_curves_of_collected_splits_hold_every_row(tmp_path) -> None:
    collected = Collected()

    class Test:
        labels = np.zeros(60, dtype=np.int64)

    for seed in range(2):
        runs, labels = made_up_runs(tmp_path, seed, "trec")
        Test.labels = labels["test"]
        collected.add(("trec", seed), Test, finals(tmp_path, runs, labels["validation"]))
    made = curves(collected)
    assert [m["arm"] for m in made] == [v.arm for v in COMPARED if v.arm in (*ARMS, "seeds-4")]
    for row in made:
        assert sum(b["rows"] for b in row["equal_width"]) == 120
        assert sum(b["rows"] for b in row["equal_mass"]) == 120
    right = np.mean([collected.found["trec", s][REFERENCE]["accuracy"] for s in range(2)])
    width = made[0]["equal_width"]
    assert sum(b["rows"] * b["accuracy"] for b in width) / 120 == pytest.approx(right)


def test_validation_rows_follow_the_test_rows() -> None:
    class Rows:
        def __init__(self, rows) -> None:
            self.rows = list(rows)

        def __len__(self) -> int:
            return len(self.rows)

        def take(self, rows) -> "Rows":
            return Rows(self.rows[row] for row in rows)

    parts = held_out((Rows([]), Rows(range(512))))
    assert parts["test"].rows == list(range(384))
    assert parts["validation"].rows == list(range(384, 512))


# -- the record and the figure ---------------------------------------------------------------


@pytest.fixture(scope="module")
def record():
    return json.loads((OUT / "calibration.json").read_text(encoding="utf-8"))


def key(row):
    return row["data"], row["arm"], row["predictor"], row["tempered"]


def test_the_recorded_scores_are_those_of_the_comparison(record) -> None:
    quality = json.loads((OUT / "quality.json").read_text(encoding="utf-8"))
    known = {(*key(row), row["seed"]): row for row in quality["splits"] if row["epoch"] == "last"}
    assert len(record["splits"]) == 5 * (4 * len(COMPARED) - 1)
    for row in record["splits"]:
        expected = known[(*key(row), row["seed"])]
        for name in ("nll", "accuracy", "ece", "brier"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7)


def test_the_recorded_table_follows_from_the_splits(record) -> None:
    by_key = {}
    for row in record["splits"]:
        by_key.setdefault(key(row), {})[row["seed"]] = row
    for row in record["table"]:
        names = DATA if row["data"] == "pooled" else (row["data"],)
        for name, cell in row["measures"].items():
            mine = [by_key[(d, *key(row)[1:])][s][name] for d in names for s in range(5)]
            assert cell["value"]["mean"] == pytest.approx(np.mean(mine), rel=1e-4, abs=1e-6)
            if "minus lora" in cell:
                lora = [by_key[d, "lora", "mean", False][s][name] for d in names for s in range(5)]
                difference = np.subtract(mine, lora)
                ends = stats.t.interval(
                    0.95, len(mine) - 1, difference.mean(), stats.sem(difference) + 1e-300
                )
                found = cell["minus lora"]
                assert (found["low"], found["high"]) == pytest.approx(ends, rel=1e-3, abs=1e-5)


def test_the_figure_draws_the_record(record) -> None:
    points = figure.compute(OUT)
    table = {key(row): row["measures"] for row in record["table"]}
    curves_ = {key(row): row for row in record["curves"]}
    panels = {"reliability": "equal_mass", "votes": "votes"}
    assert {p.panel for p in points} == {"ece", "rank", "ceiling", *panels}
    for p in points:
        assert p.low <= p.value <= p.high
        where = (p.data, p.arm, p.predictor, p.tempered)
        if p.panel in panels:
            cell = curves_[where][panels[p.panel]][int(p.quantity.removeprefix("bin "))]
            assert (p.predicted, p.value) == (cell["predicted"]["mean"], cell["observed"]["mean"])
        elif p.panel == "ceiling":
            assert p.value == record["votes"]["floors"]["ceiling"]["mean"]
        else:
            assert p.value == table[where][p.quantity]["value"]["mean"]
        if p.panel == "ece":
            assert p.calibrated == table[where][f"{p.quantity}_calibrated"]["value"]["mean"]
        if p.panel != "ceiling":
            assert where[1:] in PREDICTORS
    drawn = {p.data for p in points if p.panel == "reliability"}
    assert drawn == set(figure.DATA)


def test_the_figure_has_a_panel_per_data_set() -> None:
    drawn = figure.draw(figure.compute(OUT))
    titles = [axes.get_title(loc="left") for part in drawn.subfigs for axes in part.axes]
    assert [t.split()[0] for t in titles] == list("abcdefghij")
