"""Figure 20: what the theorems read, and what they say, along p: five training sets per rate.

Stabilities are local: Gauss-Newton steps from the trained point, in an objective with just enough
ridge to be convex there, which differs from rate to rate.

Reads   paper_figures/records/stability/*.json
Writes  paper_figures/out/fig20_measured_along_rate.{csv,pdf,png}
Run     python -m paper_figures.fig20_measured_along_rate     (CPU, seconds)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, RC
from lodrop_theory import RunRecord
from lodrop_theory.evaluate import evaluate_record
from paper_figures import _stability
from paper_figures._comparison import DELTA, OUT, write_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
PURPLE = "#CC79A7"
LIPSCHITZ = ("lipschitz", "dropout_lipschitz")
CURVATURES = ("hessian_min_eig", "transverse_min_eig", "dropout_min_eig")
PENALTIES = ("penalty", "penalty_kkt", "penalty_curvature")
STABILITIES = ("pointwise_stability", "hypothesis_stability", "replace_one_in", "ridge")
BOUNDS = (
    *("lin2024", "two-stability/gauss-newton", "l2-stability/gauss-newton"),
    *("expectation/gauss-newton", "hold-out", "measured gap"),
)
PANELS = {
    "lipschitz": ("a  largest gradient norm of an example", LIPSCHITZ),
    "curvature": ("b  smallest Hessian eigenvalue", CURVATURES),
    "penalty": ("c  penalty weight, three estimators", PENALTIES),
    "stability": ("d  local stability (nats) and its ridge", STABILITIES),
    "bounds": ("e  bounds and gap, masks off (nats)", BOUNDS),
}
LABELS = {
    "lipschitz": "masks off",
    "dropout_lipschitz": "under masks",
    "hessian_min_eig": "trained coordinates",
    "transverse_min_eig": "across the gauge",
    "dropout_min_eig": "under masks",
    "penalty": "energy",
    "penalty_kkt": "stationarity",
    "penalty_curvature": "curvature",
    "pointwise_stability": "pointwise",
    "hypothesis_stability": "at fresh points",
    "replace_one_in": "replaced, mean square",
    "ridge": r"ridge $2\tau$ (nats / parameter$^2$)",
    "lin2024": "Theorem 4.4",
    "two-stability/gauss-newton": "two stabilities, plug-in",
    "l2-stability/gauss-newton": "mean square, plug-in",
    "expectation/gauss-newton": "expectation, plug-in",
    "hold-out": "hold-out certificate",
    "measured gap": "measured gap",
}
LOOKS = (
    {"color": COLORS["ensemble"], "marker": "o"},
    {"color": COLORS["bound"], "marker": "s"},
    {"color": COLORS["mean"], "marker": "D"},
    {"color": PURPLE, "marker": "^"},
    {"color": COLORS["hold-out"], "marker": "v"},
    {"color": COLORS["floor"], "marker": "o"},
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured number, or one bound, of one run.

    Attributes:
        panel: Which quantity.
        series: Its name in the record, or the bound's.
        dropout_rate: p.
        seed: Of the run.
        value: Nats, nats per parameter norm or its square; infinite where not applicable.
    """

    panel: str
    series: str
    dropout_rate: float
    seed: int
    value: float


def compute(records: Path = _stability.RECORDS) -> list[Point]:
    """The numbers of every run; no drawing here."""
    return [
        Point(
            panel=panel,
            series=series,
            dropout_rate=run.dropout_rate,
            seed=run.config["seed"],
            value=value,
        )
        for run in _stability.read(records)
        for (panel, series), value in _values(run).items()
    ]


def _values(run: RunRecord) -> dict[tuple[str, str], float]:
    assert run.stability is not None
    found: dict[tuple[str, str], float] = {}
    for panel, names in (("lipschitz", LIPSCHITZ), ("curvature", CURVATURES)):
        found |= {(panel, n): e.value for n in names if (e := getattr(run, n)) is not None}
    found |= {("penalty", n): e.value for n in PENALTIES if (e := getattr(run, n)) is not None}
    local = run.stability.estimates["gauss-newton"]
    found |= {("stability", name): getattr(local, name).value for name in STABILITIES[:-1]}
    found["stability", "ridge"] = 2 * run.stability.ridge
    for bound in evaluate_record(run, delta=DELTA):
        if bound.bound in BOUNDS and bound.predictor == "mean":
            found["bounds", bound.bound] = float(bound.gap)
    found["bounds", "measured gap"] = run.predictors["mean"].generalization_gap.value
    return found


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them but their medians and a shift of the series."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        grid: dict[str, Any] = figure.subplot_mosaic(
            [["lipschitz", "curvature", "penalty"], ["stability"] + ["bounds"] * 2]
        )
        for panel, (title, series) in PANELS.items():
            axes = grid[panel]
            _draw_panel(axes, [p for p in points if p.panel == panel], series)
            axes.set_title(title, size=8, loc="left")
        grid["curvature"].axhline(0, color="0.6", lw=0.7, zorder=0)
        grid["penalty"].axhline(0, color="0.6", lw=0.7, zorder=0)
        for name in ("lipschitz", "stability", "bounds"):
            grid[name].set_yscale("log")
        grid["penalty"].set_yscale("symlog", linthresh=1e-3)
        grid["stability"].set_ylim(bottom=2e-5)  # room for the legend
        for axes in grid.values():
            axes.legend(fontsize=6)
        for name in ("stability", "bounds"):
            grid[name].set_xlabel("dropout rate $p$")
    return figure


def _draw_panel(axes: Any, points: Sequence[Point], series: Sequence[str]) -> None:
    rates = sorted({p.dropout_rate for p in points})
    for number, name in enumerate(series):
        here = [p for p in points if p.series == name and math.isfinite(p.value)]
        look = LOOKS[-1] if name == "measured gap" else LOOKS[number]
        label = LABELS[name]
        if any(p.series == name for p in points) and not here:
            axes.plot([], [], ls="none", label=f"{label}: not applicable at any rate")
            continue
        shift = 0.012 * (number - (len(series) - 1) / 2)
        style = {"ls": "none", "ms": 2.6, "mew": 0.6, "mfc": "white"}
        axes.plot([p.dropout_rate + shift for p in here], [p.value for p in here], **style, **look)
        medians = [_median([p.value for p in here if p.dropout_rate == r]) for r in rates]
        axes.plot([r + shift for r in rates], medians, color=look["color"], lw=0.9)
        axes.plot([], [], lw=0.9, ms=2.6, mew=0.6, mfc="white", label=label, **look)
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else math.nan


def main(records: Path = _stability.RECORDS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
