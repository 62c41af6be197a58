r"""How loose the theorem is, factor by factor: from Theorem 4.4 down to the measured gap.

Each level replaces one thing by something nearer to the truth, and the ratio of two neighbors is
what that thing costs:

1. *theorem*: Theorem 4.4 at the safe ends of the measured curvature;
2. *point values*: the same at the values themselves: what the intervals cost;
3. *repaired lemma*: the corrected constants, 3 b1 + 2 b2 for 6 b;
4. *across the orbits*: the curvature that the gauge does not hide (and half the stability, because
   without a penalty nothing depends on dividing by n - 1);
5. *measured stability*: a Newton step per example (a Gauss-Newton step or influence functions where
   none was made) in the place of 2 rho^2 / (mu n): what the worst case over directions and
   examples costs;
6. *true refits*: what that step misses;
7. *retraining*: what separates the training run from the minimizer;
8. *mean square*: the stability to first order instead of under a square root;
9. *no tail*: the mean-square bound times sqrt(delta), a bound on the root mean square of the gap:
   what Chebyshev's inequality costs;
10. *no sampling noise*: the mean square change at the replaced example, which bounds the expected
    gap: what the floor C / sqrt(n) costs;
11. *signed change*: its mean with signs, which in expectation *is* the expected gap;
12. *measured gap*: what this run did.

Levels 5 to 7 and 8 to 11 read the stabilities at their point values; from 8 on, those of the last
of the levels 5 to 7 that was measured. A level that was not measured, or has no logarithm, is
named and passed over: the next one is compared with the last that has a number, and its factor then
pays for both. The last factor may be below 1: stability near a solution does not see what a run
learned of the sample as a whole.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lodrop_theory._tables import aligned, finite, frame
from lodrop_theory.records import Estimate, RunRecord, StabilityMethod
from lodrop_theory.stability_table import Cell, StabilityTable, bound_table

# From coarse to fine; the first that a run has stands for what was measured without training.
_STEPS: tuple[StabilityMethod, ...] = ("newton", "gauss-newton", "influence")


@dataclass(frozen=True, kw_only=True)
class Link:
    """One factor of the slack.

    Attributes:
        level: The level that it leads to.
        paid_for: What the step from ``above`` to ``level`` gives up.
        above: The level that it starts from; None for the first one.
        value: The number at ``level`` in nats; infinite where a hypothesis fails, None where there
            is none.
        log10: log10 of the number above over that at ``level``; None where the level is passed
            over, or both are infinite.
        reason: Why the level has no finite number, or None.
    """

    level: str
    paid_for: str
    above: str | None
    value: float | None
    log10: float | None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Looseness:
    """The slack of Theorem 4.4 on one run, as factors that multiply to bound / gap.

    Attributes:
        links: One per level, the theorem first and the measured gap last.
        gap: The measured gap of the predictor ``mean``.
        delta: Failure probability of the bounds.
    """

    links: tuple[Link, ...]
    gap: Estimate
    delta: float

    def __iter__(self) -> Iterator[Link]:
        return iter(self.links)

    @property
    def log10_total(self) -> float | None:
        """log10(bound / gap); infinite where the theorem is not applicable; None if gap <= 0."""
        bound = self.links[0].value
        if self.gap.value <= 0 or bound is None:
            return None
        return math.log10(bound) - math.log10(self.gap.value)

    @property
    def log10_explained(self) -> float:
        """Sum of the factors: ``log10_total`` where the gap is positive, else down to the last."""
        return math.fsum(link.log10 for link in self if link.log10 is not None)

    @property
    def log10_finite(self) -> float:
        """Sum of the finite factors: from the first level with a finite number on."""
        return math.fsum(x for link in self if (x := link.log10) is not None and math.isfinite(x))

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able mapping per level; an infinite number is None, its reason says so."""
        return [
            {
                "level": link.level,
                "paid_for": link.paid_for,
                "above": link.above,
                "value": finite(link.value),
                "log10": finite(link.log10),
                "reason": link.reason,
            }
            for link in self
        ]

    def to_pandas(self) -> Any:
        """The levels as a ``pandas.DataFrame``.

        Raises:
            ImportError: If pandas is not installed.
        """
        return frame(self.rows())

    def texts(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Heads and cells as text."""
        rows: list[tuple[str, ...]] = [
            (
                link.level,
                "-" if link.value is None else f"{link.value:.4g}",
                "" if link.log10 is None else f"{link.log10:+.2f}",
                link.reason or link.paid_for,
            )
            for link in self
        ]
        return ("level", "nats", "log10", "the factor is what this costs"), rows

    def summary(self) -> str:
        """The total in one sentence."""
        if self.log10_total is None:
            return (
                f"the measured gap, {self.gap.value:.4g}, is not positive and no ratio to it "
                f"exists; down to the last level with a number: log10 = {self.log10_explained:+.2f}"
            )
        if math.isinf(self.log10_total):
            if not any(x is not None and math.isfinite(x) for x in (k.log10 for k in self)):
                return (
                    "bound / gap is infinite: Theorem 4.4 is not applicable, and no level between "
                    "it and the gap was measured"
                )
            return (
                "bound / gap is infinite: Theorem 4.4 is not applicable; from the first finite "
                f"level to the gap: log10 = {self.log10_finite:+.2f}"
            )
        return f"bound / gap = {10**self.log10_total:.4g}, log10 = {self.log10_total:+.2f}"

    def __str__(self) -> str:
        head, rows = self.texts()
        return "\n".join((aligned(head, rows, last=60), "", self.summary()))


def looseness(record: RunRecord, *, delta: float) -> Looseness:
    """The slack of Theorem 4.4 against the measured gap, as factors.

    Args:
        record: A run.
        delta: Failure probability of the bounds, in (0, 1).

    Returns:
        The levels (top of this module) with their factors.

    Raises:
        ValueError: If ``delta`` is outside (0, 1).
    """
    table = bound_table(record, delta=delta)
    links: list[Link] = []
    last: Link | None = None
    for level, paid_for, cell in _levels(record, table):
        if last is not None and last is not links[-1]:
            paid_for = f"{paid_for}, and all that was passed over"
        link = _link(level, paid_for, cell, last)
        links.append(link)
        if last is None or link.log10 is not None or last.value == link.value == math.inf:
            last = link
    return Looseness(links=tuple(links), gap=table.gap, delta=delta)


def _link(level: str, paid_for: str, cell: Cell, last: Link | None) -> Link:
    above = None if last is None else last.level
    value, reason = cell.value, cell.reason
    factor: float | None = None
    if value is None:
        reason = f"passed over: {reason}"
    elif last is not None and last.value is not None:
        if value <= 0:
            reason = f"passed over: {value:.4g} has no logarithm"
        elif math.isinf(value):
            known = math.isfinite(last.value)
            reason = f"passed over: not applicable, {reason}" if known else reason
        else:
            factor = (
                math.log10(last.value) - math.log10(value)
                if math.isfinite(last.value)
                else math.inf
            )
            reason = None
    return Link(
        level=level, paid_for=paid_for, above=above, value=value, log10=factor, reason=reason
    )


def _levels(record: RunRecord, table: StabilityTable) -> Iterator[tuple[str, str, Cell]]:
    def cell(source: str, form: str) -> Cell:
        return table[source].cells[form]

    yield "theorem", "", cell("theorem", "paper")
    yield "point values", "the width of the measured intervals", cell("plug-in", "paper")
    yield "repaired lemma", "constants of Lemma 4.3", cell("plug-in", "two-stability")
    yield "across the orbits", "curvature that the gauge hides", cell("transverse", "two-stability")
    known = {} if record.stability is None else record.stability.estimates
    step: StabilityMethod = next((method for method in _STEPS if method in known), "newton")
    finest: StabilityMethod | None = None
    levels: tuple[tuple[StabilityMethod, str, str], ...] = (
        (step, "measured stability", "the worst case over directions, examples and points"),
        ("refit", "true refits", "the error of one step"),
        ("retrain", "retraining", "the training run against the minimizer"),
    )
    for method, level, paid_for in levels:
        finest = method if method in known else finest
        yield level, paid_for, cell(method, "two-stability")
    missing = Cell(value=None, kind="empty", reason="no stability was measured")
    square = missing if finest is None else cell(finest, "l2-stability")
    yield "mean square", "the stability under a square root", square
    yield "no tail", "confidence 1 - delta, by Chebyshev", _scaled(square, math.sqrt(table.delta))
    expected = missing if finest is None else cell(finest, "expectation")
    yield "no sampling noise", "the floor of order C / sqrt(n)", expected
    yield "signed change", "signs: absolute changes do not cancel", _signed(record, finest, missing)
    gap = Cell(value=table.gap.value, kind="estimate")
    yield "measured gap", "the expected gap against that of this run", gap


def _scaled(cell: Cell, factor: float) -> Cell:
    value = None if cell.value is None else cell.value * factor
    return Cell(value=value, kind=cell.kind, reason=cell.reason)


def _signed(record: RunRecord, method: StabilityMethod | None, missing: Cell) -> Cell:
    if record.stability is None or method is None:
        return missing
    change = record.stability.estimates[method].replace_one_gap.value
    return Cell(value=change, kind="estimate")


__all__ = ["Link", "Looseness", "looseness"]
