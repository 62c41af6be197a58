"""How far predicted probabilities can be taken at their word."""

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_calibration_error

Float64Array = NDArray[np.float64]


def calibration_error(
    probabilities: Float64Array, labels: NDArray[np.integer], *, n_bins: int = 15
) -> float:
    r"""Expected calibration error: how far the top probability is from the accuracy, on average.

    .. math:: \sum_{b=1}^{B} \frac{|I_b|}{n}
              \bigl|\operatorname{acc}(I_b) - \operatorname{conf}(I_b)\bigr|

    over B bins of equal width of the top probability. Biased upward on few rows: a perfectly
    calibrated predictor has a positive value, of order sqrt(B / n).

    Args:
        probabilities: Shape (n, K), rows on the simplex.
        labels: Shape (n,), whole numbers in [0, K).
        n_bins: B, >= 1.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If there is no row, or the shapes disagree.

    Source:
        Guo et al. (2017), arXiv:1706.04599, equation 3, as implemented by torchmetrics.

    Example:
        >>> rows = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
        >>> round(calibration_error(rows, np.array([0, 0, 0, 1])), 6)
        0.15
    """
    _check(probabilities, labels)
    error = multiclass_calibration_error(
        torch.from_numpy(np.ascontiguousarray(probabilities, dtype=np.float64)),
        torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)),
        num_classes=probabilities.shape[1],
        n_bins=n_bins,
        norm="l1",
    )
    return float(error)


def brier_scores(probabilities: Float64Array, labels: NDArray[np.integer]) -> Float64Array:
    r"""Squared distance between each row and its one-hot label.

    .. math:: \|\pi - e_y\|^2 = \sum_k \pi_k^2 - 2 \pi_y + 1

    Args:
        probabilities: Shape (..., n, K), rows on the simplex.
        labels: Shape (n,), whole numbers in [0, K).

    Returns:
        Shape (..., n), in [0, 2].

    Raises:
        ValueError: If there is no row, or the shapes disagree.

    Source:
        Brier (1950), in its original form, summed over all classes.

    Example:
        >>> brier_scores(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 0])).tolist()
        [0.5, 2.0]
    """
    _check(probabilities, labels)
    one_hot = np.eye(probabilities.shape[-1])[labels]
    return np.square(probabilities - one_hot).sum(-1)


def _check(probabilities: Float64Array, labels: NDArray[np.integer]) -> None:
    if probabilities.ndim < 2 or labels.shape != probabilities.shape[-2:-1] or not labels.size:
        raise ValueError(
            "`probabilities` and `labels` must have shapes (..., n, K) and (n,) with n >= 1, "
            f"got {probabilities.shape} and {labels.shape}."
        )
