"""From a record to what the theorems say of it: the only place where estimates become inputs.

An estimate enters a theorem by its conservative end: the upper end of its interval where the bound
grows with it, the lower end where the bound falls; the value itself when there is no interval.
What a run did not measure gives no row.
"""

from dataclasses import fields, replace
from typing import Any

import numpy as np

from lodrop_theory._checks import check_failure_probability
from lodrop_theory.bounds.bousquet2002 import (
    expectation_bound,
    two_stability_bound,
    uniform_bound,
)
from lodrop_theory.bounds.clopper1934 import clopper_pearson_bound
from lodrop_theory.bounds.hold_out import hold_out_bound
from lodrop_theory.bounds.l2_stability import l2_stability_bound
from lodrop_theory.bounds.lin2024 import (
    ensemble_bound,
    lin2024_bound,
    lin2024_stability,
    theorem44_floor,
)
from lodrop_theory.bounds.maurer2009 import empirical_bernstein_bound
from lodrop_theory.bounds.strongconvex import remove_one_stability, replace_one_stability
from lodrop_theory.inputs import (
    BernsteinHoldOutInputs,
    BinaryHoldOutInputs,
    CurvatureInputs,
    HoldOutInputs,
    L2StabilityInputs,
    TailInputs,
    TwoStabilityInputs,
    UniformStabilityInputs,
)
from lodrop_theory.measured_stability import (
    dropout_of_record,
    measured_stability_bounds,
    other_curvature_bounds,
    tail_of_record,
    transverse_of_record,
)
from lodrop_theory.randomized_adapter import posterior_bounds
from lodrop_theory.records import PREDICTORS, Predictor, PredictorMeasurement, RunRecord
from lodrop_theory.results import BoundResult, StabilityResult

CURVATURE_CAVEATS = (
    "the curvature was measured in the factors (A, B), where the objective is constant along "
    "(B G, G^-1 A): it is not strongly convex there at any dropout rate",
    "`lipschitz` is the largest gradient norm at one point: the proof needs it on a whole set",
    "`penalty` is an estimate at the solution; it is not a constant of the network",
)
NEGATIVE_PENALTY = "the measured penalty was negative; 0 was used in its place"


def curvature_bounds(
    curvature: CurvatureInputs,
    tail: TailInputs,
    *,
    predictor: Predictor = "mean",
    certified: bool = False,
) -> list[BoundResult]:
    """Every bound that follows from strong convexity, side by side.

    The paper's theorem; then, from the stabilities that the same curvature proves, the Chebyshev
    bound of two stabilities, the exponential tail, the bound in expectation and the mean-square
    bound. Their constants are fixed in advance, so that the smallest of those in probability may
    be quoted without a union bound.

    Args:
        curvature: The curvature, in coordinates in which the objective is strongly convex.
        tail: What turns a stability into a risk bound; same ``n_train``.
        predictor: The predictor whose loss the inputs describe.
        certified: Whether the caller vouches for the hypotheses of all of them.

    Returns:
        Five results, in that order; not applicable where mu <= 0.

    Raises:
        ValueError: If the two inputs disagree about ``n_train``.

    Example:
        >>> from lodrop_theory.inputs import CurvatureInputs, TailInputs
        >>> curvature = CurvatureInputs(
        ...     n_train=1000, dropout_rate=0.5, lipschitz=1, hessian_min_eig=0, penalty=1
        ... )
        >>> tail = TailInputs(n_train=1000, loss_range=1, delta=0.05)
        >>> for result in curvature_bounds(curvature, tail):
        ...     print(f"{result.bound:14} {result.gap:.3f}")
        lin2024        0.412
        two-stability  0.379
        uniform-tail   0.143
        expectation    0.001
        l2-stability   0.081
    """
    paper = lin2024_bound(curvature, tail, predictor=predictor, certified=certified)
    removed = remove_one_stability(curvature, certified=certified)
    replaced = replace_one_stability(curvature, certified=certified)
    # Where mu <= 0 a stand-in 0 goes in and `restricted_to` takes the result out again.
    b, g = (np.where(s.applicable, s.value, 0.0) for s in (removed, replaced))
    b, g = (np.where(np.isfinite(v), v, np.finfo(np.float64).max) for v in (b, g))
    common: dict[str, Any] = {f.name: getattr(tail, f.name) for f in fields(TailInputs)}
    two = TwoStabilityInputs(hypothesis_stability=b, pointwise_stability=b, **common)
    uniform = UniformStabilityInputs(uniform_stability=g, **common)
    square = L2StabilityInputs(replace_one_out=g, replace_one_in=g, **common)
    standing: dict[str, Any] = {"predictor": predictor, "certified": certified}
    results = [
        (two_stability_bound(two, **standing), removed),
        (uniform_bound(uniform, **standing), replaced),
        (expectation_bound(uniform, **standing), replaced),
        (l2_stability_bound(square, **standing), replaced),
    ]
    return [paper, *(_overflowed(each, by).restricted_to(by) for each, by in results)]


def _overflowed(result: BoundResult, stability: StabilityResult) -> BoundResult:
    """Infinite where the stability is: the largest float64 stood in for it and is too small."""
    infinite = np.isinf(stability.value)
    return replace(result, gap=np.where(infinite, np.inf, result.gap)) if infinite.any() else result


def curvature_of_record(record: RunRecord) -> CurvatureInputs:
    """The curvature of a run, each estimate at its conservative end; a negative penalty is 0."""
    return CurvatureInputs(
        n_train=record.n_train,
        dropout_rate=record.dropout_rate,
        lipschitz=record.lipschitz.upper,
        hessian_min_eig=record.hessian_min_eig.lower,
        penalty=0.0 if record.penalty is None else max(record.penalty.lower, 0.0),
    )


def _caveats(record: RunRecord) -> tuple[str, ...]:
    negative = record.penalty is not None and record.penalty.lower < 0
    return (*CURVATURE_CAVEATS, NEGATIVE_PENALTY) if negative else CURVATURE_CAVEATS


def stability_of_record(record: RunRecord) -> list[StabilityResult]:
    """Every stability that the measured curvature of a run gives, all of them plug-in.

    Args:
        record: A run.

    Returns:
        The paper's Proposition 4.2, remove-one under both normalizations, and replace-one; then,
        where they were measured, replace-one across the gauge orbits and under masks.
    """
    inputs = curvature_of_record(record)
    others = (transverse_of_record(record), dropout_of_record(record))
    return [
        lin2024_stability(inputs),
        remove_one_stability(inputs),
        remove_one_stability(inputs, fixed_normalization=True),
        replace_one_stability(inputs),
        *(each for each in others if each is not None),
    ]


def evaluate_record(record: RunRecord, *, delta: float) -> list[BoundResult]:
    """Every bound that a run has the measurements for.

    The bounds from curvature and from measured stabilities are plug-in values: what was measured
    at one solution does not meet the hypotheses of the theorems (the caveats say which). The
    hold-out bounds are certificates, because the test rows take no part in training; so are the
    PAC-Bayes bounds whose divergence is exact. Each holds with probability at least 1 - delta; to
    quote k of them at once, ask for delta / k. :func:`~lodrop_theory.assumptions.audit` goes
    through the hypotheses of all of them.

    Args:
        record: A run.
        delta: Failure probability of each bound, in (0, 1).

    Returns:
        In this order. *Always*: five bounds from curvature, the hold-out bound of each predictor,
        and that of ``gibbs`` carried to the ensemble by Jensen's inequality. *Where measured*:
        six bounds per method of ``stability`` (named ``two-stability/newton`` and so on); five
        from the curvature across the gauge orbits, five from that under masks; the PAC-Bayes
        bounds; for each predictor the binomial bound on its error rate and the empirical
        Bernstein bound. Bounds with ``0-1`` in their name, and ``clopper-pearson``, are about
        error rates, not nats.

    Raises:
        ValueError: If ``delta`` is outside (0, 1).
    """
    check_failure_probability("delta", delta)
    tail = tail_of_record(record, delta=delta, predictor="mean")
    caveats = _caveats(record)
    results = [
        replace(result, caveats=(*result.caveats, *caveats))
        for result in curvature_bounds(curvature_of_record(record), tail)
    ]
    held_out = {}
    for predictor in PREDICTORS:
        inputs = _held_out(record, record.predictors[predictor], delta)
        held_out[predictor] = hold_out_bound(inputs, predictor=predictor, certified=True)
    return [
        *results,
        *held_out.values(),
        # The risk is convex in the averaged probabilities and both predictors share their masks.
        ensemble_bound(held_out["gibbs"], certified=True),
        *measured_stability_bounds(record, delta=delta),
        *other_curvature_bounds(record, delta=delta),
        *posterior_bounds(record, delta=delta),
        *_sharper_hold_out_bounds(record, delta),
    ]


def _held_out(record: RunRecord, scores: PredictorMeasurement, delta: float) -> HoldOutInputs:
    return HoldOutInputs(
        n_test=record.n_test,
        loss_range=record.loss_range.upper,
        delta=delta,
        held_out_risk=scores.population_risk.value,
        empirical_risk=scores.empirical_risk.value,
    )


def _sharper_hold_out_bounds(record: RunRecord, delta: float) -> list[BoundResult]:
    results = []
    for predictor in PREDICTORS:
        scores = record.predictors[predictor]
        if scores.n_errors is not None:
            errors = BinaryHoldOutInputs(
                n_test=record.n_test,
                n_errors=scores.n_errors,
                delta=delta,
                empirical_risk=1.0 - scores.train_accuracy.value,
            )
            results.append(clopper_pearson_bound(errors, predictor=predictor, certified=True))
        if scores.sample_variance is not None and record.n_test >= 2:
            largest = record.loss_range.upper**2 / 4.0 * record.n_test / (record.n_test - 1.0)
            inputs = BernsteinHoldOutInputs(
                **vars(_held_out(record, scores, delta)),
                # The theorem reads the statistic itself; it may exceed its range by a rounding.
                sample_variance=min(scores.sample_variance.value, largest),
            )
            results.append(empirical_bernstein_bound(inputs, predictor=predictor, certified=True))
    return results


__all__ = [
    "curvature_bounds",
    "curvature_of_record",
    "evaluate_record",
    "stability_of_record",
    "theorem44_floor",
]
