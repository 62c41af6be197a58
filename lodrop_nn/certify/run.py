"""From a configuration to the record of a certificate, stage by stage."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lodrop_nn.certify.assemble import assemble, labels_of
from lodrop_nn.certify.build import Problem, build
from lodrop_nn.certify.certificate import row_losses
from lodrop_nn.certify.config import CertifyConfig
from lodrop_nn.certify.posterior import moved_parameters
from lodrop_nn.certify.record import CertificateRecord, read_certificate, write_certificate
from lodrop_nn.certify.rows_risk import (
    HELD_OUT_STREAM,
    SAMPLE_STREAM,
    drawn_probabilities,
    mean_probabilities,
)
from lodrop_nn.certify.stages import Stage, kept_stage
from lodrop_nn.certify.train import train_posterior
from lodrop_nn.data.examples import Examples
from lodrop_nn.train.prefix_cache import PrefixCache

# Called with the name of a stage, the fraction of it that is done, and a text.
OnStage = Callable[[str, float, str], None]
STAGES = ("prior", "features", "training", "training risk", "held-out risk")


def certify(
    config: CertifyConfig, out: Path, *, on_stage: OnStage | None = None
) -> CertificateRecord:
    """Train a randomized adapter for its bound, measure it, and certify it.

    Finished stages are kept in ``out/<run_id>``; a later call continues after them.

    Args:
        config: The certificate.
        out: The record goes to ``out/<run_id>.json``.
        on_stage: Called as the work goes on.

    Returns:
        The record, which has been written.

    Raises:
        ValueError: If the configuration does not fit the data or the model, or a kept stage is
            damaged.
        RecordError: If there is a record that cannot be trusted.
    """
    path, folder = record_path(config, out), out / config.run_id
    if path.exists():
        return read_certificate(path)

    def tell(stage: str) -> Callable[[float, str], None]:
        return lambda fraction, text: on_stage(stage, fraction, text) if on_stage else None

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problem = build(config, folder, device, tell("prior"))
    caches = _Caches(problem, tell("features"))
    trained = kept_stage(
        folder, "training", lambda: _train(config, problem, caches, tell("training"))
    )
    parameters = moved_parameters(problem.model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(trained.tensors[name])
    noise_std: Mapping[str, float] = trained.facts["noise_std"]
    on_sample = kept_stage(
        folder,
        "training-risk",
        lambda: _sample_risk(config, problem, caches, noise_std, tell("training risk")),
    )
    on_test = kept_stage(
        folder,
        "held-out-risk",
        lambda: _held_out(config, problem, caches, noise_std, tell("held-out risk")),
    )
    record = assemble(config, problem, trained, on_sample, on_test)
    write_certificate(record, path)
    return record


def record_path(config: CertifyConfig, out: Path) -> Path:
    """Where the record of a configuration lies."""
    return out / f"{config.run_id}.json"


class _Caches:
    """Hidden states below the adapter, computed when a stage first asks for them."""

    def __init__(self, problem: Problem, on_fraction: Callable[[float, str], None]) -> None:
        self._problem, self._tell = problem, on_fraction
        self._known: dict[str, PrefixCache] = {}

    def of(self, name: str, examples: Examples) -> PrefixCache:
        if name not in self._known:
            self._tell(0.0, f"features of the {name} rows")
            self._known[name] = PrefixCache(self._problem.model, examples)
        return self._known[name]


def _train(config: CertifyConfig, problem: Problem, caches: _Caches, tell: Any) -> Stage:
    done = train_posterior(
        problem.model,
        problem.bank,
        problem.train,
        caches.of("training", problem.train),
        config,
        problem.initial,
        on_step=lambda step, n, loss: tell(step / n, f"step {step}/{n}, loss {loss:.3f}"),
    )
    facts = {
        "noise_std": dict(done.noise_std),
        "epoch_losses": list(done.epoch_losses),
        "seconds": done.seconds,
    }
    return Stage(moved_parameters(problem.model), facts)


def _sample_risk(
    config: CertifyConfig,
    problem: Problem,
    caches: _Caches,
    noise_std: Mapping[str, float],
    tell: Any,
) -> Stage:
    cache, start = caches.of("training", problem.train), time.perf_counter()
    probabilities = drawn_probabilities(
        problem.model,
        problem.bank,
        problem.train,
        cache,
        noise_std,
        n_passes=config.n_passes,
        seed=config.seed,
        stream=SAMPLE_STREAM,
        on_step=lambda done, n: tell(done / n, f"pass {done}/{n}"),
    )
    losses, wrong = row_losses(probabilities, labels_of(problem.train), config.smoothing)
    tensors = {"losses": losses.mean(1), "errors": wrong.mean(1)}
    seconds = time.perf_counter() - start
    return Stage({k: torch.from_numpy(v) for k, v in tensors.items()}, {"seconds": seconds})


def _held_out(
    config: CertifyConfig,
    problem: Problem,
    caches: _Caches,
    noise_std: Mapping[str, float],
    tell: Any,
) -> Stage:
    cache, start = caches.of("held-out", problem.test), time.perf_counter()
    members = drawn_probabilities(
        problem.model,
        problem.bank,
        problem.test,
        cache,
        noise_std,
        n_passes=config.n_members,
        seed=config.seed,
        stream=HELD_OUT_STREAM,
        on_step=lambda done, n: tell(done / n, f"draw {done}/{n}"),
    )
    mean = mean_probabilities(problem.model, problem.bank, problem.test, cache)
    tensors = {"members": torch.from_numpy(members), "mean": torch.from_numpy(mean)}
    return Stage(tensors, {"seconds": time.perf_counter() - start})


__all__ = ["STAGES", "certify", "record_path"]
