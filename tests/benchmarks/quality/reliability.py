"""Reliability curves in bins of equal mass, and what calibrated predictions would show."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lodrop_nn.measure.calibration import (
    bin_of,
    brier_scores,
    calibration_error,
    debiased_calibration_error,
    top_label,
)
from lodrop_nn.measure.calibration_curve import calibration_curve
from lodrop_nn.measure.smooth_calibration import smooth_calibration_error
from tests.benchmarks.quality.evaluate import Float64Array, nll
from tests.benchmarks.quality.summarize import mean_interval

N_BINS, MASS_BINS = 15, 8
DRAWS, DRAW_SEED = 400, 0
Labels = NDArray[np.int64]


def measures(predicted: Float64Array, labels: Labels) -> dict[str, float]:
    """Risks and calibration errors of one predictor on one set of rows.

    ``overconfidence`` is the mean top probability less the accuracy; ``ece_calibrated`` and
    ``ece_calibrated_95`` are the mean and the 95% quantile of the binned error if the same
    probabilities were calibrated.
    """
    confidence, correct = top_label(predicted, labels)
    drawn = calibrated_errors(confidence)
    return {
        "nll": nll(predicted, labels),
        "accuracy": float(correct.mean()),
        "brier": float(brier_scores(predicted, labels).mean()),
        "ece": calibration_error(predicted, labels, n_bins=N_BINS),
        "ece_debiased": debiased_calibration_error(predicted, labels, n_bins=N_BINS),
        "ece_equal_mass": equal_mass_error(confidence, correct, N_BINS),
        "ece_smooth": smooth_calibration_error(predicted, labels),
        "ece_calibrated": float(drawn.mean()),
        "ece_calibrated_95": float(np.quantile(drawn, 0.95)),
        "overconfidence": float(confidence.mean() - correct.mean()),
    }


def calibrated_errors(confidence: Float64Array, n_bins: int = N_BINS) -> Float64Array:
    """Binned errors of as many draws of right and wrong answers, right at the given confidence."""
    rng = np.random.default_rng(DRAW_SEED)
    right = rng.random((DRAWS, len(confidence))) < confidence
    in_bin = np.eye(n_bins)[bin_of(confidence, n_bins)]
    return np.abs((right - confidence) @ in_bin).sum(-1) / len(confidence)


def mass_bins(values: Float64Array, n_bins: int) -> list[NDArray[np.int64]]:
    """Rows by rank, in groups whose sizes differ by one at most; ties as they come."""
    return np.array_split(np.argsort(values, kind="stable"), n_bins)


def equal_mass_error(predicted: Float64Array, observed: Float64Array, n_bins: int) -> float:
    """Mean over rows of the size of the gap between the means in their bin of equal mass."""
    bins = mass_bins(predicted, n_bins)
    gaps = [len(rows) * abs(float(np.mean(observed[rows] - predicted[rows]))) for rows in bins]
    return sum(gaps) / len(predicted)


def mean_curve(
    predicted: Sequence[Float64Array], observed: Sequence[Float64Array], n_bins: int = MASS_BINS
) -> list[dict[str, Any]]:
    """Means of bins of equal mass: averaged over seeds, with intervals over them.

    Args:
        predicted: By seed, shape (n,).
        observed: What is predicted, by seed, of the same shape.
        n_bins: Bins; bin b of all seeds is summarized as one point.
    """
    bins = [mass_bins(values, n_bins) for values in predicted]
    return [
        {
            "predicted": mean_interval(_means(predicted, bins, b)),
            "observed": mean_interval(_means(observed, bins, b)),
            "rows": sum(len(each[b]) for each in bins),
        }
        for b in range(n_bins)
    ]


def _means(
    values: Sequence[Float64Array], bins: Sequence[Sequence[NDArray[np.int64]]], b: int
) -> list[float]:
    return [float(some[each[b]].mean()) for some, each in zip(values, bins, strict=True)]


def pooled_curve(
    predicted: Sequence[Float64Array], labels: Sequence[Labels]
) -> list[dict[str, Any]]:
    """The library's curve in 15 bins of equal width, rows of all seeds together.

    The intervals are those of Clopper and Pearson: they take rows as independent.
    """
    curve = calibration_curve(np.concatenate(predicted), np.concatenate(labels), n_bins=N_BINS)
    return [
        {
            "lower": each.lower,
            "upper": each.upper,
            "confidence": each.confidence,
            "accuracy": each.accuracy.value,
            "low": each.accuracy.low,
            "high": each.accuracy.high,
            "rows": each.n_rows,
        }
        for each in curve
    ]
