r"""Theorem 4.4 solved for any one of its quantities.

The closed forms (:mod:`lodrop_theory.planner._closed_forms`) are moved to the safe side, one ulp,
two, four, ..., until the bound itself, outward rounding included, is within the target.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lodrop_theory import _checks
from lodrop_theory._checks import Float64Array
from lodrop_theory.bounds.lin2024 import lin2024_bound, theorem44_floor
from lodrop_theory.inputs import CurvatureInputs, TailInputs
from lodrop_theory.planner._closed_forms import Numbers, closed_form, strong_convexity_of
from lodrop_theory.planner._reasons import reasons
from lodrop_theory.results import BoolArray, BoundResult

_EPS = float(np.finfo(np.float64).eps)
_TINY = float(np.finfo(np.float64).tiny)
_LARGEST = float(np.finfo(np.float64).max)
_BELOW_ONE = float(np.nextafter(1.0, 0.0))

_CHECKS: Mapping[str, Callable[[str, ArrayLike], Float64Array]] = {
    "target_gap": _checks.check_positive,
    "n_train": _checks.check_count,
    "dropout_rate": _checks.check_dropout_rate,
    "lipschitz": _checks.check_nonnegative,
    "hessian_min_eig": _checks.check_finite,
    "penalty": _checks.check_nonnegative,
    "loss_range": _checks.check_positive,
    "delta": _checks.check_failure_probability,
}
_DOMAINS = {
    "n_train": (1.0, _LARGEST),
    "dropout_rate": (0.0, _BELOW_ONE),
    "lipschitz": (0.0, _LARGEST),
    "hessian_min_eig": (-_LARGEST, _LARGEST),
    "penalty": (0.0, _LARGEST),
    "loss_range": (5e-324, _LARGEST),
    "delta": (5e-324, _BELOW_ONE),
}
_LESS_IS_SAFER = frozenset({"lipschitz", "loss_range"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The answer to a question about Theorem 4.4; an infeasible target is an answer too.

    Attributes:
        unknown: Name of the quantity that was solved for.
        value: The smallest ``n_train``, ``dropout_rate``, ``penalty``, ``hessian_min_eig`` or
            ``delta``, or the largest ``lipschitz`` or ``loss_range``, at which the gap is within
            the target; nan where ``feasible`` is False. ``lin2024_bound`` at this value is within
            the target to the last bit; the value is within rounding of the exact one.
        feasible: Whether some admissible value reaches the target.
        best_reachable: Infimum of the gap over all admissible values of the unknown: what a target
            must exceed. Infinite where no value makes the theorem applicable. Loss units.
        target_gap: The target. Loss units.
        inputs: The given numbers by name, without the unknown.
    """

    unknown: str
    value: Float64Array
    feasible: BoolArray
    best_reachable: Float64Array
    target_gap: Float64Array
    inputs: Mapping[str, Float64Array] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Common shape of the arrays; ``()`` for scalars."""
        return np.shape(self.value)

    @property
    def reason(self) -> str | NDArray[np.object_] | None:
        """Why the target is out of reach and what would help; None where it is not.

        A string or None for scalars, an object array of them otherwise. Computed on each access.
        """
        found = reasons(self.unknown, self.inputs, self.target_gap, self.feasible)
        return found if found.shape else found.item()


def solve(
    *,
    target_gap: ArrayLike | None = None,
    n_train: ArrayLike | None = None,
    dropout_rate: ArrayLike | None = None,
    lipschitz: ArrayLike | None = None,
    hessian_min_eig: ArrayLike | None = None,
    penalty: ArrayLike | None = None,
    loss_range: ArrayLike | None = None,
    delta: ArrayLike | None = None,
) -> Plan:
    """Theorem 4.4 solved for the one argument that is None.

    Args:
        target_gap: g > 0, what the gap may be at most. Loss units.
        n_train: Training examples, >= 1.
        dropout_rate: p in [0, 1).
        lipschitz: rho >= 0. Loss per parameter norm.
        hessian_min_eig: Smallest eigenvalue of the training risk. Loss per parameter^2.
        penalty: lambda >= 0. Loss per parameter^2.
        loss_range: C > 0. Loss units.
        delta: Failure probability in (0, 1).

    Returns:
        The plan; arrays broadcast. A dropout rate that is solved for is the one that a *bound*
        asks for at a fixed penalty. To choose a rate for its risk, use
        :func:`~lodrop_theory.planner.selection.select_dropout_rate`.

    Raises:
        TypeError: If not exactly one argument is None.
        ValueError: If an argument is outside its range.

    Source:
        Derived from Lin et al. (2024), arXiv:2404.09610v1, Theorem 4.4; derivation in
        :mod:`lodrop_theory.planner._closed_forms`. The convention is that of
        ``statsmodels.stats.power``.

    Example:
        The printed table has a gap of 0.261 for RTE at p = 0.5; it takes 2496 examples for 0.261:

        >>> rte = dict(lipschitz=1, hessian_min_eig=0, penalty=1, loss_range=1, delta=0.05)
        >>> float(solve(target_gap=0.261, dropout_rate=0.5, **rte).value)
        2496.0
        >>> hopeless = solve(target_gap=0.05, n_train=2490, **rte)
        >>> bool(hopeless.feasible), round(float(hopeless.best_reachable), 3)
        (False, 0.228)
        >>> print(hopeless.reason)
        0.05 is not above the floor 0.0633724 that no `dropout_rate` removes: `n_train` must be \
at least 52000, even with a `dropout_rate` near 1
    """
    given = {
        "target_gap": target_gap,
        "n_train": n_train,
        "dropout_rate": dropout_rate,
        "lipschitz": lipschitz,
        "hessian_min_eig": hessian_min_eig,
        "penalty": penalty,
        "loss_range": loss_range,
        "delta": delta,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) != 1:
        raise TypeError(
            f"exactly one of {', '.join(f'`{n}`' for n in given)} must be None, "
            f"got {len(missing)}: {missing}."
        )
    unknown = missing[0]
    arrays = {n: _CHECKS[n](n, v) for n, v in given.items() if v is not None}
    full = dict(zip(arrays, np.broadcast_arrays(*arrays.values()), strict=True))
    if unknown == "target_gap":
        result = _bound(full)
        value = np.where(np.isfinite(result.gap), result.gap, np.nan)
        best, target = np.asarray(result.gap), np.asarray(result.gap)
    else:
        target = full.pop("target_gap")
        with np.errstate(all="ignore"):  # the limits of the closed forms are taken on purpose
            start, scale = closed_form(unknown, full, target)
        value = _nudged(unknown, full, target, start, scale)
        best = _best_reachable(unknown, full)
    return Plan(
        unknown=unknown,
        value=value[()],
        feasible=~np.isnan(value)[()],
        best_reachable=best[()],
        target_gap=target[()],
        inputs=full,
    )


def _bound(numbers: Numbers) -> BoundResult:
    names = ("n_train", "dropout_rate", "lipschitz", "hessian_min_eig", "penalty")
    curvature = CurvatureInputs(**{n: numbers[n] for n in names})
    tail = TailInputs(**{n: numbers[n] for n in ("n_train", "loss_range", "delta")})
    return lin2024_bound(curvature, tail)


def _nudged(
    unknown: str,
    numbers: Numbers,
    target: Float64Array,
    start: Float64Array,
    scale: Float64Array,
) -> Float64Array:
    """The closed form, moved toward safety until the rounded bound is within the target."""
    low, high = _DOMAINS[unknown]
    sign = -1.0 if unknown in _LESS_IS_SAFER else 1.0
    exists = ~np.isnan(start)
    start = np.clip(np.where(exists, start, low), low, high)
    unit = np.clip(np.where(np.isfinite(scale), scale, _LARGEST), np.abs(start), _LARGEST)
    unit = np.maximum(unit, _TINY / _EPS)
    value = np.ceil(start) if unknown == "n_train" else start
    for step in range(60):
        # Where no solution exists any admissible stand-in will do: it is taken out at the end.
        gap = np.asarray(_bound({**numbers, unknown: value}).gap)
        short = exists & ~(gap <= target)
        if not short.any():
            break
        with np.errstate(over="ignore"):
            moved = start + sign * unit * (_EPS * 2.0**step)
            moved = np.ceil(moved) if unknown == "n_train" else moved
        value = np.where(short, np.clip(moved, low, high), value)
    return np.where(exists & ~short, value, np.nan)


def _best_reachable(unknown: str, numbers: Numbers) -> Float64Array:
    """Infimum of the gap over the admissible values of the unknown."""
    shape = np.shape(numbers["loss_range" if unknown != "loss_range" else "n_train"])
    if unknown in {"n_train", "loss_range"}:
        return np.where(np.isnan(strong_convexity_of(numbers)), np.inf, 0.0)
    if unknown in {"delta", "dropout_rate", "lipschitz"}:
        limit = 0.0 if unknown == "lipschitz" else _BELOW_ONE
        return np.asarray(_bound({**numbers, unknown: np.full(shape, limit)}).gap)
    floor = theorem44_floor(numbers["loss_range"], numbers["n_train"], numbers["delta"])
    if unknown == "hessian_min_eig":
        return np.asarray(floor)
    unpenalized = np.asarray(_bound({**numbers, unknown: np.zeros(shape)}).gap)
    return np.where(numbers["dropout_rate"] > 0, floor, unpenalized)
