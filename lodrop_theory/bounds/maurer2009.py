r"""Hold-out bound that profits from a small variance: Maurer and Pontil (2009), arXiv:0907.3740.

Bernstein's inequality with the true variance v and the deviation of the sample deviation,
:math:`\sqrt v \le \sqrt V + \sqrt{2 L / (n - 1)}` (their Theorem 10), at :math:`\delta / 2` each,
:math:`L = \ln(2/\delta)`:

.. math:: R \le \hat R + \sqrt{2 V L / n} + \frac{2L}{\sqrt{n(n-1)}} + \frac{L}{3n}
    \le \hat R + \sqrt{\frac{2 V L}{n}} + \frac{7 L}{3(n - 1)}

for losses in [0, 1]. The middle form is what the proof gives and what is computed here; the right
one is printed.
"""

import numpy as np

from lodrop_theory.bounds.hold_out import hold_out_result
from lodrop_theory.inputs import BernsteinHoldOutInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import BoundResult


def empirical_bernstein_bound(
    inputs: BernsteinHoldOutInputs, *, predictor: Predictor, certified: bool = False
) -> BoundResult:
    r"""Risk bound from the mean and the variance of held-out losses.

    .. math:: R \le \hat R_{\mathrm{test}} + \sqrt{\frac{2 V L}{n}} + C L \Bigl(
        \frac{2}{\sqrt{n (n - 1)}} + \frac{1}{3n}\Bigr), \qquad L = \ln(2/\delta)

    Args:
        inputs: Mean and unbiased variance of the held-out losses.
        predictor: The predictor whose losses were averaged.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, one-sided, counted as in :func:`~lodrop_theory.bounds.hold_out.hold_out_bound`.

    Source:
        Maurer and Pontil (2009), arXiv:0907.3740, Theorems 4 and 10; the sum before its last,
        rounding step.

    Example:
        Equal losses leave the terms of order 1/n, here 2 / sqrt(12) + 1/12:

        >>> import math
        >>> from lodrop_theory.inputs import BernsteinHoldOutInputs
        >>> inputs = BernsteinHoldOutInputs(
        ...     n_test=4, loss_range=1, delta=2 / math.e, held_out_risk=0, sample_variance=0
        ... )
        >>> round(float(empirical_bernstein_bound(inputs, predictor="mean").risk), 6)
        0.660684
    """
    n, c = np.asarray(inputs.n_test), np.asarray(inputs.loss_range)
    with np.errstate(over="ignore"):
        log = np.log(2.0) - np.log(inputs.delta)
        spread = np.sqrt(2.0 * log / n) * np.sqrt(inputs.sample_variance)
        margin = spread + c * (log * (2.0 / np.sqrt(n * (n - 1.0)) + 1.0 / (3.0 * n)))
    return hold_out_result(
        inputs,
        np.asarray(margin),
        bound="empirical-bernstein",
        title="Hold-out, empirical Bernstein",
        source="Maurer and Pontil 2009, arXiv:0907.3740, Theorem 4",
        predictor=predictor,
        certified=certified,
    )


__all__ = ["empirical_bernstein_bound"]
