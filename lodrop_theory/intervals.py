"""Bounds whose inputs are known up to intervals, with one budget for every way to be wrong.

Each bound that follows from curvature is monotone in every input: it grows with ``lipschitz`` and
``loss_range`` and falls with ``hessian_min_eig``, ``penalty``, ``dropout_rate``, ``n_train`` and
``delta``. So the range of the bound over a box of inputs is attained at two corners, exactly, and
no sampling or linearization is needed. An interval that may miss with probability delta_j adds
delta_j to the failure probability of the statement (union bound, whatever the dependence).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, as_float64, check_failure_probability
from lodrop_theory._numerics import round_down
from lodrop_theory.bounds.lin2024 import lin2024_bound
from lodrop_theory.inputs import CurvatureInputs, TailInputs
from lodrop_theory.records import Estimate, Predictor
from lodrop_theory.results import BoundResult

BoundFromCurvature = Callable[..., BoundResult]

_GROWS_WITH = frozenset({"lipschitz", "loss_range"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Interval:
    """An enclosure of one quantity, and the probability that it misses.

    Attributes:
        lower: Lower end.
        upper: Upper end, >= ``lower``.
        delta: Probability that the quantity is outside, in [0, 1); 0 for an enclosure that
            always holds, such as an eigenvalue with its residual.

    Raises:
        ValueError: If the ends are not finite, cross, or ``delta`` is outside [0, 1).

    Example:
        >>> Interval(lower=0.9, upper=1.1, delta=0.01).upper.item()
        1.1
    """

    lower: ArrayLike
    upper: ArrayLike
    delta: float

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            value = as_float64(name, getattr(self, name))
            if not np.isfinite(value).all():
                raise ValueError(f"`{name}` must be finite, got {getattr(self, name)!r}.")
            object.__setattr__(self, name, value)
        if np.any(np.asarray(self.lower) > self.upper):
            raise ValueError(f"`lower` must be <= `upper`, got {self.lower!r} > {self.upper!r}.")
        miss = as_float64("delta", self.delta)
        if miss.ndim or not 0 <= miss < 1:
            raise ValueError(f"`delta` must be one number in [0, 1), got {self.delta!r}.")
        object.__setattr__(self, "delta", float(miss))


def interval_of_estimate(estimate: Estimate) -> Interval:
    """The interval of a measured number.

    Args:
        estimate: A measurement with an interval.

    Returns:
        Its ends, with ``delta`` = 1 - ``level`` (0 for a deterministic enclosure).

    Raises:
        ValueError: If the estimate claims no interval, or one that misses a part of the error (its
            provenance is plug-in): then nothing is known about its error.

    Example:
        >>> from lodrop_theory.records import Estimate
        >>> measured = Estimate(value=1.0, low=0.9, high=1.1, level=0.75, n_draws=100, method="t")
        >>> interval_of_estimate(measured).delta
        0.25
    """
    if estimate.low is None or estimate.high is None or estimate.provenance == "plug-in":
        raise ValueError(f"`estimate` must have an interval, got {estimate!r}.")
    miss = 0.0 if estimate.level is None else 1.0 - estimate.level
    return Interval(lower=estimate.low, upper=estimate.high, delta=miss)


@dataclass(frozen=True, kw_only=True, eq=False)
class IntervalBound:
    """The range of a bound over a box of inputs.

    Attributes:
        worst: The bound at the adverse ends. It is the statement: with probability at least
            1 - ``worst.delta`` all intervals hold and the risk is below it.
        best: The same at the favorable ends: what sharper measurements could reach at most.
        spent: Failure probability of the intervals, by name.
        delta_bound: What was left for the bound itself.
    """

    worst: BoundResult
    best: BoundResult
    spent: dict[str, float]
    delta_bound: Float64Array

    @property
    def gap(self) -> tuple[Float64Array, Float64Array]:
        """Smallest and largest gap over the box; infinite where mu may not be positive."""
        return self.best.gap, self.worst.gap


def bound_over_intervals(
    *,
    n_train: ArrayLike,
    dropout_rate: ArrayLike,
    lipschitz: ArrayLike | Interval,
    hessian_min_eig: ArrayLike | Interval,
    penalty: ArrayLike | Interval,
    loss_range: ArrayLike | Interval,
    delta: ArrayLike,
    empirical_risk: ArrayLike | Interval | None = None,
    bound: BoundFromCurvature = lin2024_bound,
    predictor: Predictor = "mean",
    certified: bool = False,
) -> IntervalBound:
    r"""A bound from curvature, propagated through intervals exactly, at one total ``delta``.

    .. math:: \delta = \delta_{\mathrm{bound}} + \sum_j \delta_j

    Args:
        n_train: Training examples, >= 1.
        dropout_rate: p in [0, 1).
        lipschitz: rho >= 0, a number or an interval.
        hessian_min_eig: Smallest eigenvalue, a number or an interval.
        penalty: lambda >= 0, a number or an interval.
        loss_range: C > 0, a number or an interval.
        delta: Failure probability of the whole statement, in (0, 1).
        empirical_risk: Training risk, a number, an interval (a risk estimated over mask draws) or
            None.
        bound: Maps (CurvatureInputs, TailInputs) to a result; monotone as stated at the top of
            this module, like every bound of
            :func:`~lodrop_theory.evaluate.curvature_bounds`.
        predictor: The predictor whose loss the inputs describe.
        certified: Whether the caller vouches for the hypotheses; the intervals then may be
            measured ones.

    Returns:
        The two corners; both results carry the total ``delta``.

    Raises:
        ValueError: If ``delta`` does not exceed what the intervals spend, or an end is outside the
            range of its quantity.

    Example:
        >>> measured = Interval(lower=0.5, upper=1.0, delta=0.01)
        >>> found = bound_over_intervals(
        ...     n_train=2490, dropout_rate=0.5, lipschitz=measured, hessian_min_eig=0, penalty=1,
        ...     loss_range=1, delta=0.06,
        ... )
        >>> [round(float(g), 3) for g in found.gap], round(float(found.delta_bound), 12)
        ([0.142, 0.261], 0.05)
    """
    measured: dict[str, ArrayLike | Interval | None] = {
        "lipschitz": lipschitz,
        "hessian_min_eig": hessian_min_eig,
        "penalty": penalty,
        "loss_range": loss_range,
        "empirical_risk": empirical_risk,
    }
    spent = {name: v.delta for name, v in measured.items() if isinstance(v, Interval)}
    total, used = check_failure_probability("delta", delta), sum(spent.values())
    left = round_down(total - used, total + used) if used > 0 else total
    if not np.all(left > 0):
        raise ValueError(
            f"`delta` must exceed what the intervals spend, {used!r} ({spent}), got {delta!r}."
        )
    corners = []
    for adverse in (False, True):
        ends = {name: _end(name, value, adverse) for name, value in measured.items()}
        curvature = CurvatureInputs(
            n_train=n_train,
            dropout_rate=dropout_rate,
            **{name: ends[name] for name in ("lipschitz", "hessian_min_eig", "penalty")},  # type: ignore[arg-type]
        )
        tail = TailInputs(
            n_train=n_train,
            loss_range=ends["loss_range"],  # type: ignore[arg-type]
            delta=left,
            empirical_risk=ends["empirical_risk"],
        )
        result = bound(curvature, tail, predictor=predictor, certified=certified)
        corners.append(_at_total_delta(result, total, spent))
    return IntervalBound(worst=corners[1], best=corners[0], spent=spent, delta_bound=left[()])


def _end(name: str, value: ArrayLike | Interval | None, adverse: bool) -> ArrayLike | None:
    if not isinstance(value, Interval):
        return value
    takes_upper = (name in _GROWS_WITH or name == "empirical_risk") == adverse
    return value.upper if takes_upper else value.lower


def _at_total_delta(
    result: BoundResult, total: Float64Array, spent: dict[str, float]
) -> BoundResult:
    if not spent:
        return result
    listed = ", ".join(f"`{name}` ({miss:.6g})" for name, miss in spent.items())
    return replace(
        result,
        delta=None if result.delta is None else total,
        hypotheses=(
            *result.hypotheses,
            f"each interval misses with at most its failure probability: {listed}",
        ),
        inputs={**result.inputs, "delta": None if result.delta is None else total},
    )


__all__ = ["Interval", "IntervalBound", "bound_over_intervals", "interval_of_estimate"]
