"""The records of a sweep as one tidy table, and paired differences between its arms."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from lodrop_nn.report.summary import seed_mean
from lodrop_nn.sweep.scores import EpochScores, ScoreRecord
from lodrop_theory.records import Estimate, Predictor

# Fields of a configuration that tell runs apart; the rest is the same for nearly all sweeps.
SETTINGS = (
    *("data", "model", "seed", "dropout_rate", "n_masks_train", "mask_scope", "mask_law"),
    *("rank", "lora_alpha", "target_modules", "adapted_layers", "n_train", "n_test", "epochs"),
    *("batch_size", "learning_rate", "weight_decay"),
)
# Fields of a predictor's measurement, in nats or fractions.
MEASURES = (
    *("train_nll", "test_nll", "empirical_risk", "population_risk", "generalization_gap"),
    *("train_accuracy", "test_accuracy", "calibration_error", "debiased_calibration_error"),
    *("smooth_calibration_error", "brier_score", "vote_distance"),
)
_ENVIRONMENT = ("device", "cpu", "gpu", "torch", "peft", "transformers")


def score_table(records: Iterable[ScoreRecord]) -> pd.DataFrame:
    """One row per run, scored epoch and predictor.

    Args:
        records: Runs with ``measure = "scores"``, of one sweep or of several.

    Returns:
        Columns ``run_id``, ``method``, those of :data:`SETTINGS` (lists as text), ``n_parameters``,
        ``train_seconds``, ``n_together``, ``diverged_after``, where it ran, ``epoch``, ``n_masks``
        (members of the ensemble), ``predictor``, and those of :data:`MEASURES` (the measured
        values, without their intervals over rows; missing where not measured). A run that diverged
        before its first score has one row without values.
    """
    rows = []
    for record in records:
        shared = _shared(record)
        scored = [
            {**shared, **_values(at, predictor)}
            for at in record.scores
            for predictor in at.predictors
        ]
        rows += scored or [shared]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame(rows, columns=columns or None)


def _shared(record: ScoreRecord) -> dict[str, Any]:
    config = record.config
    settings = {name: _plain(config.get(name, _DEFAULTS.get(name))) for name in SETTINGS}
    return {
        "run_id": record.run_id,
        "method": record.method,
        **settings,
        "n_parameters": record.n_parameters,
        "train_seconds": record.seconds["train"],
        "n_together": record.n_together,
        "diverged_after": record.diverged_after,
        **{name: record.environment.get(name) for name in _ENVIRONMENT},
    }


_DEFAULTS = {"mask_law": "iid"}  # left out of configurations at its default


def _plain(value: Any) -> Any:
    """Lists as text: a column of lists cannot be compared."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _values(at: EpochScores, predictor: Predictor) -> dict[str, Any]:
    measured = at.predictors[predictor]
    values: dict[str, Any] = {"epoch": at.epoch, "n_masks": at.n_masks, "predictor": predictor}
    for name in MEASURES:
        found = getattr(measured, name)
        values[name] = found.value if isinstance(found, Estimate) else None
    return values


def paired_differences(
    table: pd.DataFrame,
    measure: str,
    *,
    arms: Sequence[str],
    reference: Mapping[str, Any],
    within: Sequence[str] = ("data",),
    level: float = 0.95,
) -> pd.DataFrame:
    """Differences to a reference arm over the seeds that both have, with intervals.

    Runs of one seed share the split, the initialization and the order of the rows, so their
    difference is free of those effects. Intervals are Student's over seeds, not adjusted for their
    number.

    Args:
        table: Rows of :func:`score_table`, one per seed for each arm: choose an epoch first.
        measure: Name of a column with numbers.
        arms: Columns that together tell the arms apart.
        reference: A value for each of them.
        within: Columns that both sides of a difference agree in, besides ``seed``.
        level: Coverage in (0, 1) of each interval.

    Returns:
        One row per arm: the columns ``within`` and ``arms``, ``value`` (mean of the measure over
        the seeds that both have; a run that diverged has none), ``difference``, ``low``, ``high``
        (NaN with fewer than two seeds) and ``n_seeds``.

    Raises:
        ValueError: If a column is missing, no row is of the reference, or an arm has several rows
            for one seed.

    Example:
        >>> rows = [(0, "lora", 0.7), (1, "lora", 0.9), (0, "ours", 0.6), (1, "ours", 0.6)]
        >>> table = pd.DataFrame(rows, columns=["seed", "method", "test_nll"])
        >>> paired_differences(
        ...     table, "test_nll", arms=["method"], reference={"method": "lora"}, within=[]
        ... )["difference"].round(3).tolist()
        [0.0, -0.2]
    """
    keys = [*within, "seed"]
    wanted = [measure, *arms, *keys]
    if missing := [name for name in wanted if name not in table.columns]:
        raise ValueError(f"`table` must have the columns {wanted}, got none named {missing}.")
    if set(reference) != set(arms):
        raise ValueError(f"`reference` must name {list(arms)}, got {sorted(reference)}.")
    chosen = table[[*keys, *arms, measure]].dropna(subset=[measure])
    if chosen.duplicated([*keys, *arms]).any():
        raise ValueError(
            "`table` must have one row per seed for each arm: choose an epoch, and name in `arms` "
            "or `within` all that tells runs apart."
        )
    base = chosen
    for name, value in reference.items():
        base = base[base[name] == value]
    if base.empty:
        raise ValueError(f"`reference` must be the values of some row, got {dict(reference)!r}.")
    joined = chosen.merge(base[[*keys, measure]], on=keys, suffixes=("", "_reference"))
    joined["difference"] = joined[measure] - joined[f"{measure}_reference"]
    rows = []
    for arm, group in joined.groupby([*within, *arms], sort=False, dropna=False):
        found = seed_mean(group["difference"].tolist(), level)
        rows.append(
            {
                **dict(zip([*within, *arms], arm, strict=True)),
                "value": float(group[measure].mean()),
                "difference": found.mean,
                "low": found.low,
                "high": found.high,
                "n_seeds": found.n_seeds,
            }
        )
    names = [*within, *arms, "value", "difference", "low", "high", "n_seeds"]
    return pd.DataFrame(rows, columns=names)
