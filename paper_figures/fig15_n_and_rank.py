"""Figure 15: the gap and the held-out loss against the number of examples and the rank.

n on movie reviews, rank on sarcasm. 192 steps of training for n up to 1024, 384 and 768 beyond,
that is, 48, 24, 12, 6 and thrice 3 epochs: as n grows, a row is seen less often. lora_alpha is 16
at every rank. Means over five seeds with Student's 95% intervals. Dotted: what Theorem 4.4 of Lin
et al. 2024 would say at infinite strong convexity, C / sqrt(2 n delta), its least value at any p.

Reads   paper_figures/records/sweeps/{rates,n_train,rank}.csv
Writes  paper_figures/out/fig15_n_and_rank.{csv,pdf,png}
Run     python -m paper_figures.fig15_n_and_rank     (CPU, seconds)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, RC
from lodrop_theory import theorem44_floor
from lodrop_theory.losses import smoothed_loss_range
from paper_figures import _sweeps
from paper_figures._comparison import DELTA, OUT, write_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
AXES = {"n_train": "training examples $n$", "rank": "rank $r$"}
DATA = {"n_train": "movie-reviews", "rank": "sarcasm"}
MEASURES = {"generalization_gap": "generalization gap (nats)", "test_nll": "test NLL (nats)"}
ARMS = {
    (0.0, "mean"): "LoRA",
    (0.5, "mean"): "p = 0.5, masks off",
    (0.5, "ensemble"): "p = 0.5, ensemble of 8",
}
STYLES: dict[tuple[float, str], dict[str, Any]] = {
    (0.0, "mean"): {"color": "black", "marker": "s"},
    (0.5, "mean"): {"color": COLORS["mean"], "marker": "D"},
    (0.5, "ensemble"): {"color": COLORS["ensemble"], "marker": "o"},
}
SMOOTHING, N_CLASSES = 0.05, 2


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mean over seeds, or the floor of the theorem.

    Attributes:
        axis: ``n_train`` or ``rank``.
        x: Its value; the other is n = 256 or r = 8.
        measure: ``generalization_gap`` (of the smoothed risk), ``test_nll``, or ``floor``. Nats.
        dropout_rate: p; NaN for the floor.
        predictor: ``mean`` or ``ensemble``; empty for the floor.
        value: Mean.
        low: Lower end of its interval.
        high: Upper end.
        n: Seeds.
    """

    axis: str
    x: int
    measure: str
    dropout_rate: float
    predictor: str
    value: float
    low: float
    high: float
    n: int


def compute(records: Path = _sweeps.RECORDS) -> list[Point]:
    """Means over seeds and the floor; no drawing here."""
    common = _sweeps.at_the_end(_sweeps.read("rates", records=records))
    common = common[common.method.isin(("lora", "lora-dropout"))]
    points = []
    for axis in AXES:
        own = _sweeps.read(axis, records=records)
        table = _sweeps.at_the_end(own)
        shared = _sweeps.arm(common, data=DATA[axis])
        for x in sorted({*table[axis], *shared[axis]}):
            source = shared if x in set(shared[axis]) else table
            for rate, predictor in ARMS:
                chosen = _sweeps.arm(
                    source, **{axis: x, "dropout_rate": rate, "predictor": predictor}
                )
                for measure in MEASURES:
                    mean = _sweeps.over_seeds(chosen, measure)
                    points.append(
                        Point(
                            axis=axis,
                            x=int(x),
                            measure=measure,
                            dropout_rate=rate,
                            predictor=predictor,
                            **_sweeps.fields_of(mean),
                        )
                    )
    loss_range = float(smoothed_loss_range(SMOOTHING, N_CLASSES))
    for x in sorted({p.x for p in points if p.axis == "n_train"}):
        floor = float(theorem44_floor(loss_range, x, DELTA))
        points.append(
            Point(
                axis="n_train",
                x=x,
                measure="floor",
                dropout_rate=math.nan,
                predictor="",
                value=floor,
                low=floor,
                high=floor,
                n=0,
            )
        )
    return points


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        row = figure.subplots(1, 4, width_ratios=(2, 2, 1, 1))
        panels = [("n_train", "generalization_gap"), ("n_train", "test_nll")]
        panels += [("rank", "generalization_gap"), ("rank", "test_nll")]
        for axes, letter, (axis, measure) in zip(row, "abcd", panels, strict=True):
            _draw_panel(axes, points, axis, measure)
            axes.set_title(f"{letter}  {DATA[axis]}", size=8, loc="left")
        row[0].set_yscale("log")
        row[0].set_ylim(bottom=0.01)
        floor = [p for p in points if p.measure == "floor"]
        row[0].plot([p.x for p in floor], [p.value for p in floor], ":", color=COLORS["bound"])
        row[0].annotate(
            "floor of Thm 4.4",
            (floor[1].x, floor[1].value),
            xytext=(3, 3),
            textcoords="offset points",
            size=6.5,
            color=COLORS["bound"],
        )
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _draw_panel(axes: Any, points: Sequence[Point], axis: str, measure: str) -> None:
    for (rate, predictor), label in ARMS.items():
        key = (axis, measure, rate, predictor)
        line = [p for p in points if (p.axis, p.measure, p.dropout_rate, p.predictor) == key]
        errors = [[p.value - p.low for p in line], [p.high - p.value for p in line]]
        axes.errorbar(
            [p.x for p in line],
            [p.value for p in line],
            yerr=errors,
            capsize=1.5,
            lw=1,
            ms=3,
            label=label,
            **STYLES[rate, predictor],
        )
    axes.set_xscale("log", base=2)
    ticks = sorted({p.x for p in points if p.axis == axis})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45 if axis == "n_train" else 0)
    axes.minorticks_off()
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel(MEASURES[measure])


def main(records: Path = _sweeps.RECORDS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
