"""What the masks do to the outputs, and what averaging over them is worth, on held-out rows."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lodrop_nn.measure.intervals import check_level
from lodrop_nn.measure.predictions import Predictions
from lodrop_theory.ensemble_gain import log_loss_ambiguity
from lodrop_theory.gain_confidence import gain_lower_bound
from lodrop_theory.losses import smoothed_cross_entropy, smoothed_loss_range
from lodrop_theory.records import Estimate

Float64Array = NDArray[np.float64]

_LARGEST_EXPONENT = 300.0  # few masks may leave an error far above the value: stay finite


def output_covariance(
    predictions: Predictions, *, dropout_rate: float | None = None, level: float = 0.95
) -> Estimate | None:
    r"""Trace of the covariance of the logits over masks, averaged over rows.

    .. math:: \frac1n \sum_x \frac{1}{N - 1} \sum_{m=1}^{N} \|z^m(x) - \bar z(x)\|^2, \qquad
        z_k = \ln \pi_k - \frac1K \sum_j \ln \pi_j

    Unbiased for independent masks. Logits are defined up to one number per row and mask, which no
    probability shows. It is fixed by centering: the logits of each row and mask sum to 0. Every
    other choice gives a trace at least as large, because it adds a part along (1, ..., 1), to
    which centered logits are orthogonal.

    Student's interval for the logarithm, which suits variances, with as many degrees of freedom as
    the smaller of n and N has, less one. Its square error is the sum of the sample variance over
    rows and of the jackknife's over masks, which all rows share. It is approximate: where one
    normal direction per mask moves all rows it held in 91 to 94% of trials instead of 95%.

    Args:
        predictions: Predictions on the held-out rows.
        dropout_rate: p of the masks, where it is known: at 0 the value is 0, exactly.
        level: Coverage of the interval, in (0, 1).

    Returns:
        A number >= 0, squared logits; without an interval for fewer than 3 masks or 2 rows. None
        for one mask, which does not vary. ``n_draws`` counts the rows.

    Raises:
        ValueError: If ``level`` is outside (0, 1).
    """
    check_level(level)
    if dropout_rate == 0.0:
        return _exact_zero(len(predictions), "exact: no masks")
    n_masks, n_rows = predictions.n_masks, len(predictions)
    if n_masks == 1:
        return None
    logits = _centered_logits(predictions.member_probabilities)
    logits = logits - logits[0]  # equal members give 0 without rounding
    squares = np.square(logits - logits.mean(0)).sum(-1)
    traces = squares.sum(0) / (n_masks - 1)
    value = float(traces.mean())
    method = "trace of the covariance of centered logits over masks, mean over held-out rows"
    if n_masks < 3 or n_rows < 2:
        return Estimate(value=value, n_draws=n_rows, method=method)
    left_out = _without_each_mask(squares.mean(1), value)
    over_masks = (n_masks - 1) * float(np.var(left_out))
    error = math.sqrt(float(np.var(traces, ddof=1)) / n_rows + over_masks)
    half = float(stats.t.ppf((1 + level) / 2, min(n_masks, n_rows) - 1)) * error
    factor = math.exp(min(half / value, _LARGEST_EXPONENT)) if value > 0 else 1.0
    return Estimate(
        value=value,
        low=value / factor,
        high=value * factor,
        level=level,
        n_draws=n_rows,
        method=f"{method}; Student's interval of the logarithm, variance over rows plus jackknife "
        f"over {n_masks} masks",
    )


def jensen_gap(
    predictions: Predictions,
    *,
    smoothing: float,
    dropout_rate: float | None = None,
    level: float = 0.95,
) -> Estimate:
    r"""What the ensemble gains over its members: mean member loss less ensemble loss.

    .. math:: \frac1n \sum_{(x, y)} \Bigl[\frac1N \sum_m \ell(\pi^m(x), y) -
        \ell\Bigl(\frac1N \sum_m \pi^m(x), y\Bigr)\Bigr] \in [0, C]

    in the smoothed cross-entropy, which is convex in the probabilities and has range C: each term
    is at least 0 and at most C, so that :func:`~lodrop_theory.gain_confidence.gain_lower_bound`
    applies. The lower end is that bound, the upper end the same bound on C less the gain, each at
    half of 1 - ``level``. So the interval holds at every number of rows, for the mean gain of
    *these* members over the population that the rows were drawn from, independently, and in an
    order that does not depend on the gains. About other masks it says nothing.

    Args:
        predictions: Predictions on the held-out rows.
        smoothing: a in (0, 1) of the smoothed cross-entropy.
        dropout_rate: p of the masks, where it is known: at 0 the value is 0, exactly.
        level: Coverage of the interval, in (0, 1); its lower end alone has (1 + level) / 2.

    Returns:
        Nats, with 0 <= low <= value <= high <= C. One member gains nothing, exactly.

    Raises:
        ValueError: If ``smoothing`` or ``level`` is outside (0, 1).

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, Theorem 4.5, as a difference.
    """
    check_level(level)
    scale = float(smoothed_loss_range(smoothing, predictions.n_classes))
    if dropout_rate == 0.0 or predictions.n_masks == 1:
        return _exact_zero(len(predictions), "exact: one member")
    gains = np.minimum(log_loss_ambiguity(_label_probabilities(predictions, smoothing)), scale)
    value, delta = float(gains.mean()), (1 - level) / 2
    low = gain_lower_bound(gains, loss_range=scale, delta=delta)
    rest = gain_lower_bound(scale - gains, loss_range=scale, delta=delta)
    return Estimate(
        value=value,
        low=min(low, value),
        high=max(min(math.nextafter(scale - rest, math.inf), scale), value),
        level=level,
        n_draws=len(predictions),
        method=f"member loss less ensemble loss of {predictions.n_masks} given members on the "
        "held-out rows, smoothed cross-entropy; betting interval for gains in [0, C]",
    )


def second_order_gain(predictions: Predictions, *, smoothing: float) -> Float64Array:
    r"""The gain of each row to second order in the spread of its members.

    .. math:: \tfrac12 \operatorname{tr}(\nabla^2 \ell(\bar\pi) \operatorname{Cov}_m \pi) =
        \frac{\operatorname{Var}_m q_y}{2\, \bar q_y^2}, \qquad
        q_y = (1 - a) \pi_y + \frac aK

    with the variance over the given members (divisor N), to hold against :func:`jensen_gap`. The
    remainder is of third order; :func:`~lodrop_theory.ensemble_gain.log_gain_bracket` encloses it.

    Args:
        predictions: Predictions on some rows.
        smoothing: a in (0, 1) of the smoothed cross-entropy.

    Returns:
        Shape (n,), >= 0, nats.

    Raises:
        ValueError: If ``smoothing`` is outside (0, 1).
    """
    chosen = _label_probabilities(predictions, smoothing)
    return np.asarray(np.var(chosen, axis=0) / (2 * np.square(chosen.mean(0))))


def _label_probabilities(predictions: Predictions, smoothing: float) -> Float64Array:
    """Smoothed probability of the label under each member, shape (n_masks, n)."""
    losses = smoothed_cross_entropy(predictions.member_probabilities, predictions.labels, smoothing)
    return np.minimum(np.exp(-losses), 1.0)


def _centered_logits(probabilities: Float64Array) -> Float64Array:
    # Below the smallest normal number, 708 nats down, a probability has lost its logit.
    logits = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return np.asarray(logits - logits.mean(-1, keepdims=True))


def _without_each_mask(squares: Float64Array, value: float) -> Float64Array:
    """The value without mask m; ``squares`` is the mean over rows of its squared deviation."""
    n = len(squares)
    # Leaving out one of n points at distance d lowers their sum of squares by d^2 n / (n - 1).
    return np.asarray(((n - 1) * value - squares * n / (n - 1)) / (n - 2))


def _exact_zero(n_rows: int, method: str) -> Estimate:
    return Estimate(value=0.0, low=0.0, high=0.0, n_draws=n_rows, method=method)
