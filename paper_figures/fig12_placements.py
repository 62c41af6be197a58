"""Figure 12: what masks at different places of a LoRA layer add to the expected squared loss.

One layer z = B A x, masks with inverted scaling. B is Gaussian and the rows of A are drawn like
inputs, as a gradient step would make them; both once, from a fixed seed. Nothing is trained. i.i.d.
masks on the entries (DropConnect) drop at rate s(p) = 2p - p^2, so that all of "both" and "entries"
drop the same share of entries. Rank masks add no lambda in the coordinates of D = B A: what they
add depends on the factors, not on their product alone.

Writes  paper_figures/out/fig12_placements.{csv,pdf,png}
Run     python -m paper_figures.fig12_placements     (CPU, seconds)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import RC
from lodrop_theory import implied_penalty, placement_penalty, update_sparsity
from lodrop_theory.placements import (
    DROP_CONNECT,
    INPUT_DROPOUT,
    OUTPUT_DROPOUT,
    RANK_DROPOUT,
    Placement,
)
from paper_figures import _placement_panels
from paper_figures._comparison import OUT, write_points
from paper_figures._placement_panels import LEAST, STYLES
from paper_figures._theory import RATES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem
N_IN, N_OUT, RANK = 24, 16, 4
CORRELATION = 0.8  # of neighboring inputs; that of inputs i and j is 0.8^|i - j|
SEED, N_DRAWS, LEVEL = 0, 4000, 0.95
SIMULATED = (0.1, 0.3, 0.5, 0.7)
LAST = 0.8  # of the axis: beyond, all curves leave the panel
COVARIANCES = {"isotropic": 0.0, "correlated": CORRELATION}

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of the figure.

    Attributes:
        panel: ``a`` (isotropic inputs), ``b`` (correlated ones) or ``c`` (implied lambda).
        series: A placement, :data:`LEAST` in a and b; in c with the inputs behind a comma.
        dropout_rate: p of row and column masks; entries are dropped at s(p).
        value: E tr Cov z over ||D||^2 and the variance of an input (a, b), or lambda for the
            half-squared loss over that variance (c).
        low: Lower end of the 95% interval of a simulation; nan for a closed form.
        high: Its upper end.
        n_draws: Draws of masks and inputs; 0 for a closed form.
    """

    panel: str
    series: str
    dropout_rate: float
    value: float
    low: float = math.nan
    high: float = math.nan
    n_draws: int = 0


def second_moment(correlation: float) -> Array:
    """Sigma of unit variance and correlation c^|i - j|."""
    place = np.arange(N_IN)
    return np.asarray(correlation ** np.abs(place[:, None] - place[None, :]), dtype=np.float64)


def layer(sigma: Array) -> tuple[Array, Array]:
    """A, whose rows are drawn like inputs, and a Gaussian B."""
    rng = np.random.default_rng(SEED)
    a = rng.standard_normal((RANK, N_IN)) @ np.linalg.cholesky(sigma).T
    return a, rng.standard_normal((N_OUT, RANK))


def own_rate(placement: Placement, rate: float) -> float:
    """The rate of one mask entry: s(p) for DropConnect, p elsewhere."""
    return float(update_sparsity(rate)) if placement is DROP_CONNECT else rate


def compute() -> list[Point]:
    """All numbers of the figure; no drawing here."""
    points = []
    rates = [rate for rate in RATES if rate <= LAST]
    for panel, (inputs, correlation) in zip("ab", COVARIANCES.items(), strict=True):
        sigma = second_moment(correlation)
        a, b = layer(sigma)
        square = float(np.sum((b @ a) ** 2))
        for placement in STYLES:
            for rate in rates:
                penalty = placement_penalty(
                    placement, own_rate(placement, rate), a, b, sigma, rescale=True
                )
                points.append(
                    Point(
                        panel=panel,
                        series=placement.name,
                        dropout_rate=rate,
                        value=penalty / square,
                    )
                )
            points += [_simulated(panel, placement, rate, a, b, sigma) for rate in SIMULATED]
            if placement is not RANK_DROPOUT:
                points += _implied(placement, inputs, sigma, rates)
        if inputs == "isotropic":
            points += _least_over_factors(a, b, rates)
    return points


def _least_over_factors(a: Array, b: Array, rates: Sequence[float]) -> list[Point]:
    """(p / q) ||D||_*^2 / r: what rank masks add at the best factors of the same update."""
    values = np.linalg.svd(b @ a, compute_uv=False)
    share = float(values.sum() ** 2 / RANK / np.sum(values**2))
    return [
        Point(panel="a", series=LEAST, dropout_rate=rate, value=rate / (1 - rate) * share)
        for rate in rates
    ]


def _implied(
    placement: Placement, inputs: str, sigma: Array, rates: Sequence[float]
) -> list[Point]:
    """Lambda as the weight of s(p) ||D||^2, for entries too, whose own sparsity is s(s(p))."""
    points = []
    for rate in rates:
        if rate == 0:
            continue
        own = own_rate(placement, rate)
        weight = implied_penalty(placement, own, sigma, output_curvature=1.0)
        value = weight * float(update_sparsity(own) / update_sparsity(rate))
        points.append(
            Point(panel="c", series=f"{placement.name}, {inputs}", dropout_rate=rate, value=value)
        )
    return points


def _simulated(
    panel: str, placement: Placement, rate: float, a: Array, b: Array, sigma: Array
) -> Point:
    """Mean of ||z - D x||^2 over draws of inputs and masks, by the definition of the placement."""
    rng = np.random.default_rng([SEED, "ab".index(panel), list(STYLES).index(placement)])
    x = rng.standard_normal((N_DRAWS, N_IN)) @ np.linalg.cholesky(sigma).T
    own = own_rate(placement, rate)

    def masks(*shape: int) -> Array:
        return np.asarray((rng.random((N_DRAWS, *shape)) >= own) / (1 - own))

    exact = x @ a.T @ b.T
    if placement is DROP_CONNECT:
        z = np.einsum("dij,ij,dj->di", masks(N_OUT, N_IN), b @ a, x)
    elif placement is RANK_DROPOUT:
        z = (masks(RANK) * (x @ a.T)) @ b.T
    else:
        kept = x if placement is OUTPUT_DROPOUT else masks(N_IN) * x
        z = kept @ a.T @ b.T
        z = z if placement is INPUT_DROPOUT else masks(N_OUT) * z
    found = np.sum((z - exact) ** 2, axis=1) / np.sum((b @ a) ** 2)
    half = stats.t.ppf((1 + LEVEL) / 2, N_DRAWS - 1) * stats.sem(found)
    mean = float(found.mean())
    return Point(
        panel=panel,
        series=placement.name,
        dropout_rate=rate,
        value=mean,
        low=float(mean - half),
        high=float(mean + half),
        n_draws=N_DRAWS,
    )


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them here."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    titles = {
        "a": "a  isotropic inputs: two curves",
        "b": "b  correlated inputs: outputs add more",
        "c": "c  the implied λ grows with $p$",
    }
    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
            axes.set_yscale("log")
            panel = (
                _placement_panels.draw_implied if name == "c" else _placement_panels.draw_penalties
            )
            panel(axes, [p for p in points if p.panel == name])
            axes.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
            axes.set_xlim(0, LAST)
            axes.set_xlabel("dropout rate $p$")
            axes.set_title(title, size=8, loc="left")
        _placement_panels.draw_legend(figure)
    return figure


def main(out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute()
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
