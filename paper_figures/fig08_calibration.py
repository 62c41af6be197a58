"""Figure 8: are probabilities to be taken at their word, by the labels and by the votes of people?

Reliability in bins of equal mass, the expected calibration error with what calibrated predictions
of the same sharpness would show, and two panels against the votes on movie reviews: mean share
of positive votes over the predicted probability, and how well uncertainty ranks the sentences by
how far people disagree.

Reads   tests/benchmarks/records/calibration.json
Writes  paper_figures/out/fig08_calibration.{csv,pdf,png}
Run     python -m paper_figures.fig08_calibration     (CPU, seconds)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import RC
from paper_figures._comparison import BENCHMARKS, OUT, write_points
from paper_figures._predictors import PREDICTORS, Key, key_of, mark

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
DATA = ("movie-reviews", "trec", "sarcasm", "trec, 36 epochs")
PEOPLE = "movie-reviews"
# Drawn as curves; the others would hide each other.
CURVES: tuple[Key, ...] = (
    ("lora", "mean", False),
    ("lora", "mean", True),
    ("example-balanced", "mean", False),
    ("example-balanced", "ensemble", False),
    ("peft-lora-dropout", "ensemble", False),
    ("seeds-4", "ensemble", False),
)
RANKS = {"rank_entropy": "entropy", "rank_mutual_information": "mutual information"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mean over seeds with its 95% interval.

    Attributes:
        panel: ``reliability``, ``votes``, ``ece``, ``rank`` or ``ceiling``.
        data: A data set.
        arm: How the adapter was trained.
        predictor: ``mean`` or ``ensemble``; empty for the ceiling.
        tempered: Whether a fitted temperature is applied.
        quantity: ``bin`` and its number, or the name of the measure.
        predicted: Mean confidence, or mean probability of class 1, of a bin; nan elsewhere.
        value: Accuracy, share of votes, error or rank correlation.
        low: Lower end of Student's interval over seeds.
        high: Upper end.
        calibrated: Of an error, its mean if the same probabilities were calibrated; else nan.
        n: Seeds.
    """

    panel: str
    data: str
    arm: str
    predictor: str
    tempered: bool
    quantity: str
    predicted: float
    value: float
    low: float
    high: float
    calibrated: float
    n: int


def _point(
    panel: str, data: str, key: Key, quantity: str, cell: Mapping[str, Any], **more: float
) -> Point:
    return Point(
        panel=panel,
        data=data,
        arm=key[0],
        predictor=key[1],
        tempered=key[2],
        quantity=quantity,
        predicted=more.get("predicted", float("nan")),
        value=cell["mean"],
        low=cell["low"],
        high=cell["high"],
        calibrated=more.get("calibrated", float("nan")),
        n=cell["n"],
    )


def compute(records: Path = BENCHMARKS) -> list[Point]:
    """Pick the plotted numbers out of the record; no drawing here."""
    content = json.loads((records / "calibration.json").read_text(encoding="utf-8"))
    points = []
    for row in content["curves"]:
        for panel, name in (("reliability", "equal_mass"), ("votes", "votes")):
            for number, cell in enumerate(row.get(name, ())):
                predicted = cell["predicted"]["mean"]
                points.append(
                    _point(
                        panel,
                        row["data"],
                        key_of(row),
                        f"bin {number}",
                        cell["observed"],
                        predicted=predicted,
                    )
                )
    for row in content["table"]:
        if row["data"] not in DATA:
            continue
        cells = {name: measure["value"] for name, measure in row["measures"].items()}
        for name in ("ece", "vote_ece"):
            if name in cells:
                calibrated = cells[f"{name}_calibrated"]["mean"]
                points.append(
                    _point(
                        "ece", row["data"], key_of(row), name, cells[name], calibrated=calibrated
                    )
                )
        for name in RANKS:
            if name in cells:
                points.append(_point("rank", row["data"], key_of(row), name, cells[name]))
    ceiling = content["votes"]["floors"]["ceiling"]
    points.append(_point("ceiling", PEOPLE, ("votes", "", False), "ceiling", ceiling))
    return points


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    order = [key for key in PREDICTORS if any(_key(p) == key for p in points)]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.0, 0.95))
        curves, dots = parts
        above = curves.subplots(1, 5)
        for letter, axes, data in zip("abcd", above, DATA, strict=False):
            _draw_curves(axes, [p for p in points if p.panel == "reliability" and p.data == data])
            axes.set_title(f"{letter}  {data}", size=8, loc="left")
            axes.set_xlabel("confidence")
            axes.set_yticks([0.4, 0.6, 0.8, 1.0], labels=None if letter == "a" else [])
        above[0].set_ylabel("accuracy")
        _draw_curves(above[4], [p for p in points if p.panel == "votes"])
        above[4].set_title("e  votes", size=8, loc="left")
        above[4].set_xlabel("P(positive)")
        above[4].set_ylabel("positive votes")
        below = dots.subplots(1, 5, sharey=True)
        for letter, axes, data in zip("fghi", below, DATA, strict=False):
            _draw_errors(axes, [p for p in points if p.panel == "ece" and p.data == data], order)
            axes.set_title(f"{letter}  {data}", size=8, loc="left")
            axes.set_xlabel("ECE")
        _draw_ranks(below[4], [p for p in points if p.panel in ("rank", "ceiling")], order)
        below[0].set_yticks(range(len(order)), [PREDICTORS[key] for key in order])
        _legends(curves, dots)
    return figure


def _key(point: Point) -> Key:
    return point.arm, point.predictor, point.tempered


def _draw_curves(axes: Any, points: Sequence[Point]) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.7, zorder=0)
    for key in CURVES:
        chosen = [p for p in points if _key(p) == key]
        x, style = [p.predicted for p in chosen], mark(key)
        axes.plot(x, [p.value for p in chosen], ms=2.2, mew=0.7, lw=0.8, **style)
        axes.vlines(
            x, [p.low for p in chosen], [p.high for p in chosen], style["color"], lw=0.6, alpha=0.4
        )
    low = min(p.predicted for p in points)
    axes.set_xlim((0.3 if low < 0.5 else 0.48) if low > 0.2 else -0.02, 1.02)
    axes.set_ylim(-0.02 if low < 0.2 else 0.35, 1.02)


def _rows(axes: Any, order: Sequence[Key]) -> None:
    for row in range(0, len(order), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", lw=0, zorder=0)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _draw_errors(axes: Any, points: Sequence[Point], order: Sequence[Key]) -> None:
    """Error by the labels above, by the votes (squares) below; a bar where calibrated."""
    _rows(axes, order)
    for point in points:
        style = mark(_key(point))
        votes = point.quantity == "vote_ece"
        two = any(p.quantity == "vote_ece" for p in points)
        y = order.index(_key(point)) + ((0.2 if votes else -0.2) if two else 0.0)
        style["marker"] = "s" if votes else style["marker"]
        axes.plot([point.low, point.high], [y, y], color=style["color"], lw=0.8)
        axes.plot([point.value], [y], ms=2.4, mew=0.7, ls="none", **style)
        axes.plot([point.calibrated], [y], marker="|", ms=5, mew=0.9, color="0.45", ls="none")
    axes.set_xlim(0, 0.31)


def _draw_ranks(axes: Any, points: Sequence[Point], order: Sequence[Key]) -> None:
    """Entropy above, mutual information (triangles) below; the ceiling as a line."""
    _rows(axes, order)
    for point in points:
        if point.panel == "ceiling":
            axes.axvline(point.value, color="0.45", lw=0.9, ls=(0, (3, 2)))
            continue
        style = mark(_key(point))
        mutual = point.quantity == "rank_mutual_information"
        y = order.index(_key(point)) + (0.2 if mutual else -0.2)
        style["marker"] = "^" if mutual else style["marker"]
        axes.plot([point.low, point.high], [y, y], color=style["color"], lw=0.8)
        axes.plot([point.value], [y], ms=2.4, mew=0.7, ls="none", **style)
    axes.axvline(0, color="black", lw=0.7, zorder=1)
    axes.set_xlim(-0.05, 1)
    axes.set_title("j  disagreement", size=8, loc="left")
    axes.set_xlabel("rank correlation")


def _legends(curves: Any, dots: Any) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], ms=3, mew=0.7, lw=1, label=PREDICTORS[key], **mark(key)) for key in CURVES
    ]
    curves.legend(handles=lines, loc="outside upper center", ncols=len(lines), columnspacing=1)
    plain: dict[str, Any] = {"ls": "none", "ms": 3, "color": "0.3"}
    marks = [
        Line2D([], [], marker="o", label="by labels; j: entropy", **plain),
        Line2D([], [], marker="s", label="by votes", **plain),
        Line2D([], [], marker="^", label="j: mutual information", **plain),
        Line2D([], [], marker="|", label="if calibrated", **plain | {"ms": 6, "color": "0.45"}),
        Line2D([], [], lw=0.9, color="0.45", ls=(0, (3, 2)), label="j: ceiling by the votes"),
    ]
    dots.legend(handles=marks, loc="outside lower center", ncols=len(marks), columnspacing=1)


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
