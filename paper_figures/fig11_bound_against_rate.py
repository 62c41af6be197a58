"""Figure 11: Theorem 4.4 against the dropout rate, and what of it survives measured constants.

Nothing here is trained: C = 1, delta = 0.05, rho = 1, lambda = 1 and Lmin = 0 unless a panel
varies one of them; b, c and d are at the size of RTE.

Reads   paper_figures/records/movie-reviews/*.json (measured lambda, panel d)
Writes  paper_figures/out/fig11_bound_against_rate.{csv,pdf,png}
Run     python -m paper_figures.fig11_bound_against_rate     (CPU, seconds)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import RC
from lodrop_theory import (
    CurvatureInputs,
    RunRecord,
    TailInputs,
    curvature_bounds,
    evaluate_record,
    lin2024_bound,
    read_record,
    repair_dropout_rate,
    theorem44_floor,
)
from paper_figures import _rate_panels
from paper_figures._comparison import DELTA, OUT, RECORDS, write_points
from paper_figures._rate_panels import EIGENVALUES, ESTIMATORS, PENALTIES, SIZE
from paper_figures._theory import RATES, SIZES, TEXTBOOK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of the figure.

    Attributes:
        panel: ``a`` (sizes), ``b`` (companions), ``c`` (Lmin) or ``d`` (lambda).
        series: A task or ``floor`` (a), a bound (b), the quantity that varies (c, d), ``repair``
            (c: the smallest rate at which the theorem applies), the estimator of lambda or ``own``
            (d: the theorem with all constants of the run).
        parameter: n, Lmin or lambda; nan where none varies.
        dropout_rate: p; nan for a floor, and for a repair that does not exist.
        value: Gap in loss units, infinite where the theorem is not applicable.
        low: Gap at the upper end of the interval of lambda (d, energy); nan elsewhere.
        high: Gap at its lower end; nan elsewhere.
        kind: ``plug-in``, ``not applicable``, ``floor`` or ``rate``.
    """

    panel: str
    series: str
    parameter: float
    dropout_rate: float
    value: float
    low: float = math.nan
    high: float = math.nan
    kind: str = "plug-in"


def inputs(n_train: int, rates: Sequence[float], **changed: float) -> tuple[Any, Any]:
    """What the bounds read at the textbook constants, some of them changed."""
    numbers = TEXTBOOK | changed
    curvature = CurvatureInputs(
        n_train=n_train,
        dropout_rate=rates,
        **{name: numbers[name] for name in ("lipschitz", "hessian_min_eig", "penalty")},
    )
    tail = TailInputs(n_train=n_train, loss_range=numbers["loss_range"], delta=numbers["delta"])
    return curvature, tail


def _curve(panel: str, series: str, parameter: float, bound: Any) -> list[Point]:
    rates = bound.inputs["dropout_rate"]
    return [
        Point(
            panel=panel,
            series=series,
            parameter=parameter,
            dropout_rate=float(rate),
            value=float(gap),
            kind=str(kind),
        )
        for rate, gap, kind in zip(rates, bound.gap, bound.kind, strict=True)
    ]


def compute(records: Path = RECORDS) -> list[Point]:
    """All numbers of the figure; no drawing here."""
    points = []
    for task, n in SIZES.items():
        points += _curve("a", task, n, lin2024_bound(*inputs(n, RATES)))
        floor = float(theorem44_floor(TEXTBOOK["loss_range"], n, TEXTBOOK["delta"]))
        points.append(
            Point(
                panel="a",
                series="floor",
                parameter=n,
                dropout_rate=math.nan,
                value=floor,
                kind="floor",
            )
        )
    for bound in curvature_bounds(*inputs(SIZES[SIZE], RATES)):
        points += _curve("b", bound.bound, math.nan, bound)
    for eigenvalue in EIGENVALUES:
        points += _over_eigenvalues(eigenvalue)
    for penalty in PENALTIES:
        found = lin2024_bound(*inputs(SIZES[SIZE], RATES, penalty=penalty))
        points += _curve("d", "penalty", penalty, found)
    runs = [read_record(path) for path in sorted(records.glob("*.json"))]
    return points + [p for run in runs if run.dropout_rate > 0 for p in _measured(run)]


def _over_eigenvalues(eigenvalue: float) -> list[Point]:
    """From the repairing rate on, where the gap leaves infinity, and below it."""
    curvature, _ = inputs(SIZES[SIZE], [0.0], hessian_min_eig=eigenvalue)
    start = float(np.squeeze(repair_dropout_rate(curvature)))
    below = [rate for rate in RATES if rate < start]
    above = [start + (1.0 - start) * rate for rate in RATES]
    bound = lin2024_bound(*inputs(SIZES[SIZE], below + above, hessian_min_eig=eigenvalue))
    repair = Point(
        panel="c",
        series="repair",
        parameter=eigenvalue,
        dropout_rate=start,
        value=math.nan,
        kind="rate",
    )
    return [*_curve("c", "hessian_min_eig", eigenvalue, bound), repair]


def _measured(run: RunRecord) -> list[Point]:
    """The theorem with lambda as measured and all else as before, and with the run's numbers."""

    def gap(penalty: float) -> float:
        bound = lin2024_bound(*inputs(SIZES[SIZE], [run.dropout_rate], penalty=max(penalty, 0.0)))
        return float(bound.gap[0])

    points = []
    for name in ESTIMATORS:
        found = getattr(run, name)
        with_interval = found.low is not None
        points.append(
            Point(
                panel="d",
                series=f"{name}, measured",
                parameter=found.value,
                dropout_rate=run.dropout_rate,
                value=gap(found.value),
                low=gap(found.high) if with_interval else math.nan,
                high=gap(found.low) if with_interval else math.nan,
            )
        )
    own = next(b for b in evaluate_record(run, delta=DELTA) if b.bound == "lin2024")
    points.append(
        Point(
            panel="d",
            series="own",
            parameter=math.nan,
            dropout_rate=run.dropout_rate,
            value=float(own.gap),
            kind=str(own.kind),
        )
    )
    return points


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 5.2), layout="constrained")
        grid = figure.subplots(2, 2)
        panels = (
            _rate_panels.draw_sizes,
            _rate_panels.draw_companions,
            _rate_panels.draw_eigenvalues,
            _rate_panels.draw_penalties,
        )
        for axes, panel, name in zip(grid.flat, panels, "abcd", strict=True):
            axes.set_yscale("log")
            axes.set_xlim(0, 1)
            axes.set_xlabel("dropout rate $p$")
            axes.set_ylabel("bound on $R - \\hat{R}$ ($C = 1$)")
            axes.axhspan(1, 1e3, color="0.92", lw=0, zorder=0)
            panel(axes, [p for p in points if p.panel == name])
    return figure


def main(records: Path = RECORDS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
