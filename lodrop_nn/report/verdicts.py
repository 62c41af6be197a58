"""What the theorems say of one record, as tables; nothing here needs torch."""

import textwrap
from collections import Counter
from collections.abc import Sequence

from lodrop_nn.report.tables import Table
from lodrop_theory import BoundResult, RunRecord, evaluate_record
from lodrop_theory.assumptions import AssumptionTable, audit
from lodrop_theory.slack import Looseness, looseness
from lodrop_theory.stability_table import FORMS, LEGEND, StabilityTable, bound_table

_STATUSES = ("violated", "plug-in", "unchecked", "holds")
_READ_NO_STABILITY = ("pac-bayes", "hold-out")  # they stand among the certificates
_WIDTH = 36  # of a column of words


def verdict_tables(record: RunRecord, delta: float) -> list[Table]:
    """Certificates, hypotheses, bounds by source of the stability, and how loose they are.

    Args:
        record: A run or a measured adapter.
        delta: Failure probability of each bound, in (0, 1).
    """
    return [
        _certificates(evaluate_record(record, delta=delta), record, delta),
        _hypotheses(audit(record)),
        _by_source(bound_table(record, delta=delta)),
        _slack(looseness(record, delta=delta)),
    ]


def _certificates(results: Sequence[BoundResult], record: RunRecord, delta: float) -> Table:
    certified = [each for each in results if each.kind == "certificate"]
    gap = record.predictors["mean"].generalization_gap.value
    return Table(
        title=f"Certificates, each at delta = {delta:g}",
        columns=("", "predictor", "loss", "gap at most", "risk at most"),
        rows=tuple(
            (
                each.bound,
                each.predictor,
                # The loss of record has its own range, an error rate the range 1.
                "nats" if float(each.loss_range) == record.loss_range.upper else "errors",
                f"{float(each.gap):.3f}{' (v)' if bool(each.vacuous) else ''}",
                "–" if each.risk is None else f"{float(each.risk):.3f}",
            )
            for each in certified
        ),
        notes=(
            f"Measured gap, masks off: {gap:.3f} nats. (v): vacuous. Each line holds alone with "
            "probability 1 - delta; for k of them at once ask for delta / k. They are certificates "
            "as long as no choice has seen the held-out rows.",
        ),
    )


def _hypotheses(hypotheses: AssumptionTable) -> Table:
    ordered = sorted(hypotheses, key=lambda each: _STATUSES.index(each.status))
    counts = Counter(str(each.status) for each in ordered)
    return Table(
        title="Hypotheses: " + ", ".join(f"{counts[s]} {s}" for s in _STATUSES if counts[s]),
        columns=("", ""),
        rows=tuple((each.name, each.status) for each in ordered),
        notes=(
            "violated: contradicted by the measured numbers; plug-in: a number speaks to it and "
            "proves nothing; unchecked: nothing in the record can speak to it. `lodrop audit` "
            "gives the evidence of each, and its remedy.",
            *(f"{each.name}: {each.evidence}" for each in ordered if each.status == "violated"),
        ),
    )


def _by_source(table: StabilityTable) -> Table:
    """Rows: where the stability comes from; columns: the form of the bound that reads it."""
    heads, rows = table.texts()
    kept = [0, *(k for k, form in enumerate(FORMS, start=1) if form not in _READ_NO_STABILITY)]
    return Table(
        title=f"Bounds on the gap by source of the stability, at delta = {table.delta:g}",
        columns=("", *(heads[k] for k in kept[1:])),
        rows=tuple(tuple(row[k] for k in kept) for row in rows if row[0] != "none"),
        notes=(LEGEND, *table.notes()),
    )


def _slack(slack: Looseness) -> Table:
    (_, *heads, _), rows = slack.texts()
    return Table(
        title="From Theorem 4.4 to the measured gap: the factor is what each step costs",
        columns=("", *heads, ""),
        rows=tuple((*row[:-1], textwrap.fill(row[-1], _WIDTH)) for row in rows),
        notes=(slack.summary(),),
    )
