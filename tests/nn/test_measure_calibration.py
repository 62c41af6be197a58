"""Calibration error against its definition, and the Brier score against its laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_nn.measure.calibration import brier_scores, calibration_error


@st.composite
def predicted(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    stream = np.random.default_rng(draw(st.integers(0, 2**31)))
    n, n_classes = draw(st.integers(1, 40)), draw(st.integers(2, 5))
    rows = stream.dirichlet(np.full(n_classes, draw(st.floats(0.2, 5))), size=n)
    return rows, stream.integers(0, n_classes, n)


def by_definition(rows: np.ndarray, labels: np.ndarray, n_bins: int) -> float:
    confidence, correct = rows.max(1), rows.argmax(1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    return sum(
        abs(float(np.sum(correct[bins == b]) - np.sum(confidence[bins == b])))
        for b in range(n_bins)
    ) / len(labels)


@given(case=predicted(), n_bins=st.integers(1, 20))
def test_calibration_error_by_its_definition(
    case: tuple[np.ndarray, np.ndarray], n_bins: int
) -> None:
    rows, labels = case

    assert calibration_error(rows, labels, n_bins=n_bins) == pytest.approx(
        by_definition(rows, labels, n_bins), abs=1e-6
    )


@given(n=st.integers(1, 30))
def test_calibrated_by_construction(n: int) -> None:
    # Confidence 3/4 in every row, right in three of four.
    rows = np.tile([0.75, 0.25], (4 * n, 1))
    labels = np.array([0, 0, 0, 1] * n)

    assert calibration_error(rows, labels) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error(rows, 1 - labels) == pytest.approx(0.5, abs=1e-6)


@given(case=predicted())
def test_brier_is_the_squared_distance_to_the_label(case: tuple[np.ndarray, np.ndarray]) -> None:
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


@pytest.mark.parametrize("score", [calibration_error, brier_scores])
def test_refuses_shapes_that_disagree(score) -> None:
    with pytest.raises(ValueError, match="must have shapes"):
        score(np.full((3, 2), 0.5), np.array([0, 1]))
    with pytest.raises(ValueError, match="must have shapes"):
        score(np.zeros((0, 2)), np.zeros(0, dtype=int))
