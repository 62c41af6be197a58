"""Records of several seeds, summarized per dropout rate; paired differences to a reference rate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from lodrop_nn.config import RunConfig
from lodrop_theory import BoundResult, Estimate, RunRecord, StabilityResult
from lodrop_theory.evaluate import evaluate_record, stability_of_record

Quantity = Callable[[RunRecord], Estimate | None]


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """Mean over seeds of a measured number.

    Attributes:
        mean: Mean over the seeds that have the number; NaN when none has.
        low: Lower end of the Student-t interval over seeds; NaN with fewer than two seeds.
        high: Upper end of the same interval.
        n_seeds: Seeds behind the mean.
    """

    mean: float
    low: float
    high: float
    n_seeds: int


def seed_mean(values: Sequence[float], level: float = 0.95) -> SeedMean:
    """Mean with its Student-t interval over independent seeds.

    Args:
        values: One number per seed.
        level: Coverage in (0, 1) of the interval, under normality of the seed effect.

    Raises:
        ValueError: If ``level`` is outside (0, 1).

    Example:
        >>> seed_mean([1.0, 3.0]).mean
        2.0
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must be in (0, 1), got {level!r}.")
    n = len(values)
    if n == 0:
        return SeedMean(mean=math.nan, low=math.nan, high=math.nan, n_seeds=0)
    mean = float(np.mean(values))
    if n == 1:
        return SeedMean(mean=mean, low=math.nan, high=math.nan, n_seeds=1)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return SeedMean(mean=mean, low=mean - half, high=mean + half, n_seeds=n)


# What else a record may hold is not there in all runs that are compared.
_OF_EVERY_RUN = frozenset(
    {
        "lin2024",
        "two-stability",
        "uniform-tail",
        "expectation",
        "l2-stability",
        "hold-out",
        "hold-out+jensen",
    }
)
_STABILITIES = 4  # those that follow from hessian_min_eig and penalty come first


@dataclass(frozen=True, kw_only=True)
class RateSummary:
    """All runs of one dropout rate, with the bounds of each.

    Attributes:
        dropout_rate: p of these runs.
        records: One record per seed, in the order of the seeds.
        bounds: For each record the bounds that every run has the measurements for, in nats, as
            :func:`evaluate_record` gives them, in one order.
        stabilities: For each record those that its hessian_min_eig and penalty give, in one order.
    """

    dropout_rate: float
    records: tuple[RunRecord, ...]
    bounds: tuple[tuple[BoundResult, ...], ...]
    stabilities: tuple[tuple[StabilityResult, ...], ...]

    def over_seeds(self, quantity: Quantity) -> SeedMean:
        """Mean over seeds of ``quantity(record).value``; seeds without it are left out."""
        estimates = (quantity(record) for record in self.records)
        return seed_mean([e.value for e in estimates if e is not None])


def _same_experiment(record: RunRecord) -> RunConfig:
    """The configuration with what a comparison varies set to a fixed value."""
    return replace(RunConfig.from_json(record.config), dropout_rate=0.0, seed=0)


def summarize(records: Sequence[RunRecord], *, delta: float) -> list[RateSummary]:
    """Group records by dropout rate, rates ascending, seeds ascending.

    Args:
        records: Runs that differ in dropout rate and seed only.
        delta: Failure probability of each bound, in (0, 1).

    Raises:
        ValueError: If there is no record, or the runs differ in more than rate and seed.
    """
    if not records:
        raise ValueError("`records` must hold at least one run, got none.")
    experiments = {_same_experiment(record).run_id for record in records}
    if len(experiments) != 1:
        raise ValueError(
            "`records` must come from runs that differ in dropout rate and seed only, "
            f"got {len(experiments)} different configurations."
        )
    summaries = []
    for rate in sorted({record.dropout_rate for record in records}):
        runs = tuple(
            sorted((r for r in records if r.dropout_rate == rate), key=lambda r: r.config["seed"])
        )
        summaries.append(
            RateSummary(
                dropout_rate=rate,
                records=runs,
                bounds=tuple(_bounds_of_every_run(r, delta) for r in runs),
                stabilities=tuple(tuple(stability_of_record(r)[:_STABILITIES]) for r in runs),
            )
        )
    return summaries


def _bounds_of_every_run(record: RunRecord, delta: float) -> tuple[BoundResult, ...]:
    results = evaluate_record(record, delta=delta)
    return tuple(result for result in results if result.bound in _OF_EVERY_RUN)


def paired_difference(
    summaries: Sequence[RateSummary], quantity: Quantity, *, rate: float, reference: float = 0.0
) -> SeedMean:
    """Mean over shared seeds of quantity(rate) - quantity(reference), with its interval.

    Runs of one seed share the split, the initialization and the order of the examples, so
    their difference is free of those effects.

    Args:
        summaries: What :func:`summarize` returns.
        quantity: What to compare, as a function of a record.
        rate: Dropout rate of the runs to judge.
        reference: Dropout rate of the runs to judge them against.

    Raises:
        ValueError: If there is no summary for ``rate`` or ``reference``.
    """
    by_rate = {s.dropout_rate: {r.config["seed"]: r for r in s.records} for s in summaries}
    for name, wanted in (("rate", rate), ("reference", reference)):
        if wanted not in by_rate:
            raise ValueError(f"`{name}` must be one of {sorted(by_rate)}, got {wanted!r}.")
    differences = []
    for seed in sorted(by_rate[rate].keys() & by_rate[reference].keys()):
        ours, theirs = quantity(by_rate[rate][seed]), quantity(by_rate[reference][seed])
        if ours is not None and theirs is not None:
            differences.append(ours.value - theirs.value)
    return seed_mean(differences)
