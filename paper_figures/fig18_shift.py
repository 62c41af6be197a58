"""Figure 18: predictors trained on movie reviews, on sentences of other kinds.

Paired differences to plain LoRA at home and away, with temperatures fitted at home; how well
uncertainty tells rows from elsewhere; and what is lost by carrying a temperature over.

Reads   tests/benchmarks/records/shift.json
Writes  paper_figures/out/fig18_shift.{csv,pdf,png}
Run     python -m paper_figures.fig18_shift     (CPU, seconds)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, RC
from paper_figures._comparison import BENCHMARKS, OUT, write_points
from paper_figures._predictors import PREDICTORS, Key, key_of, mark

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
HOME = "movie-reviews"
DATA = (HOME, "amazon-reviews", "nyt-editorials", "tweets")
DIFFERENCES = {
    "nll": "NLL minus that of LoRA (nats)",
    "ece": "ECE minus that of LoRA",
    "accuracy_at_80": "accuracy on the surest 80% of rows, minus that of LoRA",
}
UNCERTAINTIES = {"auroc_entropy": "o", "auroc_mutual_information": "^"}
LOSS = "temperature_loss"
DATA_STYLES: dict[str, dict[str, Any]] = {
    HOME: {"color": COLORS["floor"], "marker": "o"},
    "amazon-reviews": {"color": COLORS["gibbs"], "marker": "s"},
    "nyt-editorials": {"color": COLORS["mean"], "marker": "D"},
    "tweets": {"color": COLORS["hold-out"], "marker": "^"},
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mean over seeds with its 95% interval.

    Attributes:
        measure: ``nll``, ``ece`` or ``accuracy_at_80``, of which it is the difference to plain
            LoRA on the same rows; ``auroc_...`` or ``temperature_loss`` (nats), plain values.
        data: Where the rows are from.
        arm: How the adapter was trained.
        predictor: ``mean`` or ``ensemble``.
        tempered: Whether a temperature fitted on movie reviews is applied.
        value: Mean over seeds.
        low: Lower end of Student's interval over seeds.
        high: Upper end.
        n: Seeds.
    """

    measure: str
    data: str
    arm: str
    predictor: str
    tempered: bool
    value: float
    low: float
    high: float
    n: int


def _point(measure: str, row: Mapping[str, Any], cell: Mapping[str, Any]) -> Point:
    arm, predictor, tempered = key_of(row)
    return Point(
        measure=measure,
        data=row["data"],
        arm=arm,
        predictor=predictor,
        tempered=tempered,
        value=cell["mean"],
        low=cell["low"],
        high=cell["high"],
        n=cell["n"],
    )


def compute(records: Path = BENCHMARKS) -> list[Point]:
    """Pick the plotted numbers out of the record; no drawing here."""
    content = json.loads((records / "shift.json").read_text(encoding="utf-8"))
    points = []
    for row in content["table"]:
        if row["data"] not in DATA:
            continue
        for measure in DIFFERENCES:
            cell = row["measures"][measure]
            if "minus lora" in cell:
                points.append(_point(measure, row, cell["minus lora"]))
        for measure in (*UNCERTAINTIES, LOSS):
            if measure in row["measures"]:
                points.append(_point(measure, row, row["measures"][measure]["value"]))
    return points


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = {_key(p) for p in points if p.measure in DIFFERENCES}
    order = [key for key in PREDICTORS if key in found]
    plain = [("lora", "mean", False), *(key for key in order if not key[2])]
    tempered = [key for key in order if key[2]]
    heights = [*(len(order) + 2 for _ in DIFFERENCES), len(plain) + 6]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 0.35 + 0.125 * sum(heights)), layout="constrained")
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        for part, (measure, label) in zip(parts, DIFFERENCES.items(), strict=False):
            line = part.subplots(1, len(DATA), sharex=True, sharey=True)
            for axes, data in zip(line, DATA, strict=True):
                _draw(axes, _of(points, measure, data), order)
                axes.axvline(0, color="black", lw=0.7, zorder=1)
                if measure == "nll":
                    axes.set_title(data, size=8, loc="left")
            line[0].set_yticks(range(len(order)), [PREDICTORS[key] for key in order])
            part.supxlabel(label, size=8)
        _draw_last(parts[-1], points, plain, tempered)
    return figure


def _draw_last(
    part: Any, points: Sequence[Point], plain: Sequence[Key], tempered: Sequence[Key]
) -> None:
    """What a carried temperature loses, and how well uncertainty tells what is from elsewhere."""
    line = part.subplots(1, len(DATA), width_ratios=(1.0, 1, 1, 1))
    for step, data in zip((-0.27, -0.09, 0.09, 0.27), DATA, strict=True):
        chosen = _of(points, LOSS, data)
        _draw(line[0], chosen, tempered, step=step, style={"mfc": "white", **DATA_STYLES[data]})
    line[0].set_yticks(range(len(tempered)), [PREDICTORS[key] for key in tempered])
    line[0].set_xlabel("NLL lost (nats)")
    line[0].set_title("carried temperature", size=8, loc="left")
    for axes, data in zip(line[1:], DATA[1:], strict=True):
        for step, (measure, marker) in zip((-0.17, 0.17), UNCERTAINTIES.items(), strict=True):
            _draw(axes, _of(points, measure, data), plain, step=step, style={"marker": marker})
        axes.axvline(0.5, color="black", lw=0.7, zorder=1)
        axes.set_xlim(0.36, 0.66)
        axes.set_yticks(
            range(len(plain)), [] if data != DATA[1] else [PREDICTORS[k] for k in plain]
        )
        axes.set_xlabel("AUROC")
        axes.set_title(data, size=8, loc="left")
    _legend(part)


def _legend(part: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], lw=0.8, ms=3, mew=0.7, mfc="white", label=data, **style)
        for data, style in DATA_STYLES.items()
    ]
    names = ("AUROC by entropy", "AUROC by mutual information")
    handles += [
        Line2D([], [], ls="none", ms=3, color="0.3", marker=marker, label=name)
        for name, marker in zip(names, UNCERTAINTIES.values(), strict=True)
    ]
    part.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1)


def _draw(
    axes: Any,
    points: Sequence[Point],
    order: Sequence[Key],
    *,
    step: float = 0.0,
    style: Mapping[str, Any] | None = None,
) -> None:
    for row in range(0, len(order), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", lw=0, zorder=0)
    for point in points:
        look = {**mark(_key(point)), **(style or {})}
        y = order.index(_key(point)) + step
        axes.plot([point.low, point.high], [y, y], color=look["color"], lw=0.8)
        axes.plot([point.value], [y], ms=2.4, mew=0.7, ls="none", **look)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _of(points: Sequence[Point], measure: str, data: str) -> list[Point]:
    return [p for p in points if p.measure == measure and p.data == data]


def _key(point: Point) -> Key:
    return point.arm, point.predictor, point.tempered


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
