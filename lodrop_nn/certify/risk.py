r"""Training risk of a randomized adapter by Monte Carlo, with what the estimate proves.

One draw of the posterior serves a group of :math:`b_j` examples (a batch, or one row). Its mean
loss, scaled to [0, 1], has the expectation :math:`\mu_j`, the posterior risk of that group. Groups
are disjoint within a pass and every pass covers all examples, so with :math:`w_j = b_j / \sum b`
the mean :math:`\hat X = \sum_j w_j X_j` has expectation :math:`\sum_j w_j \mu_j = \hat R`. The
:math:`X_j` are independent, not identically distributed, and differ in weight; still

.. math:: P\bigl(\mathrm{kl}(\hat X \,\|\, \hat R) > \varepsilon,\ \hat X < \hat R\bigr)
    \le e^{-M \varepsilon}, \qquad M = 1 / \max_j w_j .

Proof. For :math:`X \in [0, 1]`, :math:`\ln E e^{tX} \le g(\mu, t) = \ln(1 - \mu + \mu e^t)`. As a
function of t, g is convex and 0 at 0, so :math:`g(\mu, w_j M t) \le w_j M g(\mu, t)` since
:math:`w_j M \le 1`. In :math:`\mu` it is concave, so :math:`\sum_j w_j M g(\mu_j, t) \le
M g(\hat R, t)`. Hence :math:`\ln E e^{M t \hat X} \le M g(\hat R, t)` for all real t, which is the
bound for M draws of a Bernoulli variable of mean :math:`\hat R`; Chernoff's choice of t < 0 ends
it. With equal weights this is Hoeffding (1963), Theorem 1, whose variables need not be identical.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lodrop_nn.certify.posterior import NoisyPart, total_kl
from lodrop_theory import binary_kl_inverse, binary_kl_inverse_lower
from lodrop_theory.losses import smoothed_loss_range
from lodrop_theory.records import Estimate

Float64Array = NDArray[np.float64]


def effective_draws(group_sizes: Sequence[int]) -> int:
    """The whole number M below 1 / max w_j: how many equal draws a Monte Carlo mean is worth.

    Args:
        group_sizes: Examples that each draw served, over all passes, >= 1.

    Raises:
        ValueError: If there is no group or a size is below 1.

    Example:
        >>> effective_draws([4, 4, 2] * 3)
        7
    """
    if not group_sizes or min(group_sizes) < 1:
        raise ValueError(f"`group_sizes` must be whole numbers >= 1, got {list(group_sizes)!r}.")
    return max(sum(group_sizes) // max(group_sizes), 1)


def monte_carlo_estimate(
    losses: Float64Array,
    group_sizes: Sequence[int],
    *,
    low: float,
    length: float,
    level: float,
    method: str,
) -> Estimate:
    """Mean of group means with the interval that is proved at the top of this module.

    Args:
        losses: Mean loss of each group, shape (n_groups,).
        group_sizes: Examples of each group.
        low: Left end of the interval of the loss.
        length: Its length, > 0.
        level: Coverage of the two-sided interval over the draws, in (0, 1).
        method: How the losses were drawn.

    Returns:
        The estimate; ``n_draws`` is M.
    """
    sizes = np.asarray(group_sizes, dtype=np.float64)
    n_draws = effective_draws(group_sizes)
    # Exactly summed: bounds round by a few ulps, a dot product of many rows may be further off.
    mean = math.fsum(np.asarray(losses) * sizes) / math.fsum(sizes)
    share = min(max((mean - low) / length, 0.0), 1.0)
    nats = math.log(2.0 / (1.0 - level)) / n_draws
    ends = (binary_kl_inverse_lower(share, nats), binary_kl_inverse(share, nats))
    least, largest = (low + length * float(end) for end in ends)
    return Estimate(
        value=mean,
        low=min(least, mean),
        high=max(largest, mean),
        level=level,
        n_draws=n_draws,
        method=f"{method}; kl interval over the draws",
    )


def smoothed_interval(smoothing: float, n_classes: int) -> tuple[float, float]:
    """Left end and length of the interval of the smoothed cross-entropy, in nats."""
    return -math.log(1.0 - smoothing + smoothing / n_classes), float(
        smoothed_loss_range(smoothing, n_classes)
    )


def kl_estimate(parts: Sequence[NoisyPart]) -> Estimate:
    """The divergence of a posterior from its prior, an exact number up to rounding."""
    upper = total_kl(parts)
    return Estimate(
        value=upper,
        low=upper * (1.0 - 1e-8),
        high=upper,
        n_draws=len(parts),
        method="sum of q ||theta - theta_0||^2 / (2 sigma^2) over the trained parameters",
    )


__all__ = ["effective_draws", "kl_estimate", "monte_carlo_estimate", "smoothed_interval"]
