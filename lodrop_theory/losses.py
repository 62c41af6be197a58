"""The bounded loss that every risk in this library is measured in."""

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, as_float64, check_count, check_unit_interval


def _smoothing(smoothing: ArrayLike) -> Float64Array:
    array = check_unit_interval("smoothing", smoothing)
    if np.any((array == 0.0) | (array == 1.0)):
        raise ValueError(f"`smoothing` must be in (0, 1), got {smoothing!r}.")
    return array


def smoothed_cross_entropy(
    probabilities: ArrayLike, labels: ArrayLike, smoothing: float
) -> Float64Array:
    r"""Loss of each example after the prediction is mixed with the uniform law.

    .. math:: \ell = -\ln\bigl((1 - a) \pi_y + a / K\bigr)

    It lies in an interval of length :func:`smoothed_loss_range`, is convex in the probabilities
    (so that averaging them obeys Jensen), and its gradient in the parameters is never longer than
    that of :math:`-\ln \pi_y`, because the two differ by the factor
    :math:`(1-a)\pi_y / ((1-a)\pi_y + a/K) < 1`.

    Args:
        probabilities: Shape (..., n_examples, K); rows on the simplex.
        labels: Shape (n_examples,); whole numbers in [0, K).
        smoothing: a in (0, 1).

    Returns:
        Losses in nats, shape (..., n_examples).

    Raises:
        ValueError: If a probability, a label or ``smoothing`` is outside its range.

    Source:
        Prediction smoothing of Lotfi et al. (2023), arXiv:2312.17173.

    Example:
        >>> float(smoothed_cross_entropy([[0.5, 0.5]], [0], 0.1)[0]) == float(np.log(2))
        True
    """
    rows = as_float64("probabilities", probabilities)
    if rows.ndim < 2 or np.any(rows < 0) or np.any(np.abs(rows.sum(-1) - 1) > 1e-4):
        raise ValueError("`probabilities` must be rows on the simplex, shape (..., n_examples, K).")
    n_classes = rows.shape[-1]
    answers = np.asarray(labels)
    if answers.dtype.kind not in "iu" or answers.shape != rows.shape[-2:-1]:
        raise ValueError(
            f"`labels` must be whole numbers of shape {rows.shape[-2:-1]}, "
            f"got {answers.dtype} of shape {answers.shape}."
        )
    if answers.size and (answers.min() < 0 or answers.max() >= n_classes):
        raise ValueError(
            f"`labels` must be in [0, {n_classes}), got {answers.min()}..{answers.max()}."
        )
    a = float(_smoothing(smoothing))
    chosen = np.take_along_axis(
        rows, np.broadcast_to(answers, rows.shape[:-1])[..., None], axis=-1
    )[..., 0]
    return np.asarray(-np.log((1.0 - a) * chosen + a / n_classes))


def smoothed_loss_range(smoothing: ArrayLike, n_classes: ArrayLike) -> Float64Array:
    r"""Length C of the interval of the smoothed cross-entropy, in nats.

    .. math:: C = \ln\bigl(1 + (1 - a) K / a\bigr)

    Args:
        smoothing: a in (0, 1).
        n_classes: K, >= 1.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Lotfi et al. (2023), arXiv:2312.17173.

    Example:
        >>> round(float(smoothed_loss_range(0.05, 2)), 4)
        3.6636
    """
    a, classes = _smoothing(smoothing), check_count("n_classes", n_classes)
    return np.log1p((1.0 - a) * classes / a)
