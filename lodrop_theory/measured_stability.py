"""Bounds from measured stabilities, and from curvatures that stand in for strong convexity.

The latter are those across the orbits of the gauge and under masks. None of the bounds is a
certificate: a measured stability is a mean over some examples of one training set, mostly that of
the minimizer of a stated objective; the theorems read means (or suprema) over training sets. Each
result says so, and names its source after a slash: ``two-stability/newton``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lodrop_theory.bounds.bousquet2002 import (
    expectation_bound,
    two_stability_bound,
    uniform_bound,
)
from lodrop_theory.bounds.dropout_stability import dropout_stability
from lodrop_theory.bounds.from_stability import stability_bounds
from lodrop_theory.bounds.l2_stability import l2_stability_bound
from lodrop_theory.bounds.leave_one_out import l2_leave_one_out_bound, leave_one_out_bound
from lodrop_theory.bounds.lin2024 import SAMPLE_HYPOTHESES
from lodrop_theory.bounds.transverse import transverse_stability
from lodrop_theory.inputs import (
    DropoutCurvatureInputs,
    L2LeaveOneOutInputs,
    L2StabilityInputs,
    LeaveOneOutInputs,
    TailInputs,
    TransverseInputs,
    TwoStabilityInputs,
    UniformStabilityInputs,
)
from lodrop_theory.records import (
    STABILITY_METHODS,
    Estimate,
    Predictor,
    RunRecord,
    StabilityEstimates,
    StabilityMeasurement,
    StabilityMethod,
)
from lodrop_theory.results import BoundResult, StabilityResult

METHOD_WORDS: dict[StabilityMethod, str] = {
    "newton": "one Newton step",
    "gauss-newton": "one Gauss-Newton step",
    "influence": "influence functions",
    "refit": "true refits",
    "retrain": "retraining",
}
MEAN_IN = "the change at the replaced example is a root mean square over training sets"
NO_SUPREMUM = (
    "the largest root mean square stands in for a supremum, which is larger: the number may be too "
    "small"
)
NO_PENALTY = (
    "the curvature is that of the training risk alone: in the factors the Hessian of the penalty "
    "is no multiple of the identity, so that no 2 lambda s(p) may be added"
)
GIBBS_LOSS = "about the loss averaged over masks, which is what training minimizes"


def _upper(estimate: Estimate) -> float:
    return estimate.upper


def tail_of_record(record: RunRecord, *, delta: float, predictor: Predictor) -> TailInputs:
    """What turns a stability of ``predictor`` into a risk bound.

    A training risk that is a mean over drawn masks enters by its upper end.
    """
    risk = record.predictors[predictor].empirical_risk
    return TailInputs(
        n_train=record.n_train,
        loss_range=record.loss_range.upper,
        delta=delta,
        empirical_risk=risk.value if predictor == "mean" else risk.upper,
    )


def measured_stability_bounds(
    record: RunRecord, *, delta: float, end: Callable[[Estimate], float] = _upper
) -> list[BoundResult]:
    r"""Bounds for the predictor ``mean`` from each stability that a run measured.

    Per method, in the order of
    :data:`~lodrop_theory.records.STABILITY_METHODS`: the Chebyshev bound of two
    stabilities, the mean-square bound, the exponential tail, the bound in expectation, and the two
    bounds around the leave-one-out risk.

    The bound in expectation needs no supremum: :math:`|\mathbb E[R - \hat R]| = |\mathbb
    E[\ell_{S'}(z_1) - \ell_S(z_1)]|` is at most the root mean square change at the replaced
    example.

    Args:
        record: A run.
        delta: Failure probability of each bound, in (0, 1).
        end: What of an estimate enters a bound: its conservative end, unless said otherwise.

    Returns:
        Six results per method, all of them plug-in; none without ``record.stability``.

    Raises:
        ValueError: If ``delta`` is outside (0, 1).
    """
    if record.stability is None:
        return []
    tail = tail_of_record(record, delta=delta, predictor="mean")
    results: list[BoundResult] = []
    for method in STABILITY_METHODS:
        if method in record.stability.estimates:
            bounds = _bounds(record.stability, record.stability.estimates[method], tail, end)
            caveats = _caveats(record.stability, method)
            results += [
                replace(
                    named(each, method, f"stability by {METHOD_WORDS[method]}"),
                    caveats=(*each.caveats, *caveats),
                )
                for each in bounds
            ]
    return results


def _bounds(
    measured: StabilityMeasurement,
    estimates: StabilityEstimates,
    tail: TailInputs,
    end: Callable[[Estimate], float],
) -> list[BoundResult]:
    common: dict[str, Any] = dict(vars(tail))
    fresh, out, within = (
        max(end(each), 0.0)
        for each in (
            estimates.hypothesis_stability,
            estimates.replace_one_out,
            estimates.replace_one_in,
        )
    )
    left_out = end(estimates.leave_one_out_risk)
    # The variance of a loss in an interval of length C is at most C^2 / 4, whatever was estimated.
    variance = min(max(end(measured.loss_variance), 0.0), float(tail.loss_range) ** 2 / 4.0)  # type: ignore[arg-type]
    two = TwoStabilityInputs(
        hypothesis_stability=fresh,
        pointwise_stability=max(end(estimates.pointwise_stability), 0.0),
        **common,
    )
    square = L2StabilityInputs(
        replace_one_out=out, replace_one_in=within, loss_variance=variance, **common
    )
    uniform = uniform_bound(UniformStabilityInputs(uniform_stability=max(out, within), **common))
    mean = expectation_bound(UniformStabilityInputs(uniform_stability=within, **common))
    return [
        two_stability_bound(two),
        l2_stability_bound(square),
        replace(uniform, caveats=(*uniform.caveats, NO_SUPREMUM)),
        replace(
            mean,
            title="Change at the replaced example, in expectation",
            hypotheses=(SAMPLE_HYPOTHESES[0], SAMPLE_HYPOTHESES[2], MEAN_IN),
        ),
        leave_one_out_bound(
            LeaveOneOutInputs(leave_one_out_risk=left_out, hypothesis_stability=fresh, **common)
        ),
        l2_leave_one_out_bound(
            L2LeaveOneOutInputs(
                leave_one_out_risk=left_out,
                remove_one_out=max(end(estimates.remove_one_out), 0.0),
                **common,
            )
        ),
    ]


def _caveats(measured: StabilityMeasurement, method: StabilityMethod) -> tuple[str, ...]:
    draws = measured.estimates[method].pointwise_stability.n_draws
    ratio = {"newton": measured.newton_ratio, "influence": measured.influence_ratio}.get(method)
    against = (
        ()
        if ratio is None
        else (
            f"against true refits its changes are {ratio.value:.3g} times as large, "
            f"in the mean of {ratio.n_draws}",
        )
    )
    whose = (
        "the stability of the training run, at the order and the masks of one seed"
        if method == "retrain"
        else f"the stability of the minimizer of: {measured.objective} (ridge {measured.ridge:.3g} "
        f"around the {measured.center}), not of the training run"
    )
    return (
        whose,
        f"a mean over {draws} left-out examples of one training set stands in for a mean over "
        "training sets",
        *against,
    )


def named(result: BoundResult, source: str, words: str) -> BoundResult:
    """The result with the source of its stability in its name and title."""
    return replace(result, bound=f"{result.bound}/{source}", title=f"{result.title}, {words}")


def transverse_of_record(record: RunRecord) -> StabilityResult | None:
    """Replace-one stability across the gauge orbits, at conservative ends; None if not measured."""
    if record.transverse_min_eig is None:
        return None
    inputs = TransverseInputs(
        n_train=record.n_train,
        lipschitz=record.lipschitz.upper,
        transverse_min_eig=record.transverse_min_eig.lower,
    )
    return transverse_stability(inputs, both_sides=True)


def dropout_of_record(record: RunRecord) -> StabilityResult | None:
    """Replace-one stability of the loss averaged over masks; None if not measured."""
    if record.dropout_min_eig is None or record.dropout_lipschitz is None:
        return None
    inputs = DropoutCurvatureInputs(
        n_train=record.n_train,
        dropout_rate=record.dropout_rate,
        dropout_lipschitz=record.dropout_lipschitz.upper,
        dropout_min_eig=record.dropout_min_eig.lower,
    )
    return dropout_stability(inputs)


def other_curvature_bounds(record: RunRecord, *, delta: float) -> list[BoundResult]:
    """Bounds from the curvature across the gauge orbits, then from that under masks.

    Args:
        record: A run.
        delta: Failure probability of each bound, in (0, 1).

    Returns:
        For each of the two that was measured the five results of
        :func:`~lodrop_theory.bounds.from_stability.stability_bounds`, plug-in: the former about
        ``mean``, the latter about ``gibbs``.

    Raises:
        ValueError: If ``delta`` is outside (0, 1).
    """
    results: list[BoundResult] = []
    sources: tuple[tuple[StabilityResult | None, Predictor, str, str, str], ...] = (
        (transverse_of_record(record), "mean", "transverse", "across the gauge orbits", NO_PENALTY),
        (dropout_of_record(record), "gibbs", "dropout", "of the loss under masks", GIBBS_LOSS),
    )
    for stability, predictor, source, words, caveat in sources:
        if stability is not None:
            tail = tail_of_record(record, delta=delta, predictor=predictor)
            results += [
                replace(named(each, source, words), caveats=(*each.caveats, caveat))
                for each in stability_bounds(stability, tail, predictor=predictor)
            ]
    return results


__all__ = [
    "METHOD_WORDS",
    "dropout_of_record",
    "measured_stability_bounds",
    "other_curvature_bounds",
    "tail_of_record",
    "transverse_of_record",
]
