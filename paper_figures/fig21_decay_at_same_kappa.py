"""Figure 21: does a penalty of the same weight do what the masks do?

The surrogate of Lin et al. 2024 (Eq. 11) says that LoRA Dropout is the training risk plus
kappa ||Delta W||^2. Here that objective is trained without masks, kappa set to what the masks of a
finished run at p = 0.5 added to its training risk per squared update. Paired differences to plain
LoRA on the same splits, last of 12 epochs, Student's 95% intervals over five seeds.

Reads   tests/benchmarks/records/quality.json
Writes  paper_figures/out/fig21_decay_at_same_kappa.{csv,pdf,png}
Run     python -m paper_figures.fig21_decay_at_same_kappa     (CPU, seconds)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, RC
from paper_figures._comparison import BENCHMARKS, OUT, write_points
from paper_figures._quality import find, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
DATA = ("movie-reviews", "sarcasm", "trec")
MEASURES = {"gap": "gap (nats)", "nll": "test NLL (nats)", "ece": "ECE"}
ARMS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("decay-to-init", "mean"): ("penalty at the same κ", {"color": "black", "marker": "s"}),
    ("batch", "mean"): ("masks, then off", {"color": COLORS["mean"], "marker": "D"}),
    ("batch", "ensemble"): ("masks, ensemble", {"color": COLORS["ensemble"], "marker": "o"}),
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A paired difference to plain LoRA.

    Attributes:
        data: The data set.
        measure: ``gap`` (test less training NLL), ``nll`` or ``ece``.
        arm: ``decay-to-init`` or ``batch`` (one mask per batch, p = 0.5).
        predictor: ``mean`` or ``ensemble``.
        value: Mean over seeds.
        low: Lower end of its interval.
        high: Upper end.
        n: Seeds.
    """

    data: str
    measure: str
    arm: str
    predictor: str
    value: float
    low: float
    high: float
    n: int


def compute(records: Path = BENCHMARKS) -> list[Point]:
    """Pick the differences out of the record; no drawing here."""
    rows, _ = read(records)
    points = []
    for data in DATA:
        for arm, predictor in ARMS:
            found = find(rows, data, arm, predictor, "last")
            assert found is not None
            for measure in MEASURES:
                cell = found[measure]["minus lora"]
                points.append(
                    Point(
                        data=data,
                        measure=measure,
                        arm=arm,
                        predictor=predictor,
                        value=cell["mean"],
                        low=cell["low"],
                        high=cell["high"],
                        n=cell["n"],
                    )
                )
    return points


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them but a shift of the arms against each other."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 2.0), layout="constrained")
        row = figure.subplots(1, len(MEASURES), sharey=True)
        for axes, (measure, label) in zip(row, MEASURES.items(), strict=True):
            axes.axvline(0, color="black", lw=0.6, zorder=0)
            for number, ((arm, predictor), (name, style)) in enumerate(ARMS.items()):
                for y, data in enumerate(DATA):
                    key = (data, measure, arm, predictor)
                    (p,) = [p for p in points if _key(p) == key]
                    place = y + 0.22 * (number - 1)
                    axes.plot([p.low, p.high], [place, place], color=style["color"], lw=1)
                    axes.plot(p.value, place, ls="none", ms=3.5, **style)
                axes.plot([], [], ls="none", ms=3.5, label=name, **style)
            axes.set_xlabel(f"{label}, minus LoRA")
        row[0].set_yticks(range(len(DATA)), DATA)
        row[0].set_ylim(len(DATA) - 0.5, -0.5)
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(ARMS))
    return figure


def _key(point: Point) -> tuple[str, str, str, str]:
    return point.data, point.measure, point.arm, point.predictor


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
