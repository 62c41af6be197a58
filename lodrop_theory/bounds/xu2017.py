r"""The mean gap from information: Xu and Raginsky (2017), arXiv:1705.07809, Theorem 1.

For a fixed w, :math:`\hat R(w)` is the mean of n independent losses in an interval of length C and
sub-Gaussian with variance factor :math:`C^2/(4n)`. The Donsker-Varadhan formula, applied to the
joint law of the sample S and the parameters W against the product of their laws, gives
:math:`|\mathbb E[R - \hat R]| \le \sqrt{2 \cdot C^2/(4n) \cdot I(W; S)}`.

W may be any parameters that determine the predictor together with things independent of S: with A
frozen, B alone counts; the masks of the prediction do not count. W takes at most
:math:`2^{\text{bits}}` values, so that :math:`I(W;S) \le H(W) \le \text{bits} \ln 2`.
"""

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, check_count, check_positive
from lodrop_theory._numerics import round_up
from lodrop_theory.inputs import InformationInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import BoundResult, input_fields


def parameter_information_nats(
    n_parameters: ArrayLike, bits_per_parameter: ArrayLike
) -> Float64Array:
    r"""What the trained parameters can say of the sample at most: their size in nats.

    .. math:: I(W; S) \le H(W) \le \text{n\_parameters} \cdot \text{bits} \cdot \ln 2

    Args:
        n_parameters: Number of *trained* parameters; those of B alone when A is frozen. >= 1.
        bits_per_parameter: Bits with which each is stored, > 0.

    Returns:
        The bound, in nats, rounded upward.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> round(float(parameter_information_nats(1000, 16)), 3)
        11090.355
    """
    count = check_count("n_parameters", n_parameters)
    bits = check_positive("bits_per_parameter", bits_per_parameter)
    with np.errstate(over="ignore"):
        return round_up(count * bits * np.log(2.0))[()]


def information_bound(
    inputs: InformationInputs, *, predictor: Predictor = "mean", certified: bool = False
) -> BoundResult:
    r"""Bound on the mean gap: :math:`|\mathbb E[R - \hat R]| \le C \sqrt{I(W;S) / (2n)}`.

    Args:
        inputs: Information between the sample and the trained parameters, or a bound on it.
        predictor: The predictor whose loss the bound is about.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound in expectation; it has no empirical risk, and so no risk.

    Source:
        Xu and Raginsky (2017), NeurIPS, arXiv:1705.07809, Theorem 1.

    Example:
        >>> from lodrop_theory.inputs import InformationInputs
        >>> inputs = InformationInputs(n_train=200, loss_range=1, information_nats=4)
        >>> round(float(information_bound(inputs).gap), 12)
        0.1
    """
    c, n = np.asarray(inputs.loss_range), np.asarray(inputs.n_train)
    with np.errstate(over="ignore"):
        gap = round_up(c * np.sqrt(np.asarray(inputs.information_nats) / n / 2.0))
    return BoundResult(
        bound="information",
        title="Mutual information",
        source="Xu and Raginsky 2017, arXiv:1705.07809, Theorem 1",
        statement="expectation",
        predictor=predictor,
        gap=gap,
        loss_range=c,
        certified=certified,
        hypotheses=(
            "the training examples are independent draws from the population",
            "the loss of every example lies in one interval of length `loss_range`",
            "what is not counted in `information_nats` is independent of the training sample",
        ),
        caveats=("about the mean gap over training sets, not about the gap of one run",),
        inputs=input_fields(inputs),
    )


__all__ = ["information_bound", "parameter_information_nats"]
