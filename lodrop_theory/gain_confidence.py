r"""A lower confidence bound on what an ensemble gains over its members.

For gains in [0, C], independent with one mean, and any weights :math:`w_i \in [0,
1)` and guesses :math:`g_i \in [0, 1]` that depend on earlier examples only, :math:`X_i =
\text{gain}_i / C`,

.. math:: \prod_i \exp\bigl(w_i (X_i - \mu) - \psi(w_i) (X_i - g_i)^2\bigr), \qquad
    \psi(w) = -\ln(1 - w) - w,

has mean at most 1. Proof: :math:`(\ln(1 + y) - y) / y^2` is increasing in y > -1, so that for
:math:`\xi = X_i - g_i \ge -1` and :math:`y = w \xi \ge -w`, :math:`\exp(w \xi - \psi(w) \xi^2) \le
1 + w \xi`; given the past its mean is :math:`1 + w (\mu - g_i) \le \exp(w(\mu - g_i))`. Markov's
inequality turns it into :func:`gain_lower_bound`.
"""

from math import fsum

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    check_failure_probability,
    check_nonnegative,
    check_positive,
)
from lodrop_theory._numerics import round_down


def gain_lower_bound(gains: ArrayLike, *, loss_range: float, delta: float) -> float:
    r"""Lower confidence bound on the mean gain over the population.

    .. math:: \mu \ge C\, \frac{\sum_i w_i X_i - \sum_i \psi(w_i) (X_i - g_i)^2 - \ln(1/\delta)}
        {\sum_i w_i}, \qquad \psi(w) = -\ln(1 - w) - w,

    with :math:`X_i = \text{gain}_i / C`, the running mean :math:`g_i` of the earlier ones and
    :math:`w_i = \min(\sqrt{2 \ln(1/\delta) / (n \hat\sigma_{i-1}^2)}, 1/2)`. It is paired: the gain
    of an example is the difference of two losses on that example, and its small variance is what
    counts. Proof: top of this module.

    Args:
        gains: Gain on each held-out example, in [0, loss_range], shape (n_examples,), in an order
            that does not depend on them.
        loss_range: C > 0. Loss units.
        delta: Failure probability in (0, 1), over the draw of the held-out examples.

    Returns:
        A number in [0, loss_range] that is at most the mean gain with probability at least
        1 - delta; 0 where the data say nothing. Rounded downward. Loss units.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Waudby-Smith and Ramdas (2024), arXiv:2010.09686, Theorem 2, one-sided at a fixed sample
        size; the inequality is Fan, Grama and Liu (2015), arXiv:1311.6273, proved at the top.

    Example:
        >>> bound = gain_lower_bound(np.full(1000, 0.1), loss_range=1.0, delta=0.05)
        >>> 0.09 < bound < 0.1
        True
    """
    losses = check_nonnegative("gains", gains)
    scale = float(check_positive("loss_range", loss_range))
    log_budget = -float(np.log(check_failure_probability("delta", delta)))
    if losses.ndim != 1 or losses.size < 1 or losses.max() > scale * (1 + 1e-12):
        raise ValueError(
            "`gains` must be in [0, loss_range], shape (n_examples,), "
            f"got shape {losses.shape}, largest {losses.max() if losses.size else None!r}."
        )
    shares = np.minimum(losses / scale, 1.0)
    count = np.arange(1, len(shares) + 1)
    # What is known before example i: half a pseudo-example of mean 1/2 and variance 1/4.
    guess = np.concatenate([[0.5], (0.5 + np.cumsum(shares)) / (count + 1)])
    deviation = (shares - guess[1:]) ** 2
    variance = np.concatenate([[0.25], (0.25 + np.cumsum(deviation)) / (count + 1)])[:-1]
    guess = guess[:-1]
    weights = np.minimum(np.sqrt(2.0 * log_budget / (len(shares) * variance)), 0.5)
    if weights[0] == 0:  # delta so close to 1 that its logarithm is 0
        return 0.0
    cost = (-np.log1p(-weights) - weights) * (shares - guess) ** 2
    gained, paid, total = fsum(weights * shares), fsum(cost) + log_budget, fsum(weights)
    # psi cancels for small weights: its error, an ulp of the weight, is what the scale covers.
    size = gained + paid + fsum(weights * (shares - guess) ** 2)
    bound = float(round_down(gained - paid, size)) / total
    return max(float(round_down(bound * scale)), 0.0)


__all__ = ["gain_lower_bound"]
