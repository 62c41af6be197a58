"""Figure 22: the result in three panels: what LoRA Dropout does, why not, and what bounds say.

Means over five seeds with Student's 95% intervals; differences are paired with plain LoRA on the
same splits, at the last epoch. MiniLM-L6, 256 training sentences. a: one balanced mask per example,
ensembles of eight; b: one mask per batch, p = 0.5, ensembles of sixteen, 12 epochs; c: masks off.
What a local stability says of the expected gap is plug-in and lies below the gap.

Reads   paper_figures/records/sweeps/{rates,rates_trec}.csv, paper_figures/records/stability/*.json,
        tests/benchmarks/records/quality.json
Writes  paper_figures/out/fig22_result.{csv,pdf,png}
Run     python -m paper_figures.fig22_result     (CPU, seconds)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, RC
from lodrop_nn.report.summary import SeedMean, seed_mean
from lodrop_theory import theorem44_floor
from lodrop_theory.evaluate import evaluate_record
from paper_figures import (
    _stability,
    _sweeps,
    fig10_sensitivity,
    fig21_decay_at_same_kappa,
)
from paper_figures._comparison import DELTA, OUT, write_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
LEVELS = {
    "gap": "measured gap",
    "hold-out": "hold-out certificate",
    "expectation/gauss-newton": "by local stability, plug-in",
    "floor": "floor of Thm 4.4",
}
APPLIES = "Theorem 4.4 applies"
LOOKS: dict[str, dict[str, Any]] = {
    "gap": {"color": COLORS["floor"], "marker": "o"},
    "hold-out": {"color": COLORS["hold-out"], "marker": "s"},
    "expectation/gauss-newton": {"color": COLORS["mean"], "marker": "D", "mfc": "white"},
    "floor": {"color": COLORS["bound"], "marker": "v", "mfc": "white"},
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mean with its interval.

    Attributes:
        panel: ``a`` held-out loss along p, ``b`` masks against a penalty, ``c`` bounds along p.
        series: Data set in a; data set and arm in b; bound in c, and ``Theorem 4.4 applies``.
        dropout_rate: p.
        value: Nats; of the last, runs in which its hypothesis holds.
        low: Lower end.
        high: Upper end.
        n: Seeds.
    """

    panel: str
    series: str
    dropout_rate: float
    value: float
    low: float
    high: float
    n: int


def compute() -> list[Point]:
    """The numbers of figures 10, 20 and 21 that tell the story; no drawing here."""
    points = [
        Point(
            panel="a",
            series=p.data,
            dropout_rate=p.x,
            value=p.value,
            low=p.low,
            high=p.high,
            n=p.n,
        )
        for p in fig10_sensitivity.compute()
        if (p.panel, p.measure, p.predictor) == ("p", "test_nll", "ensemble")
    ]
    for q in fig21_decay_at_same_kappa.compute():
        if q.measure == "gap":
            points.append(
                Point(
                    panel="b",
                    series=f"{q.data}: {q.arm}, {q.predictor}",
                    dropout_rate=0.5,
                    value=q.value,
                    low=q.low,
                    high=q.high,
                    n=q.n,
                )
            )
    return [*points, *_levels()]


def _levels(records: Path = _stability.RECORDS) -> Iterator[Point]:
    runs = _stability.read(records)
    for rate in _stability.rates(runs):
        values: dict[str, list[float]] = {name: [] for name in LEVELS}
        applies: list[bool] = []
        for run in (each for each in runs if each.dropout_rate == rate):
            values["gap"].append(run.predictors["mean"].generalization_gap.value)
            values["floor"].append(float(theorem44_floor(run.loss_range.value, run.n_train, DELTA)))
            for bound in evaluate_record(run, delta=DELTA):
                if bound.bound in LEVELS and bound.predictor == "mean":
                    values[bound.bound].append(float(bound.gap))
                if bound.bound == "lin2024":
                    applies.append(math.isfinite(float(bound.gap)))
        for name, found in values.items():
            yield _point("c", name, rate, seed_mean(found))
        count, n = float(sum(applies)), len(applies)
        yield _point("c", APPLIES, rate, SeedMean(mean=count, low=count, high=count, n_seeds=n))


def _point(panel: str, series: str, rate: float, mean: SeedMean) -> Point:
    return Point(panel=panel, series=series, dropout_rate=rate, **_sweeps.fields_of(mean))


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them but a shift of the series against each other."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 2.7), layout="constrained")
        first, second, third = figure.subplots(1, 3)
        _draw_lines(first, points, "a", _sweeps.DATA_STYLES, {"trec": "trec (36 epochs)"})
        first.axhline(0, color="black", lw=0.6, zorder=0)
        first.set_ylabel("held-out loss minus LoRA's (nats)")
        first.set_title("a  held-out loss", size=8, loc="left")
        _draw_penalty(second, [p for p in points if p.panel == "b"])
        second.set_title("b  fall of the gap: penalty, masks", size=8, loc="left")
        _draw_lines(third, points, "c", LOOKS, LEVELS)
        third.set_ylim(0, 1.75)
        third.set_ylabel("nats, masks off")
        counts = [p for p in points if p.series == APPLIES]
        valid, runs = sum(int(p.value) for p in counts), sum(p.n for p in counts)
        third.plot([], [], ls="none", label=f"Thm 4.4 applies in {valid} of {runs}")
        third.set_title("c  bounds, movie-reviews", size=8, loc="left")
        for axes in (first, third):
            axes.set_xlabel("dropout rate $p$")
            axes.legend(fontsize=6)
    return figure


def _draw_lines(
    axes: Any,
    points: Sequence[Point],
    panel: str,
    styles: Any,
    labels: Any,
) -> None:
    for number, (name, style) in enumerate(styles.items()):
        line = [p for p in points if (p.panel, p.series) == (panel, name)]
        x = [p.dropout_rate + 0.008 * (number - 1) for p in line]
        errors = [[p.value - p.low for p in line], [p.high - p.value for p in line]]
        y = [p.value for p in line]
        label = labels.get(name, name)
        axes.errorbar(x, y, yerr=errors, capsize=1.5, lw=1, ms=3.2, label=label, **style)
    rates = sorted({p.dropout_rate for p in points if p.panel == panel})
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])


def _draw_penalty(axes: Any, points: Sequence[Point]) -> None:
    for number, ((arm, predictor), (label, style)) in enumerate(
        fig21_decay_at_same_kappa.ARMS.items()
    ):
        for y, data in enumerate(fig21_decay_at_same_kappa.DATA):
            (p,) = [p for p in points if p.series == f"{data}: {arm}, {predictor}"]
            place = y + 0.22 * (number - 1)
            axes.plot([p.low, p.high], [place, place], color=style["color"], lw=1)
            axes.plot(p.value, place, ls="none", ms=3.2, **style)
        axes.plot([], [], ls="none", ms=3.2, label=label, **style)
    axes.axvline(0, color="black", lw=0.6, zorder=0)
    names = [
        f"{data}\n(12 ep.)" if data == "trec" else data for data in fig21_decay_at_same_kappa.DATA
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.3, -0.6)
    axes.set_xlabel("gap minus LoRA's (nats)")
    axes.legend(loc="lower left", fontsize=6)


def main(out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute()
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
