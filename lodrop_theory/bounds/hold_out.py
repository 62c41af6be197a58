"""Hold-out bound: Hoeffding (1963), Theorem 2, on examples that training never saw."""

import numpy as np

from lodrop_theory._numerics import round_up
from lodrop_theory.inputs import HoldOutInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import BoundResult, input_fields


def hold_out_bound(
    inputs: HoldOutInputs, *, predictor: Predictor, certified: bool = False
) -> BoundResult:
    r"""Risk bound from the mean loss on held-out examples.

    .. math:: R \le \hat R_{\mathrm{test}} + C \sqrt{\frac{\ln(1/\delta)}{2 n_{\mathrm{test}}}}

    with probability at least 1 - delta over the held-out examples, for whatever predictor was fixed
    before they were looked at. It needs nothing of the training: no convexity, no dropout.

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
    tested = np.asarray(inputs.held_out_risk)
    counted_from = tested if inputs.empirical_risk is None else np.asarray(inputs.empirical_risk)
    with np.errstate(over="ignore"):
        margin = np.asarray(inputs.loss_range) * np.sqrt(
            -np.log(inputs.delta) / (2.0 * np.asarray(inputs.n_test))
        )
        gap = round_up(
            margin + (tested - counted_from), margin + np.abs(tested) + np.abs(counted_from)
        )
    caveats: tuple[str, ...] = (
        "holds over the draw of the held-out examples, for the predictor as trained",
    )
    if inputs.empirical_risk is None:
        caveats = (*caveats, "the gap is counted from the held-out risk")
    return BoundResult(
        bound="hold-out",
        title="Hold-out, Hoeffding",
        source="Hoeffding 1963, J. Amer. Statist. Assoc. 58, Theorem 2",
        statement="probability",
        predictor=predictor,
        gap=gap,
        empirical_risk=counted_from,
        loss_range=np.asarray(inputs.loss_range),
        delta=np.asarray(inputs.delta),
        certified=certified,
        hypotheses=(
            "the held-out examples are independent draws from the population",
            "no choice of the model, its training or its masks looked at them",
            "the loss of every example lies in one interval of length `loss_range`",
        ),
        caveats=caveats,
        inputs=input_fields(inputs),
    )
