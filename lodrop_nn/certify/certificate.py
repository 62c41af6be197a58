r"""From measured numbers to what is certified, and hold-out bounds for the same predictors.

*Population.* The rows of the sample are drawn uniformly without replacement from a finite pool.
PAC-Bayes asks for independent draws; what it uses of them is :math:`E\, e^{n\,\mathrm{kl}(\hat R_h
\| R_h)} \le 2 \sqrt n` for each fixed h. The function :math:`x \mapsto e^{n\,\mathrm{kl}(x \| R)}`
is convex, and the expectation of a convex continuous function of a sample mean is never larger
without replacement than with (Hoeffding 1963, Theorem 4). So the bound holds for the mean loss
over the pool, without an assumption on how the pool came about. Rows that the prior was built with
are drawn from it first: given them, the sample is uniform on the rest, which is the pool meant
here, N rows.

*Unseen rows.* The pool contains the sample. With R its mean loss and :math:`R_u` that over the
:math:`N - n` others, :math:`N R = n \hat R + (N - n) R_u`, so

.. math:: R_u \le \frac{N \bar R - n \hat R_{\text{low}}}{N - n}

for :math:`\bar R` the bound and :math:`\hat R_{\text{low}}` a lower limit of the training risk over
the draws. This is what a hold-out bound is about, too: given the sample, the held-out rows are
uniform on the others.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lodrop_nn.certify.config import N_PRIORS, CertifyConfig
from lodrop_nn.certify.risk import smoothed_interval
from lodrop_theory import (
    BernsteinHoldOutInputs,
    BinaryHoldOutInputs,
    HoldOutInputs,
    PacBayesInputs,
    binary_kl_inverse_lower,
    clopper_pearson_bound,
    empirical_bernstein_bound,
    ensemble_bound,
    hold_out_kl_bound,
    majority_vote_bound,
    pac_bayes_kl_bound,
)
from lodrop_theory.losses import smoothed_cross_entropy
from lodrop_theory.records import Predictor
from lodrop_theory.results import BoundResult

Float64Array = NDArray[np.float64]
WITHOUT_REPLACEMENT = (
    "the sample is drawn uniformly, with or without replacement, from the population: here the "
    "pool less the reference rows"
)
FRESH_DRAWS = (
    "the ensemble takes its draws of masks and noise anew for each row, any number of them, or is "
    "the average over all: a fixed set of members is another predictor"
)
_INDEPENDENT = "proved for independent held-out rows; these are drawn without replacement"


def row_losses(
    probabilities: Float64Array, labels: NDArray[np.int64], smoothing: float
) -> tuple[Float64Array, Float64Array]:
    """Smoothed cross-entropy and 0-1 loss, shape (..., n) for probabilities (..., n, K)."""
    wrong = (probabilities.argmax(-1) != labels).astype(np.float64)
    return smoothed_cross_entropy(probabilities, labels, smoothing), wrong


def sample_bounds(
    config: CertifyConfig,
    *,
    n_classes: int,
    n_population: int,
    kl_nats: float,
    training_loss: float,
    training_error: float,
) -> list[tuple[str, BoundResult]]:
    """PAC-Bayes certificates from the sample alone, each with probability 1 - delta.

    Args:
        config: n, delta, and the number of passes behind the two means.
        n_classes: K.
        n_population: N, rows of the pool that the sample was drawn from, more than n.
        kl_nats: Divergence of the posterior from the prior. Nats.
        training_loss: Mean smoothed cross-entropy over rows and draws. Nats.
        training_error: Mean 0-1 loss over the same.

    Returns:
        Pairs (loss, bound): for gibbs over the pool, for gibbs over its unseen rows, and for the
        ensemble.
    """
    low, length = smoothed_interval(config.smoothing, n_classes)
    found = []
    for loss, risk, start, extent in (
        ("0-1", training_error, 0.0, 1.0),
        ("smoothed cross-entropy", training_loss, low, length),
    ):
        gibbs = _gibbs(config, kl_nats, risk, start, extent, config.delta)
        found.append((loss, gibbs))
        if loss == "0-1":
            carried = ("0-1, majority vote", majority_vote_bound(gibbs))
        else:
            carried = (loss, ensemble_bound(gibbs, certified=True))
        found.append((carried[0], _with_caveat(carried[1], FRESH_DRAWS)))
        found.append((loss, _unseen(config, n_population, kl_nats, risk, start, extent)))
    return found


def _gibbs(
    config: CertifyConfig, kl_nats: float, risk: float, low: float, length: float, delta: float
) -> BoundResult:
    inputs = PacBayesInputs(
        n_train=config.n_train,
        loss_range=length,
        delta=delta,
        empirical_risk=risk,
        kl_nats=kl_nats,
        loss_min=low,
        n_priors=N_PRIORS,
        n_draws=config.n_train * config.n_passes,
        delta_draws=config.delta_draws,
    )
    result = pac_bayes_kl_bound(inputs, certified=True)
    return replace(result, hypotheses=(WITHOUT_REPLACEMENT, *result.hypotheses[1:]))


def _unseen(
    config: CertifyConfig, n_population: int, kl_nats: float, risk: float, low: float, length: float
) -> BoundResult:
    """The bound for the rows of the pool that are not in the sample."""
    # The lower limit of the training risk fails with probability delta_draws of its own.
    gibbs = _gibbs(config, kl_nats, risk, low, length, config.delta - config.delta_draws)
    nats = -math.log(config.delta_draws) / (config.n_train * config.n_passes)
    # 1e-12 in each place covers the rounding, also where the two products nearly cancel.
    share = min(max((risk - low) / length - 1e-12, 0.0), 1.0)
    least = low + length * float(binary_kl_inverse_lower(share, nats * (1.0 + 1e-12)))
    n, everything = config.n_train, n_population
    most = everything * float(np.asarray(gibbs.risk)) * (1.0 + 1e-12)
    top = (most - n * least * (1.0 - 1e-12)) / (everything - n)
    top = min(top * (1.0 + 1e-12), low + length)
    return replace(
        gibbs,
        bound=f"{gibbs.bound}+unseen",
        title=f"{gibbs.title}, rows of the pool outside the sample",
        gap=np.asarray(top - risk),
        delta=np.asarray(config.delta),
        inputs={
            **gibbs.inputs,
            "delta": np.asarray(config.delta),
            "delta_draws": np.asarray(2.0 * config.delta_draws),
        },
        event=None,
    )


def held_out_bounds(
    config: CertifyConfig,
    members: Float64Array,
    mean: Float64Array,
    labels: NDArray[np.int64],
) -> list[tuple[str, BoundResult]]:
    r"""Hold-out bounds at the same delta, each about the rows that training never saw.

    For gibbs the loss of a row is its mean over the draws for that row, in the same interval, with
    the Gibbs risk as its mean. Given the rows the draws are independent, so that :math:`E\,e^{tS}`
    of the sum is the mean of a product of one function of each row, the exponential of a sum:
    Hoeffding's Theorem 4 covers rows without replacement here too. The ensemble averages the
    probabilities of as many fresh draws (or lets them vote); Jensen's inequality and the factor 2
    of the vote hold for every number of fresh draws.

    Args:
        config: delta and smoothing.
        members: Probabilities under draws of each row's own, shape (draws, n_test, K).
        mean: Probabilities with neither masks nor noise, shape (n_test, K).
        labels: Shape (n_test,).

    Returns:
        Pairs (loss, bound).
    """
    losses, wrong = row_losses(members, labels, config.smoothing)
    together, together_wrong = row_losses(members.mean(0), labels, config.smoothing)
    mean_loss, mean_wrong = row_losses(mean, labels, config.smoothing)
    low, length = smoothed_interval(config.smoothing, members.shape[-1])
    found: list[tuple[str, BoundResult]] = []
    smoothed: tuple[tuple[Predictor, Float64Array], ...] = (
        ("gibbs", losses.mean(0)),
        ("ensemble", together),
        ("mean", mean_loss),
    )
    for predictor, rows in smoothed:
        found += _both("smoothed cross-entropy", rows, predictor, config.delta, low, length)
    found += _both("0-1", wrong.mean(0), "gibbs", config.delta, 0.0, 1.0)
    errors_of: tuple[tuple[str, Predictor, Float64Array], ...] = (
        ("0-1", "ensemble", together_wrong),
        ("0-1, majority vote", "ensemble", vote_errors(members, labels)),
        ("0-1", "mean", mean_wrong),
    )
    for name, predictor, rows in errors_of:
        found += _both(name, rows, predictor, config.delta, 0.0, 1.0)
        errors = BinaryHoldOutInputs(
            n_test=len(rows), n_errors=float(rows.sum()), delta=config.delta
        )
        exact = clopper_pearson_bound(errors, predictor=predictor)
        found.append((name, _with_caveat(exact, _INDEPENDENT)))
    fresh = f"the ensemble takes {len(members)} draws of masks and noise anew for each row"
    return [
        (loss, _with_caveat(bound, fresh) if bound.predictor == "ensemble" else bound)
        for loss, bound in found
    ]


def vote_errors(members: Float64Array, labels: NDArray[np.int64]) -> Float64Array:
    """0-1 loss of the majority vote of the draws of each row; ties go to the lower class."""
    answers = members.argmax(-1)
    counts = np.stack([(answers == k).sum(0) for k in range(members.shape[-1])], axis=-1)
    return (counts.argmax(-1) != labels).astype(np.float64)


def _both(
    loss: str, rows: Float64Array, predictor: Predictor, delta: float, low: float, length: float
) -> Sequence[tuple[str, BoundResult]]:
    """The kl bound, which holds without replacement too, and empirical Bernstein."""
    inputs = HoldOutInputs(
        n_test=len(rows), loss_range=length, delta=delta, held_out_risk=float(rows.mean())
    )
    more = BernsteinHoldOutInputs(
        n_test=len(rows),
        loss_range=length,
        delta=delta,
        held_out_risk=float(rows.mean()),
        sample_variance=float(rows.var(ddof=1)),
    )
    by_kl = hold_out_kl_bound(inputs, predictor=predictor, loss_min=low, certified=True)
    by_variance = empirical_bernstein_bound(more, predictor=predictor)
    drawn = "the held-out rows are drawn uniformly, with or without replacement, from the others"
    return (
        (loss, replace(by_kl, hypotheses=(drawn, *by_kl.hypotheses[1:]))),
        (loss, _with_caveat(by_variance, _INDEPENDENT)),
    )


def _with_caveat(bound: BoundResult, caveat: str) -> BoundResult:
    return replace(bound, caveats=(*bound.caveats, caveat))


__all__ = ["held_out_bounds", "row_losses", "sample_bounds", "vote_errors"]
