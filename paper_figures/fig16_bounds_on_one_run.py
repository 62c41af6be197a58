"""Figure 16: every bound on one measured run, beside the gap that it bounds.

The run at p = 0.5 of the full measurements; losses are smoothed cross-entropy, delta = 0.05.

Reads   paper_figures/records/measured/*.json, the one at p = 0.5
Writes  paper_figures/out/fig16_bounds_on_one_run.{csv,pdf,png}
Run     python -m paper_figures.fig16_bounds_on_one_run     (CPU, seconds)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, MARKERS, RC
from lodrop_theory.evaluate import evaluate_record
from paper_figures import _measured, tab04_bound_table
from paper_figures._comparison import DELTA, OUT, write_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
PREDICTORS = ("mean", "ensemble", "gibbs")
OTHER_LOSS = ("0-1", "clopper-pearson")  # in another unit than the gap
SOURCES = {
    "": "from data alone, or from curvature",
    "retrain": "stability of the run, repeated",
    "refit": "stability near the solution, refits",
    "gauss-newton": "the same, Gauss-Newton",
    "transverse": "curvature across the gauge",
    "dropout": "curvature under masks",
}
FIRST = ("", "transverse", "dropout", "retrain", "refit", "gauss-newton")
NOTHING = "not applicable"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One bound, or the measured gap of a predictor.

    Attributes:
        source: Where its stability comes from; empty for none.
        name: The bound's name, or ``measured gap``.
        predictor: What it is about.
        kind: ``certificate``, ``plug-in``, ``not applicable`` or ``measured``.
        vacuous: Whether it is above what any predictor has.
        value: Nats; infinite where not applicable.
        low: Lower end of the interval of a measured gap; NaN for bounds.
        high: Upper end.
    """

    source: str
    name: str
    predictor: str
    kind: str
    vacuous: bool
    value: float
    low: float
    high: float


def compute(records: Path = _measured.RECORDS) -> list[Point]:
    """The bounds that the record has the numbers for, by source; no drawing here."""
    run = tab04_bound_table.record(records)
    points = []
    for predictor in PREDICTORS:
        gap = run.predictors[predictor].generalization_gap  # type: ignore[index]
        points.append(
            Point(
                source="",
                name="measured gap",
                predictor=predictor,
                kind="measured",
                vacuous=False,
                value=gap.value,
                low=gap.lower,
                high=gap.upper,
            )
        )
    found = []
    for bound in evaluate_record(run, delta=DELTA):
        name, _, source = bound.bound.partition("/")
        if name in OTHER_LOSS or source.startswith(OTHER_LOSS) or source not in SOURCES:
            continue
        found.append(
            Point(
                source=source,
                name=name,
                predictor=str(bound.predictor),
                kind=str(bound.kind),
                vacuous=bool(bound.vacuous),
                value=float(bound.gap),
                low=math.nan,
                high=math.nan,
            )
        )
    return [*points, *sorted(found, key=lambda p: FIRST.index(p.source))]


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    bounds = [p for p in points if p.kind != "measured"]
    rows = list(dict.fromkeys((p.source, p.name) for p in bounds))
    top = 3 * max(p.value for p in bounds if math.isfinite(p.value))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 0.9 + 0.155 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for p in (p for p in points if p.kind == "measured"):
            axes.axvspan(p.low, p.high, color=COLORS[p.predictor], alpha=0.12, lw=0)
            axes.axvline(p.value, color=COLORS[p.predictor], lw=1, ls=(0, (4, 1.5)))
        for p in bounds:
            y = rows.index((p.source, p.name))
            if math.isinf(p.value):
                axes.text(top, y, NOTHING, size=6.5, ha="right", va="center", color="0.4")
                continue
            face = COLORS[p.predictor] if p.kind == "certificate" else "white"
            style: dict[str, Any] = {"marker": MARKERS[p.predictor], "color": COLORS[p.predictor]}
            axes.plot(p.value, y, mfc=face, ls="none", ms=4, **style)
            if p.vacuous:
                axes.plot(p.value, y, marker="x", ms=3, color="black", mew=0.7)
        _decorate(figure, axes, rows, top)
    return figure


def _decorate(figure: "Figure", axes: Any, rows: Sequence[tuple[str, str]], top: float) -> None:
    from matplotlib.lines import Line2D

    axes.set_xscale("log")
    axes.set_xlim(0.1, top)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [name for _, name in rows])
    axes.tick_params(axis="y", length=0)
    sources = [source for source, _ in rows]
    for source in dict.fromkeys(sources):
        start = sources.index(source)
        if start:
            axes.axhline(start - 0.5, color="0.8", lw=0.6)
        box = {"facecolor": "white", "lw": 0, "pad": 1}
        axes.text(0.103, start, SOURCES[source], size=6, color="0.25", va="center", bbox=box)
    axes.set_xlabel("gap at most (nats); dashed: measured gaps with 95% intervals")
    handles = [
        Line2D([], [], color=COLORS[name], marker=MARKERS[name], ls="none", label=name)
        for name in PREDICTORS
    ]
    looks: dict[str, dict[str, Any]] = {"certificate": {"mfc": "0.4"}, "plug-in": {"mfc": "white"}}
    handles += [
        Line2D([], [], color="0.4", marker="o", ls="none", label=label, **look)
        for label, look in looks.items()
    ]
    cross: dict[str, Any] = {"color": "black", "marker": "x", "ms": 3, "mew": 0.7}
    handles.append(Line2D([], [], ls="none", label="vacuous", **cross))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))


def main(records: Path = _measured.RECORDS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
