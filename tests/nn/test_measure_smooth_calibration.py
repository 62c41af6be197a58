"""The smooth calibration error: by its definition, by hand, and by its laws."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from lodrop_nn.measure.smooth_calibration import (
    smooth_calibration_error,
    smoothed_calibration_error,
)

Case = tuple[np.ndarray, np.ndarray]


def two_classes(confidence: np.ndarray, correct: np.ndarray) -> Case:
    return np.stack([confidence, 1 - confidence], axis=1), 1 - correct.astype(int)


@st.composite
def predicted(draw: st.DrawFn) -> Case:
    stream = np.random.default_rng(draw(st.integers(0, 2**31)))
    n = draw(st.integers(1, 30))
    return two_classes(stream.uniform(0.5, 1, n), stream.random(n) < draw(st.floats(0, 1)))


def by_definition(confidence: np.ndarray, correct: np.ndarray) -> Callable[[float], float]:
    """The error at each width, from normal densities reflected at 0 and 1, by the midpoint rule."""
    t = (np.arange(4000) + 0.5) / 4000
    shifts = 2.0 * np.arange(-8, 9)

    def error(width: float) -> float:
        density = np.zeros_like(t)
        for c, y in zip(confidence, correct, strict=True):
            for center in np.concatenate([c + shifts, -c + shifts]):
                density += (y - c) * stats.norm.pdf(t, center, width)
        return float(np.abs(density).mean()) / len(confidence)

    return error


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("width", [0.01, 0.1, 1.0])
def test_each_width_by_the_definition(seed: int, width: float) -> None:
    stream = np.random.default_rng(seed)
    confidence, correct = stream.uniform(0.5, 1, 6), stream.random(6) < 0.7

    found = smoothed_calibration_error(*two_classes(confidence, correct), width)

    assert found == pytest.approx(by_definition(confidence, correct)(width), abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_fixed_point_by_the_definition(seed: int) -> None:
    stream = np.random.default_rng(seed)
    confidence, correct = stream.uniform(0.5, 1, 5), stream.random(5) < 0.7
    error = by_definition(confidence, correct)

    expected = optimize.bisect(lambda width: error(width) - width, 0.01, 1.0, xtol=1e-5)

    assert smooth_calibration_error(*two_classes(confidence, correct)) == pytest.approx(
        expected, abs=3e-5
    )


def test_two_atoms_by_hand() -> None:
    """Residuals of 1/100 and -1/100 at confidences 1/2 and 1, which the width 1/50 keeps apart."""
    confidence = np.repeat([0.5, 1.0], 50)
    correct = np.concatenate([np.arange(50) < 26, np.arange(50) < 49])

    assert smooth_calibration_error(*two_classes(confidence, correct)) == pytest.approx(
        0.02, abs=1e-5
    )


@given(confidence=st.floats(0.5, 1), n_right=st.integers(0, 10))
def test_one_atom_by_hand(confidence: float, n_right: int) -> None:
    """The kernel integrates to 1: at each width the error is the size of the mean residual."""
    case = two_classes(np.full(10, confidence), np.arange(10) < n_right)
    residual = abs(n_right / 10 - confidence)

    for width in (0.002, 0.05, 0.7):
        assert smoothed_calibration_error(*case, width) == pytest.approx(residual, abs=2e-5)
    assert smooth_calibration_error(*case) == pytest.approx(residual, abs=2e-5)


def test_nothing_left_of_atoms_that_all_but_touch() -> None:
    # In bins whose border is at 0.8 the error is 0.2: it is not continuous.
    confidence = np.repeat([0.8 - 1e-6, 0.8 + 1e-6], 5)
    correct = np.concatenate([np.ones(5), np.arange(5) < 3])

    assert smooth_calibration_error(*two_classes(confidence, correct)) < 0.001


@settings(max_examples=20)
@given(case=predicted(), widths=st.lists(st.floats(0.002, 1), min_size=2, max_size=5))
def test_wider_kernels_see_less(case: Case, widths: list[float]) -> None:
    errors = [smoothed_calibration_error(*case, width) for width in sorted(widths)]

    assert all(wide <= narrow + 1e-5 for narrow, wide in pairwise(errors))


@settings(max_examples=20)
@given(case=predicted())
def test_between_the_mean_residual_and_the_mean_size_of_residuals(case: Case) -> None:
    rows, labels = case
    residuals = (labels == 0) - rows.max(1)

    found = smooth_calibration_error(*case)

    assert abs(residuals.mean()) - 2e-5 <= found <= np.abs(residuals).mean() + 2e-5
    if found > 0.001:
        assert smoothed_calibration_error(*case, found) == pytest.approx(found, abs=1e-6)


def test_draws_are_pooled() -> None:
    stream = np.random.default_rng(0)
    draws, labels = stream.dirichlet(np.ones(3), size=(4, 20)), stream.integers(0, 3, 20)

    pooled = smooth_calibration_error(draws.reshape(80, 3), np.tile(labels, 4))

    assert smooth_calibration_error(draws, labels) == pytest.approx(pooled, abs=1e-12)


def test_refusals() -> None:
    rows = np.full((3, 2), 0.5)
    with pytest.raises(ValueError, match=r"`width` must be >= 0\.001, got 0\.0"):
        smoothed_calibration_error(rows, np.zeros(3, dtype=int), 0.0)
    with pytest.raises(ValueError, match=r"in \[0, 2\), got 2 in row 0"):
        smooth_calibration_error(rows, np.array([2, 0, 0]))
    with pytest.raises(ValueError, match="must have shapes"):
        smooth_calibration_error(rows, np.zeros(2, dtype=int))
