"""The panels of figure 3: a training step, an ensemble, replicas, laws of masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.style import COLORS

if TYPE_CHECKING:
    from paper_figures.fig03_cost import Point

BLOCKS = {"all": "all six blocks", "upper": "upper three blocks"}

# Ways to train one step, as they are called in the record and in the figure.
STEPS = {
    "peft_again": "PEFT LoRA again",
    "peft_lora_dropout": "PEFT lora_dropout",
    "one_per_batch": "one mask per batch",
    "one_per_example": "one mask per example",
    "four_sequential": "N = 4, sequential",
    "four_tiled": "N = 4, tiled",
    "four_late_tiled": "N = 4, late-tiled",
}
# Series of the other panels: how they are drawn.
ENSEMBLE: dict[str, dict[str, Any]] = {
    "sequential": {"color": COLORS["ensemble"], "marker": "o", "label": "same masks, one by one"},
    "mc_dropout": {"color": COLORS["gibbs"], "marker": "s", "label": "PEFT lora_dropout passes"},
}
REPLICAS: dict[str, dict[str, Any]] = {
    "eight replicas in one pass": {
        "color": COLORS["hold-out"],
        "marker": "s",
        "label": "replicas",
    },
    "eight plain runs, states stored": {
        "color": COLORS["gibbs"],
        "marker": "D",
        "label": "runs, states stored",
    },
    "eight replicas in one pass, states stored": {
        "color": COLORS["ensemble"],
        "marker": "o",
        "label": "replicas, states stored",
    },
}
LAWS: dict[str, dict[str, Any]] = {
    "iid": {"color": "0.5", "marker": "^"},
    "balanced": {"color": COLORS["ensemble"], "marker": "o"},
    "orthogonal": {"color": COLORS["bound"], "marker": "s"},
}


def with_limit(axes: Any) -> tuple[list[Any], list[str]]:
    """The legend of a panel, a mark for the limit last."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    mark = Line2D([], [], color="black", marker="|", ms=7, mew=1.2, ls="none")
    return [*handles, mark], [*labels, "limit"]


def _mark(axes: Any, x: float, point: "Point", **style: Any) -> None:
    """A ratio with its interval, upright, and its limit as a short line."""
    color, marker = style["color"], style["marker"]
    axes.plot([x, x], [point.low, point.high], color=color, lw=1)
    axes.plot([x], [point.value], marker, color=color, ms=3.5, mfc=style.get("mfc", color))
    axes.plot([x], [point.limit], "_", color="black", ms=9, mew=1.2)


def draw_steps(axes: Any, points: Sequence["Point"]) -> None:
    order = list(STEPS)
    styles = {
        "time": (-0.17, COLORS["ensemble"], "o"),
        "saved bytes": (0.17, COLORS["gibbs"], "s"),
    }
    for quantity, (shift, color, marker) in styles.items():
        for point in (p for p in points if p.quantity == quantity):
            y = order.index(point.series) + shift
            axes.plot([point.limit], [y], "|", color="black", ms=7, mew=1.2)
            axes.plot([point.low, point.high], [y, y], color=color, lw=1)
            axes.plot([point.value], [y], marker, color=color, ms=3.5)
        axes.plot([], [], marker, color=color, ms=3.5, label=quantity)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 4], ["1", "2", "4"])
    axes.minorticks_off()
    axes.set_yticks(range(len(order)), list(STEPS.values()))
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.grid(axis="y", color="0.93", zorder=0)
    axes.set_xlabel("ratio to PEFT LoRA without dropout")


def draw_ensemble(axes: Any, points: Sequence["Point"]) -> None:
    places = list(dict.fromkeys(p.at for p in points))
    for number, (series, style) in enumerate(ENSEMBLE.items()):
        for point in (p for p in points if p.series == series):
            _mark(axes, places.index(point.at) + 0.3 * number - 0.15, point, **style)
        axes.plot([], [], style["marker"], color=style["color"], ms=3.5, label=style["label"])
    axes.axhline(1, color="0.8", lw=0.8, zorder=0)
    axes.set_xticks(range(len(places)), [at.partition("batch ")[2] for at in places])
    axes.set_xlabel("rows in the batch")
    for blocks, label in BLOCKS.items():
        at = [i for i, place in enumerate(places) if place.startswith(blocks)]
        axes.text(
            at[len(at) // 2],
            0.03,
            label,
            size=6.5,
            ha="center",
            transform=axes.get_xaxis_transform(),
        )
    axes.set_ylim(0, 1.45 * max(max(p.high, p.limit) for p in points))
    axes.set_ylabel("time over that of one call")
    axes.set_title("c  ensemble of 16 masks", size=8, loc="left")
    axes.legend(loc="upper left", borderpad=0.1)


def draw_replicas(axes: Any, points: Sequence["Point"]) -> None:
    places = list(dict.fromkeys(p.at for p in points))
    for number, (series, style) in enumerate(REPLICAS.items()):
        for point in (p for p in points if p.series == series):
            _mark(axes, places.index(point.at) + 0.25 * (number - 1), point, **style)
        axes.plot([], [], style["marker"], color=style["color"], ms=3.5, label=style["label"])
    axes.axhline(1, color="0.8", lw=0.8, zorder=0)
    axes.set_xticks(range(len(places)), [at.rpartition(" ")[2] for at in places])
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_xlabel("rows in the batch")
    axes.set_ylim(0, 1.6 * max(max(p.high, p.limit) for p in points))
    axes.set_ylabel("speed-up over 8 plain runs")
    axes.set_title("d  K = 8 replicas", size=8, loc="left")
    axes.legend(loc="upper left", borderpad=0.1)


def draw_variance(axes: Any, points: Sequence["Point"]) -> None:
    places = list(dict.fromkeys(sorted((p.at for p in points), key=_rate_and_size)))
    for number, (law, style) in enumerate(LAWS.items()):
        for point in (p for p in points if p.series == law):
            x = places.index(point.at) + 0.22 * (number - 1)
            axes.plot([x, x], [point.low, point.high], color=style["color"], lw=1)
            axes.plot([x], [point.value], style["marker"], color=style["color"], ms=3.5)
        axes.plot(
            [],
            [],
            style["marker"],
            color=style["color"],
            ms=3.5,
            label="i.i.d." if law == "iid" else law,
        )
    axes.axhline(1, color="black", lw=1.2)
    axes.set_yscale("log")
    axes.set_ylim(0.05, 1.5)
    axes.set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
    axes.minorticks_off()
    axes.set_xticks(range(len(places)), [f"{_rate_and_size(at)[1]}" for at in places])
    for rate in dict.fromkeys(_rate_and_size(at)[0] for at in places):
        at = [i for i, place in enumerate(places) if _rate_and_size(place)[0] == rate]
        axes.text(
            at[len(at) // 2],
            0.03,
            f"p = {rate:g}",
            size=6.5,
            ha="center",
            transform=axes.get_xaxis_transform(),
        )
    axes.set_xlabel("masks in the ensemble, N")
    axes.set_ylabel("variance over that of i.i.d. masks")
    axes.set_title("e  laws of masks", size=8, loc="left")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.72), borderpad=0.1, ncols=1)


def _rate_and_size(at: str) -> tuple[float, int]:
    """The rate and N of a place like "p = 0.25, N = 4"."""
    rate, _, size = at.partition(", N = ")
    return float(rate.removeprefix("p = ")), int(size)
