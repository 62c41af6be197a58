"""Feldman and Vondrak (2018), arXiv:1812.09859: quoted, not proved here, never a certificate."""

import numpy as np

from lodrop_theory._numerics import round_up
from lodrop_theory.bounds.lin2024 import SAMPLE_HYPOTHESES
from lodrop_theory.inputs import UniformStabilityInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import SAME_GAP, BoundResult, as_array, input_fields


def feldman_vondrak_bound(
    inputs: UniformStabilityInputs, *, predictor: Predictor = "mean"
) -> BoundResult:
    r"""Risk bound from uniform replace-one stability g, without a logarithm of n.

    .. math:: R \le \hat R + 8 \sqrt{C \Bigl(2g + \frac Cn\Bigr) \ln\frac 8\delta}

    The constants are quoted from the literature. There is no argument ``certified``: the result
    is a plug-in whatever the inputs. Where a certificate is wanted take the smallest of
    :func:`~lodrop_theory.bounds.bousquet2002.uniform_bound`,
    :func:`~lodrop_theory.bounds.bousquet2020.uniform_log_bound` and
    :func:`~lodrop_theory.bounds.l2_stability.l2_stability_bound`, which share their event.

    Args:
        inputs: The stability, a supremum over training sets and points.
        predictor: The predictor whose loss it compares.

    Returns:
        The bound, with probability at least 1 - delta over training sets; kind ``plug-in``.

    Source:
        Feldman and Vondrak (2018), NeurIPS, arXiv:1812.09859, Theorem 1.2. The later bound of the
        same authors (2019, arXiv:1902.10710) names no constants.

    Example:
        >>> import math
        >>> from lodrop_theory.inputs import UniformStabilityInputs
        >>> inputs = UniformStabilityInputs(
        ...     n_train=6400, loss_range=1, delta=8 * math.exp(-4), uniform_stability=0
        ... )
        >>> round(float(feldman_vondrak_bound(inputs).gap), 12)
        0.2
    """
    c, n = np.asarray(inputs.loss_range), np.asarray(inputs.n_train)
    g = np.asarray(inputs.uniform_stability)
    with np.errstate(over="ignore"):
        inside = np.hypot(np.sqrt(2.0 * c) * np.sqrt(g), c / np.sqrt(n))
        gap = 8.0 * inside * np.sqrt(np.log(8.0) - np.log(inputs.delta))
    return BoundResult(
        bound="feldman-vondrak",
        title="Uniform stability, Feldman and Vondrak",
        source="Feldman and Vondrak 2018, arXiv:1812.09859, Theorem 1.2 (constants quoted)",
        statement="probability",
        predictor=predictor,
        gap=round_up(gap),
        empirical_risk=as_array(inputs.empirical_risk),
        loss_range=c,
        delta=as_array(inputs.delta),
        certified=False,
        hypotheses=(
            *SAMPLE_HYPOTHESES,
            "the stability is a supremum over training sets, replacements and points",
        ),
        caveats=("its constants are quoted and were not proved here: never a certificate",),
        inputs=input_fields(inputs),
        event=SAME_GAP,
    )


__all__ = ["feldman_vondrak_bound"]
