"""What the stages of a certificate found, put together as its record."""

import datetime

import numpy as np
from numpy.typing import NDArray

from lodrop_nn.certify.build import Problem
from lodrop_nn.certify.certificate import (
    held_out_bounds,
    row_losses,
    sample_bounds,
    vote_errors,
)
from lodrop_nn.certify.config import N_PRIORS, CertifyConfig
from lodrop_nn.certify.notes import notes
from lodrop_nn.certify.posterior import noisy_parts, total_kl
from lodrop_nn.certify.record import CertificateRecord
from lodrop_nn.certify.risk import kl_estimate, monte_carlo_estimate, smoothed_interval
from lodrop_nn.certify.stages import Stage
from lodrop_nn.data.examples import Examples
from lodrop_nn.measure.environment import environment
from lodrop_nn.measure.intervals import mean_estimate
from lodrop_theory.records import Estimate


def assemble(
    config: CertifyConfig, problem: Problem, trained: Stage, on_sample: Stage, on_test: Stage
) -> CertificateRecord:
    """The record of a certificate.

    Args:
        config: The certificate.
        problem: Its parts; the model at the trained values.
        trained: Stage of training: scales of the noise, losses of the epochs.
        on_sample: Mean losses of each pass over the sample.
        on_test: Probabilities on the held-out rows.
    """
    noise_std = trained.facts["noise_std"]
    parts = noisy_parts(problem.model, problem.bank, noise_std, initial=problem.initial)
    n_population = problem.n_pool - config.n_reference
    training = _training_estimates(config, problem, on_sample)
    members, mean = (on_test.tensors[name].numpy() for name in ("members", "mean"))
    labels = labels_of(problem.test)
    bounds = [
        *sample_bounds(
            config,
            n_classes=problem.n_classes,
            n_population=n_population,
            kl_nats=total_kl(parts),
            training_loss=training["empirical_risk"].value,
            training_error=training["error_rate"].value,
        ),
        *held_out_bounds(config, members, mean, labels),
    ]
    return CertificateRecord(
        run_id=config.run_id,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        config=config.as_json(),
        environment=environment(problem.model.device),
        n_pool=problem.n_pool,
        n_population=n_population,
        n_parameters=sum(part.parameter.numel() for part in parts),
        n_priors=N_PRIORS,
        noise_std=dict(noise_std),
        kl_by_parameter={part.name: part.kl_nats for part in parts},
        kl_nats=kl_estimate(parts),
        training=training,
        held_out=_held_out_estimates(config, members, mean, labels),
        bounds=tuple(
            {**row, "loss": loss, "hypotheses": list(result.hypotheses)}
            for loss, result in bounds
            for row in result.rows()
        ),
        epoch_losses=tuple(trained.facts["epoch_losses"]),
        seconds={
            "prior": problem.seconds,
            "training": trained.facts["seconds"],
            "training risk": on_sample.facts["seconds"],
            "held-out risk": on_test.facts["seconds"],
        },
        notes=(*notes(config, problem.n_pool), *problem.caveats),
    )


def _training_estimates(
    config: CertifyConfig, problem: Problem, on_sample: Stage
) -> dict[str, Estimate]:
    low, length = smoothed_interval(config.smoothing, problem.n_classes)
    found = {}
    for name, key, start, extent in (
        ("error_rate", "errors", 0.0, 1.0),
        ("empirical_risk", "losses", low, length),
    ):
        passes: NDArray[np.float64] = on_sample.tensors[key].numpy()
        # Groups of one row: passes of equal size have the same mean as their rows.
        found[name] = monte_carlo_estimate(
            np.repeat(passes, config.n_train),
            [1] * (config.n_train * config.n_passes),
            low=start,
            length=extent,
            level=1.0 - 2.0 * config.delta_draws,
            method="Monte Carlo over masks and noise, one draw per row and pass",
        )
    return found


def _held_out_estimates(
    config: CertifyConfig,
    members: NDArray[np.float64],
    mean: NDArray[np.float64],
    labels: NDArray[np.int64],
) -> dict[str, dict[str, Estimate]]:
    losses, wrong = row_losses(members, labels, config.smoothing)
    by_row = {
        "gibbs": (losses.mean(0), wrong.mean(0)),
        "ensemble": row_losses(members.mean(0), labels, config.smoothing),
        "mean": row_losses(mean, labels, config.smoothing),
    }
    level = 1.0 - config.delta
    found = {
        predictor: {
            "population_risk": mean_estimate(loss, level, "mean smoothed cross-entropy"),
            "error_rate": mean_estimate(error, level, "mean 0-1 loss"),
        }
        for predictor, (loss, error) in by_row.items()
    }
    vote = mean_estimate(vote_errors(members, labels), level, "mean 0-1 loss of the vote")
    found["ensemble"]["vote_error_rate"] = vote
    return found


def labels_of(examples: Examples) -> NDArray[np.int64]:
    """The labels of some rows."""
    return np.asarray(examples.labels, dtype=np.int64)
