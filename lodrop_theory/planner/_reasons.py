"""Why a target is out of reach, in words: one sentence per infeasible element."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lodrop_theory._checks import Float64Array
from lodrop_theory.bounds.curvature import repair_dropout_rate
from lodrop_theory.bounds.lin2024 import theorem44_floor
from lodrop_theory.inputs import CurvatureInputs
from lodrop_theory.results import BoolArray

_AT_BEST = {
    "dropout_rate": "even with a `dropout_rate` near 1",
    "penalty": "even with an unlimited `penalty`",
    "hessian_min_eig": "even with an unlimited `hessian_min_eig`",
    "lipschitz": "even with a `lipschitz` of 0",
}


def reasons(
    unknown: str,
    numbers: Mapping[str, Float64Array],
    target: Float64Array,
    feasible: BoolArray,
) -> NDArray[np.object_]:
    """A sentence where ``feasible`` is False, None elsewhere."""
    answers = np.full(np.shape(feasible), None, dtype=object)
    for at in zip(*np.nonzero(~np.atleast_1d(feasible)), strict=True):
        place = at if answers.shape else ()
        point = {name: float(np.asarray(value)[place]) for name, value in numbers.items()}
        answers[place] = _reason(unknown, point, float(np.asarray(target)[place]))
    return answers


def _reason(unknown: str, point: dict[str, float], target: float) -> str:
    sparsity = point.get("dropout_rate", 1.0) * (2.0 - point.get("dropout_rate", 1.0))
    if unknown == "hessian_min_eig":
        mu = np.inf
    elif unknown == "penalty":
        mu = np.inf if sparsity > 0 else point["hessian_min_eig"]
    else:
        mu = point["hessian_min_eig"] + 2.0 * point["penalty"] * sparsity
    if not mu > 0:
        return _not_convex(unknown, point)
    if unknown == "loss_range":
        return f"{target:.6g} asks for a `loss_range` below the smallest positive number"
    if unknown == "n_train":
        return f"{target:.6g} asks for more `n_train` than a float64 can count"
    if unknown == "target_gap":
        return "the gap is larger than a float64 can hold"
    c, n = point["loss_range"], point["n_train"]
    rho = 0.0 if unknown == "lipschitz" else point["lipschitz"]
    delta = 1.0 if unknown == "delta" else point["delta"]
    with np.errstate(all="ignore"):
        spread = np.hypot(1.0, np.sqrt(24.0) * rho / np.sqrt(c) / np.sqrt(mu))
        enough = float(np.ceil((c / target / np.sqrt(2.0 * delta) * spread) ** 2))
    needed = f"`n_train` must be {'at least' if enough > n else 'above'} {max(enough, n):.15g}"
    if unknown == "delta":
        gap = c / np.sqrt(2.0 * n) * spread
        return (
            f"no failure probability below 1 allows {target:.6g} (at 1 it is {gap:.6g}): {needed}"
        )
    floor = float(theorem44_floor(c, n, delta))
    best = _AT_BEST[unknown]
    if unknown == "penalty" and sparsity == 0:
        best = "or `dropout_rate` above 0: without dropout the penalty has no effect"
    if target <= floor:
        return (
            f"{target:.6g} is not above the floor {floor:.6g} that no `{unknown}` removes: "
            f"{needed}, {best}"
        )
    return f"the gap is {floor * spread:.6g} at best: {needed}, {best}"


def _not_convex(unknown: str, point: dict[str, float]) -> str:
    low, weight = point["hessian_min_eig"], point.get("penalty", 0.0)
    failed = "hessian_min_eig + 2 penalty (2p - p^2) is not positive"
    if unknown == "penalty":
        return f"{failed} for any penalty, because `dropout_rate` is 0: raise it above 0"
    if unknown == "dropout_rate":
        return f"{failed} at any dropout rate: `penalty` must exceed {max(-low / 2.0, 0.0):.6g}"
    curvature = CurvatureInputs(
        n_train=1, dropout_rate=0, lipschitz=0, hessian_min_eig=low, penalty=weight
    )
    rate = float(repair_dropout_rate(curvature))
    if np.isnan(rate):
        return f"{failed}, whatever `{unknown}`: `penalty` must exceed {max(-low / 2.0, 0.0):.6g}"
    raised = "above 0" if rate <= np.finfo(np.float64).eps else f"to {rate:.6g} or above"
    return f"{failed}, whatever `{unknown}`: raise `dropout_rate` {raised}"
