"""The panels of figure 13: what N masks are short of, and what other laws of masks leave."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.style import COLORS

if TYPE_CHECKING:
    from paper_figures.fig13_ensemble_laws import Point

RATES: dict[float, dict[str, Any]] = {
    0.1: {"color": COLORS["ensemble"], "marker": "o"},
    0.3: {"color": COLORS["mean"], "marker": "D"},
    0.5: {"color": COLORS["bound"], "marker": "s"},
}
DATA: dict[str, dict[str, Any]] = {
    "sarcasm": {"color": COLORS["mean"], "marker": "D"},
    "movie-reviews": {"color": COLORS["ensemble"], "marker": "o"},
    "trec": {"color": COLORS["gibbs"], "marker": "s"},
}
SHARES = {0: ":", 1: "-", 4: "--"}  # u / t and its line
LAWS: dict[str, dict[str, Any]] = {
    "balanced": {"color": COLORS["ensemble"], "marker": "o"},
    "orthogonal": {"color": COLORS["bound"], "marker": "s"},
}
SHIFTS = {"balanced": 0.97, "orthogonal": 1.03}  # factors of N, so that both are seen
OPEN: dict[str, Any] = {"ls": "none", "mfc": "white", "zorder": 3}


def _line(axes: Any, points: Sequence["Point"], series: str, **style: Any) -> None:
    here = [p for p in points if p.series == series]
    axes.plot([p.n_masks for p in here], [p.value for p in here], **style)


def _masks(axes: Any, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.set_xlabel("masks $N$")


def draw_exact(axes: Any, points: Sequence["Point"]) -> None:
    for rate, style in RATES.items():
        here = [p for p in points if p.dropout_rate == rate]
        _line(axes, here, "law", color=style["color"])
        _line(axes, here, "exact", label=f"$p$ = {rate:g}", **OPEN, **style)
    _masks(axes, sorted({p.n_masks for p in points}))
    axes.set_yscale("log")
    axes.set_yticks([1e-4, 1e-3, 1e-2, 0.1], ["0.0001", "0.001", "0.01", "0.1"])
    axes.set_ylabel("loss above $N = \\infty$ (nats)")
    axes.set_title("a  one layer: the excess tends to Var / (2 $N m^2$)", size=8, loc="left")
    axes.legend(loc="lower left", title="marks exact, lines law", title_fontsize=6.5)


def draw_observed(axes: Any, points: Sequence["Point"]) -> None:
    for data, style in DATA.items():
        _line(axes, points, f"{data}, law", color=style["color"])
        _line(axes, points, data, label=data, **OPEN, **style)
        for p in (p for p in points if p.series == data):
            axes.plot([p.n_masks] * 2, [p.low, p.high], color=style["color"], lw=1)
    _masks(axes, sorted({p.n_masks for p in points}))
    axes.set_yscale("log")
    axes.set_yticks([1e-3, 1e-2, 0.1], ["0.001", "0.01", "0.1"])
    axes.set_ylabel("NLL above that of 16 masks (nats)")
    axes.set_title("b  trained adapters: $1/N - 1/16$, fitted at $N$ = 8", size=8, loc="left")
    axes.legend(loc="lower left", title="marks measured, lines law", title_fontsize=6.5)


def draw_variance(axes: Any, points: Sequence["Point"]) -> None:
    left = [p.value for p in points if p.series == "balanced"]
    title = f"{points[0].panel}  balanced masks leave {min(left):.2f} to {max(left):.2f}, "
    axes.set_title(f"{title}$p$ = {points[0].dropout_rate:g}", size=8, loc="left")
    for share, ls in SHARES.items():
        label = f"balanced, $u/t$ = {share}"
        _line(axes, points, f"u/t = {share}", color="black", ls=ls, lw=1, label=label)
    for law, style in LAWS.items():
        here, shift = [p for p in points if p.series == law], SHIFTS[law]
        for p in here:
            axes.plot([p.n_masks * shift] * 2, [p.low, p.high], lw=1, color=style["color"])
        axes.plot(
            [p.n_masks * shift for p in here],
            [p.value for p in here],
            ls="none",
            ms=3.5,
            label=f"{law}, measured",
            **style,
        )
    axes.axhline(1, color="0.6", lw=0.8, zorder=0)
    _masks(axes, sorted({p.n_masks for p in points}))
    axes.set_xlim(3.4, 19)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("variance over that of i.i.d. masks")
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, 0.96), borderpad=0.1)
