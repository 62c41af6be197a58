r"""One run, every source of a stability against every form of a bound.

A form of a bound reads certain stabilities; a source offers certain ones. A cell is empty, with its
reason, where the two do not meet.

**Remove-one across the orbits.** The transverse source proves a replace-one stability :math:`g =
2\rho^2/(\mu_t n)` (:mod:`~lodrop_theory.bounds.transverse`). The curvature is that of the training
risk without a penalty, whose minimizers do not depend on whether the remaining losses are divided
by n or n - 1. Dividing by n, :math:`F_S` and :math:`F_{S \setminus i}` differ by :math:`\ell_i/n`
alone, and adding the two growth inequalities gives :math:`\frac{\mu_t}2(a^2 + b^2) \le \frac1n
[\ell_i(u) - \ell_i(v)] \le \frac\rho n \min(a, b)`: the remove-one stability is :math:`g/2`.

**The trace.** :math:`\operatorname{tr}(H^{-1}G)/n` estimates the expected gap, a mean of *signed*
changes. It bounds no mean of absolute changes from above, so no stability follows from it.

**The paper's lemma.** :math:`\sqrt{(C^2 + 12 C n \beta)/(2 n \delta)}` with the pointwise stability
alone is false as stated. For a source that bounds the change at every point it is Theorem 4.4,
which survives; for a measured pointwise stability the number is shown as the paper prints it, and
says so. It is never a :class:`~lodrop_theory.results.BoundResult`.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lodrop_theory._checks import check_failure_probability
from lodrop_theory._tables import aligned, finite, frame
from lodrop_theory.bounds.bousquet2002 import two_stability_bound
from lodrop_theory.bounds.from_stability import stability_bounds
from lodrop_theory.bounds.transverse import transverse_stability
from lodrop_theory.evaluate import curvature_bounds, curvature_of_record, evaluate_record
from lodrop_theory.inputs import CurvatureInputs, TailInputs, TransverseInputs, TwoStabilityInputs
from lodrop_theory.measured_stability import (
    METHOD_WORDS,
    measured_stability_bounds,
    tail_of_record,
)
from lodrop_theory.records import STABILITY_METHODS, Estimate, RunRecord, StabilityMethod
from lodrop_theory.results import BoundResult, StabilityResult

CellKind = Literal["certificate", "plug-in", "not applicable", "as printed", "estimate", "empty"]
FORMS = {
    "paper": "Lemma 4.3",
    "two-stability": "two stab.",
    "l2-stability": "L2",
    "uniform-tail": "tail",
    "expectation": "expected",
    "pac-bayes": "PAC-Bayes",
    "hold-out": "hold-out",
}
_WITHOUT = ("pac-bayes", "hold-out")
FALSE_LEMMA = (
    "as the paper prints it: its Lemma 4.3 reads the pointwise stability alone, which is false as "
    "stated; no bound"
)
_LARGEST = float(np.finfo(np.float64).max)
_NOT_MEASURED = "not measured"
_ITS_OWN_ROW = "a row for what reads no stability"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of the table, or why there is none.

    Attributes:
        value: The gap in nats; infinite where a hypothesis fails or the number is beyond float64,
            None where there is no number.
        kind: Standing of the number. ``as printed``: no bound, the formula of the paper.
            ``estimate``: of the expected gap itself, no bound. ``empty``: no number.
        reason: Why it is empty, not applicable or no bound; None for a bound that applies.
    """

    value: float | None
    kind: CellKind
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """One row: a source of the stability.

    Attributes:
        name: Short identifier.
        title: What it is.
        cells: By the form of the bound, the keys of ``FORMS``.
    """

    name: str
    title: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True, kw_only=True)
class StabilityTable:
    """Bounds on the gap of the predictor ``mean`` by source and form, beside the measured gap.

    PAC-Bayes and hold-out read no stability: their values stand in a row of their own. The former
    is about the randomized adapter, and counted from its own training risk.

    Attributes:
        sources: The rows, from what is assumed to what was done.
        gap: The measured gap.
        delta: Failure probability of each bound in probability.
    """

    sources: tuple[Source, ...]
    gap: Estimate
    delta: float

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources)

    def __getitem__(self, name: str) -> Source:
        return {each.name: each for each in self.sources}[name]

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able mapping per cell; infinite values are None."""
        return [
            {
                "source": source.name,
                "title": source.title,
                "form": form,
                "value": finite(cell.value),
                "kind": cell.kind,
                "reason": cell.reason,
            }
            for source in self
            for form, cell in source.cells.items()
        ]

    def to_pandas(self) -> Any:
        """The cells as a ``pandas.DataFrame``, one row each.

        Raises:
            ImportError: If pandas is not installed.
        """
        return frame(self.rows())

    def notes(self) -> list[str]:
        """Why cells are empty, not applicable or no bounds: each reason once, with its cells."""
        reasons: dict[str, dict[str, list[str]]] = {}
        for source in self:
            for form, cell in source.cells.items():
                if cell.reason not in (None, _elsewhere(form), _ITS_OWN_ROW):
                    reasons.setdefault(str(cell.reason), {}).setdefault(source.name, []).append(
                        form
                    )
        return [
            f"{', '.join(_listed(name, forms) for name, forms in where.items())}: {reason}"
            for reason, where in reasons.items()
        ]

    def texts(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Heads and cells as text: ~ plug-in, ! as printed, = estimate, n/a not applicable."""
        rows = [(source.name, *(_text(cell) for cell in source.cells.values())) for source in self]
        gap = tuple(_short(self.gap.value) if form == "expectation" else "" for form in FORMS)
        return ("source", *FORMS.values()), [*rows, ("measured gap", *gap)]

    def __str__(self) -> str:
        lines = (each for note in (LEGEND, *self.notes()) for each in textwrap.wrap(note, 100))
        return "\n".join((aligned(*self.texts()), "", *lines))


LEGEND = (
    "nats; unmarked: certificate, ~ plug-in, ! as the paper prints it (no bound), = an estimate "
    "(no bound), n/a not applicable, . empty"
)


def _short(value: float) -> str:
    """Three digits, without an exponent up to 99999."""
    return f"{value:.0f}" if 999.5 <= abs(value) < 99999.5 else f"{value:.3g}"


def _text(cell: Cell) -> str:
    marks = {"certificate": "", "plug-in": "~", "as printed": "!", "estimate": "="}
    if cell.kind == "not applicable":
        return "n/a"
    return "." if cell.value is None else f"{marks[cell.kind]}{_short(cell.value)}"


def _listed(name: str, forms: list[str]) -> str:
    return name if len(forms) >= len(FORMS) - len(_WITHOUT) else f"{name} ({', '.join(forms)})"


def _elsewhere(form: str) -> str | None:
    return "reads no stability: see the row without one" if form in _WITHOUT else None


def bound_table(record: RunRecord, *, delta: float) -> StabilityTable:
    """Bounds of one run by the source of the stability and the form of the bound.

    Args:
        record: A run.
        delta: Failure probability of each bound in probability, in (0, 1).

    Returns:
        Rows: Proposition 4.2 at the conservative ends of what was measured (``theorem``) and at
        the point values (``plug-in``), across the gauge orbits (``transverse``), the first-order
        trace (``trace``), the measured stabilities at their point values, and a last row for what
        reads no stability (``none``).

    Raises:
        ValueError: If ``delta`` is outside (0, 1).
    """
    check_failure_probability("delta", delta)
    tail = tail_of_record(record, delta=delta, predictor="mean")
    at_ends = curvature_bounds(curvature_of_record(record), tail)
    at_values = curvature_bounds(curvature_at_values(record), tail)
    sources = [
        _source("theorem", "Proposition 4.2 at the safe ends", _cells(at_ends)),
        _source("plug-in", "Proposition 4.2 at the point values", _cells(at_values)),
        _source("transverse", "curvature across the gauge orbits", _transverse(record, tail)),
        _source("trace", "trace, to first order", _trace(record)),
        *(
            _source(method, METHOD_WORDS[method], _measured(record, tail, method))
            for method in STABILITY_METHODS
        ),
        _source("none", "without a stability", _without_stability(record, delta)),
    ]
    gap = record.predictors["mean"].generalization_gap
    return StabilityTable(sources=tuple(sources), gap=gap, delta=delta)


def curvature_at_values(record: RunRecord) -> CurvatureInputs:
    """The curvature of a run at the point values of its estimates; a negative penalty is 0."""
    return CurvatureInputs(
        n_train=record.n_train,
        dropout_rate=record.dropout_rate,
        lipschitz=max(record.lipschitz.value, 0.0),
        hessian_min_eig=record.hessian_min_eig.value,
        penalty=0.0 if record.penalty is None else max(record.penalty.value, 0.0),
    )


def _source(name: str, title: str, cells: Mapping[str, Cell]) -> Source:
    missing = {form: Cell(value=None, kind="empty", reason=_elsewhere(form)) for form in _WITHOUT}
    found = {**missing, **cells}
    return Source(name=name, title=title, cells={form: found[form] for form in FORMS})


def _cell(result: BoundResult) -> Cell:
    if not bool(result.applicable):
        return Cell(
            value=math.inf, kind="not applicable", reason=f"needs {result.failed_hypothesis}"
        )
    return _of(float(result.gap), "certificate" if result.certified else "plug-in")


def _of(value: float, kind: CellKind, reason: str | None = None) -> Cell:
    if math.isinf(value):
        return Cell(value=value, kind="not applicable", reason="beyond the range of float64")
    return Cell(value=value, kind=kind, reason=reason)


def _cells(results: list[BoundResult]) -> dict[str, Cell]:
    """Cells by form; Theorem 4.4 is the paper's lemma for a stability at every point."""
    found = {result.bound.partition("/")[0]: _cell(result) for result in results}
    names = {form: "lin2024" if form == "paper" else form for form in FORMS}
    return {form: found[name] for form, name in names.items() if name in found}


def _all(reason: str) -> dict[str, Cell]:
    return {f: Cell(value=None, kind="empty", reason=reason) for f in FORMS if f not in _WITHOUT}


def printed_lemma(tail: TailInputs, pointwise_stability: float) -> float:
    """Lemma 4.3 as printed, for display: it is false for a pointwise stability alone."""
    c, n, delta = (float(np.asarray(x)) for x in (tail.loss_range, tail.n_train, tail.delta))
    return math.hypot(c, math.sqrt(12.0 * c * n * pointwise_stability)) / math.sqrt(2 * n * delta)


def _transverse(record: RunRecord, tail: TailInputs) -> dict[str, Cell]:
    if record.transverse_min_eig is None:
        return _all(_NOT_MEASURED)
    replaced = transverse_stability(
        TransverseInputs(
            n_train=record.n_train,
            lipschitz=max(record.lipschitz.value, 0.0),
            transverse_min_eig=record.transverse_min_eig.value,
        ),
        both_sides=True,
    )
    cells = _cells(stability_bounds(replaced, tail, predictor="mean"))
    removed = _removed(replaced)
    # Where it does not apply a stand-in goes in and `restricted_to` takes the result out again.
    b = min(float(removed.value), _LARGEST) if bool(removed.applicable) else 0.0
    two = TwoStabilityInputs(**vars(tail), hypothesis_stability=b, pointwise_stability=b)
    cells["two-stability"] = _cell(two_stability_bound(two).restricted_to(removed))
    lemma = cells["two-stability"]
    if bool(removed.applicable):
        lemma = _of(printed_lemma(tail, b), "plug-in")
    return {**cells, "paper": lemma}


def _removed(replaced: StabilityResult) -> StabilityResult:
    """Remove-one across the orbits: half of replace-one (top of this module)."""
    return replace(
        replaced,
        bound="transverse-remove-one",
        value=np.asarray(replaced.value) / 2.0,
        notion="uniform: one example removed, the loss compared at every point",
    )


def _trace(record: RunRecord) -> dict[str, Cell]:
    trace = None if record.stability is None else record.stability.trace_gap
    if trace is None:
        return _all(_NOT_MEASURED)
    cells = _all("a mean of signed changes bounds no mean of absolute ones")
    estimate = Cell(
        value=trace.value,
        kind="estimate",
        reason="an estimate of the expected gap of the training loss to first order, not a bound",
    )
    return {**cells, "expectation": estimate}


def _measured(record: RunRecord, tail: TailInputs, method: StabilityMethod) -> dict[str, Cell]:
    if record.stability is None or method not in record.stability.estimates:
        return _all(_NOT_MEASURED)
    estimates = record.stability.estimates[method]
    results = measured_stability_bounds(
        record, delta=float(np.asarray(tail.delta)), end=lambda estimate: estimate.value
    )
    cells = _cells([each for each in results if each.bound.endswith(f"/{method}")])
    printed = printed_lemma(tail, estimates.pointwise_stability.value)
    return {**cells, "paper": _of(printed, "as printed", FALSE_LEMMA)}


def _without_stability(record: RunRecord, delta: float) -> dict[str, Cell]:
    cells = _all(_ITS_OWN_ROW)
    results = {(r.bound, r.predictor): r for r in evaluate_record(record, delta=delta)}
    cells["hold-out"] = _cell(results["hold-out", "mean"])
    randomized = results.get(("pac-bayes-kl", "gibbs"))
    cells["pac-bayes"] = (
        Cell(value=None, kind="empty", reason=_NOT_MEASURED)
        if randomized is None
        else _cell(randomized)
    )
    return cells


__all__ = ["FORMS", "LEGEND", "Cell", "Source", "StabilityTable", "bound_table"]
