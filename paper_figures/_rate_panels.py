"""The panels of figure 11: sizes, companions, eigenvalues and penalties, over the dropout rate."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.style import COLORS
from paper_figures._theory import SIZES, shades

if TYPE_CHECKING:
    from paper_figures.fig11_bound_against_rate import Point

SIZE = "RTE"  # of panels b, c and d
EIGENVALUES = (1.0, 0.0, -0.5, -1.0, -1.5)
PENALTIES = (1.0, 0.1, 0.01, 0.001)
COMPANIONS: dict[str, dict[str, Any]] = {
    "lin2024": {"color": COLORS["bound"], "ls": "-", "label": "Theorem 4.4"},
    "two-stability": {"color": COLORS["gibbs"], "ls": "--", "label": "repaired lemma"},
    "uniform-tail": {"color": COLORS["mean"], "ls": "-.", "label": "exponential tail"},
    "l2-stability": {"color": COLORS["ensemble"], "ls": "-", "label": "mean square"},
    "expectation": {"color": COLORS["hold-out"], "ls": ":", "label": "expected gap only"},
}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "penalty": {"color": COLORS["bound"], "marker": "o", "label": "λ by energy, 12 runs"},
    "penalty_kkt": {"color": COLORS["gibbs"], "marker": "s", "label": "λ by stationarity"},
}


def _line(axes: Any, points: Sequence["Point"], **style: Any) -> None:
    shown = [p for p in points if math.isfinite(p.value)]
    axes.plot([p.dropout_rate for p in shown], [p.value for p in shown], **style)


def _vacuous(axes: Any) -> None:
    axes.text(0.98, 1.06, "vacuous", size=6.5, ha="right", va="bottom")


def draw_sizes(axes: Any, points: Sequence["Point"]) -> None:
    floors = {p.parameter: p.value for p in points if p.series == "floor"}
    for color, (task, n) in zip(shades(len(SIZES)), SIZES.items(), strict=True):
        _line(axes, [p for p in points if p.series == task], color=color, label=f"{task}  {n:,}")
        axes.plot([0.8, 1], [floors[n]] * 2, ls=(0, (1, 1)), lw=1, color=color)
    axes.plot([], [], ls=(0, (1, 1)), lw=1, color="black", label="its floor")
    _vacuous(axes)
    axes.set_ylim(0.003, 20)
    axes.legend(loc="upper right", ncols=3, columnspacing=1, handlelength=1.2, borderpad=0.1)
    axes.set_title("a  size shifts it; beyond $p$ = 0.3 it falls by < 28%", size=8, loc="left")


def draw_companions(axes: Any, points: Sequence["Point"]) -> None:
    for bound, style in COMPANIONS.items():
        _line(axes, [p for p in points if p.series == bound], **style)
    _vacuous(axes)
    axes.set_ylim(2e-4, 20)
    axes.legend(loc="upper right", ncols=2, columnspacing=1, borderpad=0.1)
    axes.set_title(f"b  other proofs give less from $p$ = 0.04 on ({SIZE})", size=8, loc="left")


def draw_eigenvalues(axes: Any, points: Sequence["Point"]) -> None:
    repairs = {p.parameter: p.dropout_rate for p in points if p.series == "repair"}
    for color, eigenvalue in zip(shades(len(repairs)), repairs, strict=True):
        chosen = [p for p in points if p.series != "repair" and p.parameter == eigenvalue]
        label = f"{eigenvalue:+g}" if eigenvalue else "0"
        _line(axes, chosen, color=color, label=label.replace("-", "−"))
        if eigenvalue < 0:
            rate = repairs[eigenvalue]
            axes.plot([rate, rate], [0.13, 8], ls=(0, (1, 2)), lw=0.8, color=color)
            axes.text(rate, 0.125, f"{rate:.2f}", size=6.5, ha="center", va="top", color=color)
    axes.text(0.98, 0.1, "dotted: not applicable\nbelow this $p$", size=6.5, ha="right")
    _vacuous(axes)
    axes.set_ylim(0.07, 8)
    _plain_ticks(axes, (0.1, 1))
    axes.legend(
        loc="upper right", title=r"$\Lambda_{\min}$", title_fontsize=6.5, ncols=2, borderpad=0.1
    )
    axes.set_title(
        r"c  $\Lambda_{\min} < 0$ asks for a least $p$ (" + SIZE + ")", size=8, loc="left"
    )


def draw_penalties(axes: Any, points: Sequence["Point"]) -> None:
    for color, penalty in zip(shades(len(PENALTIES)), PENALTIES, strict=True):
        chosen = [p for p in points if p.series == "penalty" and p.parameter == penalty]
        _line(axes, chosen, color=color, label=f"λ = {penalty:g}")
    for name, style in ESTIMATORS.items():
        chosen = [p for p in points if p.series == f"{name}, measured"]
        for p in chosen:
            axes.plot([p.dropout_rate] * 2, [p.low, p.high], color=style["color"], lw=1)
        axes.plot(
            [p.dropout_rate for p in chosen],
            [p.value for p in chosen],
            ls="none",
            ms=3,
            mfc="white" if name == "penalty_kkt" else style["color"],
            **style,
        )
    own = [p for p in points if p.series == "own"]
    failed = [p for p in own if p.kind == "not applicable"]
    axes.text(
        0.98,
        0.1,
        f"with the runs' own $\\Lambda_{{\\min}}$, $\\rho$, $n$, $C$:\n"
        f"not applicable in {len(failed)} of {len(own)}",
        size=6.5,
        ha="right",
        va="bottom",
    )
    _vacuous(axes)
    axes.set_ylim(0.07, 100)
    _plain_ticks(axes, (0.1, 1, 10, 100))
    axes.legend(loc="upper right", ncols=2, columnspacing=1, borderpad=0.1)
    axes.set_title(f"d  at a measured λ it is vacuous ({SIZE})", size=8, loc="left")


def _plain_ticks(axes: Any, ticks: Sequence[float]) -> None:
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
