"""Hold-out bounds of a bounded loss: Hoeffding (1963), Theorems 1 and 2.

Both need nothing of the training: no convexity, no dropout, only examples that it never saw.
"""

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, check_finite
from lodrop_theory._numerics import round_up
from lodrop_theory.inputs import HoldOutInputs
from lodrop_theory.kl_inverse import binary_kl_inverse
from lodrop_theory.records import Predictor
from lodrop_theory.results import BoundResult, as_array, input_fields

HOLD_OUT_HYPOTHESES = (
    "the held-out examples are independent draws from the population",
    "no choice of the model, its training or its masks looked at them",
    "the loss of every example lies in one interval of length `loss_range`",
)
_CAVEAT = "holds over the draw of the held-out examples, for the predictor as trained"
_FROM_HELD_OUT = "the gap is counted from the held-out risk"


def hold_out_result(
    inputs: HoldOutInputs,
    margin: Float64Array,
    *,
    bound: str,
    title: str,
    source: str,
    predictor: Predictor,
    certified: bool,
    more: dict[str, Float64Array | None] | None = None,
) -> BoundResult:
    """A margin above the held-out risk, as a bound counted from the training risk if given."""
    tested = np.asarray(inputs.held_out_risk)
    counted_from = tested if inputs.empirical_risk is None else np.asarray(inputs.empirical_risk)
    with np.errstate(over="ignore"):
        gap = round_up(
            margin + (tested - counted_from), margin + np.abs(tested) + np.abs(counted_from)
        )
    return BoundResult(
        bound=bound,
        title=title,
        source=source,
        statement="probability",
        predictor=predictor,
        gap=gap,
        empirical_risk=counted_from,
        loss_range=np.asarray(inputs.loss_range),
        delta=np.asarray(inputs.delta),
        certified=certified,
        hypotheses=HOLD_OUT_HYPOTHESES,
        caveats=(_CAVEAT, _FROM_HELD_OUT) if inputs.empirical_risk is None else (_CAVEAT,),
        inputs={**input_fields(inputs), **(more or {})},
    )


def hold_out_bound(
    inputs: HoldOutInputs, *, predictor: Predictor, certified: bool = False
) -> BoundResult:
    r"""Risk bound from the mean loss on held-out examples.

    .. math:: R \le \hat R_{\mathrm{test}} + C \sqrt{\frac{\ln(1/\delta)}{2 n_{\mathrm{test}}}}

    with probability at least 1 - delta over the held-out examples, for whatever predictor was fixed
    before they were looked at.

    Args:
        inputs: The held-out mean loss and the range of the loss.
        predictor: The predictor whose losses were averaged.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, one-sided. With ``empirical_risk`` the gap is counted from it (and may be
        negative when training was unlucky); without, from ``held_out_risk``.

    Source:
        Hoeffding (1963), J. Amer. Statist. Assoc. 58, Theorem 2.

    Example:
        >>> import math
        >>> from lodrop_theory.inputs import HoldOutInputs
        >>> inputs = HoldOutInputs(
        ...     n_test=200, loss_range=1, delta=math.exp(-4), held_out_risk=0.25
        ... )
        >>> round(float(hold_out_bound(inputs, predictor="mean").risk), 12)
        0.35
    """
    with np.errstate(over="ignore"):
        margin = np.asarray(inputs.loss_range) * np.sqrt(
            -np.log(inputs.delta) / (2.0 * np.asarray(inputs.n_test))
        )
    return hold_out_result(
        inputs,
        margin,
        bound="hold-out",
        title="Hold-out, Hoeffding",
        source="Hoeffding 1963, J. Amer. Statist. Assoc. 58, Theorem 2",
        predictor=predictor,
        certified=certified,
    )


def hold_out_kl_bound(
    inputs: HoldOutInputs,
    *,
    predictor: Predictor,
    loss_min: ArrayLike = 0.0,
    certified: bool = False,
) -> BoundResult:
    r"""Risk bound from the mean loss on held-out examples, by the inverse binary divergence.

    .. math:: R \le \sup\{p : \mathrm{kl}(\hat R_{\mathrm{test}} \,\|\, p) \le
        \ln(1/\delta) / n_{\mathrm{test}}\}

    for losses scaled to [0, 1]. Never above :func:`hold_out_bound`, and far below it where the
    held-out risk is small.

    Args:
        inputs: The held-out mean loss and the range of the loss.
        predictor: The predictor whose losses were averaged.
        loss_min: Left end of the interval of the loss. Loss units.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, one-sided, counted as in :func:`hold_out_bound`.

    Raises:
        ValueError: If the held-out risk is outside [loss_min, loss_min + loss_range].

    Source:
        Hoeffding (1963), J. Amer. Statist. Assoc. 58, Theorem 1, inequality (2.1).

    Example:
        No loss at all on 100 examples, at delta = exp(-1):

        >>> import math
        >>> from lodrop_theory.inputs import HoldOutInputs
        >>> inputs = HoldOutInputs(n_test=100, loss_range=1, delta=math.exp(-1), held_out_risk=0)
        >>> risk = hold_out_kl_bound(inputs, predictor="mean").risk
        >>> round(float(risk), 12) == round(1 - math.exp(-0.01), 12)
        True
    """
    low = check_finite("loss_min", loss_min)
    tested, length = np.asarray(inputs.held_out_risk), np.asarray(inputs.loss_range)
    scale = np.abs(tested) + np.abs(low)
    share = round_up(round_up(tested - low, scale) / length)
    if np.any((tested < low - 1e-12 * scale) | (share > 1.0 + 1e-12 * (1.0 + scale / length))):
        raise ValueError(
            f"`held_out_risk` must be in [loss_min, loss_min + loss_range] = [{low}, "
            f"{low + length}], got {inputs.held_out_risk}."
        )
    share = np.minimum(np.maximum(share, 0.0), 1.0)
    nats = round_up(-np.log(inputs.delta) / np.asarray(inputs.n_test))
    top = length * np.asarray(binary_kl_inverse(share, nats))
    return hold_out_result(
        inputs,
        np.asarray(round_up(top + (low - tested), top + scale)),
        bound="hold-out-kl",
        title="Hold-out, kl inverse",
        source="Hoeffding 1963, J. Amer. Statist. Assoc. 58, Theorem 1",
        predictor=predictor,
        certified=certified,
        more={"loss_min": as_array(loss_min)},
    )


__all__ = ["hold_out_bound", "hold_out_kl_bound"]
