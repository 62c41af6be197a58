"""Figure 6: full measurements against the theory, over the dropout rate.

Reads   paper_figures/records/measured/*.json
Writes  paper_figures/out/fig06_measured_against_theory.{csv,pdf,png}
Run     python -m paper_figures.fig06_measured_against_theory     (CPU, seconds)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import RC
from lodrop_theory import BoundResult, Estimate, RunRecord, evaluate_record, looseness
from lodrop_theory.measured_stability import measured_stability_bounds
from paper_figures import _measured_panels
from paper_figures._comparison import DELTA, OUT, write_points
from paper_figures._measured import RECORDS, read
from paper_figures._measured_panels import CURVATURES, METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plotted number.

    Attributes:
        panel: ``a`` (pointwise stability), ``b`` (gap and bounds), ``c`` (looseness) or ``d``
            (curvature and penalty).
        series: The method (a), the gap, the range of the loss or a bound, with the method behind
            it (b), a level (c), or the field of the record (d).
        dropout_rate: p.
        value: Nats (a, b), log10 of the level over the measured gap (c), nats per parameter^2 (d);
            infinite where a hypothesis fails, nan where there is no number.
        low: Lower end of the interval (a, d, the gap), or the bound at the lower ends of the
            intervals of its inputs; nan where there is none.
        high: Upper end, or the bound at the upper ends.
        kind: ``measured`` with the provenance, or the kind of the bound.
        n_draws: Examples, draws or steps behind a measured number; 0 elsewhere.
        log10_factor: In c, log10 of the level above over this one; nan elsewhere and where there
            is none, infinite for the first level with a number.
    """

    panel: str
    series: str
    dropout_rate: float
    value: float
    low: float
    high: float
    kind: str
    n_draws: int = 0
    log10_factor: float = math.nan


def compute(records: Path = RECORDS) -> list[Point]:
    """Turn the records into the plotted numbers; no drawing here."""
    runs = read(records)
    panels: tuple[Callable[[RunRecord], list[Point]], ...]
    panels = (_stabilities, _bounds, _levels, _curvatures)
    return [point for panel in panels for run in runs for point in panel(run)]


def _estimate(panel: str, series: str, rate: float, found: Estimate) -> Point:
    return Point(
        panel=panel,
        series=series,
        dropout_rate=rate,
        value=found.value,
        low=math.nan if found.low is None else found.low,
        high=math.nan if found.high is None else found.high,
        kind=f"measured, {found.provenance}",
        n_draws=found.n_draws,
    )


def _stabilities(run: RunRecord) -> list[Point]:
    known = {} if run.stability is None else run.stability.estimates
    rate = run.dropout_rate
    return [
        _estimate("a", method, rate, known[method].pointwise_stability)
        if method in known
        else _without("a", method, rate)
        for method in METHODS
    ]


def _without(panel: str, series: str, rate: float) -> Point:
    nan = math.nan
    return Point(
        panel=panel,
        series=series,
        dropout_rate=rate,
        value=nan,
        low=nan,
        high=nan,
        kind="not measured",
    )


def _bounds(run: RunRecord) -> list[Point]:
    """The gap of the mean predictor; bounds at the values of what was measured, and at its ends.

    Of the refits where there are any: not where the solution without an example is no minimum.
    """
    rate = run.dropout_rate
    known = {} if run.stability is None else run.stability.estimates
    method = next((m for m in ("refit", "newton", "gauss-newton") if m in known), None)
    proved = {(b.bound, b.predictor): b for b in evaluate_record(run, delta=DELTA)}
    ends: tuple[Callable[[Estimate], float], ...] = (
        lambda estimate: estimate.value,
        lambda estimate: estimate.lower,
        lambda estimate: estimate.upper,
    )
    middle, low, high = (
        {b.bound: b for b in measured_stability_bounds(run, delta=DELTA, end=end)} for end in ends
    )
    wanted = [f"{form}/{method}" for form in ("two-stability", "l2-stability", "expectation")]
    return [
        _estimate("b", "gap", rate, run.predictors["mean"].generalization_gap),
        _estimate("b", "loss range", rate, run.loss_range),
        *(_bound(rate, proved[name, "mean"]) for name in ("hold-out", "lin2024")),
        *(
            _bound(rate, middle[name], float(low[name].gap), float(high[name].gap))
            for name in wanted
            if name in middle
        ),
    ]


def _bound(rate: float, bound: BoundResult, low: float = math.nan, high: float = math.nan) -> Point:
    return Point(
        panel="b",
        series=bound.bound,
        dropout_rate=rate,
        value=float(bound.gap),
        low=low,
        high=high,
        kind=str(bound.kind),
    )


def _levels(run: RunRecord) -> list[Point]:
    """Levels over the measured gap; no numbers where it is not positive."""
    found = looseness(run, delta=DELTA)
    gap, rate = found.gap.value, run.dropout_rate
    points = []
    for link in found:
        if gap <= 0 or link.value is None or link.value <= 0:
            points.append(_without("c", link.level, rate))
            continue
        points.append(
            Point(
                panel="c",
                series=link.level,
                dropout_rate=rate,
                value=math.log10(link.value) - math.log10(gap),
                low=math.nan,
                high=math.nan,
                kind="not applicable" if math.isinf(link.value) else "level",
                log10_factor=math.nan if link.log10 is None else link.log10,
            )
        )
    return points


def _curvatures(run: RunRecord) -> list[Point]:
    found = {name: getattr(run, name) for name in CURVATURES}
    return [
        _estimate("d", name, run.dropout_rate, estimate)
        for name, estimate in found.items()
        if estimate is not None
    ]


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 6.0), layout="constrained")
        grid = figure.subplots(2, 2)
        panels = (
            _measured_panels.draw_stabilities,
            _measured_panels.draw_bounds,
            _measured_panels.draw_levels,
            _measured_panels.draw_curvatures,
        )
        for axes, panel, name in zip(grid.flat, panels, "abcd", strict=True):
            panel(axes, [p for p in points if p.panel == name])
    return figure


def main(records: Path = RECORDS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
