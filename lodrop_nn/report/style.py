"""One look for every figure: sizes as printed, a palette that color-blind readers can tell."""

from typing import Any

# Okabe and Ito's palette.
COLORS = {
    "gibbs": "#E69F00",
    "ensemble": "#0072B2",
    "mean": "#009E73",
    "bound": "#D55E00",
    "hold-out": "#56B4E9",
    "floor": "#000000",
}
MARKERS = {"gibbs": "s", "ensemble": "o", "mean": "D"}

RC: dict[str, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.hashsalt": "lodrop",
}
