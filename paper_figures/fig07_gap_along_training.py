"""Figure 7: losses and gap along training (the form of Figure 1 of Lin et al. 2024, on our data).

Masks are off in every score: the ensemble has two members along training and eight at its end.
Means over five seeds, each with its own split; bands are Student's 95% intervals over seeds.

Reads   paper_figures/records/sweeps/{rates,rates_trec}.csv
Writes  paper_figures/out/fig07_gap_along_training.{csv,pdf,png}
Run     python -m paper_figures.fig07_gap_along_training     (CPU, seconds)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import RC
from paper_figures import _sweeps
from paper_figures._comparison import OUT, write_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
RATES = (0.0, 0.1, 0.3, 0.5, 0.7)
LOSSES = {"test_nll": "held out", "train_nll": "training"}
GAP = "generalization_gap"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mean over seeds at one epoch.

    Attributes:
        data: The data set.
        measure: ``train_nll``, ``test_nll`` or ``generalization_gap`` (of the smoothed risk). Nats.
        dropout_rate: p in training; 0 is plain LoRA.
        predictor: ``mean``: masks off.
        epoch: Passes over the 256 training rows.
        value: Mean.
        low: Lower end of its interval.
        high: Upper end.
        n: Seeds.
    """

    data: str
    measure: str
    dropout_rate: float
    predictor: str
    epoch: int
    value: float
    low: float
    high: float
    n: int


def compute(records: Path = _sweeps.RECORDS) -> list[Point]:
    """Means over seeds, for every scored epoch of what was run; no drawing here."""
    table = _sweeps.read("rates", "rates_trec", records=records)
    table = table[table.method.isin(("lora", "lora-dropout"))]
    table = _sweeps.arm(table, predictor="mean")
    points = []
    for data in _sweeps.DATA:
        for rate in RATES:
            chosen = _sweeps.arm(table, data=data, dropout_rate=rate)
            for epoch in sorted(chosen.epoch.unique()):
                for measure in (*LOSSES, GAP):
                    mean = _sweeps.over_seeds(_sweeps.arm(chosen, epoch=epoch), measure)
                    points.append(
                        Point(
                            data=data,
                            measure=measure,
                            dropout_rate=rate,
                            predictor="mean",
                            epoch=int(epoch),
                            **_sweeps.fields_of(mean),
                        )
                    )
    return points


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 4.1), layout="constrained")
        grid = figure.subplots(2, len(_sweeps.DATA), sharex="col", sharey="row")
        for column, data in enumerate(_sweeps.DATA):
            here = [p for p in points if p.data == data]
            _draw_losses(grid[0, column], here)
            for rate in RATES:
                line = [p for p in here if (p.measure, p.dropout_rate) == (GAP, rate)]
                style = dict(_sweeps.RATE_STYLES[rate])
                _sweeps.band(grid[1, column], [p.epoch for p in line], line, **style)
            grid[0, column].set_title(f"{'abc'[column]}  {data}", size=8, loc="left")
            grid[1, column].axhline(0, color="black", lw=0.5)
            grid[1, column].set_xlabel("epoch")
        grid[0, 0].set_ylim(top=1.3)  # room for the legend
        grid[0, 0].set_ylabel("loss (nats)")
        grid[1, 0].set_ylabel("generalization gap (nats)")
        _legends(figure, grid)
    return figure


def _draw_losses(axes: Any, points: Sequence[Point]) -> None:
    for rate in (0.0, 0.5):
        for measure in LOSSES:
            line = [p for p in points if (p.measure, p.dropout_rate) == (measure, rate)]
            style = {"color": _sweeps.RATE_STYLES[rate]["color"]}
            style["ls"] = "-" if measure == "test_nll" else (0, (4, 1.5))
            _sweeps.band(axes, [p.epoch for p in line], line, **style)


def _legends(figure: "Figure", grid: Any) -> None:
    from matplotlib.lines import Line2D

    first = [
        Line2D([], [], color=_sweeps.RATE_STYLES[rate]["color"], label=label)
        for rate, label in ((0.0, "LoRA"), (0.5, "LoRA Dropout, p = 0.5"))
    ]
    first += [
        Line2D([], [], color="0.4", ls=ls, label=label)
        for ls, label in (("-", "held out"), ((0, (4, 1.5)), "training"))
    ]
    grid[0, 0].legend(handles=first, loc="upper left", ncols=2, columnspacing=1, handlelength=1.8)
    rates = [
        Line2D([], [], label="LoRA (p = 0)" if rate == 0 else f"p = {rate}", **style)
        for rate, style in _sweeps.RATE_STYLES.items()
    ]
    grid[1, 0].legend(handles=rates, loc="upper left", ncols=2, columnspacing=1, handlelength=1.8)


def main(records: Path = _sweeps.RECORDS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
