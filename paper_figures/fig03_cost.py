"""Figure 3: what LoRA Dropout costs, every measured ratio beside its limit.

Reads   tests/benchmarks/records/{training_step,ensemble,replicas,mask_variance}.json
Writes  paper_figures/out/fig03_cost.{csv,pdf,png}
Run     python -m paper_figures.fig03_cost     (CPU, seconds)
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import RC
from paper_figures import _cost_panels
from paper_figures._comparison import BENCHMARKS, OUT, write_points
from paper_figures._cost_panels import BLOCKS, ENSEMBLE, REPLICAS, STEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured ratio with its interval and its limit.

    Attributes:
        panel: ``a`` and ``b`` (a training step), ``c`` (ensemble), ``d`` (replicas), ``e``
            (variance).
        series: What is measured: in a and b a way to train; elsewhere a way to predict or to
            train, or a law of the masks.
        quantity: ``time``, ``saved bytes``, ``speed-up`` or ``variance``.
        at: Where it stands in the panel: blocks and batch, batch, or rate and N.
        value: The ratio.
        low: Lower end of its 95% interval; the ratio itself for counted bytes.
        high: Upper end.
        limit: What the ratio would be without overhead; 1, i.i.d. masks, for a variance.
    """

    panel: str
    series: str
    quantity: str
    at: str
    value: float
    low: float
    high: float
    limit: float


def _training_step(record: dict[str, Any]) -> list[Point]:
    points = []
    tiled = float(record["limits"]["four_tiled_over_peft"])
    late = float(record["limits"]["four_late_tiled_over_peft"])
    time_limits = {"four_sequential": tiled, "four_tiled": tiled, "four_late_tiled": late}
    byte_limits = {"four_tiled": tiled, "four_late_tiled": tiled}  # nothing below is kept anyway
    for panel, blocks in zip("ab", BLOCKS, strict=True):
        for name, found in record["results"][blocks].items():
            if name not in STEPS:
                continue
            shared = {"panel": panel, "series": name, "at": blocks}
            points.append(
                Point(
                    **shared,
                    quantity="time",
                    value=found["ratio"],
                    low=found["low"],
                    high=found["high"],
                    limit=time_limits.get(name, 1.0),
                )
            )
            kept = found["saved_ratio"]
            if kept is not None:  # of passes one after the other it was not measured
                points.append(
                    Point(
                        **shared,
                        quantity="saved bytes",
                        value=kept,
                        low=kept,
                        high=kept,
                        limit=byte_limits.get(name, 1.0),
                    )
                )
    return points


def _ensemble(record: dict[str, Any]) -> list[Point]:
    return [
        Point(
            panel="c",
            series=series,
            quantity="speed-up",
            at=at,
            value=found["times"][series]["ratio"],
            low=found["times"][series]["low"],
            high=found["times"][series]["high"],
            limit=found["limit"],
        )
        for at, found in sorted(record["prediction"].items(), key=_blocks_and_rows)
        for series in ENSEMBLE
    ]


def _blocks_and_rows(item: tuple[str, Any]) -> tuple[str, int]:
    """Orders "all, batch 8" before "all, batch 32"."""
    blocks, _, rows = item[0].rpartition(" ")
    return blocks, int(rows)


def _replicas(record: dict[str, Any]) -> list[Point]:
    points = []
    batches = {at: found for at, found in record.items() if at.startswith("batch of")}
    for at, found in sorted(batches.items(), key=_blocks_and_rows):
        for series in REPLICAS:
            times = found["times"][series]  # over those of the plain runs
            points.append(
                Point(
                    panel="d",
                    series=series,
                    quantity="speed-up",
                    at=at,
                    value=1 / times["ratio"],
                    low=1 / times["high"],
                    high=1 / times["low"],
                    limit=found["limit"] if "stored" in series else 1.0,
                )
            )
    return points


def _variance(record: dict[str, Any]) -> list[Point]:
    return [
        Point(
            panel="e",
            series=name.partition(",")[0],
            quantity="variance",
            at=f"{rate},{name.partition(',')[2]}",
            value=found["variance_ratio"],
            low=found["low"],
            high=found["high"],
            limit=1.0,
        )
        for rate, laws in record["rates"].items()
        for name, found in laws.items()
    ]


def compute(records: Path = BENCHMARKS) -> list[Point]:
    """Turn the records into the plotted numbers; no drawing here."""
    readers = {
        "training_step": _training_step,
        "ensemble": _ensemble,
        "replicas": _replicas,
        "mask_variance": _variance,
    }
    points = []
    for name, reader in readers.items():
        points += reader(json.loads((records / f"{name}.json").read_text(encoding="utf-8")))
    return points


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 4.9), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        upper, lower = halves
        steps = upper.subplots(1, 2, sharey=True)
        for axes, panel, blocks in zip(steps, "ab", BLOCKS.values(), strict=True):
            _cost_panels.draw_steps(axes, [p for p in points if p.panel == panel])
            axes.set_title(f"{panel}  one training step, {blocks}", size=8, loc="left")
        steps[0].legend(
            *_cost_panels.with_limit(steps[0]),
            loc="upper right",
            frameon=True,
            edgecolor="none",
            borderpad=0.2,
        )
        bottom = lower.subplots(1, 3, width_ratios=(1.2, 0.95, 1))
        for axes, panel, drawing in zip(
            bottom,
            "cde",
            (_cost_panels.draw_ensemble, _cost_panels.draw_replicas, _cost_panels.draw_variance),
            strict=True,
        ):
            drawing(axes, [p for p in points if p.panel == panel])
    return figure


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
