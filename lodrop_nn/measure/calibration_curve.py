"""Accuracy against confidence, for a reliability diagram."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lodrop_nn.measure.calibration import bin_of, top_label
from lodrop_nn.measure.intervals import fraction_estimate
from lodrop_theory.records import Estimate

Float64Array = NDArray[np.float64]
Labels = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """The rows whose top probability lies in one bin.

    Attributes:
        lower: Lower end of the bin, which belongs to it.
        upper: Upper end, which belongs to the last bin only.
        confidence: Mean top probability.
        accuracy: Share of right answers, with the interval of Clopper and Pearson.
        n_rows: Number of rows.
    """

    lower: float
    upper: float
    confidence: float
    accuracy: Estimate
    n_rows: int


def calibration_curve(
    probabilities: Float64Array, labels: Labels, *, n_bins: int = 15, level: float = 0.95
) -> tuple[CalibrationBin, ...]:
    """Accuracy against confidence, bin by bin: what a reliability diagram draws.

    Args:
        probabilities: Shape (n, K), rows on the simplex.
        labels: Shape (n,), whole numbers in [0, K).
        n_bins: B, >= 1; the bins are those of :func:`calibration_error`.
        level: Coverage of each interval by itself, in (0, 1).

    Returns:
        The bins that hold a row, from the least to the most confident.

    Raises:
        ValueError: If there is no row, the shapes disagree, or an argument is outside its range.

    Example:
        >>> rows = np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
        >>> curve = calibration_curve(rows, np.array([0, 0, 1]), n_bins=2)
        >>> [(bin.lower, round(bin.confidence, 6), bin.n_rows) for bin in curve]
        [(0.5, 0.8, 3)]
    """
    if np.ndim(probabilities) != 2:
        raise ValueError(f"`probabilities` must have shape (n, K), got {np.shape(probabilities)}.")
    confidence, correct = top_label(probabilities, labels)
    place = bin_of(confidence, n_bins)
    return tuple(
        CalibrationBin(
            lower=b / n_bins,
            upper=(b + 1) / n_bins,
            confidence=float(confidence[place == b].mean()),
            accuracy=fraction_estimate(correct[place == b], level, "fraction correct in one bin"),
            n_rows=int((place == b).sum()),
        )
        for b in np.unique(place).tolist()
    )
