r"""Compression bounds: Lotfi et al. (2023), arXiv:2312.17173, with the price of a length repaired.

Give the string w the prior weight :math:`2^{-K} / (K (K + 1))`, K its length in bits: the
:math:`2^K` strings of each length share :math:`1/K - 1/(K+1)`, and the weights add up to exactly 1.
For each string Hoeffding's inequality holds at :math:`\delta` times its weight; a union over
strings gives

.. math:: R \le \hat R + C \sqrt{\frac{K \ln 2 + \ln K + \ln(K + 1) + \ln(1/\delta)}{2n}} .

The :math:`2 \ln K` of the source belongs to the weights :math:`2^{-K} / K^2`, whose sum is
:math:`\pi^2/6 > 1`. A self-delimiting code (whose strings are prefix-free) pays no price for its
length: the weights :math:`2^{-K}` add up to at most 1 by Kraft's inequality.
"""

import numpy as np

from lodrop_theory._checks import Float64Array
from lodrop_theory._numerics import round_up
from lodrop_theory.inputs import CompressionInputs
from lodrop_theory.kl_inverse import binary_kl_inverse
from lodrop_theory.records import Predictor
from lodrop_theory.results import BoundResult, as_array, input_fields

_HYPOTHESES = (
    "the training examples are independent draws from the population",
    "the loss of every example lies in one interval of length `loss_range`",
    "the decoder was fixed before the training sample was seen, and the code determines the "
    "predictor (quantized: the risk is that of the decoded adapter)",
)
_SOURCE = "Lotfi et al. 2023, arXiv:2312.17173 (price of the length repaired)"
_EVENT = "a code has a risk that Chernoff's bound at its prior weight rules out"


def _nats(inputs: CompressionInputs, self_delimiting: bool) -> Float64Array:
    bits = np.asarray(inputs.code_length_bits)
    length = 0.0 if self_delimiting else np.log(bits) + np.log1p(bits)
    with np.errstate(over="ignore"):
        return round_up(bits * np.log(2.0) + length - np.log(inputs.delta))


def compression_bound(
    inputs: CompressionInputs,
    *,
    self_delimiting: bool = False,
    predictor: Predictor = "mean",
    certified: bool = False,
) -> BoundResult:
    r"""Risk bound from the length K of a code of the trained adapter.

    .. math:: R \le \hat R + C \sqrt{\frac{K \ln 2 + \ln K + \ln(K + 1) + \ln(1/\delta)}{2n}}

    Args:
        inputs: Length of the code in bits, and the training risk of what it decodes to.
        self_delimiting: Whether no code is a prefix of another; then the logarithms of K go.
        predictor: The predictor whose loss ``empirical_risk`` is.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, with probability at least 1 - delta over training sets.

    Source:
        Lotfi et al. (2023), arXiv:2312.17173; proof, and what is repaired, above.

    Example:
        >>> import math
        >>> from lodrop_theory.inputs import CompressionInputs
        >>> inputs = CompressionInputs(
        ...     n_train=50, loss_range=1, delta=2 * math.exp(-1), code_length_bits=1
        ... )
        >>> round(float(compression_bound(inputs, self_delimiting=True).gap), 12)
        0.1
    """
    c, n = np.asarray(inputs.loss_range), np.asarray(inputs.n_train)
    with np.errstate(over="ignore"):
        gap = round_up(c * np.sqrt(_nats(inputs, self_delimiting) / n / 2.0))
    return BoundResult(
        bound="compression",
        title="Compression",
        source=_SOURCE,
        statement="probability",
        predictor=predictor,
        gap=gap,
        empirical_risk=as_array(inputs.empirical_risk),
        loss_range=c,
        delta=as_array(inputs.delta),
        certified=certified,
        hypotheses=_HYPOTHESES,
        inputs=input_fields(inputs),
        event=_EVENT,
    )


def compression_kl_bound(
    inputs: CompressionInputs,
    *,
    self_delimiting: bool = False,
    predictor: Predictor = "mean",
    certified: bool = False,
) -> BoundResult:
    r"""The same union with the inverse of the binary divergence at every code.

    .. math:: \mathrm{kl}(\hat R \,\|\, R) \le
        \frac{K \ln 2 + \ln K + \ln(K + 1) + \ln(1/\delta)}{n}

    for losses in [0, loss_range]. Never above :func:`compression_bound`, and it fails by the same
    event.

    Args:
        inputs: As in :func:`compression_bound`; ``empirical_risk`` is needed, in [0, loss_range].
        self_delimiting: As in :func:`compression_bound`.
        predictor: The predictor whose loss ``empirical_risk`` is.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, with probability at least 1 - delta over training sets.

    Raises:
        ValueError: If ``empirical_risk`` is None or outside [0, loss_range].

    Source:
        As :func:`compression_bound`, with Chernoff's bound as in Langford (2005), JMLR 6.

    Example:
        >>> import math
        >>> from lodrop_theory.inputs import CompressionInputs
        >>> inputs = CompressionInputs(
        ...     n_train=100, loss_range=1, delta=2 * math.exp(-1), code_length_bits=1,
        ...     empirical_risk=0,
        ... )
        >>> risk = compression_kl_bound(inputs, self_delimiting=True).risk
        >>> round(float(risk), 12) == round(1 - math.exp(-0.01), 12)
        True
    """
    c, n = np.asarray(inputs.loss_range), np.asarray(inputs.n_train)
    risk = as_array(inputs.empirical_risk)
    if risk is None or np.any((risk < 0) | (risk > c * (1 + 1e-12))):
        raise ValueError(
            f"`empirical_risk` must be in [0, loss_range] = [0, {c}], got {inputs.empirical_risk}."
        )
    share = np.minimum(round_up(risk / c), 1.0)
    nats = round_up(_nats(inputs, self_delimiting) / n)
    top = c * np.asarray(binary_kl_inverse(share, nats))
    return BoundResult(
        bound="compression-kl",
        title="Compression, kl inverse",
        source=_SOURCE,
        statement="probability",
        predictor=predictor,
        gap=round_up(top - risk, top + risk),
        empirical_risk=risk,
        loss_range=c,
        delta=as_array(inputs.delta),
        certified=certified,
        hypotheses=_HYPOTHESES,
        inputs=input_fields(inputs),
        event=_EVENT,
    )


__all__ = ["compression_bound", "compression_kl_bound"]
