"""The panels of figure 14: over size and rate, and over penalty and size for a measured run."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.style import COLORS
from paper_figures._theory import SIZES, shades

if TYPE_CHECKING:
    from paper_figures.fig14_feasibility import Point

TARGETS = (1.0, 0.3, 0.1, 0.05)  # the first is C: from there on the bound says something
# Ends of the axes of a and b.
LARGEST_N = (1e6, 1e6)
SMALLEST_N = (1e2, 3e1)
PENALTIES = (1e-4, 1e4)
TEXT: dict[str, Any] = {"size": 6.5, "va": "center"}


def draw_rates(axes: Any, points: Sequence["Point"]) -> None:
    start = next(p.x for p in points if p.series == "repair")
    axes.axhspan(0, start, color="0.82", lw=0, zorder=0)
    vacuous = _curve(points, TARGETS[0])
    axes.fill_betweenx(
        [p.x for p in vacuous], SMALLEST_N[0], [p.n_train for p in vacuous], color="0.92", lw=0
    )
    for color, target in zip(shades(len(TARGETS)), TARGETS, strict=True):
        here = _curve(points, target)
        axes.plot([p.n_train for p in here], [p.x for p in here], color=color)
        needed = next(p for p in points if p.series == "needed" and p.target_gap == target)
        axes.plot([needed.n_train], [needed.x], "o", ms=3, color=color)
        axes.text(needed.n_train, needed.x, f"  {needed.n_train:,.0f}", color=color, **TEXT)
        top = next(p for p in points if p.series == "no p helps" and p.target_gap == target)
        axes.text(top.n_train, 0.95, f" gap {target:g}", color=color, **TEXT)
    axes.text(1.2e2, 0.38, "vacuous", **TEXT)
    axes.text(1.2e2, 0.15, r"not applicable: $\mu \leq 0$", **TEXT)
    axes.text(2.3e4, 0.8, "← no $p$\nreaches 0.1", **(TEXT | {"ha": "right"}))
    for task, n in SIZES.items():
        axes.axvline(n, color="0.6", lw=0.5, zorder=1)
        if task != "QQP":  # too near to MNLI for two labels
            axes.text(
                n,
                0.02,
                "QQP, MNLI" if task == "MNLI" else task,
                rotation=90,
                ha="right",
                va="bottom",
                size=6.5,
            )
    axes.set_xlim(SMALLEST_N[0], LARGEST_N[0])
    axes.set_ylim(0, 1)
    axes.set_xlabel("training examples $n$ (dots: needed at $p$ = 0.5)")
    axes.set_ylabel("dropout rate $p$")
    axes.set_title("a  textbook constants: only $n$ buys a small gap", size=8, loc="left")


def _curve(points: Sequence["Point"], target: float) -> list["Point"]:
    return [
        p
        for p in points
        if p.series == "target" and p.target_gap == target and math.isfinite(p.n_train)
    ]


def draw_run(axes: Any, points: Sequence["Point"]) -> None:
    start = next(p.x for p in points if p.series == "repair")
    axes.set_yscale("log")
    axes.axvspan(PENALTIES[0], start, color="0.82", lw=0, zorder=0)
    targets = list(dict.fromkeys(p.target_gap for p in points if p.series == "target"))
    meanings = (": $C$", "", ": measured")
    for color, target, meaning in zip(shades(len(targets)), targets, meanings, strict=True):
        here = _curve(points, target)
        axes.plot(
            [p.x for p in here],
            [p.n_train for p in here],
            color=color,
            label=f"{target:.2g} nats{meaning}",
        )
    vacuous = _curve(points, targets[0])
    axes.fill_between(
        [p.x for p in vacuous], SMALLEST_N[1], [p.n_train for p in vacuous], color="0.92", lw=0
    )
    run = next(p for p in points if p.series == "run")
    factor = next(p for p in points if p.series == "factor")
    axes.plot([run.low, run.high], [run.n_train] * 2, color=COLORS["bound"], lw=2)
    axes.plot([run.x], [run.n_train], "*", ms=7, color=COLORS["bound"])
    axes.annotate(
        "",
        xy=(start, run.n_train),
        xytext=(run.high, run.n_train),
        arrowprops={"arrowstyle": "->", "lw": 0.8, "color": COLORS["bound"]},
    )
    axes.text(0.017, 1.3 * run.n_train, f"×{factor.x:.0f}", color=COLORS["bound"], **TEXT)
    helps = any(math.isfinite(p.x) for p in points if p.series == "any p")
    label = "the run" if helps else "the run: no $p$ helps"
    axes.text(1.5e-4, 0.5 * run.n_train, label, **TEXT)
    axes.text(1.5e-4, 5e5, r"not applicable: $\mu \leq 0$", **TEXT)
    axes.text(1.5, 100, "vacuous", **TEXT)
    axes.set_xlim(*PENALTIES)
    axes.set_ylim(SMALLEST_N[1], LARGEST_N[1])
    axes.set_xlabel("penalty λ (nats per parameter²)")
    axes.set_ylabel("training examples $n$")
    axes.set_title("b  a measured run at $p$ = 0.5 is out of its reach", size=8, loc="left")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0.0, 0.88),
        handlelength=1,
        borderpad=0.1,
        title="above the curve, gap ≤",
        title_fontsize=6.5,
        alignment="left",
    )
