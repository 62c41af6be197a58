"""The panels of figure 6: stabilities, bounds, looseness, curvature, over the dropout rate."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.style import COLORS
from lodrop_theory.records import StabilityMethod
from paper_figures._comparison import DELTA

if TYPE_CHECKING:
    from paper_figures.fig06_measured_against_theory import Point

STEP = 0.013  # between series at one dropout rate
PURPLE = "#CC79A7"

METHODS: dict[StabilityMethod, dict[str, Any]] = {
    "refit": {"color": COLORS["floor"], "marker": "o", "label": "true refits"},
    "newton": {"color": COLORS["ensemble"], "marker": "s", "label": "Newton"},
    "gauss-newton": {"color": COLORS["mean"], "marker": "D", "label": "Gauss-Newton"},
    "influence": {"color": COLORS["bound"], "marker": "^", "label": "influence"},
    "retrain": {"color": PURPLE, "marker": "X", "label": "training repeated"},
}
BOUNDS: dict[str, dict[str, Any]] = {
    "two-stability": {
        "color": COLORS["bound"],
        "marker": "v",
        "label": "two stabilities ~",
    },
    "l2-stability": {
        "color": COLORS["ensemble"],
        "marker": "^",
        "label": "mean square ~",
    },
    "hold-out": {"color": COLORS["hold-out"], "marker": "s", "label": "hold-out certificate"},
    "gap": {"color": COLORS["floor"], "marker": "o", "label": "measured gap"},
    "expectation": {
        "color": COLORS["mean"],
        "marker": "D",
        "label": "bound on expected gap ~",
    },
}
CURVATURES: dict[str, dict[str, Any]] = {
    "penalty": {"color": COLORS["ensemble"], "marker": "o", "label": r"$\lambda$, energy"},
    "penalty_kkt": {
        "color": COLORS["hold-out"],
        "marker": "s",
        "label": r"$\lambda$, stationarity",
    },
    "penalty_curvature": {"color": PURPLE, "marker": "D", "label": r"$\lambda$, curvature"},
    "hessian_min_eig": {"color": COLORS["floor"], "marker": "v", "label": r"$\Lambda_{\min}$, raw"},
    "transverse_min_eig": {
        "color": COLORS["gibbs"],
        "marker": "^",
        "label": r"$\Lambda_{\min}$, across the gauge",
    },
    "dropout_min_eig": {
        "color": COLORS["bound"],
        "marker": "P",
        "label": r"$\Lambda_{\min}$, under masks",
    },
}
# One look per dropout rate in panel c, in turn.
RATES = (
    {"color": "0.45", "marker": "o"},
    {"color": COLORS["gibbs"], "marker": "s"},
    {"color": COLORS["mean"], "marker": "D"},
    {"color": COLORS["ensemble"], "marker": "^"},
)


def _over_rates(
    axes: Any, points: Sequence["Point"], styles: Mapping[Any, Mapping[str, Any]]
) -> None:
    """Each series of finite values with its intervals, side by side at each rate.

    Open marks: a bound whose stability is not that of true refits.
    """
    for number, (series, style) in enumerate(styles.items()):
        shift = STEP * (number - (len(styles) - 1) / 2)
        look = {"color": style["color"], "marker": style["marker"], "ls": "none", "ms": 3.5}
        for p in points:
            name, _, method = p.series.partition("/")
            if name == series and math.isfinite(p.value):
                x = p.dropout_rate + shift
                axes.plot([x, x], [p.low, p.high], color=style["color"], lw=1)
                face = style["color"] if method in ("", "refit") else "white"
                axes.plot([x], [p.value], mfc=face, zorder=3, **look)
        axes.plot([], [], label=style["label"], **look)
    rates = sorted({p.dropout_rate for p in points})
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.set_xlim(rates[0] - 0.06, rates[-1] + 0.06)
    axes.set_xlabel("dropout rate $p$")


def draw_stabilities(axes: Any, points: Sequence["Point"]) -> None:
    drawn = {p.series: p.n_draws for p in points if p.n_draws}
    styles = {
        method: {**style, "label": f"{style['label']} ({drawn[method]})"}
        for method, style in METHODS.items()
        if method in drawn
    }
    _over_rates(axes, points, styles)
    axes.axhline(0, color="0.8", lw=0.8, zorder=0)
    axes.margins(y=0.35)
    for rate in [p.dropout_rate for p in points if p.series == "refit" and not p.n_draws]:
        axes.text(
            rate,
            0.03,
            "no\nrefits",
            size=6.5,
            ha="center",
            transform=axes.get_xaxis_transform(),
        )
    axes.set_ylabel("mean |change| at the removed row (nats)")
    axes.set_title("a  pointwise stability, near the solution and of the run", size=8, loc="left")
    axes.legend(
        loc="upper center",
        ncols=2,
        borderpad=0.1,
        columnspacing=1,
        title="method (rows left out in turn)",
        title_fontsize=6.5,
    )


def _open(points: Sequence["Point"]) -> str:
    """What open marks are, where there are some."""
    others = {p.series.partition("/")[2] for p in points} - {"", "refit"}
    return f" (open: by {', '.join(sorted(others))})" if others else ""


def draw_bounds(axes: Any, points: Sequence["Point"]) -> None:
    axes.set_yscale("log", nonpositive="clip")
    _over_rates(axes, [p for p in points if p.series != "loss range"], BOUNDS)
    top = max(p.value for p in points if p.series == "loss range")
    failed = [p for p in points if p.series == "lin2024" and math.isinf(p.value)]
    axes.plot(
        [p.dropout_rate for p in failed],
        [2 * top] * len(failed),
        "x",
        color=PURPLE,
        label="Theorem 4.4: n/a",
    )
    holds = [p for p in points if p.series == "lin2024" and math.isfinite(p.value)]
    axes.plot(
        [p.dropout_rate for p in holds],
        [p.value for p in holds],
        "*",
        color=PURPLE,
        label="Theorem 4.4 ~" if holds else None,
    )
    axes.axhspan(top, 1e6, color="0.92", zorder=0)
    axes.text(
        0.36,
        1.05 * top,
        "vacuous",
        size=6.5,
        va="bottom",
        transform=axes.get_yaxis_transform(),
    )
    axes.set_ylim(3e-4, 1000 * top)
    axes.set_yticks([0.001, 0.01, 0.1, 1, 10], ["0.001", "0.01", "0.1", "1", "10"])
    axes.set_ylabel(r"gap $R - \hat{R}$ of the mean predictor (nats)")
    axes.set_title("b  measured gap and bounds", size=8, loc="left")
    axes.legend(
        loc="upper center",
        ncols=2,
        borderpad=0.1,
        columnspacing=1,
        title=f"δ = {DELTA:g}; ~ plug-in, by refits near the\nsolution{_open(points)}",
        title_fontsize=6.5,
    )


def draw_levels(axes: Any, points: Sequence["Point"]) -> None:
    order = list(dict.fromkeys(p.series for p in points))
    rates = sorted({p.dropout_rate for p in points})
    finite = [p.value for p in points if math.isfinite(p.value)]
    right = max(finite) + 0.5
    for number, rate in enumerate(rates):
        style = RATES[number % len(RATES)]
        shift = 0.16 * (number - (len(rates) - 1) / 2)
        here = [p for p in points if p.dropout_rate == rate]
        shown = [p for p in here if math.isfinite(p.value)]
        axes.plot(
            [p.value for p in shown],
            [order.index(p.series) + shift for p in shown],
            lw=0.7,
            ms=3,
            label=f"p = {rate:g}",
            **style,
        )
        failed = [order.index(p.series) + shift for p in here if math.isinf(p.value)]
        axes.plot([right] * len(failed), failed, "x", ms=3, color=style["color"])
    if any(math.isinf(p.value) for p in points):
        axes.plot([], [], "x", color="black", ms=3, label="not applicable")
    axes.axvline(0, color="black", lw=0.7, zorder=0)
    axes.set_yticks(range(len(order)), order)
    axes.grid(axis="y", color="0.93", zorder=0)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlabel(r"$\log_{10}$(level / measured gap)")
    axes.set_title("c  looseness, level by level", size=8, loc="left")
    axes.legend(loc="upper left", frameon=True, edgecolor="none")


def draw_curvatures(axes: Any, points: Sequence["Point"]) -> None:
    axes.set_yscale("symlog", linthresh=1e-3, linscale=0.6)
    _over_rates(axes, points, CURVATURES)
    axes.axhline(0, color="0.8", lw=0.8, zorder=0)
    axes.set_ylim(-30, 30)
    axes.set_yticks(
        [-10, -1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10],
        ["−10", "−1", "−0.1", "−0.01", "0", "0.01", "0.1", "1", "10"],
    )
    axes.set_ylabel("nats per parameter²")
    axes.set_title("d  curvature and implied penalty", size=8, loc="left")
    axes.legend(loc="upper center", ncols=2, borderpad=0.1, columnspacing=1)
