"""Measured gap and bounds against the dropout rate."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lodrop_nn.report.style import COLORS, MARKERS, RC
from lodrop_nn.report.summary import RateSummary
from lodrop_theory.records import PREDICTORS, write_bytes_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plotted number.

    Attributes:
        series: ``"gap:<predictor>"`` for a measurement, ``"bound:<id>:<predictor>"`` for a bound.
        dropout_rate: p.
        seed: Seed of the run.
        value: Nats; infinite where a bound is not applicable.
        kind: ``"measured"``, or the kind of the bound.
    """

    series: str
    dropout_rate: float
    seed: int
    value: float
    kind: str


def compute(summaries: Sequence[RateSummary]) -> list[Point]:
    """Turn summaries into the plotted numbers; no drawing here."""
    points = []
    for summary in summaries:
        for record, bounds in zip(summary.records, summary.bounds, strict=True):
            seed, rate = int(record.config["seed"]), summary.dropout_rate
            for predictor in PREDICTORS:
                gap = record.predictors[predictor].generalization_gap.value
                points.append(
                    Point(
                        series=f"gap:{predictor}",
                        dropout_rate=rate,
                        seed=seed,
                        value=gap,
                        kind="measured",
                    )
                )
            points += [
                Point(
                    series=f"bound:{bound.bound}:{bound.predictor}",
                    dropout_rate=rate,
                    seed=seed,
                    value=float(bound.gap),
                    kind=str(bound.kind),
                )
                for bound in bounds
            ]
    return points


def _series(points: Sequence[Point], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates with the mean, least and greatest value over seeds, of the finite points."""
    chosen = [p for p in points if p.series == name and math.isfinite(p.value)]
    rates = sorted({p.dropout_rate for p in chosen})
    values = [[p.value for p in chosen if p.dropout_rate == rate] for rate in rates]
    mean = np.array([np.mean(v) for v in values])
    spread = np.array([[np.min(v), np.max(v)] for v in values]).reshape(-1, 2)
    return np.array(rates), mean, spread


def draw(points: Sequence[Point], *, loss_range: float, floor: float, delta: float) -> "Figure":
    """Draw the points; the only arithmetic is the mean and the range over seeds.

    Args:
        points: What :func:`compute` returns.
        loss_range: C; a bound above it says nothing. Nats.
        floor: Value of Theorem 4.4 at infinite strong convexity, C / sqrt(2 n delta). Nats.
        delta: Failure probability of the bounds, for the caption.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        rates = sorted({p.dropout_rate for p in points})
        for shift, predictor in zip((-0.006, 0.0, 0.006), PREDICTORS, strict=True):
            x, mean, spread = _series(points, f"gap:{predictor}")
            axes.errorbar(
                x + shift,
                mean,
                yerr=np.abs(spread.T - mean),
                marker=MARKERS[predictor],
                color=COLORS[predictor],
                label=f"measured gap, {predictor}",
                capsize=2,
            )
        x, mean, _ = _series(points, "bound:hold-out:ensemble")
        axes.plot(x, mean, "--", color=COLORS["hold-out"], label="hold-out certificate, ensemble")
        axes.axhline(
            floor, color=COLORS["floor"], lw=1, ls=":", label=r"Thm 4.4 at $\mu=\infty$ (its floor)"
        )
        _draw_theorem(axes, points, rates, loss_range)
        axes.axhspan(loss_range, 1e9, color="0.9", zorder=0)
        axes.text(rates[-1], loss_range * 1.08, "vacuous (> C)", ha="right", va="bottom", size=7)
        finite = [p.value for p in points if math.isfinite(p.value) and p.value > 0]
        axes.set_yscale("log")
        axes.set_ylim(min([*finite, floor]) / 2, max([*finite, loss_range]) * 4)
        axes.set_xticks(rates)
        axes.set_xlabel("dropout rate $p$")
        axes.set_ylabel("generalization gap (nats)")
        axes.set_title(f"bounds at δ = {delta:g}; bars: range over seeds", size=8)
        figure.legend(loc="outside right center")
    return figure


def _draw_theorem(axes, points, rates, loss_range) -> None:  # type: ignore[no-untyped-def]
    """Theorem 4.4: its plug-in values, and a mark where its hypothesis fails."""
    x, mean, _ = _series(points, "bound:lin2024:mean")
    if len(x):
        axes.plot(x, mean, "v-", color=COLORS["bound"], label="Thm 4.4, plug-in")
    failed = [p for p in points if p.series == "bound:lin2024:mean" and not math.isfinite(p.value)]
    missing = [rate for rate in rates if any(p.dropout_rate == rate for p in failed)]
    if missing:
        axes.plot(
            missing,
            [loss_range * 2.2] * len(missing),
            "x",
            color=COLORS["bound"],
            label="Thm 4.4 not applicable (μ ≤ 0)",
        )


# Without dates and versions in the files, equal numbers give equal bytes.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


def save(figure: "Figure", stem: Path) -> tuple[Path, Path]:
    """Write ``stem``.png and ``stem``.pdf, atomically and byte-reproducibly.

    Returns:
        The two paths, PNG first.
    """
    import matplotlib as mpl

    paths = []
    with mpl.rc_context(RC):
        for kind, metadata in _METADATA.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            paths.append(stem.with_name(f"{stem.name}.{kind}"))
            write_bytes_atomically(paths[-1], buffer.getvalue())
    return paths[0], paths[1]
