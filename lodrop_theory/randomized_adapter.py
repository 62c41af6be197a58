r"""PAC-Bayes bounds of a run: its adapter randomized by masks and noise, at the best noise scale.

The scales :math:`\sigma_1, \dots, \sigma_G` were fixed before training; which of them is quoted is
chosen after all have been looked at. With :math:`\delta' = \delta / 10` for the draws, the
inequality of scale g is bought at :math:`(\delta - \delta')/G` and its Monte Carlo mean at
:math:`\delta'/G`: all 2G events together fail with probability at most :math:`\delta`, and the
smallest bound is as good as any.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lodrop_theory._numerics import round_down
from lodrop_theory.bounds.lin2024 import ensemble_bound
from lodrop_theory.bounds.majority_vote import majority_vote_bound
from lodrop_theory.bounds.maurer2004 import pac_bayes_kl_bound
from lodrop_theory.inputs import PacBayesInputs
from lodrop_theory.records import Estimate, PosteriorPoint, RunRecord
from lodrop_theory.results import BoundResult

SHARE_OF_DRAWS = 0.1
OVER_DRAWS = "the ensemble is that over all draws of masks and noise, not over the masks alone"


def posterior_bounds(record: RunRecord, *, delta: float) -> list[BoundResult]:
    """PAC-Bayes bounds of the randomized adapter, at the noise scale where each is smallest.

    Args:
        record: A run.
        delta: Failure probability of each bound, in (0, 1): grid and draws are paid from it.

    Returns:
        In the loss of the record, where its configuration names the ``smoothing``: the bound for
        ``gibbs``, and by Jensen's inequality for the ensemble. In the 0-1 loss: the bound for
        ``gibbs``, and for the majority vote. None without ``record.posterior``. They are
        certificates where the divergence is exact and the risk is more than a plug-in value: a
        mean over *all* training rows and over independent draws.

    Raises:
        ValueError: If ``delta`` is outside (0, 1).

    Source:
        Maurer (2004), arXiv:cs/0411099, Theorem 5.
    """
    if not record.posterior:
        return []
    results: list[BoundResult] = []
    smoothing = smoothing_of(record.config)
    if smoothing is not None:
        length = record.loss_range.upper
        low = float(
            round_down(-math.log1p(-smoothing) + math.log(-math.expm1(-length)), 1.0 + length)
        )
        smoothed = _smallest(
            [
                _bound(record, point, point.empirical_risk, low, length, delta)
                for point in record.posterior
            ]
        )
        ensemble = ensemble_bound(smoothed, certified=True)
        results += [smoothed, replace(ensemble, caveats=(*ensemble.caveats, OVER_DRAWS))]
    errors = _smallest(
        [_bound(record, point, point.error_rate, 0.0, 1.0, delta) for point in record.posterior]
    )
    errors = replace(errors, bound="pac-bayes-kl/0-1", title="PAC-Bayes, kl inverse, error rate")
    vote = majority_vote_bound(errors)
    return [*results, errors, replace(vote, caveats=(*vote.caveats, OVER_DRAWS))]


def smoothing_of(config: Mapping[str, Any]) -> float | None:
    """The weight a of the uniform law in the smoothed loss, if the configuration names it."""
    if isinstance(found := config.get("smoothing"), float) and 0.0 < found < 1.0:
        return found
    inner = (smoothing_of(each) for each in config.values() if isinstance(each, Mapping))
    return next((each for each in inner if each is not None), None)


def _bound(
    record: RunRecord,
    point: PosteriorPoint,
    risk: Estimate,
    low: float,
    length: float,
    delta: float,
) -> BoundResult:
    grid = len(record.posterior)
    share = SHARE_OF_DRAWS * delta / grid
    inputs = PacBayesInputs(
        n_train=record.n_train,
        loss_range=length,
        loss_min=low,
        # What is subtracted within is one share: the others are taken off here.
        delta=float(round_down(delta - (grid - 1) * share, delta)),
        # A mean of float32 losses may leave the interval by a rounding error.
        empirical_risk=min(max(risk.value, low), low + length),
        kl_nats=point.kl_nats.upper,
        n_priors=grid,
        n_draws=risk.n_draws,
        delta_draws=share,
    )
    exact = point.kl_nats.provenance == "certified" and risk.provenance != "plug-in"
    result = pac_bayes_kl_bound(inputs, certified=exact)
    return replace(
        result,
        delta=np.asarray(delta),
        inputs={
            **result.inputs,
            "delta": np.asarray(delta),
            "delta_draws": np.asarray(share * grid),
            "noise_std": np.asarray(point.noise_std),
        },
        caveats=(
            *result.caveats,
            f"noise of standard deviation {point.noise_std:g}, the best of {grid}; grid and draws "
            "are paid for, a choice of dropout rate, rank or modules by the sample is not",
        ),
    )


def _smallest(results: list[BoundResult]) -> BoundResult:
    return min(results, key=lambda each: float(each.risk))  # type: ignore[arg-type]


__all__ = ["posterior_bounds", "smoothing_of"]
