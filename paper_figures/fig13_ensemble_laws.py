"""Figure 13: how fast an ensemble of N masks approaches the infinite one, in law and in fact.

a: one layer of two inputs and one output whose masks are enumerated: the expected log loss of the
averaged probability over all draws of N masks, exactly, beside Var / (2 N m^2).
b: adapters trained with LoRA Dropout (MiniLM, p = 0.5, one balanced mask per example): the test NLL
of N of 16 i.i.d. masks, averaged over all such subsets, above that of all 16. Drawn without
replacement, N of 16 have a variance proportional to 1/N - 1/16; the factor is fitted at N = 8, so
that N = 1, 2 and 4 are predicted. Student's intervals over seeds are about the level of a curve.
c, d: the variance of mask ensembles over that of i.i.d. masks: the closed form of one layer for
balanced masks, beside what was measured on a MiniLM adapter. The closed form depends on the layer
through u / t, the squared norm of its output over the sum of the squared terms in it: 1 for
unrelated terms. Orthogonal masks have no closed form here; they are drawn as measured.

Reads   tests/benchmarks/records/{ablation,mask_variance}.json
Writes  paper_figures/out/fig13_ensemble_laws.{csv,pdf,png}
Run     python -m paper_figures.fig13_ensemble_laws     (CPU, seconds)
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import RC
from lodrop_theory import (
    balanced_masks_average,
    finite_n_excess,
    iid_masks_average,
    variance_ratio,
)
from lodrop_theory.solvable.multisets import multinomial_probability, multisets
from paper_figures._comparison import BENCHMARKS, OUT, write_points
from paper_figures._ensemble_panels import (
    DATA,
    LAWS,
    RATES,
    SHARES,
    draw_exact,
    draw_observed,
    draw_variance,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
TERMS = (1.5, 1.0)  # D_j x_j of the enumerated layer: logits of the right one of two classes
SIZES = (1, 2, 4, 8, 16, 32, 64)
ARM, ARM_RATE, POOL, FITTED, LEVEL = "example-balanced", 0.5, 16, 8, 0.95
VARIANCES = {"c": 0.25, "d": 0.5}  # panel: p
BALANCED_SIZES = (4, 8, 16)  # those at which p N is whole


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of the figure.

    Attributes:
        panel: ``a`` (exact excess), ``b`` (observed excess), ``c`` or ``d`` (variance ratio).
        series: ``exact`` or ``law`` (a), a data set or its law (b), ``u/t = k`` or a law of masks.
        dropout_rate: p of the masks.
        n_masks: N.
        value: Expected loss above that of infinitely many masks (a) or of the 16 masks (b), in
            nats; variance of the ensemble over that of N i.i.d. masks (c, d).
        low: Lower end of the 95% interval of what was measured; nan elsewhere.
        high: Its upper end.
    """

    panel: str
    series: str
    dropout_rate: float
    n_masks: int
    value: float
    low: float = math.nan
    high: float = math.nan


def outcomes(rate: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probability of the right class under each mask of the layer, and that of the mask.

    The masks are those of LoRA Dropout with inverted scaling: two inputs and one output.
    """
    kept = np.array([[o * i, o * j] for o in (0, 1) for i in (0, 1) for j in (0, 1)])
    drawn = np.array([o + i + j for o in (0, 1) for i in (0, 1) for j in (0, 1)])
    chance = (1 - rate) ** drawn * rate ** (3 - drawn)
    logits = kept @ np.array(TERMS) / (1 - rate) ** 2
    # Masks of equal output are one outcome: there are four of them.
    values, place = np.unique(logits, return_inverse=True)
    probability = np.bincount(place, weights=chance).astype(np.float64)
    return np.asarray(1 / (1 + np.exp(-values)), dtype=np.float64), probability


def compute(records: Path = BENCHMARKS) -> list[Point]:
    """All numbers of the figure; no drawing here."""
    points = [point for rate in RATES for point in _exact(rate)]
    points += _observed(records)
    for panel, rate in VARIANCES.items():
        points += [*_closed_forms(panel, rate), *_measured_variances(records, panel, rate)]
    return points


def _exact(rate: float) -> list[Point]:
    right, chance = outcomes(rate)
    mean = float(chance @ right)
    trace = float(chance @ (right - mean) ** 2) / mean**2
    points = []
    for n in SIZES:
        counts = multisets(len(right), n)
        losses = -np.log(counts @ right / n)
        # A difference of logarithms; the last digits depend on the order of the sum.
        exact = round(float(multinomial_probability(counts, chance) @ losses) + math.log(mean), 12)
        for series, value in (("exact", exact), ("law", float(finite_n_excess(trace, n)))):
            points.append(
                Point(panel="a", series=series, dropout_rate=rate, n_masks=n, value=value)
            )
    return points


def _observed(records: Path) -> list[Point]:
    content = json.loads((records / "ablation.json").read_text(encoding="utf-8"))
    points = []
    for data in DATA:
        here = [r for r in content["counts"] if (r["data"], r["arm"]) == (data, ARM)]
        nll = {(r["n_masks"], r["seed"]): r["nll"] for r in here}
        seeds = sorted({seed for _, seed in nll})
        sizes = sorted({n for n, _ in nll if 0 < n < POOL})
        excess = {n: np.array([nll[n, s] - nll[POOL, s] for s in seeds]) for n in sizes}
        factor = float(excess[FITTED].mean()) / (1 / FITTED - 1 / POOL)
        for n, values in excess.items():
            half = stats.t.ppf((1 + LEVEL) / 2, len(seeds) - 1) * stats.sem(values)
            mean = float(values.mean())
            common: dict[str, Any] = {"panel": "b", "dropout_rate": ARM_RATE, "n_masks": n}
            points += [
                Point(
                    series=data,
                    value=mean,
                    low=float(mean - half),
                    high=float(mean + half),
                    **common,
                ),
                Point(series=f"{data}, law", value=factor * (1 / n - 1 / POOL), **common),
            ]
    return points


def _closed_forms(panel: str, rate: float) -> list[Point]:
    """A layer of k equal terms has u / t = k; of two opposite ones, 0."""
    points = []
    for share in SHARES:
        weight = [[1.0] * share] if share else [[1.0, -1.0]]
        x = [1.0] * len(weight[0])
        for n in BALANCED_SIZES:
            balanced = balanced_masks_average(rate, n, rescale=True)
            iid = iid_masks_average(rate, n, rescale=True)
            points.append(
                Point(
                    panel=panel,
                    series=f"u/t = {share}",
                    dropout_rate=rate,
                    n_masks=n,
                    value=variance_ratio(balanced, iid, weight, x),
                )
            )
    return points


def _measured_variances(records: Path, panel: str, rate: float) -> list[Point]:
    content = json.loads((records / "mask_variance.json").read_text(encoding="utf-8"))
    points = []
    for name, cell in content["rates"][f"p = {rate:g}"].items():
        law, _, size = name.partition(", N = ")
        if law in LAWS:
            points.append(
                Point(
                    panel=panel,
                    series=law,
                    dropout_rate=rate,
                    n_masks=int(size),
                    value=cell["variance_ratio"],
                    low=cell["low"],
                    high=cell["high"],
                )
            )
    return sorted(points, key=lambda p: (p.series, p.n_masks))


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 5.2), layout="constrained")
        grid = figure.subplots(2, 2)
        panels = (draw_exact, draw_observed, draw_variance, draw_variance)
        for axes, panel, name in zip(grid.flat, panels, "abcd", strict=True):
            panel(axes, [p for p in points if p.panel == name])
    return figure


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
