"""Hypotheses of bounds with what a run shows of them, as a table.

``holds``: proved, or exact by construction. ``violated``: contradicted by the measured numbers even
at their favorable ends, or by a proof. ``plug-in``: a measured number speaks to it and proves
nothing. ``unchecked``: nothing in a record can speak to it, or it was not measured.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lodrop_theory._tables import aligned, finite, frame
from lodrop_theory.records import Estimate

Status = Literal["holds", "violated", "plug-in", "unchecked"]
COLUMNS = (
    "hypothesis",
    "status",
    "evidence",
    "value",
    "low",
    "high",
    "level",
    "provenance",
    "n_draws",
    "method",
    "remedy",
    "bounds",
    "statements",
)


def _every(bound: str) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a run shows of one hypothesis, before it is known which bounds need it.

    Attributes:
        name: As in :class:`Hypothesis`.
        status: As there.
        evidence: As there.
        estimate: As there.
        remedy: As there.
        statements: As there; with none, every bound that ``about`` accepts needs it.
        about: Which bounds it is about, by their identifiers.
    """

    name: str
    status: Status
    evidence: str
    estimate: Estimate | None = None
    remedy: str | None = None
    statements: tuple[str, ...] = ()
    about: Callable[[str], bool] = _every


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One hypothesis of the bounds of a run.

    Attributes:
        name: What it asks, in a few words.
        status: ``holds``, ``violated``, ``plug-in`` or ``unchecked``: top of this module.
        evidence: Why, with the numbers.
        estimate: The measured number behind it, or None.
        remedy: What would decide or repair it, or None where it holds.
        bounds: Identifiers of the bounds that need it, among those that the run has.
        statements: The hypothesis in the words of these theorems; empty where a theorem does not
            list it because its inputs are meant to have it.
    """

    name: str
    status: Status
    evidence: str
    estimate: Estimate | None
    remedy: str | None
    bounds: tuple[str, ...]
    statements: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """A JSON-able mapping with the keys ``COLUMNS``."""
        e = self.estimate
        return {
            "hypothesis": self.name,
            "status": self.status,
            "evidence": self.evidence,
            "value": None if e is None else finite(e.value),
            "low": None if e is None else finite(e.low),
            "high": None if e is None else finite(e.high),
            "level": None if e is None else e.level,
            "provenance": None if e is None else e.provenance,
            "n_draws": None if e is None else e.n_draws,
            "method": None if e is None else e.method,
            "remedy": self.remedy,
            "bounds": list(self.bounds),
            "statements": list(self.statements),
        }


@dataclass(frozen=True)
class AssumptionTable:
    """The hypotheses of all bounds of one run.

    Attributes:
        hypotheses: One entry each, in reading order.
    """

    hypotheses: tuple[Hypothesis, ...]

    def __len__(self) -> int:
        return len(self.hypotheses)

    def __iter__(self) -> Iterator[Hypothesis]:
        return iter(self.hypotheses)

    def __getitem__(self, index: int) -> Hypothesis:
        return self.hypotheses[index]

    def of(self, bound: str) -> "AssumptionTable":
        """The hypotheses of one bound, by its identifier.

        Raises:
            ValueError: If the run has no such bound.
        """
        known = sorted({each for h in self for each in h.bounds})
        if bound not in known:
            raise ValueError(f"`bound` must be one of {known}, got {bound!r}.")
        return AssumptionTable(tuple(h for h in self if bound in h.bounds))

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able mapping per hypothesis."""
        return [each.row() for each in self]

    def to_pandas(self) -> Any:
        """The table as a ``pandas.DataFrame``.

        Raises:
            ImportError: If pandas is not installed.
        """
        return frame(self.rows())

    def __str__(self) -> str:
        cells = [(h.name, h.status, h.evidence) for h in self]
        return aligned(("hypothesis", "status", "evidence"), cells, last=70)


def number(estimate: Estimate) -> str:
    """Four digits, with the ends where there is an interval."""
    if estimate.low is None or estimate.low == estimate.high:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} [{estimate.lower:.4g}, {estimate.upper:.4g}]"


def signed(estimate: Estimate) -> Status:
    """Standing of "this number is positive": measured at one point, it is no proof of it."""
    return "violated" if estimate.upper <= 0 else "plug-in"


__all__ = ["COLUMNS", "AssumptionTable", "Finding", "Hypothesis", "Status", "number", "signed"]
