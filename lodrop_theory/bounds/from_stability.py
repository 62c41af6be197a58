"""Every bound that a uniform replace-one stability gives, wherever the stability came from."""

from dataclasses import fields, replace
from typing import Any

import numpy as np

from lodrop_theory.bounds.bousquet2002 import expectation_bound, uniform_bound
from lodrop_theory.bounds.bousquet2020 import uniform_log_bound
from lodrop_theory.bounds.feldman2018 import feldman_vondrak_bound
from lodrop_theory.bounds.l2_stability import l2_stability_bound
from lodrop_theory.inputs import L2StabilityInputs, TailInputs, UniformStabilityInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import BoundResult, StabilityResult


def stability_bounds(
    stability: StabilityResult,
    tail: TailInputs,
    *,
    predictor: Predictor,
    certified: bool = False,
) -> list[BoundResult]:
    """Side by side: in expectation, exponential tail, logarithmic overhead, mean square, quoted.

    Args:
        stability: A replace-one stability at every point: from strong convexity, from the dropout
            objective itself, across a symmetry, or from SGD.
        tail: What turns it into a statement about the risk; same ``n_train``.
        predictor: The predictor whose loss was compared.
        certified: Whether the caller vouches for the hypotheses of the bounds; a result is
            certified only if ``stability`` is too, and that of Feldman and Vondrak never.

    Returns:
        Five results. Those in probability share their event: the smallest may be quoted.

    Raises:
        ValueError: If the stability is about the removal of an example, or ``n_train`` differs.

    Example:
        >>> from lodrop_theory.bounds.hardt2016 import sgd_stability
        >>> from lodrop_theory.inputs import SgdInputs, TailInputs
        >>> steps = SgdInputs(
        ...     n_train=10**5, lipschitz=1, smoothness=1, largest_step_size=0.1, step_size_sum=100
        ... )
        >>> tail = TailInputs(n_train=10**5, loss_range=1, delta=0.05)
        >>> for result in stability_bounds(sgd_stability(steps), tail, predictor="gibbs"):
        ...     print(f"{result.bound:16} {result.gap:.3f}")
        expectation      0.002
        uniform-tail     1.554
        uniform-log-tail 0.182
        l2-stability     0.025
        feldman-vondrak  1.141
    """
    if "replaced" not in stability.notion:
        raise ValueError(
            "`stability` must be about the replacement of one example, "
            f"got {stability.bound!r} ({stability.notion})."
        )
    read = stability.inputs.get("n_train")
    if read is not None and not np.all(np.equal(read, tail.n_train)):
        raise ValueError(
            f"`n_train` must be the same in both arguments, got {read} and {tail.n_train}."
        )
    # Where it does not apply a stand-in goes in and `restricted_to` takes the result out again.
    value = np.where(stability.applicable, stability.value, 0.0)
    value = np.minimum(value, np.finfo(np.float64).max)
    common: dict[str, Any] = {f.name: getattr(tail, f.name) for f in fields(TailInputs)}
    uniform = UniformStabilityInputs(uniform_stability=value, **common)
    square = L2StabilityInputs(replace_one_out=value, replace_one_in=value, **common)
    standing: dict[str, Any] = {"predictor": predictor, "certified": certified}
    results = [
        expectation_bound(uniform, **standing),
        uniform_bound(uniform, **standing),
        uniform_log_bound(uniform, **standing),
        l2_stability_bound(square, **standing),
        feldman_vondrak_bound(uniform, predictor=predictor),
    ]
    caveat = f"stability: {stability.notion}"
    return [replace(r, caveats=(*r.caveats, caveat)).restricted_to(stability) for r in results]


__all__ = ["stability_bounds"]
