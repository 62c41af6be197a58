"""Figure 14: what Theorem 4.4 can reach: over size and rate, and with one run's constants.

a: C = 1, delta = 0.05, rho = 1, lambda = 1 and Lmin = -1; nothing of it was measured. b: C, rho,
Lmin, p and n of the measured run at p = 0.5, its lambda replaced by any other. The run is drawn at
its lambda by energy with the 95% interval; rho and Lmin enter by their values. That rho is the
largest gradient norm at the solution: a larger one elsewhere would move the curves of b upward.

Reads   paper_figures/records/measured/*.json
Writes  paper_figures/out/fig14_feasibility.{csv,pdf,png}
Run     python -m paper_figures.fig14_feasibility     (CPU, seconds)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import RC
from lodrop_theory import CurvatureInputs, RunRecord, repair_dropout_rate, solve
from paper_figures._comparison import DELTA, OUT, write_points
from paper_figures._feasibility_panels import PENALTIES, TARGETS, draw_rates, draw_run
from paper_figures._measured import RECORDS, read
from paper_figures._theory import SIZES, TEXTBOOK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
EIGENVALUE = -1.0  # of panel a
SHOWN_RATE = 0.5  # where the needed n is written beside the curve, and the rate of the run


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of the figure.

    Attributes:
        panel: ``a`` (over p) or ``b`` (over lambda).
        series: ``target`` (the least n at which the target is reached), ``needed`` (the same at
            p = 0.5 in a, the least lambda at the n of the run in b), ``no p helps`` (below this n),
            ``repair`` (from this p or lambda on the theorem applies), a task, ``run``, ``factor``
            (what the lambda of the run must be multiplied by for ``repair``), or ``any p`` (the
            least p at which the theorem says something of the run).
        target_gap: The target in loss units; nan where there is none.
        x: p (a, ``any p``), or lambda or its factor (b); nan for a task, and where none is enough.
        n_train: n; nan for ``repair``.
        low: Lower end of the interval of x, of lambda alone (``run``, ``factor``); nan elsewhere.
        high: Upper end.
    """

    panel: str
    series: str
    target_gap: float
    x: float
    n_train: float
    low: float = math.nan
    high: float = math.nan


def compute(records: Path = RECORDS) -> list[Point]:
    """All numbers of the figure; no drawing here."""
    run = next(run for run in read(records) if run.dropout_rate == SHOWN_RATE)
    return [*_over_rates(), *_over_penalties(run)]


def _over_rates() -> list[Point]:
    numbers = TEXTBOOK | {"hessian_min_eig": EIGENVALUE}
    curvature = CurvatureInputs(
        n_train=1,
        dropout_rate=0.0,
        **{name: numbers[name] for name in ("lipschitz", "hessian_min_eig", "penalty")},
    )
    start = float(repair_dropout_rate(curvature))
    last = np.nextafter(1.0, 0.0)
    rates = np.minimum(start + (1.0 - start) * np.linspace(0.0, 1.0, 121)[1:] ** 3, last)
    points = [Point(panel="a", series="repair", target_gap=math.nan, x=start, n_train=math.nan)]
    for target in TARGETS:
        for series, some in (
            ("target", rates),
            ("needed", [SHOWN_RATE]),
            ("no p helps", [last]),
        ):
            needed = solve(target_gap=target, dropout_rate=some, **numbers)
            points += _needed("a", series, target, some, needed.value)
    points += [
        Point(panel="a", series=task, target_gap=math.nan, x=math.nan, n_train=n)
        for task, n in SIZES.items()
    ]
    return points


def _needed(panel: str, series: str, target: float, places: Any, needed: Any) -> list[Point]:
    return [
        Point(panel=panel, series=series, target_gap=target, x=float(x), n_train=float(n))
        for x, n in zip(places, needed, strict=True)
    ]


def run_constants(run: RunRecord) -> Mapping[str, float]:
    """What the theorem reads of a run besides n and lambda, at the values measured."""
    return {
        "dropout_rate": run.dropout_rate,
        "lipschitz": run.lipschitz.value,
        "hessian_min_eig": run.hessian_min_eig.value,
        "loss_range": run.loss_range.value,
        "delta": DELTA,
    }


def _over_penalties(run: RunRecord) -> list[Point]:
    numbers, measured = run_constants(run), run.penalty
    if measured is None:
        raise ValueError("`run` must have a measured penalty, got None.")
    sparsity = run.dropout_rate * (2.0 - run.dropout_rate)
    start = -numbers["hessian_min_eig"] / (2.0 * sparsity)
    penalties = start + start * np.geomspace(1e-6, PENALTIES[1] / start, 240)
    points = [
        Point(panel="b", series="repair", target_gap=math.nan, x=start, n_train=math.nan),
        Point(
            panel="b",
            series="run",
            target_gap=math.nan,
            x=measured.value,
            n_train=run.n_train,
            low=measured.lower,
            high=measured.upper,
        ),
    ]
    points.append(
        Point(
            panel="b",
            series="factor",
            target_gap=math.nan,
            x=start / measured.value,
            n_train=run.n_train,
            low=start / measured.upper,
            high=start / measured.lower,
        )
    )
    others = {name: value for name, value in numbers.items() if name != "dropout_rate"}
    top = run.loss_range.value
    rate = solve(target_gap=top, n_train=run.n_train, penalty=measured.value, **others)
    points += _needed("b", "any p", top, [float(rate.value)], [run.n_train])
    gap = run.predictors["mean"].generalization_gap.value
    for target in (top, 1.0, gap):
        needed = solve(target_gap=target, penalty=penalties, **numbers)
        points += _needed("b", "target", target, penalties, needed.value)
        least = solve(target_gap=target, n_train=run.n_train, **numbers)
        points.append(
            Point(
                panel="b",
                series="needed",
                target_gap=target,
                x=float(least.value),
                n_train=run.n_train,
            )
        )
    return points


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 3.1), layout="constrained")
        for axes, panel, name in zip(
            figure.subplots(1, 2), (draw_rates, draw_run), "ab", strict=True
        ):
            axes.set_xscale("log")
            panel(axes, [p for p in points if p.panel == name])
    return figure


def main(records: Path = RECORDS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
