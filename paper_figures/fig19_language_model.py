"""Figure 19: what masks do to a fine-tuned causal language model, SmolLM2-135M from 4-bit.

LoRA r = 8 in the upper six of 30 blocks, 96 training and 128 held-out sentences, 8 epochs, balanced
masks, one per example; ensembles of eight. Means over five seeds with Student's 95% intervals.

Reads   tests/benchmarks/records/causal.json
Writes  paper_figures/out/fig19_language_model.{csv,pdf,png}
Run     python -m paper_figures.fig19_language_model     (CPU, seconds)
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, MARKERS, RC
from lodrop_theory.records import PREDICTORS
from paper_figures._comparison import BENCHMARKS, OUT, write_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
# Of text: the tokens of a sentence. Of label: a softmax over the two label words.
PANELS = {
    "gap_text_nll": "gap, text (nats/token)",
    "gap_label_nll": "gap, label (nats)",
    "test_text_nll": "held out, text (nats/token)",
    "test_label_nll": "held out, label (nats)",
}
BASE = "before"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plotted number.

    Attributes:
        panel: Negative log-likelihood of held-out rows (``test_...``), or that less the one of
            the training rows (``gap_...``); of ``text`` or of ``label``.
        predictor: ``mean``, ``gibbs`` or ``ensemble``; without masks they agree and ``mean``
            stands for all three.
        rate: p as text, ``before`` for the model that was not fine-tuned.
        seed: Of a single run; -1 for the mean over seeds.
        value: Nats; of text per token.
        low: Lower end of Student's 95% interval of the mean over seeds; nan for a single run.
        high: Upper end.
        n: Runs behind the number.
    """

    panel: str
    predictor: str
    rate: str
    seed: int
    value: float
    low: float
    high: float
    n: int


def compute(records: Path = BENCHMARKS) -> list[Point]:
    """Pick the plotted numbers out of the record; no drawing here."""
    content = json.loads((records / "causal.json").read_text(encoding="utf-8"))
    rates = sorted(
        {row["dropout_rate"] for row in content["table"]}, key=lambda p: (p or 0, p == 0)
    )
    points = []
    for panel in PANELS:
        for rate in rates:
            for predictor in PREDICTORS if rate else ("mean",):
                chosen = {"dropout_rate": rate, "predictor": predictor}
                for row in _where(content["splits"], chosen):
                    value = row["scores"][panel]
                    points.append(_point(panel, chosen, row["seed"], value))
                for row in _where(content["table"], chosen):
                    cell = row["measures"][panel]["value"]
                    points.append(_point(panel, chosen, -1, cell["mean"], cell))
    return points


def _where(rows: Sequence[dict[str, Any]], chosen: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in chosen.items())]


def _point(
    panel: str,
    chosen: dict[str, Any],
    seed: int,
    value: float,
    cell: dict[str, Any] | None = None,
) -> Point:
    interval = cell is not None and cell["low"] is not None
    return Point(
        panel=panel,
        predictor=chosen["predictor"],
        rate=BASE if chosen["dropout_rate"] is None else f"{chosen['dropout_rate']:g}",
        seed=seed,
        value=value,
        low=cell["low"] if cell is not None and interval else math.nan,
        high=cell["high"] if cell is not None and interval else math.nan,
        n=1 if cell is None else cell["n"],
    )


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rates = list(dict.fromkeys(p.rate for p in points))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(3.4, 3.7), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True)
        for axes, (panel, label) in zip(grid.flat, PANELS.items(), strict=True):
            _draw_panel(axes, [p for p in points if p.panel == panel], rates)
            axes.set_title(label, size=7.5, loc="left")
        for axes in grid[0]:
            axes.axhline(0, color="black", lw=0.6, zorder=0)
        for axes in grid[1]:
            axes.set_xticks(range(len(rates)), rates)
            axes.set_xlabel("dropout rate $p$")
        _legend(figure)
    return figure


def _draw_panel(axes: Any, points: Sequence[Point], rates: Sequence[str]) -> None:
    for point in points:
        alone = point.rate in (BASE, "0")
        shift = 0.0 if alone else 0.24 * (PREDICTORS.index(point.predictor) - 1)
        x = rates.index(point.rate) + shift
        color = "black" if alone else COLORS[point.predictor]
        if point.seed >= 0:
            axes.plot([x + 0.1], [point.value], ".", ms=3.6, color=color, alpha=0.6, mew=0)
            continue
        marker = "o" if alone else MARKERS[point.predictor]
        if not math.isnan(point.low):
            axes.plot([x, x], [point.low, point.high], color=color, lw=1)
        axes.plot([x], [point.value], marker, color=color, ms=3.2)
    axes.set_xlim(-0.5, len(rates) - 0.5)
    axes.margins(y=0.12)


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    shown = [("no masks", "o", "black"), *((p, MARKERS[p], COLORS[p]) for p in PREDICTORS)]
    handles = [
        Line2D([], [], marker=marker, ls="-", lw=1, ms=3.2, color=color, label=name)
        for name, marker, color in shown
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1)


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
