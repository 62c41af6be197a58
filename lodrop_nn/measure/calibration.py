"""How far predicted probabilities can be taken at their word."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lodrop_nn.measure.checks import check_labels

Float64Array = NDArray[np.float64]
Labels = NDArray[np.integer]


def calibration_error(probabilities: Float64Array, labels: Labels, *, n_bins: int = 15) -> float:
    r"""Expected calibration error: how far the top probability is from the accuracy, on average.

    .. math:: \sum_{b=1}^{B} \frac{|I_b|}{n}
              \bigl|\operatorname{acc}(I_b) - \operatorname{conf}(I_b)\bigr|

    over the bins [(b-1)/B, b/B) of the top probability, the last of them closed. Biased upward on
    few rows: a perfectly calibrated predictor has a positive value, of order sqrt(B / n).

    Args:
        probabilities: Shape (..., n, K), rows on the simplex; several draws are pooled.
        labels: Shape (n,), whole numbers in [0, K).
        n_bins: B, >= 1.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If there is no row, the shapes disagree, or an argument is outside its range.

    Source:
        Guo et al. (2017), arXiv:1706.04599, equation 3; bins closed on the left, as in
        torchmetrics.

    Example:
        >>> rows = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
        >>> round(calibration_error(rows, np.array([0, 0, 0, 1])), 6)
        0.15
    """
    bins = _Bins.of(probabilities, labels, n_bins)
    return float(np.sum(bins.weights * np.abs(bins.gaps)))


def debiased_calibration_error(
    probabilities: Float64Array, labels: Labels, *, n_bins: int = 15
) -> float:
    r"""The same error less the bias that the noise of each bin's accuracy adds to it.

    .. math:: \sum_b \frac{|I_b|}{n} \bigl(2 |g_b| - \mathbb E |g_b + s_b Z|\bigr), \qquad
              g_b = \operatorname{acc}(I_b) - \operatorname{conf}(I_b), \quad
              s_b^2 = \frac{\operatorname{acc}(I_b) (1 - \operatorname{acc}(I_b))}{|I_b|}

    with Z standard normal: noise of the same size is added once more, and what it adds is taken
    off. The mean is in closed form instead of resampled. Of the bias of a calibrated predictor,
    whose true gaps are 0, it takes off :math:`\sqrt 2 - 1` of the noise's mean size, some 40%, and
    more where the gaps are large. Bins whose rows are all right or all wrong show no noise and are
    left as they are. The norm is that of :func:`calibration_error`, so the value may be negative.

    Draws of one row share its label. The variance is therefore summed over rows; for one draw it
    is the formula above.

    Args:
        probabilities: Shape (..., n, K), rows on the simplex; several draws are pooled.
        labels: Shape (n,), whole numbers in [0, K).
        n_bins: B, >= 1.

    Returns:
        A number in [-1, 1].

    Raises:
        ValueError: If there is no row, the shapes disagree, or an argument is outside its range.

    Source:
        Kumar, Liang and Ma (2019), arXiv:1909.10155, the normal approximation of their library's
        ``normal_debiased_ce`` with ``power=1``; resampling in closed form and several draws: ours.

    Example:
        Half of four rows are right, at confidence 1/2: the gap is 0, its noise 1/4.

        >>> rows = np.array([[0.5, 0.5]] * 4)
        >>> value = debiased_calibration_error(rows, np.array([0, 0, 1, 1]))
        >>> round(value, 6) == round(-0.25 * (2 / np.pi) ** 0.5, 6)
        True
    """
    bins = _Bins.of(probabilities, labels, n_bins)
    twice = 2 * np.abs(bins.gaps)
    return float(np.sum(bins.weights * (twice - _mean_size(bins.gaps, bins.noise))))


def top_label(probabilities: Float64Array, labels: Labels) -> tuple[Float64Array, Float64Array]:
    """The largest probability of each row, and 1.0 where its class is the label, else 0.0.

    Args:
        probabilities: Shape (..., n, K), rows on the simplex.
        labels: Shape (n,), whole numbers in [0, K).

    Returns:
        Two arrays of shape (..., n).

    Raises:
        ValueError: If there is no row, the shapes disagree, or an argument is outside its range.
    """
    _check(probabilities, labels)
    # A mean of members may exceed 1 by an ulp.
    confidence = np.minimum(probabilities.max(-1), 1.0)
    return confidence, (probabilities.argmax(-1) == labels).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class _Bins:
    """Of the bins that are not empty: share of rows, accuracy less confidence, and its noise."""

    weights: Float64Array
    gaps: Float64Array
    noise: Float64Array

    @classmethod
    def of(cls, probabilities: Float64Array, labels: Labels, n_bins: int) -> "_Bins":
        confidence, correct = top_label(probabilities, labels)
        place = bin_of(confidence, n_bins)
        counts = np.bincount(place.ravel(), minlength=n_bins)
        sizes = np.maximum(counts, 1)

        def mean(values: Float64Array) -> Float64Array:
            return np.bincount(place.ravel(), values.ravel(), minlength=n_bins) / sizes

        accuracy = mean(correct)
        row = np.broadcast_to(np.arange(len(labels)), place.shape)
        cells = np.bincount(
            (row * n_bins + place).ravel(),
            (correct - accuracy[place]).ravel(),
            minlength=len(labels) * n_bins,
        )
        noise = np.sqrt(np.square(cells.reshape(-1, n_bins)).sum(0)) / sizes
        used = counts > 0
        return cls(
            weights=counts[used] / counts.sum(),
            gaps=(accuracy - mean(confidence))[used],
            noise=noise[used],
        )


def bin_of(confidence: Float64Array, n_bins: int) -> NDArray[np.int64]:
    """Number in [0, n_bins) of the bin of each confidence, whose ends are b / B and (b + 1) / B.

    Args:
        confidence: In [0, 1].
        n_bins: B, >= 1.

    Raises:
        ValueError: If there is no bin.
    """
    if n_bins < 1:
        raise ValueError(f"`n_bins` must be a whole number >= 1, got {n_bins!r}.")
    inner = np.linspace(0.0, 1.0, n_bins + 1)[1:-1]
    return np.searchsorted(inner, confidence, side="right").astype(np.int64)


def _mean_size(mean: Float64Array, noise: Float64Array) -> Float64Array:
    """E|mean + noise Z| for a standard normal Z."""
    ratio = np.abs(mean) / np.where(noise > 0, noise, 1.0)
    spread = noise * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2)
    size = spread + np.abs(mean) * special.erf(ratio / np.sqrt(2))
    return np.where(noise > 0, size, np.abs(mean))


def brier_scores(probabilities: Float64Array, labels: Labels) -> Float64Array:
    r"""Squared distance between each row and its one-hot label.

    .. math:: \|\pi - e_y\|^2 = \sum_k \pi_k^2 - 2 \pi_y + 1

    Args:
        probabilities: Shape (..., n, K), rows on the simplex.
        labels: Shape (n,), whole numbers in [0, K).

    Returns:
        Shape (..., n), in [0, 2].

    Raises:
        ValueError: If there is no row, the shapes disagree, or a label is outside its range.

    Source:
        Brier (1950), in its original form, summed over all classes.

    Example:
        >>> brier_scores(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 0])).tolist()
        [0.5, 2.0]
    """
    _check(probabilities, labels)
    one_hot = np.eye(probabilities.shape[-1])[labels]
    return np.square(probabilities - one_hot).sum(-1)


def vote_distances(probabilities: Float64Array, vote_shares: Float64Array) -> Float64Array:
    r"""Total variation distance between each row and the shares of the votes for its classes.

    .. math:: \tfrac12 \sum_k |\pi_k - v_k|, \qquad |\pi_1 - v| \text{ of two classes}

    Args:
        probabilities: Shape (..., n, K), rows on the simplex.
        vote_shares: Shape (n, K), rows on the simplex; or (n,) in [0, 1], the share of class 1 of
            two.

    Returns:
        Shape (..., n), in [0, 1].

    Raises:
        ValueError: If the shapes disagree, or a share is outside its range.

    Example:
        >>> vote_distances(np.array([[0.2, 0.8]]), np.array([0.5])).round(6).tolist()
        [0.3]
    """
    shares = np.asarray(vote_shares, dtype=np.float64)
    if shares.ndim == 1 and probabilities.shape[-1] == 2:
        shares = np.stack([1.0 - shares, shares], axis=-1)
    if probabilities.ndim < 2 or shares.shape != probabilities.shape[-2:] or not len(shares):
        raise ValueError(
            "`vote_shares` must have shape (n, K), or (n,) where K = 2, for `probabilities` of "
            f"shape (..., n, K) with n >= 1, got {np.shape(vote_shares)} and {probabilities.shape}."
        )
    good = (shares >= 0).all(-1) & (np.abs(shares.sum(-1) - 1) < 1e-6)  # false for NaN
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            "`vote_shares` must be in [0, 1] and sum to 1, "
            f"got {np.asarray(vote_shares)[row]!r} in row {row}."
        )
    return 0.5 * np.abs(probabilities - shares).sum(-1)


def _check(probabilities: Float64Array, labels: Labels) -> None:
    if probabilities.ndim < 2 or labels.shape != probabilities.shape[-2:-1] or not labels.size:
        raise ValueError(
            "`probabilities` and `labels` must have shapes (..., n, K) and (n,) with n >= 1, "
            f"got {probabilities.shape} and {labels.shape}."
        )
    check_labels(labels, probabilities.shape[-1])
