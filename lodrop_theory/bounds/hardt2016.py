r"""Stability of stochastic gradient descent: Hardt, Recht and Singer (2016), arXiv:1509.01240.

Two runs share their mini-batches and their masks, on training sets that differ in one example. A
gradient step of a convex, M-smooth loss with step size at most 2/M does not increase distances; a
step on the example that differs increases the distance by at most :math:`2 \eta_t \rho`. Each
update meets that example with probability 1/n, whether the examples are drawn with replacement or
shuffled in every epoch (in mini-batches of size m it is met with probability m/n and weighs 1/m).
So the mean distance is at most :math:`(2\rho/n) \sum_t \eta_t`, and the loss changes by at most
:math:`\rho` times that, at every point.

This bounds the change of the loss *averaged over the randomness of training*. It counts the
training time in place of curvature: early stopping and few epochs are stable without any penalty.
"""

import numpy as np

from lodrop_theory._numerics import round_up
from lodrop_theory.inputs import SgdInputs
from lodrop_theory.results import StabilityResult, input_fields


def sgd_stability(inputs: SgdInputs, *, certified: bool = False) -> StabilityResult:
    r"""Uniform replace-one stability of SGD on a convex loss.

    .. math:: g = \frac{2 \rho^2}{n} \sum_t \eta_t, \qquad \max_t \eta_t \le 2 / M

    Args:
        inputs: Constants of the loss and learning rates of the run.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs. Convexity in
            both factors of LoRA at once does not hold; with A frozen it can.

    Returns:
        The stability; not applicable where a step is larger than 2 / smoothness.

    Source:
        Hardt, Recht and Singer (2016), ICML, arXiv:1509.01240, Theorem 3.8.

    Example:
        >>> from lodrop_theory.inputs import SgdInputs
        >>> inputs = SgdInputs(
        ...     n_train=1000, lipschitz=1, smoothness=4, largest_step_size=0.5, step_size_sum=50
        ... )
        >>> round(float(sgd_stability(inputs).value), 12)
        0.1
    """
    rho, n = np.asarray(inputs.lipschitz), np.asarray(inputs.n_train)
    with np.errstate(over="ignore", under="ignore"):
        applicable = np.asarray(inputs.largest_step_size) * (np.asarray(inputs.smoothness) / 2) <= 1
        value = round_up(2.0 * (rho * np.sqrt(np.asarray(inputs.step_size_sum) / n)) ** 2)
    value = np.where((rho == 0) | (np.asarray(inputs.step_size_sum) == 0), 0.0, value)
    everywhere = bool(np.all(applicable))
    return StabilityResult(
        bound="sgd",
        source="Hardt, Recht and Singer 2016, arXiv:1509.01240, Theorem 3.8",
        value=np.where(applicable, value, np.inf),
        notion="uniform: one example replaced, the loss averaged over the randomness of training "
        "and compared at every point",
        applicable=applicable,
        failed_hypothesis=None if everywhere else "steps of at most 2 / smoothness",
        remedy=None if everywhere else "lower the learning rate to at most 2 / `smoothness`",
        certified=certified,
        hypotheses=(
            "the loss that each step differentiates is convex and `smoothness`-smooth in the "
            "trained parameters, for every example and every mask",
            "it is `lipschitz`-Lipschitz wherever the iterates go",
            "the examples of a step are drawn uniformly or by a fresh shuffle of every epoch",
            "learning rates and number of updates do not depend on the training set",
        ),
        inputs=input_fields(inputs),
    )


__all__ = ["sgd_stability"]
