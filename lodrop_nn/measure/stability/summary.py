"""Changes of the loss, condensed into what the theorems read."""

import math
from dataclasses import replace

import numpy as np
from scipy import stats

from lodrop_nn.measure.intervals import Float64Array, mean_estimate
from lodrop_nn.measure.stability.changes import Changes
from lodrop_theory.records import Estimate, StabilityEstimates

_ROUNDING = 1e-12


def stability_estimates(changes: Changes, level: float, method: str) -> StabilityEstimates:
    """The stabilities of one method.

    The intervals are over the left-out examples, each of which counts once, whatever the number of
    fresh rows at which it is felt. They are conditional on the training set, where the theorems
    want a mean over training sets: every estimate is a plug-in value.

    Args:
        changes: Changes of the loss.
        level: Coverage of the intervals.
        method: How the changes were computed.
    """

    def mean(draws: Float64Array, what: str) -> Estimate:
        return as_plug_in(mean_estimate(draws, level, f"{what}; {method}"))

    def root(draws: Float64Array, what: str) -> Estimate:
        return root_mean_square(draws, level, f"{what}; {method}")

    fresh = np.square(changes.removed_fresh).mean(1)
    other = np.square(changes.replaced_fresh).mean(1)
    return StabilityEstimates(
        pointwise_stability=mean(np.abs(changes.removed), "mean |change| at the removed example"),
        hypothesis_stability=mean(
            np.abs(changes.removed_fresh).mean(1), "mean |change| at fresh rows"
        ),
        remove_one_out=root(fresh, "root mean square change at fresh rows, one removed"),
        replace_one_out=root(other, "root mean square change at fresh rows, one replaced"),
        replace_one_in=root(
            np.square(changes.replaced), "root mean square change at the replaced example"
        ),
        leave_one_out_risk=mean(
            changes.loss + changes.removed, "mean loss at the removed example without it"
        ),
        replace_one_gap=mean(changes.replaced, "mean change at the replaced example"),
    )


def as_plug_in(estimate: Estimate) -> Estimate:
    """The same number with no claim."""
    return replace(estimate, provenance="plug-in")


def root_mean_square(squares: Float64Array, level: float, method: str) -> Estimate:
    """Root of a mean of squares; the interval is the root of Student's, cut off at 0."""
    square = mean_estimate(squares, level, method)
    low, high = (
        None if end is None else math.sqrt(max(end, 0.0)) for end in (square.low, square.high)
    )
    value = math.sqrt(square.value)
    return replace(square, value=value, low=low, high=high, provenance="plug-in")


def ratio_of_means(
    above: Float64Array, below: Float64Array, level: float, method: str
) -> Estimate | None:
    r"""Ratio of the means of paired numbers >= 0, None where the lower one is 0 up to rounding.

    The interval is Student's for the jackknife of the logarithm,

    .. math:: \ln \frac{\bar a}{\bar b} \pm t_{(1+\text{level})/2,\,m-1}
              \sqrt{\tfrac{m-1}{m} \sum_i (\ell_{-i} - \bar \ell)^2}.

    Args:
        above: a, shape (m,).
        below: b, shape (m,).
        level: Coverage, in (0, 1).
        method: What the ratio is.

    Source:
        Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 11.

    Example:
        >>> ratio = ratio_of_means(np.array([1.0, 2, 3]), np.array([2.0, 4, 6]), 0.95, "half")
        >>> ratio.value, round(ratio.low, 9), round(ratio.high, 9)
        (0.5, 0.5, 0.5)
    """
    m = len(above)
    if not below.mean() > _ROUNDING:
        return None
    value = float(above.mean() / below.mean())
    rest = [(above.sum() - above[i], below.sum() - below[i]) for i in range(m)]
    if m < 2 or not all(a > 0.0 and b > 0.0 for a, b in rest):
        return Estimate(value=value, n_draws=m, method=method)
    logs = np.log([a / b for a, b in rest])
    error = math.sqrt((m - 1) / m * float(np.square(logs - logs.mean()).sum()))
    half = float(stats.t.ppf((1 + level) / 2, m - 1)) * error
    return Estimate(
        value=value,
        low=min(value, value * math.exp(-half)),
        high=max(value, value * math.exp(half)),
        level=level,
        n_draws=m,
        method=f"{method}; jackknife of the logarithm, Student's interval",
        provenance="plug-in",
    )
