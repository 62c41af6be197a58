"""Figure 10: sensitivity to p and to N (the form of Figure 5 of Lin et al. 2024, on our data).

Paired differences over five seeds with Student's 95% intervals, at the last epoch: against plain
LoRA on the left (one balanced mask per example), four masks per step against one on the right (each
for the whole batch, p = 0.5; four train four times the rows). N at test time is in figure 9.

Reads   paper_figures/records/sweeps/{rates,rates_trec}.csv, tests/benchmarks/records/quality.json
Writes  paper_figures/out/fig10_sensitivity.{csv,pdf,png}
Run     python -m paper_figures.fig10_sensitivity     (CPU, seconds)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import RC
from paper_figures import _quality, _sweeps
from paper_figures._comparison import BENCHMARKS, OUT, write_points

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
MEASURES = {
    "test_nll": "test NLL (nats)",
    "test_accuracy": "accuracy",
    "generalization_gap": "gap (nats)",
}
PREDICTORS = ("ensemble", "mean")
PANELS = {"p": "dropout rate $p$, minus LoRA", "N": "$N = 4$ minus $N = 1$ masks per batch"}
# In the record of the quality comparison; trec there is the one of 36 epochs.
OF_QUALITY = {"test_nll": "nll", "test_accuracy": "accuracy", "generalization_gap": "gap"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A paired difference, mean over seeds.

    Attributes:
        panel: ``p`` or ``N``.
        data: The data set; trec ran 36 epochs, the others 12.
        measure: ``test_nll``, ``test_accuracy`` or ``generalization_gap`` (of the smoothed risk on
            the left, of the NLL on the right).
        predictor: ``ensemble`` (of eight on the left, sixteen on the right), or ``mean``.
        x: p in training (one mask per example, balanced), or the place of the data set.
        value: Mean difference.
        low: Lower end of its interval.
        high: Upper end.
        n: Seeds.
    """

    panel: str
    data: str
    measure: str
    predictor: str
    x: float
    value: float
    low: float
    high: float
    n: int


def compute(records: Path = _sweeps.RECORDS, benchmarks: Path = BENCHMARKS) -> list[Point]:
    """Paired differences; no drawing here."""
    table = _sweeps.at_the_end(_sweeps.read("rates", "rates_trec", records=records))
    table = table[table.method.isin(("lora", "lora-dropout"))]
    return [*_along_rate(table), *_of_four(benchmarks)]


def _along_rate(table: "pd.DataFrame") -> Iterator[Point]:
    for data in _sweeps.DATA:
        here = _sweeps.arm(table, data=data)
        base = _sweeps.arm(here, dropout_rate=0.0, predictor="mean")
        for x in sorted(here.dropout_rate.unique()):
            for predictor in PREDICTORS:
                ours = _sweeps.arm(here, dropout_rate=x, predictor=predictor)
                for measure in MEASURES:
                    yield Point(
                        panel="p",
                        data=data,
                        measure=measure,
                        predictor=predictor,
                        x=float(x),
                        **_sweeps.fields_of(_sweeps.difference(ours, base, measure)),
                    )


def _of_four(benchmarks: Path) -> Iterator[Point]:
    rows, _ = _quality.read(benchmarks)
    for x, data in enumerate(_sweeps.DATA):
        name = _quality.LONG if data == "trec" else data
        for predictor in PREDICTORS:
            found = _quality.find(rows, name, "batch", predictor, "last")
            assert found is not None
            for measure, column in OF_QUALITY.items():
                one_less_four = found[column]["minus n4"]
                yield Point(
                    panel="N",
                    data=data,
                    measure=measure,
                    predictor=predictor,
                    x=float(x),
                    value=-one_less_four["mean"],
                    low=-one_less_four["high"],
                    high=-one_less_four["low"],
                    n=one_less_four["n"],
                )


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them but a shift of the data sets against each other."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        grid = figure.subplots(len(MEASURES), len(PANELS), sharex="col", width_ratios=(2, 1))
        for row, (measure, label) in zip(grid, MEASURES.items(), strict=True):
            for axes, panel in zip(row, PANELS, strict=True):
                chosen = [p for p in points if (p.panel, p.measure) == (panel, measure)]
                _draw_panel(axes, chosen, panel)
            row[0].set_ylabel(label)
        for axes, title in zip(grid[-1], PANELS.values(), strict=True):
            axes.set_xlabel(title)
        for axes, letter in zip(grid[0], "ab", strict=True):
            axes.set_title(letter, size=8, loc="left")
        _legend(figure)
    return figure


def _draw_panel(axes: Any, points: Sequence[Point], panel: str) -> None:
    axes.axhline(0, color="black", lw=0.6, zorder=0)
    for number, (data, style) in enumerate(_sweeps.DATA_STYLES.items()):
        for predictor in PREDICTORS:
            line = [p for p in points if (p.data, p.predictor) == (data, predictor)]
            if not line:
                continue
            step = 0.012 * (number - 1) + 0.005 * (predictor == "mean")
            if panel == "N":
                step = 0.15 * (predictor == "mean")
            x = [p.x + step for p in line]
            errors = [[p.value - p.low for p in line], [p.high - p.value for p in line]]
            hollow: dict[str, Any] = (
                {"mfc": "white", "ls": (0, (2, 1.5))} if predictor == "mean" else {}
            )
            axes.errorbar(
                x,
                [p.value for p in line],
                yerr=errors,
                capsize=1.5,
                lw=0.9,
                ms=3.2,
                mew=0.8,
                **{**style, **hollow},
            )
    if panel == "N":
        axes.set_xticks([x + 0.07 for x in range(len(_sweeps.DATA))], _sweeps.DATA)
        axes.set_xlim(-0.4, len(_sweeps.DATA) - 0.4)
        return
    ticks = sorted({p.x for p in points})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    names = {"trec": "trec (36 epochs)"}
    handles = [
        Line2D([], [], ms=3.5, mew=0.8, lw=0.9, label=names.get(data, data), **style)
        for data, style in _sweeps.DATA_STYLES.items()
    ]
    looks: dict[str, dict[str, Any]] = {
        "ensemble": {},
        "mean": {"mfc": "white", "ls": (0, (2, 1.5))},
    }
    for label, more in looks.items():
        style: dict[str, Any] = {"color": "0.4", "marker": "o", **more}
        handles.append(Line2D([], [], ms=3.5, mew=0.8, lw=0.9, label=label, **style))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))


def main(out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute()
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
