"""The panels of figure 12: what masks add, and the lambda that they imply."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.style import COLORS
from lodrop_theory.placements import (
    DROP_CONNECT,
    INPUT_DROPOUT,
    LORA_DROPOUT,
    OUTPUT_DROPOUT,
    RANK_DROPOUT,
    Placement,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from paper_figures.fig12_placements import Point

PURPLE = "#CC79A7"

DASHES = (0, (3, 3))
# In this order, later ones on top: curves that coincide must both be seen.
STYLES: dict[Placement, dict[str, Any]] = {
    LORA_DROPOUT: {"color": COLORS["bound"], "marker": "o", "label": "both (LoRA Dropout)"},
    DROP_CONNECT: {
        "color": COLORS["floor"],
        "marker": "s",
        "ls": DASHES,
        "label": "entries, rate $s(p)$",
    },
    OUTPUT_DROPOUT: {"color": COLORS["hold-out"], "marker": "^", "lw": 2.6, "label": "outputs"},
    INPUT_DROPOUT: {
        "color": COLORS["mean"],
        "marker": "v",
        "ls": DASHES,
        "label": "inputs (PEFT lora_dropout)",
    },
    RANK_DROPOUT: {"color": PURPLE, "marker": "D", "lw": 0.9, "label": "rank"},
}
LEAST = "rank, least over factors"


def draw_penalties(axes: Any, points: Sequence["Point"]) -> None:
    for number, (placement, style) in enumerate(STYLES.items()):
        here = [p for p in points if p.series == placement.name]
        exact = [p for p in here if not p.n_draws and p.value > 0]
        line = {name: style[name] for name in ("color", "ls", "lw") if name in style}
        axes.plot(
            [p.dropout_rate for p in exact], [p.value for p in exact], zorder=2 + number, **line
        )
        look = {"ls": "none", "ms": 4, "mfc": "none", "mew": 0.8}
        for p in (p for p in here if p.n_draws):
            at = {"color": style["color"], "zorder": 8}
            axes.plot([p.dropout_rate] * 2, [p.low, p.high], lw=1, **at)
            axes.plot([p.dropout_rate], [p.value], marker=style["marker"], **at, **look)
    draws = max(p.n_draws for p in points)
    axes.text(0.79, 0.024, f"marks: simulated,\n{draws:,} draws each", size=6.5, ha="right")
    least = [p for p in points if p.series == LEAST and p.value > 0]
    axes.plot([p.dropout_rate for p in least], [p.value for p in least], ls=":", lw=1, color=PURPLE)
    axes.set_ylim(0.02, 60)
    axes.set_ylabel(r"added squared loss / $\sigma^2\Vert D\Vert_F^2$")


def draw_implied(axes: Any, points: Sequence["Point"]) -> None:
    for inputs, alpha in (("isotropic", 0.45), ("correlated", 1.0)):
        for placement, style in STYLES.items():
            here = [p for p in points if p.series == f"{placement.name}, {inputs}"]
            line = {name: style[name] for name in ("color", "ls", "lw") if name in style}
            axes.plot([p.dropout_rate for p in here], [p.value for p in here], alpha=alpha, **line)
        axes.plot([], [], color="black", alpha=alpha, label=f"{inputs} inputs")
    axes.set_ylim(0.02, 60)
    axes.set_ylabel(r"$\lambda\,/\,\sigma^2$, half-squared loss")
    axes.legend(loc="upper left", borderpad=0.1)


def draw_legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ms=4, mfc="none", mew=0.8, **({"lw": 1.2} | style))
        for style in STYLES.values()
    ]
    handles.append(Line2D([], [], ls=":", lw=1, color=PURPLE, label="rank, best factors"))
    figure.legend(handles=handles, loc="outside upper center", ncols=6, columnspacing=1)
