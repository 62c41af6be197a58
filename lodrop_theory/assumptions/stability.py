"""What a record shows of the stabilities that its bounds read."""

from collections.abc import Iterator

from lodrop_theory.assumptions.table import Finding, Status, number, signed
from lodrop_theory.measured_stability import MEAN_IN, METHOD_WORDS
from lodrop_theory.records import (
    STABILITY_METHODS,
    RunRecord,
    StabilityMeasurement,
    StabilityMethod,
)

CURVATURE_BOUNDS = frozenset(
    {"lin2024", "two-stability", "uniform-tail", "expectation", "l2-stability"}
)
SUPREMUM = "the stability is a supremum over training sets, replacements and points"
MEANS = (
    "the two stabilities are means over training sets of n_train examples",
    "the two stabilities are root mean squares over training sets and replacements",
    "the stability is a mean over training sets of n_train examples",
    "the stability is a root mean square over training sets of n_train examples",
    MEAN_IN,
)


def from_curvature(bound: str) -> bool:
    """Whether a bound is one of those from strong convexity."""
    return bound in CURVATURE_BOUNDS


def _measured(bound: str) -> bool:
    return bound.partition("/")[2] in METHOD_WORDS


def _of_minimizer(bound: str) -> bool:
    return _measured(bound) and not bound.endswith("/retrain")


def measured_stability_findings(record: RunRecord) -> Iterator[Finding]:
    """Stabilities as means and as suprema, by their sources, and the objective they belong to."""
    yield Finding(
        name="a derived stability at every point",
        status="holds",
        evidence="where the hypotheses on curvature hold, theirs bounds every change of the loss, "
        "and so its means and its supremum",
        statements=(SUPREMUM, *MEANS),
        about=lambda bound: not _measured(bound),
    )
    measured = record.stability
    if measured is None:
        return
    for method in STABILITY_METHODS:
        if method in measured.estimates:
            yield _by_method(measured, method)
    yield Finding(
        name="supremum of the measured stability",
        status="plug-in",
        evidence="the largest root mean square stands in for it and is smaller: the exponential "
        "tail may come out too small",
        remedy="read the mean-square bound, which needs no supremum",
        statements=(SUPREMUM,),
        about=_measured,
    )
    yield from _objective(record, measured)


def _by_method(measured: StabilityMeasurement, method: StabilityMethod) -> Finding:
    found = measured.estimates[method]
    ratio = {"newton": measured.newton_ratio, "influence": measured.influence_ratio}.get(method)
    evidence = (
        f"removed: {number(found.pointwise_stability)} there, {number(found.hypothesis_stability)} "
        f"at fresh rows; {found.pointwise_stability.n_draws} examples of one training set"
    )
    if ratio is not None:
        evidence += f"; {number(ratio)} times the change of true refits"
    return Finding(
        name=f"mean stability, by {METHOD_WORDS[method]}",
        status="plug-in",
        evidence=evidence,
        estimate=found.pointwise_stability,
        remedy="measure on several independent training sets",
        statements=MEANS,
        about=lambda bound: bound.endswith(f"/{method}"),
    )


def _objective(record: RunRecord, measured: StabilityMeasurement) -> Iterator[Finding]:
    slope, curvature = measured.gradient_norm, measured.objective_min_eig
    centered = measured.center == "solution"
    status: Status
    if centered:
        evidence, status = "its gradient there was taken off: stationary by construction", "holds"
    elif curvature.lower > 0:
        added = 2.0 * measured.lipschitz_segment.upper * slope.upper / curvature.lower
        evidence = (
            f"gradient norm {number(slope)}, curvature {number(curvature)}: two such solutions add "
            f"at most 2 rho |g| / mu = {added:.4g} where that curvature lasts"
        )
        status = "plug-in"
    else:
        evidence = f"gradient norm {number(slope)}, and no curvature to judge it by"
        status = "violated" if slope.lower > 0 else "plug-in"
    yield Finding(
        name="stationary point of the measured objective",
        status=status,
        evidence=evidence,
        estimate=slope,
        remedy=None if centered else "train on",
        about=_of_minimizer,
    )
    yield Finding(
        name="curvature of the measured objective",
        status=signed(curvature),
        evidence=f"smallest eigenvalue {number(curvature)}, with ridge {measured.ridge:.3g}",
        estimate=curvature,
        remedy="a larger ridge",
        about=_of_minimizer,
    )
    yield Finding(
        name="measured objective against training",
        status="plug-in",
        evidence=f"{measured.objective}; the ridge is around the {measured.center}. "
        + (
            "It is not what training minimized, and knows the solution"
            if centered
            else f"The run stopped at a gradient norm of {number(record.gradient_norm)}"
        ),
        remedy="retrain without single examples (method retrain)",
        about=_of_minimizer,
    )


__all__ = ["from_curvature", "measured_stability_findings"]
