"""The committed scores of the sweeps: one table per grid, and means and differences over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lodrop_nn.report.style import COLORS
from lodrop_nn.report.summary import SeedMean, seed_mean
from paper_figures._comparison import HERE

RECORDS = HERE / "records" / "sweeps"
GRIDS = HERE / "grids"
DATA = ("movie-reviews", "sarcasm", "trec")
# Rates from plain LoRA to heavy dropout; light to dark is told apart in gray too.
RATE_STYLES: Mapping[float, Mapping[str, Any]] = {
    0.0: {"color": "black", "ls": "-"},
    0.1: {"color": COLORS["hold-out"], "ls": (0, (1, 1))},
    0.3: {"color": COLORS["mean"], "ls": (0, (4, 1.5))},
    0.5: {"color": COLORS["ensemble"], "ls": "-"},
    0.7: {"color": COLORS["bound"], "ls": (0, (5, 1, 1, 1))},
}
DATA_STYLES: Mapping[str, Mapping[str, Any]] = {
    "movie-reviews": {"color": COLORS["ensemble"], "marker": "o"},
    "sarcasm": {"color": COLORS["mean"], "marker": "D"},
    "trec": {"color": COLORS["gibbs"], "marker": "s"},
}


def fields_of(found: SeedMean) -> dict[str, Any]:
    """A mean over seeds as the fields that plotted points have: value, low, high and n."""
    return {"value": found.mean, "low": found.low, "high": found.high, "n": found.n_seeds}


def read(*grids: str, records: Path = RECORDS) -> pd.DataFrame:
    """Scores of some grids, one row per run, scored epoch and predictor; a shared run counts once.

    Runs that diverged have no row at their last epoch, and so no place in any mean.
    """
    tables = [pd.read_csv(records / f"{grid}.csv", dtype={"run_id": str}) for grid in grids]
    return pd.concat(tables).drop_duplicates(["run_id", "epoch", "predictor"], ignore_index=True)


def at_the_end(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last epoch of each run."""
    return table[table.epoch == table.epochs]


def arm(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows in which columns have some values."""
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def over_seeds(table: pd.DataFrame, measure: str) -> SeedMean:
    """Mean of a measure over the seeds of one arm.

    Raises:
        ValueError: If a seed has several rows.
    """
    if table.seed.duplicated().any():
        raise ValueError("`table` must have one row per seed.")
    return seed_mean(table[measure].tolist())


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, measure: str) -> SeedMean:
    """Mean over shared seeds of ours less theirs.

    Raises:
        ValueError: If a seed has several rows on one side.
    """
    if ours.seed.duplicated().any() or theirs.seed.duplicated().any():
        raise ValueError("`ours` and `theirs` must have one row per seed.")
    joined = ours.set_index("seed")[measure] - theirs.set_index("seed")[measure]
    return seed_mean(joined.dropna().tolist())


def band(axes: Any, x: Sequence[float], means: Sequence[Any], **style: Any) -> None:
    """A line through means, with their intervals as a band."""
    axes.plot(x, [m.value for m in means], **style)
    axes.fill_between(
        x, [m.low for m in means], [m.high for m in means], color=style["color"], alpha=0.15, lw=0
    )
