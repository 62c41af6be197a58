"""What a record shows of curvature, minimizers, Lipschitz constants and the penalty."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lodrop_theory.assumptions.stability import from_curvature
from lodrop_theory.assumptions.table import Finding, Status, number, signed
from lodrop_theory.bounds.curvature import STABILITY_HYPOTHESES as CONVEX
from lodrop_theory.bounds.lin2024 import lin2024_stability, strong_convexity
from lodrop_theory.evaluate import curvature_of_record
from lodrop_theory.inputs import CurvatureInputs
from lodrop_theory.mask_laws import update_sparsity
from lodrop_theory.measured_stability import dropout_of_record, transverse_of_record
from lodrop_theory.records import Estimate, RunRecord

ESTIMATORS = {"penalty": "energy", "penalty_kkt": "stationarity", "penalty_curvature": "curvature"}


def curvature_findings(record: RunRecord) -> Iterator[Finding]:
    """Strong convexity by each estimator of lambda, the gauge, and what replaces both."""
    yield from _strong_convexity(record)
    yield _gauge(record)
    yield from _other_curvatures(record)
    yield _minimizers(record)
    yield from _lipschitz(record)
    yield from _penalty(record)


def _strong_convexity(record: RunRecord) -> Iterator[Finding]:
    if record.dropout_rate == 0:
        mu = (record.hessian_min_eig.lower, record.hessian_min_eig.upper)
        yield _convexity(record, "strong convexity", None, mu, "p = 0: the penalty has no weight")
        return
    weight = 2.0 * float(update_sparsity(record.dropout_rate))
    for field, words in ESTIMATORS.items():
        name, found = f"strong convexity, lambda by {words}", getattr(record, field)
        if found is None:
            yield Finding(
                name=name,
                status="unchecked",
                evidence=f"`{field}` was not measured",
                remedy=f"measure `{field}`",
                statements=CONVEX[:1],
            )
            continue
        ends = [
            float(
                strong_convexity(
                    replace(curvature_of_record(record), hessian_min_eig=h, penalty=max(p, 0.0))
                )
            )
            for h, p in (
                (record.hessian_min_eig.lower, found.lower),
                (record.hessian_min_eig.upper, found.upper),
            )
        ]
        how = f"lambda = {number(found)} times 2 s(p) = {weight:.4g}"
        if found.lower < 0:
            how += " (0 in its place where it is negative)"
        read = "" if field == "penalty" else "; the bounds read the energy estimator"
        yield _convexity(record, name, found, (ends[0], ends[1]), how + read)


def _convexity(
    record: RunRecord,
    name: str,
    penalty: Estimate | None,
    mu: tuple[float, float],
    how: str,
) -> Finding:
    status: Status = "violated" if mu[1] <= 0 else "plug-in"
    inputs = curvature_of_record(record)
    if penalty is not None:
        inputs = replace(inputs, penalty=max(penalty.lower, 0.0))
    return Finding(
        name=name,
        status=status,
        evidence=f"mu in [{mu[0]:.4g}, {mu[1]:.4g}]: Lambda_min = "
        f"{number(record.hessian_min_eig)} plus {how}; at one point, for one training set",
        estimate=record.hessian_min_eig if penalty is None else penalty,
        remedy=_repair(inputs),
        statements=CONVEX[:1],
    )


def _repair(inputs: CurvatureInputs) -> str:
    short = lin2024_stability(inputs).remedy
    proof = "prove it on a convex set: train B alone, with A frozen and of full row rank"
    return proof if short is None else f"{short}; or {proof}"


def _gauge(record: RunRecord) -> Finding:
    count, across, along = (
        record.gauge_dimension,
        record.transverse_min_eig,
        record.gauge_residual,
    )
    evidence = f"smallest eigenvalue {number(record.hessian_min_eig)} in the trained coordinates"
    if across is not None:
        evidence += f", {number(across)} across the orbits (B G, G^-1 A)"
    if along is not None:
        evidence += f"; |H u| is at most {number(along)} along them, 0 at a stationary point"
    status: Status = "unchecked" if count is None else "violated" if count else "holds"
    if count is None:
        evidence = f"the gauge directions were not counted; {evidence}"
    else:
        evidence = (
            f"{count} gauge directions"
            + (
                ", in which the penalized objective is constant at every dropout rate"
                if count
                else ""
            )
            + f"; {evidence}"
        )
    return Finding(
        name="no symmetry in the trained coordinates",
        status=status,
        evidence=evidence,
        estimate=along,
        remedy=None
        if count == 0
        else "freeze A, or read the bounds across the orbits (/transverse); where both factors are "
        "trained there is always a symmetry",
        statements=CONVEX[:1],
    )


def _other_curvatures(record: RunRecord) -> Iterator[Finding]:
    across, masked = transverse_of_record(record), dropout_of_record(record)
    if across is not None and record.transverse_min_eig is not None:
        found = record.transverse_min_eig
        yield Finding(
            name="growth across the gauge orbits",
            status=signed(found),
            evidence=f"smallest eigenvalue across the orbits {number(found)}, at one point",
            estimate=found,
            remedy="train on to a minimum; a proof needs growth at the solutions that are compared",
            statements=across.hypotheses[:1],
        )
        yield Finding(
            name="one orbit of minimizers",
            status="unchecked",
            evidence="(B G, G^-1 A) leaves every loss alone; that all minimizers are one orbit was "
            "not looked at",
            remedy="compare minimizers from several starts",
            statements=across.hypotheses[1:2],
        )
    if masked is not None and record.dropout_min_eig is not None:
        found = record.dropout_min_eig
        yield Finding(
            name="strong convexity under masks",
            status=signed(found),
            evidence=f"smallest eigenvalue under masks {number(found)}, at one point: no lambda in "
            "it, but the gauge still",
            estimate=found,
            remedy="train B alone, with A frozen; then a positive value on a convex set is a proof",
            statements=masked.hypotheses[:1],
        )


def _minimizers(record: RunRecord) -> Finding:
    slope, rho = record.gradient_norm, record.lipschitz.upper
    mu = float(strong_convexity(curvature_of_record(record)))
    if mu > 0:
        with np.errstate(over="ignore"):
            added = float(np.float64(2.0 * rho) * slope.upper / mu)
        effect = f"mu >= {mu:.4g}: two such solutions add at most 2 rho |g| / mu = {added:.4g}"
    else:
        effect = "mu <= 0: nothing follows from it about the distance to a minimizer"
    # Under masks the gradient at a minimizer is minus that of the penalty, not 0.
    refuted = record.dropout_rate == 0 and mu <= 0 and slope.lower > 0
    return Finding(
        name="exact minimizers",
        status="violated" if refuted else "plug-in",
        evidence=f"gradient norm {number(slope)}, masks off, without the penalty's; {effect}",
        estimate=slope,
        remedy="train on until the gradient of the objective of the theorem is small against mu, "
        "and pass `suboptimality` = |g|^2 / (2 mu)",
        statements=tuple(line for line in (CONVEX[1], *_lines(dropout_of_record(record), 1))),
    )


def _lines(stability: object, at: int) -> tuple[str, ...]:
    hypotheses: tuple[str, ...] = getattr(stability, "hypotheses", ())
    return hypotheses[at : at + 1]


def _lipschitz(record: RunRecord) -> Iterator[Finding]:
    lines = (CONVEX[2], *_lines(transverse_of_record(record), 2))
    point, proved = record.lipschitz, record.lipschitz_bound
    segment = None if record.stability is None else record.stability.lipschitz_segment
    refuted = segment is not None and segment.lower > point.upper
    yield Finding(
        name="Lipschitz constant at the solution",
        status="violated" if refuted else "plug-in",
        evidence=f"largest gradient norm of one training example there {number(point)}"
        + (f"; exceeded on the segments, {number(segment)}" if refuted and segment else ""),
        estimate=point,
        remedy="this is what the bounds read; put the constant of the segments or the proved one "
        "in its place",
        statements=lines,
    )
    yield Finding(
        name="Lipschitz constant on the segments",
        status="unchecked" if segment is None else "plug-in",
        evidence="not measured"
        if segment is None
        else f"largest gradient norm found between solutions {number(segment)}, "
        f"{segment.value / point.value:.3g} times that at the solution"
        if point.value > 0
        else f"largest gradient norm found between solutions {number(segment)}",
        estimate=segment,
        remedy="a finite number of points proves nothing: use a proved constant",
        statements=lines,
    )
    certified = proved is not None and proved.provenance == "certified"
    # The sentence is about the number that the bounds read, not about the proved one beside it.
    read = proved is not None and certified and proved.upper <= point.upper
    yield Finding(
        name="proved Lipschitz constant",
        status="holds" if read else "unchecked" if proved is None else "plug-in",
        evidence="none was given for this model"
        if proved is None
        else f"{proved.upper:.4g} ({proved.method}); the bounds read the number at the solution, "
        f"{number(point)}",
        estimate=proved,
        remedy=None
        if read
        else "put it in the place of the number at the solution"
        if certified
        else "derive one for the architecture and the domain of inputs",
        statements=lines,
    )
    if record.dropout_lipschitz is not None:
        yield Finding(
            name="Lipschitz constant under masks",
            status="plug-in",
            evidence=f"largest gradient norm at the solution {number(record.dropout_lipschitz)}, a "
            "mean over drawn masks",
            estimate=record.dropout_lipschitz,
            remedy="as for the constant at the solution",
            statements=_lines(dropout_of_record(record), 2),
        )


def _penalty(record: RunRecord) -> Iterator[Finding]:
    found = {w: e for f, w in ESTIMATORS.items() if (e := getattr(record, f)) is not None}
    masked = record.dropout_rate > 0
    yield Finding(
        name="rate and penalty apart from the sample",
        status="plug-in" if masked else "unchecked",
        evidence=f"p = {record.dropout_rate:g} is configured; no record shows what it was chosen by"
        + ("; lambda was estimated on the training rows" if masked else ""),
        estimate=record.penalty,
        remedy="fix p in advance, or pay for a grid; derive lambda instead of estimating it",
        statements=(CONVEX[3], *_lines(dropout_of_record(record), 3)),
    )
    listed = ", ".join(f"{words} {number(e)}" for words, e in found.items())
    if not masked:
        yield Finding(
            name="one lambda",
            status="holds",
            evidence="p = 0: no penalty, whatever lambda is",
            about=from_curvature,
        )
        return
    apart = [
        f"{a} and {b}"
        for i, (a, x) in enumerate(found.items())
        for b, y in list(found.items())[i + 1 :]
        if None not in (x.low, y.low) and (x.upper < y.lower or y.upper < x.lower)
    ]
    values = [e.value for e in found.values()]
    spread = ""
    if len(values) > 1:
        spread = f"; from {min(values):.3g} to {max(values):.3g}" + (
            ", of differing sign" if min(values) < 0 < max(values) else ""
        )
    yield Finding(
        name="one lambda",
        status="violated" if apart else "plug-in" if len(found) > 1 else "unchecked",
        evidence=f"{listed or 'no estimator was run'}{spread}"
        + (f"; intervals apart: {'; '.join(apart)}" if apart else ""),
        estimate=record.penalty,
        remedy="a network has no such constant: read the bounds under masks (/dropout), which need "
        "none",
        about=from_curvature,
    )


__all__ = ["curvature_findings"]
