"""All measurements of one fine-tuned adapter, as the record of its run."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from peft import PeftModel

from lodrop_nn.config import RunConfig
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.evaluation import Batch, count_rows
from lodrop_nn.measure.hessian import ExtremeEigenvalues, hessian_extreme_eigs
from lodrop_nn.measure.lipschitz import example_gradients, gradient_norm, lipschitz
from lodrop_nn.measure.penalty import delta_weight_norm, penalty, penalty_kkt
from lodrop_nn.measure.predictions import Predictions, predict_all
from lodrop_nn.measure.risk import predictor_measurement
from lodrop_nn.measure.sparsity import update_sparsity
from lodrop_theory.losses import smoothed_loss_range
from lodrop_theory.records import PREDICTORS, Estimate, PredictorMeasurement, RunRecord

_SPARSITY_DRAWS = 256


def measure(
    model: PeftModel,
    bank: MaskBank,
    train: Sequence[Batch],
    test: Sequence[Batch],
    config: RunConfig,
    *,
    fine_tune_seconds: float,
    environment: Mapping[str, Any],
    on_stage: Callable[[str, float], None] | None = None,
) -> RunRecord:
    """Measure what the theorems read from a fine-tuned adapter.

    Stages: predictions on training and held-out rows, gradients of single training examples,
    extreme Hessian eigenvalues, scores. The model comes back as it was, gradients included.

    Args:
        model: Fine-tuned adapter in fp32.
        bank: The masks of its adapter.
        train: All training examples, ``config.n_train`` rows.
        test: Held-out examples that no choice has seen, ``config.n_test`` rows.
        config: The run's configuration.
        fine_tune_seconds: Wall-clock seconds of the fine-tuning before.
        environment: Where it ran, see :func:`lodrop_nn.measure.environment.environment`.
        on_stage: Called as ``on_stage(stage, fraction)``, fraction of the whole measurement that
            is done, in [0, 1].

    Returns:
        The record; its ``seconds`` hold every stage.

    Raises:
        ValueError: If the rows or the bank do not match ``config``, or a measurement is not finite.
    """
    _check_matches(bank, train, test, config)
    stages = _Stages(config, on_stage)
    with stages.run("predict train") as progress:
        on_train = predict_all(
            model, bank, train, n_masks=config.n_masks_test, seed=config.seed, on_batch=progress
        )
    with stages.run("predict test") as progress:
        on_test = predict_all(
            model, bank, test, n_masks=config.n_masks_test, seed=config.seed, on_batch=progress
        )
    with stages.run("gradients") as progress:
        gradients = example_gradients(model, bank, train, on_batch=progress)
    with stages.run("hessian") as progress:
        eigenvalues = hessian_extreme_eigs(
            model, bank, train, steps=config.hessian_steps, seed=config.seed, on_step=progress
        )
    with stages.run("scores"):
        predictors: dict[str, PredictorMeasurement] = {
            name: predictor_measurement(on_train, on_test, name, config.smoothing)
            for name in PREDICTORS
        }
        sparsity = update_sparsity(bank, n_draws=_SPARSITY_DRAWS, seed=config.seed)
        energy = penalty(
            model,
            bank,
            train,
            n_masks=config.n_masks_test,
            seed=config.seed,
            predictions=on_train,
        )
    slope = gradient_norm(model, bank, train, gradients=gradients)
    return RunRecord(
        run_id=config.run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.as_json(),
        environment=dict(environment),
        n_train=len(on_train),
        n_test=len(on_test),
        n_parameters=eigenvalues.n_parameters,
        dropout_rate=config.dropout_rate,
        n_masks_train=config.n_masks_train,
        n_masks_test=config.n_masks_test,
        loss_range=loss_range(on_train, config.smoothing),
        lipschitz=lipschitz(model, bank, train, gradients=gradients),
        hessian_min_eig=eigenvalues.min,
        hessian_max_eig=eigenvalues.max,
        gradient_norm=slope,
        delta_weight_norm=delta_weight_norm(model),
        penalty=energy,
        penalty_kkt=penalty_kkt(model, bank, train, gradients=gradients),
        update_sparsity=sparsity,
        predictors=predictors,
        seconds={"fine-tune": fine_tune_seconds, **stages.seconds},
        notes=_notes(eigenvalues, slope, config),
    )


def loss_range(predictions: Predictions, smoothing: float) -> Estimate:
    """Length C of the interval of the smoothed cross-entropy, exact. Nats."""
    value = float(smoothed_loss_range(smoothing, predictions.n_classes))
    return Estimate(
        value=value, low=value, high=value, n_draws=1, method="exact: ln(1 + (1 - a) K / a)"
    )


class _Stages:
    """Times the stages and reports the fraction of the expected cost that is done."""

    def __init__(self, config: RunConfig, report: Callable[[str, float], None] | None) -> None:
        # In forward passes of one example, as measured on MiniLM with its upper half adapted.
        members = config.n_masks_test if config.dropout_rate > 0 else 0
        self._costs = {
            "predict train": (1 + 0.36 * members) * config.n_train,
            "predict test": (1 + 0.36 * members) * config.n_test,
            "gradients": 1.7 * config.n_train,
            "hessian": (1.3 + config.hessian_steps) * config.n_train,
            "scores": 0.02 * (config.n_train + config.n_test),
        }
        self._report, self._done = report, 0.0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def run(self, stage: str) -> Iterator[Callable[[int, int], None]]:
        def progress(step: int, steps: int) -> None:
            if self._report is not None:
                done = self._done + self._costs[stage] * step / steps
                self._report(stage, min(1.0, done / sum(self._costs.values())))

        progress(0, 1)
        start = time.perf_counter()
        yield progress
        self.seconds[stage] = time.perf_counter() - start
        progress(1, 1)
        self._done += self._costs[stage]


def _check_matches(
    bank: MaskBank, train: Sequence[Batch], test: Sequence[Batch], config: RunConfig
) -> None:
    for name, batches, expected in (
        ("train", train, config.n_train),
        ("test", test, config.n_test),
    ):
        if (n_rows := count_rows(batches)) != expected:
            raise ValueError(f"`{name}` must hold config.n_{name} = {expected} rows, got {n_rows}.")
    if bank.dropout_rate != config.dropout_rate:
        raise ValueError(
            f"`bank` must have config.dropout_rate = {config.dropout_rate}, "
            f"got {bank.dropout_rate}."
        )


def _notes(eigenvalues: ExtremeEigenvalues, slope: Estimate, config: RunConfig) -> tuple[str, ...]:
    notes = [
        "hessian_min_eig is taken in the trained coordinates, the factors (A, B) and the "
        "classifier: there the risk is not convex, and the scaling freedom of B A leaves flat "
        "directions at every stationary point.",
        "lipschitz is the value at one point: the proof needs a supremum over segments.",
        f"The solution is a minimizer up to a gradient norm of {slope.value:.3g}; curvature and "
        "penalty_kkt are those of this point.",
    ]
    ends = (
        ("hessian_min_eig", eigenvalues.min_converged, eigenvalues.min),
        ("hessian_max_eig", eigenvalues.max_converged, eigenvalues.max),
    )
    notes += [
        f"{name} did not converge in {end.n_draws} Lanczos steps: some eigenvalue lies within the "
        "residual of its value, but the extreme one may lie outside the interval."
        for name, converged, end in ends
        if not converged
    ]
    if not config.rescale:
        notes.append("Masks are not rescaled: the mean predictor applies (1 - p)^2 of the update.")
    return tuple(notes)
