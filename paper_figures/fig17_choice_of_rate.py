"""Figure 17: choosing p without held-out rows, against the best p on held-out rows.

Leave-one-out risks are those of one Gauss-Newton step per left-out example from the trained point:
of a minimizer near the solution, not of the training repeated, and in an objective whose ridge
differs from rate to rate. The best rate is that of least risk on the same held-out rows, which
makes every rule look somewhat worse than it is. Masks are off. Five seeds, each with its own split.

Reads   paper_figures/records/stability/*.json
Writes  paper_figures/out/fig17_choice_of_rate.{csv,pdf,png}
Run     python -m paper_figures.fig17_choice_of_rate     (CPU, seconds)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.report.figure import save
from lodrop_nn.report.style import COLORS, RC
from lodrop_nn.report.summary import seed_mean
from lodrop_theory import RunRecord
from paper_figures import _stability, _sweeps
from paper_figures._comparison import OUT, write_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = Path(__file__).stem


def _leave_one_out(run: RunRecord) -> float:
    assert run.stability is not None
    return run.stability.estimates["gauss-newton"].leave_one_out_risk.value


QUANTITIES: dict[str, Callable[[RunRecord], float]] = {
    "held-out risk": lambda run: run.predictors["mean"].population_risk.value,
    "training risk": lambda run: run.predictors["mean"].empirical_risk.value,
    "leave-one-out risk": _leave_one_out,
}
RULES = {
    "leave-one-out risk": "least leave-one-out risk",
    "training risk": "least training risk",
    "always 0": "p = 0 (LoRA)",
    "always 0.5": "p = 0.5",
}
STYLES: dict[str, dict[str, Any]] = {
    "held-out risk": {"color": COLORS["floor"], "marker": "o"},
    "training risk": {"color": COLORS["gibbs"], "marker": "s"},
    "leave-one-out risk": {"color": COLORS["ensemble"], "marker": "D"},
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A risk at a rate, or what a rule loses.

    Attributes:
        panel: ``risk`` or ``regret``.
        series: The quantity, or the rule.
        dropout_rate: p; NaN for a rule.
        value: Mean over seeds. Nats of smoothed cross-entropy, masks off.
        low: Lower end of Student's 95% interval.
        high: Upper end.
        n: Seeds.
        chosen: The rates that the rule takes, by seed; empty for a risk.
    """

    panel: str
    series: str
    dropout_rate: float
    value: float
    low: float
    high: float
    n: int
    chosen: str


def compute(records: Path = _stability.RECORDS) -> list[Point]:
    """Means over seeds, and the held-out risk that a rule gives up; no drawing here."""
    runs = _stability.read(records)
    points = []
    for rate in _stability.rates(runs):
        for series, quantity in QUANTITIES.items():
            values = [quantity(run) for run in runs if run.dropout_rate == rate]
            points.append(_point("risk", series, rate, values, ""))
    by_seed: dict[int, dict[float, RunRecord]] = {}
    for run in runs:
        by_seed.setdefault(run.config["seed"], {})[run.dropout_rate] = run
    complete = [s for s in by_seed.values() if set(s) == set(_stability.rates(runs))]
    for rule in RULES:
        chosen = [_choice(rule, of_seed) for of_seed in complete]
        held_out = QUANTITIES["held-out risk"]
        regrets = [
            held_out(of_seed[rate]) - min(map(held_out, of_seed.values()))
            for of_seed, rate in zip(complete, chosen, strict=True)
        ]
        text = " ".join(f"{rate:g}" for rate in chosen)
        points.append(_point("regret", rule, math.nan, regrets, text))
    return points


def _choice(rule: str, runs: dict[float, RunRecord]) -> float:
    if rule.startswith("always"):
        return float(rule.split()[1])
    return min(runs, key=lambda rate: QUANTITIES[rule](runs[rate]))


def _point(panel: str, series: str, rate: float, values: Sequence[float], chosen: str) -> Point:
    mean = _sweeps.fields_of(seed_mean(values))
    return Point(panel=panel, series=series, dropout_rate=rate, chosen=chosen, **mean)


def draw(points: Sequence[Point]) -> "Figure":
    """Draw the points; no arithmetic on them but a shift of the series against each other."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.2, 2.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        for number, (series, style) in enumerate(STYLES.items()):
            line = [p for p in points if (p.panel, p.series) == ("risk", series)]
            errors = [[p.value - p.low for p in line], [p.high - p.value for p in line]]
            x = [p.dropout_rate + 0.006 * (number - 1) for p in line]
            y = [p.value for p in line]
            left.errorbar(x, y, yerr=errors, capsize=1.5, lw=1, ms=3.5, label=series, **style)
        left.set_xticks(sorted({p.dropout_rate for p in points if p.panel == "risk"}))
        left.set_xlabel("dropout rate $p$")
        left.set_ylabel("risk, masks off (nats)")
        left.set_title("a  three risks", size=8, loc="left")
        left.legend()
        rules = [p for p in points if p.panel == "regret"]
        for place, p in enumerate(rules):
            right.plot([p.low, p.high], [place, place], color="black", lw=1)
            right.plot(p.value, place, "o", color="black", ms=4)
            right.annotate(
                f"chose {p.chosen}" if not p.series.startswith("always") else "",
                (p.value, place),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                size=6,
            )
        right.axvline(0, color="0.6", lw=0.7, zorder=0)
        right.set_yticks(range(len(rules)), [RULES[p.series] for p in rules])
        right.set_ylim(len(rules) - 0.5, -0.6)
        right.set_xlabel("held-out risk above the best (nats)")
        right.set_title("b  what a rule gives up", size=8, loc="left")
    return figure


def main(records: Path = _stability.RECORDS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    points = compute(records)
    write_points(out / f"{NAME}.csv", points)
    save(draw(points), out / NAME)


if __name__ == "__main__":
    main()
