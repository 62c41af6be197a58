"""From a record to the standing of every hypothesis of its bounds.

Hypotheses are named by the sentences of the theorems themselves, so that a theorem with a new one
is noticed: a test asks that every sentence is answered.
"""

from collections.abc import Iterator

from lodrop_theory.assumptions.curvature import curvature_findings
from lodrop_theory.assumptions.sample import (
    ensemble_findings,
    evaluation_findings,
    held_out_findings,
    posterior_findings,
    sample_findings,
)
from lodrop_theory.assumptions.stability import measured_stability_findings
from lodrop_theory.assumptions.table import AssumptionTable, Finding, Hypothesis
from lodrop_theory.evaluate import evaluate_record
from lodrop_theory.records import RunRecord


def audit(record: RunRecord) -> AssumptionTable:
    """What a run shows of every hypothesis of every bound that it has.

    Args:
        record: A run.

    Returns:
        The table. Each line of ``hypotheses`` of each result of
        :func:`~lodrop_theory.evaluate.evaluate_record` stands in the ``statements`` of an entry
        that names the bound, and what the inputs of these theorems are meant to be has entries of
        its own (the source of lambda, the scaling of the masks, exactness of the divergence).
        Parts of the measurement that were left out come last.

    Example:
        >>> from lodrop_theory import read_record
        >>> from pathlib import Path
        >>> folder = Path("paper_figures/records/movie-reviews")
        >>> runs = [read_record(path) for path in sorted(folder.glob("*.json"))]
        >>> sorted({h.status for run in runs for h in audit(run) if "lambda by" in h.name})
        ['unchecked', 'violated']
    """
    needed: dict[str, tuple[str, ...]] = {}
    for result in evaluate_record(record, delta=0.5):
        needed[result.bound] = tuple(
            dict.fromkeys((*needed.get(result.bound, ()), *result.hypotheses))
        )
    table = []
    for each in _findings(record):
        bounds = tuple(
            bound
            for bound, lines in needed.items()
            if each.about(bound) and (not each.statements or set(each.statements) & set(lines))
        )
        if bounds:
            used = {line for bound in bounds for line in needed[bound]}
            statements = tuple(line for line in each.statements if line in used)
            table.append(_entry(each, bounds, statements))
    table += [_entry(each, (), ()) for each in _left_out(record)]
    return AssumptionTable(tuple(table))


def _entry(each: Finding, bounds: tuple[str, ...], statements: tuple[str, ...]) -> Hypothesis:
    return Hypothesis(
        name=each.name,
        status=each.status,
        evidence=each.evidence,
        estimate=each.estimate,
        remedy=each.remedy,
        bounds=bounds,
        statements=statements,
    )


def _findings(record: RunRecord) -> Iterator[Finding]:
    yield from sample_findings(record)
    yield from curvature_findings(record)
    yield from evaluation_findings(record)
    yield from measured_stability_findings(record)
    yield from ensemble_findings(record)
    yield from held_out_findings()
    yield from posterior_findings(record)


def _left_out(record: RunRecord) -> Iterator[Finding]:
    """What was not measured, and the bounds that are missing for it."""
    parts = (
        (record.transverse_min_eig, "curvature across the gauge orbits", "/transverse"),
        (record.dropout_min_eig, "curvature under masks", "/dropout"),
        (record.stability, "stability near the solution", "/newton and its like"),
        (record.posterior or None, "randomized adapter", "pac-bayes-kl"),
    )
    for found, name, bounds in parts:
        if found is None:
            yield Finding(
                name=name,
                status="unchecked",
                evidence=f"not measured: the run has no bounds {bounds}",
                remedy="measure it: it is a part of the measurement that may be left out",
            )


__all__ = ["audit"]
