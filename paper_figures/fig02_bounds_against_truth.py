"""Figure 2: the bounds against exact truth: over the dropout rate, their slack, their coverage.

Reads   paper_figures/records/theory/{rates,slack,coverage}.csv
Writes  paper_figures/out/fig02_bounds_against_truth.{csv,pdf,png}
Run     python -m paper_figures.fig02_bounds_against_truth     (CPU, seconds)
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, RC
from paper_figures._comparison import OUT, write_points
from paper_figures.truth_records import PRINTED, RECORDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
LEFTMOST = 0.01  # where the axis of panel c ends, in units of delta

# Series of panel a: what is drawn, and how.
LINES: dict[str, dict[str, Any]] = {
    "lin2024": {"color": COLORS["bound"], "ls": "-", "label": "Theorem 4.4"},
    "l2-stability, curvature": {
        "color": COLORS["ensemble"],
        "ls": "--",
        "label": "mean-square, same inputs",
    },
    "two-stability, exact": {
        "color": COLORS["gibbs"],
        "ls": "-",
        "label": "repaired lemma, exact stabilities",
    },
    "l2-stability, exact": {
        "color": COLORS["ensemble"],
        "ls": "-",
        "label": "mean-square, exact stabilities",
    },
    "truth": {"color": COLORS["floor"], "ls": "-", "label": "exact 95% quantile of the gap"},
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plotted number with its interval.

    Attributes:
        panel: ``a``, ``b``, ``c`` (counted) or ``c exact`` (enumerated).
        series: Name of a bound, ``truth`` or ``loss range``.
        x: Dropout rate in panel a; nan elsewhere.
        value: Gap (a), median slack (b), probability of a violation over delta (c), the largest.
        low: Lower quartile (b) or lower end of the 95% interval (c); the value itself in a.
        high: Upper quartile or upper end.
        least: Least slack in panel b; the value itself elsewhere.
        most: Greatest slack in panel b; the value itself elsewhere.
    """

    panel: str
    series: str
    x: float
    value: float
    low: float
    high: float
    least: float
    most: float


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _over_rates(rows: Sequence[dict[str, str]]) -> list[Point]:
    points = []
    for row in rows:
        x = float(row["dropout_rate"])
        wanted = [(row["contender"], float(row["gap"]))] if row["contender"] in LINES else []
        if row["contender"] == "lin2024":  # once per rate
            wanted += [("truth", float(row["truth"])), ("loss range", float(row["loss_range"]))]
        points += [
            Point(panel="a", series=s, x=x, value=v, low=v, high=v, least=v, most=v)
            for s, v in wanted
        ]
    return points


def _slack(rows: Sequence[dict[str, str]]) -> list[Point]:
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["slack"] and row["statement"] == "probability":
            values.setdefault(row["contender"], []).append(float(row["slack"]))
    points = []
    for name, slacks in values.items():
        least, low, middle, high, most = np.quantile(slacks, [0, 0.25, 0.5, 0.75, 1]).tolist()
        points.append(
            Point(
                panel="b",
                series=name,
                x=math.nan,
                value=middle,
                low=low,
                high=high,
                least=least,
                most=most,
            )
        )
    return sorted(points, key=lambda point: -point.value)


def _coverage(rows: Sequence[dict[str, str]]) -> list[Point]:
    """Per bound, the population and the delta with the largest rate of violations over delta."""
    worst: dict[str, Point] = {}
    for row in rows:
        delta, draws = float(row["delta"]), int(row["n_draws"])
        value = int(row["violations"]) / draws / delta
        point = Point(
            panel="c",
            series=row["contender"],
            x=math.nan,
            value=value,
            low=float(row["low"]) / delta,
            high=float(row["high"]) / delta,
            least=value,
            most=value,
        )
        if point.series not in worst or point.high > worst[point.series].high:
            worst[point.series] = point
    return list(worst.values())


def _largest_violation(rows: Sequence[dict[str, str]]) -> list[Point]:
    """Per bound, the largest exact probability of a violation over delta, among all problems."""
    largest: dict[str, float] = {}
    for row in rows:
        if row["violation"]:
            ratio = float(row["violation"]) / float(row["delta"])
            largest[row["contender"]] = max(ratio, largest.get(row["contender"], 0.0))
    return [
        Point(panel="c exact", series=s, x=math.nan, value=v, low=v, high=v, least=v, most=v)
        for s, v in largest.items()
    ]


def compute(records: Path = RECORDS) -> list[Point]:
    """Turn the records into the plotted numbers; no drawing here."""
    return [
        *_over_rates(_read(records / "rates.csv")),
        *_slack(_read(records / "slack.csv")),
        *_coverage(_read(records / "coverage.csv")),
        *_largest_violation(_read(records / "slack.csv")),
    ]


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 3.7), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 0.85))
        _draw_rates(left, [p for p in points if p.panel == "a"])
        order = [p.series for p in points if p.panel == "b"] + [PRINTED]
        _draw_slack(middle, [p for p in points if p.panel == "b"], order)
        _draw_coverage(right, [p for p in points if p.panel.startswith("c")], order)
    return figure


def _draw_rates(axes: Any, points: Sequence[Point]) -> None:
    for series, style in LINES.items():
        chosen = [p for p in points if p.series == series]
        axes.plot([p.x for p in chosen], [p.value for p in chosen], **style)
    length = [p for p in points if p.series == "loss range"]
    axes.fill_between([p.x for p in length], [p.value for p in length], 1e3, color="0.9", zorder=0)
    axes.text(length[-1].x, 1.4, "vacuous", ha="right", va="bottom", size=6.5)
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1e2)
    axes.set_xlabel("dropout rate $p$")
    axes.set_ylabel("bound on $R - \\hat{R}$ at δ = 0.05")
    axes.set_title("a  one problem, K = 4, n = 32", size=8, loc="left")
    axes.legend(loc="lower left")


def _draw_slack(axes: Any, points: Sequence[Point], order: Sequence[str]) -> None:
    for point in points:
        y = order.index(point.series)
        axes.plot([point.least, point.most], [y, y], color="0.7", lw=0.8)
        axes.plot([point.low, point.high], [y, y], color=COLORS["ensemble"], lw=3)
        axes.plot([point.value], [y], "o", color="black", ms=2.5)
    axes.axvline(1, color="black", lw=0.8, ls=":")
    axes.set_xscale("log")
    axes.set_yticks(range(len(order)), order)
    axes.grid(axis="y", color="0.93", zorder=0)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlabel("bound / exact quantile")
    axes.set_title("b  slack, 240 problems", size=8, loc="left")


def _draw_coverage(axes: Any, points: Sequence[Point], order: Sequence[str]) -> None:
    for point in points:
        y, x = order.index(point.series), max(point.value, LEFTMOST)
        if point.panel == "c exact":
            axes.plot([x], [y], "D", color="black", mfc="white", ms=3, clip_on=False, zorder=3)
            continue
        color = COLORS["bound"] if point.series == PRINTED else COLORS["mean"]
        axes.plot([max(point.low, LEFTMOST), point.high], [y, y], color=color, lw=3)
        axes.plot([x], [y], "o", color=color, ms=4, clip_on=False, zorder=2)
    axes.plot([], [], "o-", color=COLORS["mean"], lw=3, label="counted, 4000 draws")
    axes.plot([], [], "D", color="black", mfc="white", ms=3, label="exact, largest")
    axes.axvline(1, color="black", lw=0.8, ls=":")
    axes.set_xscale("log")
    axes.set_xlim(LEFTMOST, 40)
    axes.set_xticks([0.01, 0.1, 1, 10], ["≤ 0.01", "0.1", "1", "10"])
    axes.set_yticks(range(len(order)), [""] * len(order))
    axes.grid(axis="y", color="0.93", zorder=0)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlabel("P(violation) / δ")
    axes.set_title("c  coverage", size=8, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(0.2, 0.98), frameon=True, edgecolor="none")


def main(records: Path = RECORDS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
