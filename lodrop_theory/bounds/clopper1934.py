"""Hold-out bound of a 0-1 loss: the exact binomial limit of Clopper and Pearson (1934)."""

import numpy as np

from lodrop_theory.bounds.hold_out import hold_out_result
from lodrop_theory.clopper_pearson import clopper_pearson_upper
from lodrop_theory.inputs import BinaryHoldOutInputs, HoldOutInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import BoundResult, input_fields


def clopper_pearson_bound(
    inputs: BinaryHoldOutInputs, *, predictor: Predictor, certified: bool = False
) -> BoundResult:
    r"""Bound on an error rate from the number of held-out errors.

    .. math:: R \le \sup\{p : P(\mathrm{Binomial}(n, p) \le k) > \delta\}

    The tightest one-sided limit that is increasing in k and has coverage :math:`1 - \delta` for
    every R; never above :func:`~lodrop_theory.bounds.hold_out.hold_out_kl_bound`.

    Args:
        inputs: Errors and examples held out.
        predictor: The predictor whose errors were counted; for ``gibbs`` every example must have
            been given its own draw of the masks.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound for the 0-1 loss (``loss_range`` 1).

    Source:
        Clopper and Pearson (1934), Biometrika 26.

    Example:
        >>> from lodrop_theory.inputs import BinaryHoldOutInputs
        >>> inputs = BinaryHoldOutInputs(n_test=100, n_errors=0, delta=0.05)
        >>> round(float(clopper_pearson_bound(inputs, predictor="mean").risk), 6)
        0.029513
    """
    n, k = np.asarray(inputs.n_test), np.asarray(inputs.n_errors)
    scores = HoldOutInputs(
        n_test=n,
        loss_range=1.0,
        delta=inputs.delta,
        held_out_risk=k / n,
        empirical_risk=inputs.empirical_risk,
    )
    result = hold_out_result(
        scores,
        np.asarray(clopper_pearson_upper(k, n, inputs.delta)) - k / n,
        bound="clopper-pearson",
        title="Hold-out, Clopper-Pearson",
        source="Clopper and Pearson 1934, Biometrika 26",
        predictor=predictor,
        certified=certified,
        more=input_fields(inputs),
    )
    return result


__all__ = ["clopper_pearson_bound"]
