"""Differences to plain LoRA with intervals over the reviews or articles that rows are from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lodrop_nn.measure.calibration import brier_scores, top_label
from tests.benchmarks.quality.evaluate import Float64Array
from tests.benchmarks.quality.final import REFERENCE
from tests.benchmarks.quality.predictors import Variant

RESAMPLES, RESAMPLE_SEED = 2000, 0
RowLosses = dict[str, Float64Array]


def row_losses(predicted: Float64Array, labels: NDArray[np.int64]) -> RowLosses:
    """Measures that are means over rows, row by row."""
    tiny = np.finfo(np.float64).tiny
    chosen = predicted[np.arange(len(labels)), labels]
    return {
        "nll": -np.log(np.maximum(chosen, tiny)),
        "accuracy": top_label(predicted, labels)[1],
        "brier": brier_scores(predicted, labels),
    }


def group_interval(values: Float64Array, groups: Sequence[str]) -> dict[str, float]:
    """Mean over rows, with the 95% percentile interval of resampled groups."""
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    sums, sizes = np.bincount(place, values), np.bincount(place)
    drawn = np.random.default_rng(RESAMPLE_SEED).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(-1) / sizes[drawn].sum(-1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "groups": len(sums),
    }


def over_groups(
    losses: Mapping[tuple[str, Variant], list[RowLosses]],
    groups: Mapping[str, Sequence[str]],
    clear: Mapping[str, NDArray[np.bool_]],
) -> list[dict[str, Any]]:
    """Differences to plain LoRA, averaged over seeds, with intervals over groups of rows.

    ``clear`` are those of the rows on which enough people had an opinion.
    """
    table = []
    for (name, one), each in losses.items():
        if one == REFERENCE:
            continue
        row: dict[str, Any] = {"data": name, **vars(one)}
        for key in each[0]:
            known = zip(each, losses[name, REFERENCE], strict=True)
            difference = np.mean([mine[key] - theirs[key] for mine, theirs in known], 0)
            chosen = clear[name]
            few = [g for g, kept in zip(groups[name], chosen, strict=True) if kept]
            row[key] = {
                "all": group_interval(difference, groups[name]),
                "clear": group_interval(difference[chosen], few),
            }
        table.append(row)
    return table
