"""Figure 4: what LoRA Dropout gains over plain LoRA, and what four masks per step add.

Paired differences on the same test rows, both sides treated alike: both at the last epoch, both at
their best epoch by validation, or both at the last epoch with a fitted temperature.

Reads   tests/benchmarks/records/quality.json
Writes  paper_figures/out/fig04_quality.{csv,pdf,png}
Run     python -m paper_figures.fig04_quality     (CPU, seconds)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, RC
from paper_figures._comparison import BENCHMARKS, OUT, write_points
from paper_figures._quality import ARMS, DATA, LONG, PREDICTORS, RULES, find, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
FEWEST = 3  # splits below which no interval is drawn

# Bands: which difference, of which arms, and its label.
BANDS = {
    "nll": ("nll", "minus lora", tuple(ARMS)[1:], "test NLL minus that of LoRA (nats)"),
    "ece": ("ece", "minus lora", tuple(ARMS)[1:], "ECE minus that of LoRA"),
    "n4": (
        "nll",
        "minus n4",
        ("batch", "example", "example-balanced"),
        "test NLL minus that of N = 4, same predictor (nats)",
    ),
}
TITLES = {
    "last": "a  last epoch",
    "best": "b  best epoch",
    "tempered": "c  last, tempered",
    LONG: f"d  {LONG}",
}
STYLES: dict[str, dict[str, Any]] = {
    "movie-reviews": {"color": COLORS["ensemble"], "marker": "o"},
    "trec": {"color": COLORS["gibbs"], "marker": "s"},
    "sarcasm": {"color": COLORS["mean"], "marker": "D"},
    "pooled": {"color": "black", "marker": "o"},
    # In the last column, by rule.
    "last": {"color": COLORS["bound"], "marker": "s"},
    "best": {"color": COLORS["bound"], "marker": "s", "mfc": "white"},
    "tempered": {"color": COLORS["bound"], "marker": "^"},
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One paired difference with its 95% interval.

    Attributes:
        band: ``nll`` and ``ece`` (to plain LoRA) or ``n4`` (to N = 4, same predictor).
        data: A data set, or ``pooled``.
        arm: How the adapter was trained.
        cost: Rows trained, over plain LoRA's.
        predictor: ``mean`` or ``ensemble``.
        rule: ``last`` or ``best`` epoch, or ``tempered`` (last epoch); the same on both sides.
        value: Mean difference.
        low: Lower end of Student's interval over splits; nan for a single one.
        high: Upper end.
        n: Splits: seeds, or pairs of data set and seed.
    """

    band: str
    data: str
    arm: str
    cost: float
    predictor: str
    rule: str
    value: float
    low: float
    high: float
    n: int


def compute(records: Path = BENCHMARKS) -> list[Point]:
    """Pick the plotted differences out of the record; no drawing here."""
    rows, costs = read(records)
    points = []
    for band, (measure, quantity, arms, _) in BANDS.items():
        for arm in arms:
            for predictor in PREDICTORS:
                for data in (*DATA, LONG):
                    for rule in RULES:
                        found = find(rows, data, arm, predictor, rule)
                        if found is None or quantity not in found[measure]:
                            continue
                        cell = found[measure][quantity]
                        single = cell["low"] is None
                        points.append(
                            Point(
                                band=band,
                                data=data,
                                arm=arm,
                                cost=costs[arm],
                                predictor=predictor,
                                rule=rule,
                                value=cell["mean"],
                                low=float("nan") if single else cell["low"],
                                high=float("nan") if single else cell["high"],
                                n=cell["n"],
                            )
                        )
    return points


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    orders = {
        band: list(dict.fromkeys((p.arm, p.predictor) for p in points if p.band == band))
        for band in BANDS
    }
    heights = [len(order) + 3 for order in orders.values()]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 0.6 + 0.165 * sum(heights)), layout="constrained")
        grid = figure.subplots(
            len(BANDS),
            len(TITLES),
            sharex="row",
            sharey="row",
            height_ratios=heights,
            squeeze=False,
        )
        for line, (band, order) in zip(grid, orders.items(), strict=True):
            here = [p for p in points if p.band == band]
            for axes, column in zip(line, TITLES, strict=True):
                _draw_panel(axes, here, column, order)
            costs = {p.arm: p.cost for p in here}
            line[0].set_yticks(range(len(order)), _labels(order, costs))
            line[1].annotate(
                BANDS[band][3],
                xy=(1.1, 0),
                xycoords="axes fraction",
                xytext=(0, -17),
                textcoords="offset points",
                ha="center",
                va="top",
            ).set_in_layout(False)  # wider than its panel
            line[0].set_xlabel(" ")  # its height
        for axes, title in zip(grid[0], TITLES.values(), strict=True):
            axes.set_title(title, size=8, loc="left")
        _legend(figure)
    return figure


def _labels(order: Sequence[tuple[str, str]], costs: dict[str, float]) -> list[str]:
    """The arm and its cost at its first row, and the predictor where there are two."""
    arms = [arm for arm, _ in order]
    labels = []
    for number, (arm, predictor) in enumerate(order):
        first = number == 0 or arms[number - 1] != arm
        parts = [f"{ARMS[arm]} ({costs[arm]:.0f}×)"] if first else []
        labels.append(", ".join([*parts, predictor] if arms.count(arm) > 1 else parts))
    return labels


def _draw_panel(
    axes: Any, points: Sequence[Point], column: str, order: Sequence[tuple[str, str]]
) -> None:
    if column == LONG:
        series = {rule: [p for p in points if p.data == LONG and p.rule == rule] for rule in RULES}
    else:
        series = {data: [p for p in points if p.data == data and p.rule == column] for data in DATA}
    arms = list(dict.fromkeys(arm for arm, _ in order))
    for row, (arm, _) in enumerate(order):
        if arms.index(arm) % 2 == 0:
            axes.axhspan(row - 0.5, row + 0.5, color="0.95", lw=0, zorder=0)
    axes.axvline(0, color="black", lw=0.7, zorder=1)
    for number, (name, chosen) in enumerate(series.items()):
        style = STYLES[name]
        wide = name == "pooled"
        for point in chosen:
            y = order.index((point.arm, point.predictor)) + 0.22 * (number - (len(series) - 1) / 2)
            if point.n >= FEWEST:
                axes.plot(
                    [point.low, point.high], [y, y], color=style["color"], lw=1.6 if wide else 0.8
                )
            axes.plot([point.value], [y], ms=3.2 if wide else 2.4, mew=0.7, ls="none", **style)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    names = {name: name for name in DATA}
    names["pooled"] = "pooled, 12 epochs"
    names |= {"last": "d: last", "best": "d: best", "tempered": "d: last, tempered"}
    handles = [
        Line2D([], [], ms=3.5, mew=0.7, lw=1, label=label, **STYLES[name])
        for name, label in names.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1)


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
