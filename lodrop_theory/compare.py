r"""Bounds side by side, and the smallest of several: what that costs and when it is free.

*One table.* :func:`compare` puts results about whatever predictors into one tidy table: a row for
each element of each result, the same columns in every row.

*The smallest of k.* A bound that holds with probability :math:`1 - \delta` fails by an event.
Taking the smallest after seeing all is free where the events are nested or the same, and costs a
union where they are not:

* Bounds :math:`R - \hat R \le c_j` with constants fixed before the sample is seen (every bound from
  a stability) fail by :math:`\{R - \hat R > c_j\}`. These are nested; which constant is smallest
  is known in advance. Free.
* Bounds that are derived from one inequality (PAC-Bayes-kl and its closed forms; the two
  compression bounds) fail only where it does. Free.
* Anything else (hold-out beside PAC-Bayes, two priors, leave-one-out beside training risk): k
  different events, and the smallest fails where any of them does. The failure probabilities add up.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, check_failure_probability
from lodrop_theory._numerics import round_down, round_up
from lodrop_theory.results import SAME_GAP, BoundResult

FIXED_COLUMNS = (
    "bound",
    "title",
    "predictor",
    "statement",
    "kind",
    "gap",
    "risk",
    "vacuous",
    "delta",
    "empirical_risk",
    "loss_range",
    "free_parameters",
    "depends_on_dropout_rate",
    "failed_hypothesis",
    "repair_dropout_rate",
    "remedy",
    "hypotheses",
    "caveats",
    "source",
)
_PRINTED = ("bound", "gap", "risk", "predictor", "statement", "kind", "vacuous")


@dataclass(frozen=True)
class BoundTable:
    """A tidy table of bounds: rows are JSON-able mappings with the same keys in the same order.

    Attributes:
        columns: Names of the columns: fixed ones first, then every input that a bound read.
        rows: One mapping per element of each result; None where a bound has no such number,
            and where a number is not finite.
    """

    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def to_pandas(self) -> Any:
        """The table as a ``pandas.DataFrame``.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise ImportError("`to_pandas` needs pandas: pip install pandas") from None
        return pandas.DataFrame(list(self.rows), columns=list(self.columns))

    def __str__(self) -> str:
        lines = [_PRINTED, *(tuple(_text(name, row) for name in _PRINTED) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(_PRINTED))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def _text(name: str, row: dict[str, Any]) -> str:
    value = row[name]
    if value is None:
        # no empirical risk, or no finite bound
        return "inf" if name == "gap" or row["empirical_risk"] is not None else "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(results: Iterable[BoundResult | Iterable[BoundResult]]) -> list[BoundResult]:
    flat: list[BoundResult] = []
    for each in results:
        flat.extend([each] if isinstance(each, BoundResult) else each)
    for each in flat:
        if not isinstance(each, BoundResult):
            raise TypeError(f"`results` must be bounds, got {each!r}.")
    return flat


def compare(*results: BoundResult | Iterable[BoundResult]) -> BoundTable:
    """One tidy table of bounds.

    Args:
        results: Bounds, or iterables of them (the lists that other functions return).

    Returns:
        A table with a row per element, in the order given. Risks of different predictors stand in
        different rows and are not comparable; the column ``predictor`` tells them apart.

    Raises:
        TypeError: If something else than a bound is among them.

    Example:
        >>> from lodrop_theory.bounds.hold_out import hold_out_bound, hold_out_kl_bound
        >>> from lodrop_theory.inputs import HoldOutInputs
        >>> inputs = HoldOutInputs(n_test=1000, loss_range=1, delta=0.05, held_out_risk=0.02)
        >>> both = (hold_out_bound, hold_out_kl_bound)
        >>> print(compare(f(inputs, predictor="mean") for f in both))
        bound        gap      risk     predictor  statement    kind     vacuous
        hold-out     0.0387   0.0587   mean       probability  plug-in  no
        hold-out-kl  0.01281  0.03281  mean       probability  plug-in  no
    """
    rows: list[dict[str, Any]] = []
    for result in _flat(results):
        shared = {
            "free_parameters": list(result.free_parameters),
            "depends_on_dropout_rate": result.depends_on_dropout_rate,
            "hypotheses": list(result.hypotheses),
        }
        base = np.broadcast_to(
            np.nan if result.empirical_risk is None else result.empirical_risk, result.shape
        )
        length = np.broadcast_to(result.loss_range, result.shape)
        for row, start, c in zip(result.rows(), base.flat, length.flat, strict=True):
            known = {"empirical_risk": None if np.isnan(start) else float(start)}
            rows.append({**row, **shared, **known, "loss_range": float(c)})
    read = sorted({name for row in rows for name in row} - set(FIXED_COLUMNS))
    columns = (*FIXED_COLUMNS, *read)
    return BoundTable(columns, tuple({name: row.get(name) for name in columns} for row in rows))


def _equal(one: ArrayLike | None, other: ArrayLike | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.array_equal(one, other))


def _share_event(one: BoundResult, other: BoundResult) -> bool:
    if one.event is None or one.event != other.event:
        return False
    if not _equal(one.empirical_risk, other.empirical_risk):
        return False
    common = set(one.inputs) & set(other.inputs)
    read = common & {"n_train"} if one.event == SAME_GAP else common
    return all(_equal(one.inputs[name], other.inputs[name]) for name in read)


def _events(results: Sequence[BoundResult]) -> list[list[BoundResult]]:
    groups: list[list[BoundResult]] = []
    for result in results:
        home = next((g for g in groups if _share_event(g[0], result)), None)
        groups.append([result]) if home is None else home.append(result)
    return groups


def _price(results: Sequence[BoundResult]) -> Float64Array:
    """Failure probability of all at once: the sum over events of the largest delta in each."""
    total = np.asarray(0.0)
    for group in _events(results):
        deltas = [np.asarray(r.delta) for r in group if r.delta is not None]
        most = deltas[0]
        for each in deltas[1:]:
            most = np.maximum(most, each)
        total = total + most
    return total if len(_events(results)) == 1 else np.asarray(round_up(total))


def _check_comparable(results: Sequence[BoundResult]) -> None:
    if not results:
        raise ValueError("`results` must hold at least one bound, got none.")
    for name in ("predictor", "statement"):
        values = {getattr(r, name) for r in results}
        if len(values) > 1:
            raise ValueError(f"`results` must have one {name}, got {sorted(values)}.")
    if len({r.risk is None for r in results}) > 1:
        raise ValueError("`results` must all have an empirical risk or none of them, got both.")


def minimum(*results: BoundResult | Iterable[BoundResult]) -> BoundResult:
    r"""The smallest of several bounds, at the failure probability that this choice has.

    Args:
        results: Bounds of one predictor and one kind of statement, with their own delta each.

    Returns:
        The smallest risk (the smallest gap where there is no empirical risk), element by element.
        Its ``delta`` is the sum over *different* failure events of the largest delta in each, so
        that bounds which share an event cost nothing: see the top of this module. It is
        certified if every bound that is smallest somewhere is.

    Raises:
        ValueError: If the bounds are about different predictors or statements, or their failure
            probabilities add up to 1 or more.

    Example:
        Two bounds of one stability cost one delta; the hold-out bound beside them one more:

        >>> from lodrop_theory.bounds.bousquet2002 import uniform_bound
        >>> from lodrop_theory.bounds.bousquet2020 import uniform_log_bound
        >>> from lodrop_theory.bounds.hold_out import hold_out_bound
        >>> from lodrop_theory.inputs import HoldOutInputs, UniformStabilityInputs
        >>> inputs = UniformStabilityInputs(
        ...     n_train=1000, loss_range=1, delta=0.05, uniform_stability=0.01, empirical_risk=0.1
        ... )
        >>> pair = [uniform_bound(inputs), uniform_log_bound(inputs)]
        >>> float(minimum(pair).delta)
        0.05
        >>> tested = HoldOutInputs(n_test=1000, loss_range=1, delta=0.05, held_out_risk=0.15)
        >>> round(float(minimum(pair, hold_out_bound(tested, predictor="mean")).delta), 12)
        0.1
    """
    flat = _flat(results)
    _check_comparable(flat)
    shape = np.broadcast_shapes(*(r.shape for r in flat))
    delta: Float64Array | None = None
    if flat[0].statement == "probability":
        delta = _price(flat)
        if np.any(delta >= 1):
            raise ValueError(
                f"the failure probabilities of `results` must add up to less than 1, got {delta}."
            )
    sizes = [np.broadcast_to(r.gap if r.risk is None else r.risk, shape) for r in flat]
    winner = np.argmin(sizes, axis=0)
    winners = [flat[i] for i in sorted({int(i) for i in np.ravel(winner)})]

    def pick(name: str) -> Float64Array:
        columns = [np.broadcast_to(getattr(r, name), shape) for r in flat]
        chosen = np.take_along_axis(np.stack(columns), np.asarray(winner)[None], axis=0)[0]
        return np.asarray(chosen)

    first = flat[0]
    names = ", ".join(r.bound for r in flat)
    free = "they share one event: no union" if delta is not None and _is_free(flat) else None
    if delta is not None and free is None:
        free = f"{len(_events(flat))} different events: their failure probabilities are added"
    agreed = {
        name: value
        for name, value in first.inputs.items()
        if all(name in r.inputs and _equal(r.inputs[name], value) for r in flat)
    }
    with_risk = first.empirical_risk is not None
    return replace(
        first,
        bound="minimum",
        title=f"Smallest of: {names}",
        source="; ".join(dict.fromkeys(r.source for r in flat)),
        gap=pick("gap"),
        loss_range=pick("loss_range"),
        empirical_risk=pick("empirical_risk") if with_risk else None,
        delta=delta,
        certified=all(r.certified for r in winners),
        applicable=np.asarray(pick("applicable"), dtype=bool),
        failed_hypothesis=next((r.failed_hypothesis for r in winners if r.failed_hypothesis), None),
        repair_dropout_rate=None,
        remedy=next((r.remedy for r in winners if r.remedy), None),
        hypotheses=tuple(dict.fromkeys(h for r in winners for h in r.hypotheses)),
        caveats=(
            *dict.fromkeys(c for r in winners for c in r.caveats),
            *(() if free is None else (f"smallest of {len(flat)} bounds; {free}",)),
        ),
        inputs={**agreed, **({} if delta is None else {"delta": delta})},
        event=first.event if _is_free(flat) else None,
    )


def _is_free(results: Sequence[BoundResult]) -> bool:
    return len(_events(results)) == 1


def minimum_at(
    bounds: Sequence[Callable[[Float64Array], BoundResult]], *, delta: ArrayLike
) -> BoundResult:
    """The smallest of several bounds with failure probability delta in all.

    Args:
        bounds: Functions from a failure probability to a bound; which bound (and which event it
            fails by) must not depend on it.
        delta: Failure probability of the whole statement, in (0, 1).

    Returns:
        :func:`minimum` of the bounds at delta / k, k being the number of different events. With
        k = 1 nothing is paid.

    Raises:
        ValueError: If ``delta`` is outside (0, 1), or the bounds are not comparable.

    Example:
        >>> from lodrop_theory.bounds.hold_out import hold_out_bound, hold_out_kl_bound
        >>> from lodrop_theory.inputs import HoldOutInputs
        >>> def test_set(delta):
        ...     return HoldOutInputs(n_test=1000, loss_range=1, delta=delta, held_out_risk=0.02)
        >>> both = minimum_at(
        ...     [
        ...         lambda delta: hold_out_bound(test_set(delta), predictor="mean"),
        ...         lambda delta: hold_out_kl_bound(test_set(delta), predictor="mean"),
        ...     ],
        ...     delta=0.05,
        ... )
        >>> both.title, bool(both.delta <= 0.05)
        ('Smallest of: hold-out, hold-out-kl', True)
    """
    whole = check_failure_probability("delta", delta)
    full = [bound(whole) for bound in bounds]
    _check_comparable(full)
    events = len(_events(full))
    if events == 1:
        return minimum(full)
    share = np.asarray(round_down(whole / events))
    return minimum(bound(share) for bound in bounds)


__all__ = ["BoundTable", "compare", "minimum", "minimum_at"]
