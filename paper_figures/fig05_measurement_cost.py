"""Figure 5: what a full measurement costs, part by part, and a Hessian product beside curvlinops.

Reads   tests/benchmarks/records/{measure,curvature}.json
Writes  paper_figures/out/fig05_measurement_cost.{csv,pdf,png}
Run     python -m paper_figures.fig05_measurement_cost     (CPU, seconds)
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, RC
from paper_figures._comparison import BENCHMARKS, OUT, write_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem

PANELS = {
    "n_train": ("a", "training rows $n$"),
    "n_parameters": ("b", "trained parameters"),
}
# Axis: what stays fixed along it.
FIXED = {"n_train": ("rank", "r"), "n_parameters": ("n_train", "n")}
# Parts of a measurement, as they are called in the record and in the figure.
PARTS: dict[str, dict[str, Any]] = {
    "whole": {"color": "black", "marker": "o", "label": "whole"},
    "stability": {"color": COLORS["bound"], "marker": "v", "label": "stability"},
    "curvature": {"color": COLORS["ensemble"], "marker": "^", "label": "curvature"},
    "predict test": {"color": COLORS["mean"], "marker": "D", "label": "held-out predictions"},
    "predict train": {"color": COLORS["hold-out"], "marker": "s", "label": "training predictions"},
    "gradients": {"color": COLORS["gibbs"], "marker": "P", "label": "gradients"},
    "posterior": {"color": "#CC79A7", "marker": "X", "label": "posterior"},
    "scores": {"color": "0.5", "marker": "*", "label": "scores"},
}
# Not the product with graphs rebuilt: its time holds what surrounds a pass, which ours does not.
PRODUCTS = {"lodrop": "ours", "curvlinops": "curvlinops"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plotted number.

    Attributes:
        panel: ``a`` (over n), ``b`` (over the trained parameters) or ``c`` (one Hessian product).
        series: Part of the measurement, or the implementation of the product.
        fixed: What is the same at each x of the panel.
        x: n or the number of trained parameters; nan in panel c.
        value: Seconds of the processor; in panel c time over that of our product.
        low: Lower end of the 95% interval in panel c; nan elsewhere, each size is measured once.
        high: Upper end.
        exponent: Slope of the line through the logarithms; nan in panel c.
        fitted: The seconds on that line; nan in panel c.
    """

    panel: str
    series: str
    fixed: str
    x: float
    value: float
    low: float
    high: float
    exponent: float
    fitted: float


def _seconds(record: dict[str, Any], axis: str) -> list[Point]:
    """The parts that the record has an exponent for: those of a hundredth of the whole or more."""
    runs = record["runs"][axis]
    sizes = [float(run[axis]) for run in runs]
    name, symbol = FIXED[axis]
    fixed = ", ".join(f"{symbol} = {value}" for value in sorted({run[name] for run in runs}))
    points = []
    for part in PARTS:
        if part not in record["exponents"][axis]:
            continue
        exponent = record["exponents"][axis][part]
        seconds = [
            math.fsum(run["seconds"].values()) if part == "whole" else run["seconds"][part]
            for run in runs
        ]
        # A least-squares line goes through the mean of the logarithms.
        middle = math.fsum(map(math.log, sizes)) / len(sizes)
        height = math.fsum(map(math.log, seconds)) / len(seconds)
        points += [
            Point(
                panel=PANELS[axis][0],
                series=part,
                fixed=fixed,
                x=size,
                value=value,
                low=math.nan,
                high=math.nan,
                exponent=exponent,
                fitted=math.exp(height + exponent * (math.log(size) - middle)),
            )
            for size, value in zip(sizes, seconds, strict=True)
        ]
    return points


def _products(record: dict[str, Any]) -> list[Point]:
    return [
        Point(
            panel="c",
            series=name,
            fixed=f"n = {record['product']['n_train']}",
            x=math.nan,
            value=found["ratio"],
            low=found["low"],
            high=found["high"],
            exponent=math.nan,
            fitted=math.nan,
        )
        for name, found in ((each, record["product"]["ratio_to_lodrop"][each]) for each in PRODUCTS)
    ]


def compute(records: Path = BENCHMARKS) -> list[Point]:
    """Turn the records into the plotted numbers; no drawing here."""
    measure, curvature = (
        json.loads((records / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("measure", "curvature")
    )
    seconds = [point for axis in PANELS for point in _seconds(measure, axis)]
    return [*seconds, *_products(curvature)]


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
        middle.sharey(left)
        for axes, (panel, label) in zip((left, middle), PANELS.values(), strict=True):
            _draw_seconds(axes, [p for p in points if p.panel == panel])
            axes.set_xlabel(label)
            axes.set_title(
                f"{panel}  full measurement, {_fixed(points, panel)}", size=8, loc="left"
            )
        left.set_ylabel("seconds of one core")
        middle.tick_params(axis="y", labelleft=False)
        _draw_products(right, [p for p in points if p.panel == "c"])
        _legend(figure, points)
    return figure


def _fixed(points: Sequence[Point], panel: str) -> str:
    return next(p.fixed for p in points if p.panel == panel)


def _draw_seconds(axes: Any, points: Sequence[Point]) -> None:
    sizes = sorted({p.x for p in points})
    for part, style in PARTS.items():
        chosen = [p for p in points if p.series == part]
        look = {"color": style["color"], "marker": style["marker"]}
        x = [p.x for p in chosen]
        axes.plot(x, [p.fitted for p in chosen], color=style["color"], lw=0.8, ls="--")
        axes.plot(x, [p.value for p in chosen], ls="none", ms=3.5, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.12)
    axes.set_xticks(sizes, [f"{x:,.0f}" for x in sizes])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


def _legend(figure: "Figure", points: Sequence[Point]) -> None:
    """The parts with their exponents in a and in b; a dash where the part is too small for one."""
    from matplotlib.lines import Line2D

    handles = []
    for part, style in PARTS.items():
        known = {p.panel: f"{p.exponent:.2f}" for p in points if p.series == part}
        known = {panel: text.replace("-", "−") for panel, text in known.items()}
        if known:
            slopes = ", ".join(known.get(panel, "–") for panel, _ in PANELS.values())
            look = {"color": style["color"], "marker": style["marker"]}
            label = f"{style['label']} ({slopes})"
            handles.append(Line2D([], [], ls="--", lw=0.8, ms=3.5, label=label, **look))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        columnspacing=1,
        title="part of the measurement (exponents of the dashed lines in a, in b)",
        title_fontsize=6.5,
    )


def _draw_products(axes: Any, points: Sequence[Point]) -> None:
    order = list(PRODUCTS)
    for point in points:
        y = order.index(point.series)
        ours = point.series != "curvlinops"
        color = COLORS["ensemble" if ours else "bound"]
        axes.plot([point.low, point.high], [y, y], color=color, lw=1.2)
        axes.plot([point.value], [y], "o" if ours else "s", color=color, ms=3.5)
        axes.annotate(
            f"{point.value:.2f}",
            (point.value, y),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            size=6.5,
        )
    axes.axvline(1, color="0.8", lw=0.8, zorder=0)
    axes.margins(x=0.15)
    axes.set_xlim(0, None)
    axes.set_yticks(range(len(order)), list(PRODUCTS.values()))
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlabel("time over that of ours")
    axes.set_title(f"c  Hessian product, {_fixed(points, 'c')}", size=8, loc="left")


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
