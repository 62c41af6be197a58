"""Calibration errors against their definitions, and the Brier score against its laws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from lodrop_nn.measure.calibration import (
    brier_scores,
    calibration_error,
    debiased_calibration_error,
    vote_distances,
)
from lodrop_nn.measure.calibration_curve import calibration_curve

Case = tuple[np.ndarray, np.ndarray]


@st.composite
def predicted(draw: st.DrawFn) -> Case:
    stream = np.random.default_rng(draw(st.integers(0, 2**31)))
    n, n_classes = draw(st.integers(1, 40)), draw(st.integers(2, 5))
    rows = stream.dirichlet(np.full(n_classes, draw(st.floats(0.2, 5))), size=n)
    return rows, stream.integers(0, n_classes, n)


def bins_of(rows: np.ndarray, labels: np.ndarray, n_bins: int) -> list[Case]:
    """Confidences and correctness of the rows of each bin, row by row."""
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in range(n_bins)]
    for row, label in zip(rows, labels, strict=True):
        place = min(int(row.max() * n_bins), n_bins - 1)
        found[place][0].append(row.max())
        found[place][1].append(float(row.argmax() == label))
    return [(np.array(c), np.array(y)) for c, y in found if c]


@given(case=predicted(), n_bins=st.integers(1, 20))
def test_calibration_error_by_its_definition(case: Case, n_bins: int) -> None:
    rows, labels = case

    expected = sum(len(c) * abs(y.mean() - c.mean()) for c, y in bins_of(rows, labels, n_bins))

    assert calibration_error(rows, labels, n_bins=n_bins) == pytest.approx(
        expected / len(labels), abs=1e-12
    )


@given(case=predicted(), n_bins=st.integers(1, 20))
def test_calibration_error_is_that_of_torchmetrics(case: Case, n_bins: int) -> None:
    rows, labels = (torch.from_numpy(part) for part in case)

    theirs = multiclass_calibration_error(rows, labels, rows.shape[1], n_bins=n_bins, norm="l1")

    assert calibration_error(*case, n_bins=n_bins) == pytest.approx(float(theirs), abs=1e-6)


@given(n=st.integers(1, 30))
def test_calibrated_by_construction(n: int) -> None:
    # Confidence 3/4 in every row, right in three of four.
    rows = np.tile([0.75, 0.25], (4 * n, 1))
    labels = np.array([0, 0, 0, 1] * n)

    assert calibration_error(rows, labels) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(rows, 1 - labels) == pytest.approx(0.5, abs=1e-12)


def test_the_ends_of_a_bin() -> None:
    # 1/2 is the lower end of the second of two bins, 1 belongs to it too.
    rows = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.4, 0.3, 0.3]])
    curve = calibration_curve(rows, np.array([0, 0, 0]), n_bins=2)

    assert [(bin.lower, bin.n_rows, bin.confidence) for bin in curve] == [
        (0.0, 1, 0.4),
        (0.5, 2, 0.75),
    ]


@given(case=predicted(), n_bins=st.integers(1, 20))
def test_the_curve_adds_up_to_the_error(case: Case, n_bins: int) -> None:
    rows, labels = case

    curve = calibration_curve(rows, labels, n_bins=n_bins)

    assert sum(bin.n_rows for bin in curve) == len(labels)
    total = sum(bin.n_rows * abs(bin.accuracy.value - bin.confidence) for bin in curve)
    assert calibration_error(rows, labels, n_bins=n_bins) == pytest.approx(total / len(labels))
    for bin in curve:
        assert bin.lower <= bin.confidence <= bin.upper
        assert bin.accuracy.lower <= bin.accuracy.value <= bin.accuracy.upper


@given(case=predicted(), seed=st.integers(0, 2**31))
def test_what_debiasing_takes_off_is_what_added_noise_adds(case: Case, seed: int) -> None:
    """Kumar et al. resample; here with 4000 draws instead of the closed form."""
    rows, labels = case
    stream, expected, spread = np.random.default_rng(seed), 0.0, 0.0
    for confidence, correct in bins_of(rows, labels, 15):
        accuracy, share = correct.mean(), len(correct) / len(labels)
        noise = np.sqrt(accuracy * (1 - accuracy) / len(correct))
        noisy = np.abs(stream.normal(accuracy - confidence.mean(), noise, 4000))
        expected += share * (2 * abs(accuracy - confidence.mean()) - noisy.mean())
        spread += (share * noise) ** 2 / 4000

    found = debiased_calibration_error(rows, labels)

    assert found == pytest.approx(expected, abs=6 * np.sqrt(spread) + 1e-9)
    assert found <= calibration_error(rows, labels) + 1e-12


def calibrated_rows(stream: np.random.Generator, n: int, overconfidence: float) -> Case:
    """Two classes; class 0 has the larger probability c and is right with c - o (c - 1/2)."""
    confidence = 0.5 + 0.5 * stream.beta(3, 1, n)
    right = stream.random(n) < confidence - overconfidence * (confidence - 0.5)
    return np.stack([confidence, 1 - confidence], axis=1), 1 - right.astype(int)


@pytest.mark.parametrize("n", [128, 512])
@pytest.mark.parametrize("overconfidence", [0.0, 0.3])
def test_debiasing_removes_bias(n: int, overconfidence: float) -> None:
    stream = np.random.default_rng(n)
    # c - 1/2 has mean 3/8; every bin is overconfident, so the true error is the mean gap.
    truth = overconfidence * 3 / 8
    samples = [calibrated_rows(stream, n, overconfidence) for _ in range(400)]

    plain = np.array([calibration_error(*sample) for sample in samples]) - truth
    debiased = np.array([debiased_calibration_error(*sample) for sample in samples]) - truth

    # Measured with 4000 samples: .056 -> .035 and .028 -> .017 calibrated, .018 -> .004 and
    # .006 -> .001 overconfident. A bias is taken off in part, never beyond zero.
    error = 4 * debiased.std() / 20
    assert debiased.mean() < 0.7 * plain.mean()
    assert debiased.mean() > -error
    assert plain.mean() > error


def test_draws_that_repeat_a_row_add_no_certainty() -> None:
    rows, labels = calibrated_rows(np.random.default_rng(0), 60, 0.2)

    for error in (calibration_error, debiased_calibration_error):
        repeated = error(np.stack([rows] * 5), labels)
        assert repeated == pytest.approx(error(rows, labels), abs=1e-12)


@given(case=predicted())
def test_brier_is_the_squared_distance_to_the_label(case: Case) -> None:
    rows, labels = case

    scores = brier_scores(rows, labels)

    chosen = rows[np.arange(len(labels)), labels]
    np.testing.assert_allclose(scores, (rows**2).sum(1) - 2 * chosen + 1, atol=1e-12)
    assert bool(np.all((scores >= 0) & (scores <= 2 + 1e-12)))


def test_brier_of_members_keeps_their_axis() -> None:
    members = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 4))

    scores = brier_scores(members, np.array([0, 1, 2, 0]))

    assert scores.shape == (2, 4)
    np.testing.assert_allclose(scores[1], brier_scores(members[1], np.array([0, 1, 2, 0])))


@given(case=predicted(), seed=st.integers(0, 2**31))
def test_vote_distance_is_the_largest_difference_of_any_event(case: Case, seed: int) -> None:
    rows, _ = case
    votes = np.random.default_rng(seed).dirichlet(np.ones(rows.shape[1]), size=len(rows))

    distances = vote_distances(rows, votes)

    events = np.array(np.meshgrid(*[[0, 1]] * rows.shape[1])).reshape(rows.shape[1], -1)
    np.testing.assert_allclose(distances, np.abs((rows - votes) @ events).max(1), atol=1e-12)
    np.testing.assert_allclose(vote_distances(votes, votes), 0.0)


def test_two_classes_need_one_share() -> None:
    rows = np.array([[[0.5, 0.5], [0.9, 0.1]], [[1.0, 0.0], [0.0, 1.0]]])

    assert vote_distances(rows, np.array([0.75, 0.1])) == pytest.approx(
        np.array([[0.25, 0.0], [0.75, 0.9]])
    )


@pytest.mark.parametrize(
    "score", [calibration_error, debiased_calibration_error, calibration_curve, brier_scores]
)
def test_refuses_shapes_that_disagree_and_labels_out_of_range(score) -> None:
    with pytest.raises(ValueError, match="must have shapes"):
        score(np.full((3, 2), 0.5), np.array([0, 1]))
    with pytest.raises(ValueError, match="must have shapes"):
        score(np.zeros((0, 2)), np.zeros(0, dtype=int))
    for label in (-1, 2):
        with pytest.raises(
            ValueError, match=rf"must be whole .* in \[0, 2\), got {label} in row 1"
        ):
            score(np.full((3, 2), 0.5), np.array([0, label, label]))


def test_refusals() -> None:
    rows, labels = np.full((3, 2), 0.5), np.zeros(3, dtype=int)
    for error in (calibration_error, debiased_calibration_error, calibration_curve):
        with pytest.raises(ValueError, match="`n_bins` must be"):
            error(rows, labels, n_bins=0)
    with pytest.raises(ValueError, match=r"`probabilities` must have shape \(n, K\)"):
        calibration_curve(np.full((2, 3, 2), 0.5), labels)
    with pytest.raises(ValueError, match="`vote_shares` must have shape"):
        vote_distances(rows, np.zeros(2))
    with pytest.raises(ValueError, match="`vote_shares` must have shape"):
        vote_distances(np.full((3, 3), 1 / 3), np.zeros(3))
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match=r"`vote_shares` must be in .* in row 2"):
            vote_distances(rows, np.array([0.0, 1.0, bad]))
