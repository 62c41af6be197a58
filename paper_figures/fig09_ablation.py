"""Figure 9: masks in training against masks at test time, and how many a prediction needs.

The four arms of Figure 4 of Lin et al. (2024, arXiv:2404.09610) are the ends of two lines: trained
without or with LoRA Dropout, predicted with masks off or by an ensemble over 16 masks at p = 0.5.
Between them, on two data sets, ensembles over 8 masks at lower rates. A bar is the 95% interval of
the paired difference to the arm without either, drawn from that arm's mean (dashed). Below, the NLL
of the mean over N of 16 masks at p = 0.5 minus that of the same adapters with masks off.

Reads   tests/benchmarks/records/ablation.json
Writes  paper_figures/out/fig09_ablation.{csv,pdf,png}
Run     python -m paper_figures.fig09_ablation     (CPU, seconds)
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, RC
from paper_figures._comparison import BENCHMARKS, OUT, write_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem

DATA = ("movie-reviews", "sarcasm", "trec", "trec, 36 epochs")
ROWS = {"nll": "test NLL (nats)", "ece": "ECE", "count": "NLL minus\nmasks off (nats)"}
ENDS = (0.0, 0.5)  # the test rates of the four arms
STYLES: dict[str, dict[str, Any]] = {
    "lora": {"color": COLORS["bound"], "marker": "s"},
    "example-balanced": {"color": COLORS["ensemble"], "marker": "o"},
    "batch": {"color": COLORS["mean"], "marker": "D"},
    "n4": {"color": COLORS["gibbs"], "marker": "^"},
}
TRAINED = {
    "lora": "trained without masks",
    "example-balanced": "trained with one mask per example, balanced",
    "batch": "one mask per batch",
    "n4": "N = 4 masks per step",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mean over seeds, and how far it is from its reference.

    Attributes:
        row: ``nll`` or ``ece`` of the test rows, or ``count`` (NLL over the number of masks).
        data: The data set, with its epochs where they are not 12.
        arm: How the adapter was trained.
        test_rate: p of the masks at test time; 0 for masks off.
        n_masks: Masks of one prediction; 0 for masks off.
        n: Seeds.
        value: Mean over the seeds.
        low: Lower end of its 95% Student interval.
        high: Upper end.
        difference: Mean paired difference: to the arm without masks in training and at test, or,
            in ``count``, to the same adapters with masks off; nan for the reference itself.
        difference_low: Lower end of its 95% Student interval.
        difference_high: Upper end.
        bar_low: Mean of the reference plus ``difference_low``; nan in ``count``.
        bar_high: Mean of the reference plus ``difference_high``.
    """

    row: str
    data: str
    arm: str
    test_rate: float
    n_masks: int
    n: int
    value: float
    low: float
    high: float
    difference: float = math.nan
    difference_low: float = math.nan
    difference_high: float = math.nan
    bar_low: float = math.nan
    bar_high: float = math.nan


def compute(records: Path = BENCHMARKS) -> list[Point]:
    """Pick the plotted numbers out of the record; no drawing here."""
    content = json.loads((records / "ablation.json").read_text(encoding="utf-8"))
    points = []
    for data in DATA:
        here = [row for row in content["table"] if row["data"] == data]
        for measure in ("nll", "ece"):
            reference = next(r for r in here if (r["arm"], r["test_rate"]) == ("lora", 0))
            base = reference["measures"][measure]["value"]["mean"]
            points += [
                _point(measure, row, row["measures"][measure], "minus neither", base)
                for row in here
            ]
        points += [
            _point("count", {"test_rate": 0.5, **row}, row["measures"]["nll"], "minus masks off")
            for row in content["counts_table"]
            if row["data"] == data and row["n_masks"] > 0
        ]
    return points


def _point(
    name: str,
    row: Mapping[str, Any],
    cell: Mapping[str, Mapping[str, Any]],
    paired: str,
    base: float = math.nan,
) -> Point:
    value, found = cell["value"], {}
    if paired in cell:
        difference = cell[paired]
        found = {
            "difference": difference["mean"],
            "difference_low": difference["low"],
            "difference_high": difference["high"],
            "bar_low": base + difference["low"],
            "bar_high": base + difference["high"],
        }
    return Point(
        row=name,
        data=row["data"],
        arm=row["arm"],
        test_rate=row["test_rate"],
        n_masks=row["n_masks"],
        n=value["n"],
        value=value["mean"],
        low=value["low"],
        high=value["high"],
        **found,
    )


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 5.2), layout="constrained")
        grid = figure.subplots(len(ROWS), len(DATA), squeeze=False)
        for line, (row, label) in zip(grid, ROWS.items(), strict=True):
            for axes, data in zip(line, DATA, strict=True):
                here = [p for p in points if (p.row, p.data) == (row, data)]
                (_draw_counts if row == "count" else _draw_rates)(axes, here)
                if row == "nll":
                    axes.set_title(data, size=8)
            line[0].set_ylabel(label)
        for axes in grid[1]:
            axes.set_xlabel("$p$ of the masks at test")
        for axes in grid[2]:
            axes.set_xlabel("masks per prediction, $N$")
        _legend(figure)
    return figure


def _draw_rates(axes: Any, points: Sequence[Point]) -> None:
    for arm, shift in (("lora", -0.006), ("example-balanced", 0.006)):
        some = sorted((p for p in points if p.arm == arm), key=lambda p: p.test_rate)
        style = STYLES[arm]
        axes.plot([p.test_rate for p in some], [p.value for p in some], color=style["color"], lw=1)
        for point in some:
            x = point.test_rate + shift
            axes.plot([x, x], [point.bar_low, point.bar_high], color=style["color"], lw=0.9)
            end = point.test_rate in ENDS
            face = style["color"] if end else "white"
            axes.plot([point.test_rate], [point.value], ms=4.5 if end else 3, mfc=face, **style)
            if math.isnan(point.difference):
                axes.axhline(point.value, color="0.5", lw=0.7, ls="--", zorder=0)
    axes.set_xticks((0, 0.1, 0.3, 0.5), ("off", "0.1", "0.3", "0.5"))


def _draw_counts(axes: Any, points: Sequence[Point]) -> None:
    axes.axhline(0, color="0.5", lw=0.7, ls="--", zorder=0)
    for number, (arm, style) in enumerate(STYLES.items()):
        some = sorted((p for p in points if p.arm == arm), key=lambda p: p.n_masks)
        x = [p.n_masks * 1.06 ** (number - 1.5) for p in some]
        axes.plot(x, [p.difference for p in some], ms=2.5, lw=1, **style)
        for place, point in zip(x, some, strict=True):
            ends = [point.difference_low, point.difference_high]
            axes.plot([place, place], ends, color=style["color"], lw=0.8)
    axes.set_xscale("log", base=2)
    counts = sorted({p.n_masks for p in points})
    axes.set_xticks(counts, [str(n) for n in counts])


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ms=4, lw=1, label=TRAINED[arm], **style) for arm, style in STYLES.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
