"""What a theorem says: a number, about which predictor, with which standing.

A result is a value, not an exception: a bound whose hypotheses fail is *not applicable* (its gap is
infinite, and the result names the hypothesis and what would repair it), and one that exceeds the
range of the loss is *vacuous*. The fields broadcast together; scalars in give scalars out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lodrop_theory._checks import Float64Array
from lodrop_theory._numerics import round_up
from lodrop_theory.records import Predictor

Kind = Literal["certificate", "plug-in", "not applicable"]
Statement = Literal["probability", "expectation"]
BoolArray = NDArray[np.bool_]
_COUNTS = frozenset({"n_train", "n_test"})

# Numbers that an analyst picks and nothing measures, by the names under which results carry them.
_CHOSEN = frozenset({"penalty", "inverse_temperature", "n_priors", "cover_radius"})
SAME_GAP = "population risk - empirical risk exceeds a constant"


def input_fields(*inputs: Any) -> dict[str, Float64Array | None]:
    """The numbers that a theorem read, by field name, from one or more inputs objects.

    Raises:
        ValueError: If two objects disagree about a field that both have.
    """
    merged: dict[str, Float64Array | None] = {}
    for each in inputs:
        for name in (f.name for f in fields(each)):
            value = getattr(each, name)
            if name in merged and not np.array_equal(merged[name], value):  # type: ignore[arg-type]
                raise ValueError(
                    f"`{name}` must be the same number in all inputs of one bound, "
                    f"got {merged[name]} and {value}."
                )
            merged[name] = value
    return merged


def as_array(value: ArrayLike | None) -> Float64Array | None:
    """A field of an inputs object, which is an array or None, typed as such."""
    return None if value is None else np.asarray(value, dtype=np.float64)


def _kind(applicable: ArrayLike, certified: bool) -> Any:
    held = "certificate" if certified else "plug-in"
    return np.where(applicable, held, "not applicable")[()]


def _plain(name: str, value: Any) -> float | int | None:
    """A JSON-able number; infinity and NaN have none and become None."""
    if value is None or not np.isfinite(value):
        return None
    return int(value) if name in _COUNTS else float(value)


class _Broadcast:
    """Shared by the two results: one shape for all arrays, NumPy scalars for 0-d arrays."""

    _arrays: tuple[str, ...]
    inputs: Mapping[str, Float64Array | None]

    def __post_init__(self) -> None:
        given = {n: getattr(self, n) for n in self._arrays if getattr(self, n) is not None}
        shape = np.broadcast_shapes(
            *(np.shape(v) for v in given.values()),
            *(np.shape(v) for v in self.inputs.values() if v is not None),
        )
        for name, value in given.items():
            # [()] turns a 0-d array into a NumPy scalar and leaves every other array alone.
            object.__setattr__(self, name, np.broadcast_to(np.asarray(value), shape)[()])

    def _input_rows(self, shape: tuple[int, ...]) -> list[dict[str, Any]]:
        full = {
            k: v if v is None else np.broadcast_to(v, shape) for k, v in sorted(self.inputs.items())
        }
        return [
            {k: None if v is None else _plain(k, v[at]) for k, v in full.items()}
            for at in np.ndindex(shape)
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class StabilityResult(_Broadcast):
    """How much the loss can change when one training example changes.

    Attributes:
        bound: Short identifier, unique in the library.
        source: Author, year, arXiv id and equation.
        value: Upper bound on the stability, rounded upward; +inf where not applicable. Loss units.
        notion: Which stability: what is changed, and at which points the loss is compared.
        applicable: Whether the hypotheses that the inputs can decide hold.
        failed_hypothesis: The hypothesis that fails where ``applicable`` is False, else None.
        repair_dropout_rate: Smallest dropout rate that would make the result applicable; nan
            where none in [0, 1) does; None where the question makes no sense.
        remedy: What would make the result applicable, in words, or None.
        certified: Whether the caller vouches for the remaining hypotheses and the inputs.
        hypotheses: What the statement needs, one line each.
        inputs: The numbers that were read, by field name.
    """

    bound: str
    source: str
    value: Float64Array
    notion: str
    applicable: BoolArray
    failed_hypothesis: str | None = None
    repair_dropout_rate: Float64Array | None = None
    remedy: str | None = None
    certified: bool = False
    hypotheses: tuple[str, ...] = ()
    inputs: Mapping[str, Float64Array | None] = field(default_factory=dict)

    _arrays = ("value", "applicable", "repair_dropout_rate")

    @property
    def shape(self) -> tuple[int, ...]:
        """Common shape of the arrays; ``()`` for scalars."""
        return np.shape(self.value)

    @property
    def kind(self) -> Any:
        """``certificate``, ``plug-in`` or ``not applicable``: a str, or an array of them."""
        return _kind(self.applicable, self.certified)


@dataclass(frozen=True, kw_only=True, eq=False)
class BoundResult(_Broadcast):
    """An upper bound on the population risk of one predictor.

    Attributes:
        bound: Short identifier, unique in the library.
        title: Short human name.
        source: Author, year, arXiv id and equation.
        statement: ``probability`` (at least 1 - delta over the training set, or over the held-out
            set for a hold-out bound) or ``expectation`` (over training sets).
        predictor: The predictor whose risk is bounded: ``gibbs``, ``ensemble`` or ``mean``.
        gap: Upper bound on population risk - ``empirical_risk``, rounded upward by a few
            ulps; +inf where not applicable. Loss units.
        empirical_risk: What ``gap`` is added to, or None. Loss units.
        loss_range: C, the length of the interval of the loss. Loss units.
        delta: Failure probability, or None for a statement in expectation.
        certified: Whether the caller vouches that every line of ``hypotheses`` holds and that
            every input is exact or on the safe side.
        hypotheses: What the theorem needs, one line each.
        failed_hypothesis: The hypothesis that fails where ``applicable`` is False, else None.
        applicable: Whether the hypotheses that the inputs can decide hold.
        repair_dropout_rate: Smallest dropout rate that would make the bound applicable; nan
            where none in [0, 1) does; None where the question makes no sense.
        remedy: What would make the bound applicable, in words, or None.
        caveats: What a reader must know before quoting the number.
        inputs: The numbers that were read, by field name.
        event: What happens when the bound fails, where several bounds fail by one and the same
            event or by nested ones; None for an event of its own. A minimum over bounds that
            share it costs nothing (:func:`~lodrop_theory.compare.minimum`).
    """

    bound: str
    title: str
    source: str
    statement: Statement
    predictor: Predictor
    gap: Float64Array
    loss_range: Float64Array
    empirical_risk: Float64Array | None = None
    delta: Float64Array | None = None
    certified: bool = False
    hypotheses: tuple[str, ...] = ()
    failed_hypothesis: str | None = None
    applicable: BoolArray = field(default_factory=lambda: np.asarray(True))
    repair_dropout_rate: Float64Array | None = None
    remedy: str | None = None
    caveats: tuple[str, ...] = ()
    inputs: Mapping[str, Float64Array | None] = field(default_factory=dict)
    event: str | None = None

    _arrays = (
        "gap",
        "loss_range",
        "empirical_risk",
        "delta",
        "applicable",
        "repair_dropout_rate",
    )

    @property
    def shape(self) -> tuple[int, ...]:
        """Common shape of the arrays; ``()`` for scalars."""
        return np.shape(self.gap)

    @property
    def risk(self) -> Float64Array | None:
        """Upper bound on the population risk, rounded upward; None without an empirical risk."""
        if self.empirical_risk is None:
            return None
        with np.errstate(over="ignore"):
            total = self.empirical_risk + self.gap
            return round_up(total, np.abs(self.empirical_risk) + np.abs(self.gap))[()]

    @property
    def vacuous(self) -> BoolArray:
        """Whether the bound says nothing that the range of the loss does not say already.

        True where the bound is not applicable, where the gap is at least ``loss_range`` and where
        the risk is (for a loss whose smallest value is 0, or slightly above it).
        """
        empty = ~np.asarray(self.applicable) | (np.asarray(self.gap) >= self.loss_range)
        if self.risk is not None:
            empty = empty | (np.asarray(self.risk) >= self.loss_range)
        return np.asarray(empty)[()]

    @property
    def kind(self) -> Any:
        """``certificate``, ``plug-in`` or ``not applicable``: a str, or an array of them."""
        return _kind(self.applicable, self.certified)

    @property
    def free_parameters(self) -> tuple[str, ...]:
        """Names of the inputs that an analyst picks and nothing measures."""
        given = (name for name, value in self.inputs.items() if value is not None)
        return tuple(sorted(_CHOSEN.intersection(given)))

    @property
    def depends_on_dropout_rate(self) -> bool:
        """Whether the number itself changes with the dropout rate."""
        return self.inputs.get("dropout_rate") is not None

    def restricted_to(self, stability: StabilityResult) -> "BoundResult":
        """The same bound for a stability that was itself derived: it inherits its standing.

        Where the stability is not applicable neither is the bound; it is certified only if
        both are.
        """
        applicable = np.asarray(self.applicable) & stability.applicable
        return replace(
            self,
            gap=np.where(applicable, self.gap, np.inf),
            applicable=applicable,
            certified=self.certified and stability.certified,
            failed_hypothesis=stability.failed_hypothesis or self.failed_hypothesis,
            repair_dropout_rate=stability.repair_dropout_rate,
            remedy=stability.remedy or self.remedy,
            hypotheses=(*self.hypotheses, *stability.hypotheses),
            inputs={**stability.inputs, **self.inputs},
        )

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able mapping per element, in C order; numbers that are not finite are None.

        The reason and the repair are given only for the elements that are not applicable.
        """
        shape, risk = self.shape, self.risk
        table = []
        for at, numbers in zip(np.ndindex(shape), self._input_rows(shape), strict=True):
            failed = not np.asarray(self.applicable)[at]
            repair = self.repair_dropout_rate
            table.append(
                {
                    "bound": self.bound,
                    "title": self.title,
                    "gap": _plain("gap", np.asarray(self.gap)[at]),
                    "risk": None if risk is None else _plain("risk", np.asarray(risk)[at]),
                    "predictor": self.predictor,
                    "kind": str(np.asarray(self.kind)[at]),
                    "statement": self.statement,
                    "vacuous": bool(np.asarray(self.vacuous)[at]),
                    "source": self.source,
                    "failed_hypothesis": self.failed_hypothesis if failed else None,
                    "repair_dropout_rate": _plain("repair", np.asarray(repair)[at])
                    if failed and repair is not None
                    else None,
                    "remedy": self.remedy if failed else None,
                    "caveats": list(self.caveats),
                    **numbers,
                }
            )
        return table
