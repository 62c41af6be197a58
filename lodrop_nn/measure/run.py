"""All measurements of one fine-tuned adapter, as the record of its run."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.curvature import Curvature, curvature
from lodrop_nn.measure.ensemble import jensen_gap, output_covariance
from lodrop_nn.measure.evaluation import Batch
from lodrop_nn.measure.linear_head import lipschitz_bound
from lodrop_nn.measure.lipschitz import (
    dropout_lipschitz,
    example_gradients,
    gradient_norm,
    lipschitz,
)
from lodrop_nn.measure.penalty import delta_weight_norm, penalty, penalty_curvature, penalty_kkt
from lodrop_nn.measure.posterior import posterior
from lodrop_nn.measure.predictions import Predictions, predict_all
from lodrop_nn.measure.risk import predictor_measurement
from lodrop_nn.measure.settings import MeasureSettings
from lodrop_nn.measure.sparsity import update_sparsity
from lodrop_nn.measure.stability import StabilitySettings, stability
from lodrop_nn.measure.stability.measure import check_counts
from lodrop_nn.measure.stages import Stages
from lodrop_theory.losses import smoothed_loss_range
from lodrop_theory.records import (
    PREDICTORS,
    Estimate,
    PosteriorPoint,
    PredictorMeasurement,
    RunRecord,
    StabilityMeasurement,
    StabilityMethod,
)

_SPARSITY_DRAWS = 256
Float64Array = NDArray[np.float64]


def measure(
    model: PeftModel,
    bank: MaskBank,
    train: Sequence[Batch],
    test: Sequence[Batch],
    settings: MeasureSettings,
    *,
    config: Mapping[str, Any],
    run_id: str,
    environment: Mapping[str, Any],
    n_masks_train: int = 1,
    fine_tune_seconds: float | None = None,
    vote_shares: Float64Array | None = None,
    initial: Mapping[str, Tensor] | None = None,
    on_stage: Callable[[str, float], None] | None = None,
) -> RunRecord:
    """Measure what the theorems read from a fine-tuned adapter.

    Stages: predictions on training and held-out rows, gradients of single training examples, the
    spectrum of the Hessian with masks off and under masks, stabilities, the randomized adapter,
    scores. The model comes back as it was, gradients included.

    Args:
        model: Fine-tuned adapter of a classifier in fp32; its trained parameters are the
            coordinates of gradients, curvature and stability.
        bank: The masks of its adapter.
        train: All the examples that it was trained on.
        test: Held-out examples that no choice has seen.
        settings: What is drawn, how long it is iterated, and which parts are run.
        config: What made the adapter and how it is measured, as JSON-able values.
        run_id: Name of the run.
        environment: Where it ran, see :func:`lodrop_nn.measure.environment.environment`.
        n_masks_train: Mask draws per training step, as far as known.
        fine_tune_seconds: Wall-clock seconds of the fine-tuning before, or None.
        vote_shares: Shape (n_test,), share of human votes for class 1 of each held-out row in its
            original order, or None.
        initial: Values of the trained parameters before the training, by name, where they are
            known: the center of the prior of the randomized adapter. None takes A = 0, B = 0.
        on_stage: Called as ``on_stage(stage, fraction)``, fraction of the whole measurement that
            is done, in [0, 1].

    Returns:
        The record; its ``seconds`` hold every stage.

    Raises:
        ValueError: If there are fewer than 2 rows on a side or fewer than are to be left out, or a
            measurement is not finite: the text names the argument and the row.
    """
    n_train, n_test = (
        _checked_rows(name, rows) for name, rows in (("train", train), ("test", test))
    )
    if "stability" in settings.parts:  # before anything has taken its time
        check_counts(n_train, n_test, _stability_settings(settings))
    masked = bank.dropout_rate > 0
    stages = Stages(settings, n_train, n_test, masked, on_stage)
    seed, n_masks = settings.seed, settings.n_masks
    with stages.run("predict train") as progress:
        on_train = predict_all(model, bank, train, n_masks=n_masks, seed=seed, on_batch=progress)
    with stages.run("predict test") as progress:
        on_test = predict_all(model, bank, test, n_masks=n_masks, seed=seed, on_batch=progress)
    with stages.run("gradients") as progress:
        gradients = example_gradients(model, bank, train, on_batch=progress)
        under_masks = dropout_lipschitz(
            model, bank, train, n_masks=settings.n_gradient_masks, seed=seed
        )
    with stages.run("curvature") as progress:
        spectrum = curvature(
            model,
            bank,
            train,
            steps=settings.hessian_steps,
            seed=seed,
            level=settings.level,
            with_masks="dropout-curvature" in settings.parts,
            on_step=progress,
        )
    stabilities: StabilityMeasurement | None = None
    if "stability" in settings.parts:
        with stages.run("stability") as progress:
            stabilities = stability(
                model,
                bank,
                train,
                test,
                _stability_settings(settings),
                hessian_min_eig=spectrum.hessian_min_eig,
                hessian_max_eig=spectrum.hessian_max_eig,
                on_step=progress,
            )
    randomized: tuple[PosteriorPoint, ...] = ()
    if "posterior" in settings.parts:
        with stages.run("posterior") as progress:
            randomized = posterior(
                model,
                bank,
                train,
                noise_stds=settings.noise_stds,
                n_passes=settings.n_posterior_passes,
                smoothing=settings.smoothing,
                seed=seed,
                initial=initial,
                level=settings.level,
                on_step=progress,
            )
    with stages.run("scores"):
        predictors: dict[str, PredictorMeasurement] = {
            name: predictor_measurement(
                on_train,
                on_test,
                name,
                settings.smoothing,
                level=settings.level,
                vote_shares=vote_shares,
            )
            for name in PREDICTORS
        }
        rate, level = bank.dropout_rate, settings.level
        energy = penalty(
            model, bank, train, n_masks=n_masks, seed=seed, level=level, predictions=on_train
        )
        by_curvature = (
            penalty_curvature(
                model,
                bank,
                train,
                steps=settings.hessian_steps,
                seed=seed,
                curvature=spectrum,
            )
            if spectrum.dropout_min_eig is not None
            else None
        )
        sparsity = update_sparsity(bank, n_draws=_SPARSITY_DRAWS, seed=seed, level=level)
        spread = output_covariance(on_test, dropout_rate=rate, level=level)
        gain = jensen_gap(on_test, smoothing=settings.smoothing, dropout_rate=rate, level=level)
        proved = lipschitz_bound(model, bank, train)
    slope = gradient_norm(model, bank, train, gradients=gradients)
    seconds = {} if fine_tune_seconds is None else {"fine-tune": fine_tune_seconds}
    return RunRecord(
        run_id=run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=dict(config),
        environment=dict(environment),
        n_train=n_train,
        n_test=n_test,
        n_parameters=spectrum.n_parameters,
        dropout_rate=bank.dropout_rate,
        n_masks_train=n_masks_train,
        n_masks_test=n_masks,
        loss_range=loss_range(on_train, settings.smoothing),
        lipschitz=lipschitz(model, bank, train, gradients=gradients),
        hessian_min_eig=spectrum.hessian_min_eig,
        hessian_max_eig=spectrum.hessian_max_eig,
        gradient_norm=slope,
        delta_weight_norm=delta_weight_norm(model),
        penalty=energy,
        penalty_kkt=penalty_kkt(model, bank, train, gradients=gradients),
        update_sparsity=sparsity,
        predictors=predictors,
        seconds={**seconds, **stages.seconds},
        notes=_notes(spectrum, slope, bank),
        lipschitz_bound=proved,
        dropout_lipschitz=under_masks,
        dropout_min_eig=spectrum.dropout_min_eig,
        transverse_min_eig=spectrum.transverse_min_eig,
        gauge_dimension=spectrum.gauge_dimension,
        gauge_residual=spectrum.gauge_residual,
        penalty_curvature=by_curvature,
        output_covariance=spread,
        jensen_gap=gain,
        stability=stabilities,
        posterior=randomized,
    )


def loss_range(predictions: Predictions, smoothing: float) -> Estimate:
    """Length C of the interval of the smoothed cross-entropy, exact. Nats."""
    value = float(smoothed_loss_range(smoothing, predictions.n_classes))
    return Estimate(
        value=value, low=value, high=value, n_draws=1, method="exact: ln(1 + (1 - a) K / a)"
    )


def _stability_settings(settings: MeasureSettings) -> StabilitySettings:
    """What is measured of the stability: by true refits too, unless there are to be none."""
    methods: tuple[StabilityMethod, ...] = ("gauss-newton", "influence")
    if settings.n_refits:
        methods = (*methods, "newton", "refit")
    return StabilitySettings(
        center="solution" if settings.ridge is None else "origin",
        ridge=settings.ridge,
        methods=methods,
        smoothing=settings.smoothing,
        n_left_out=settings.n_left_out,
        n_newton=max(settings.n_refits, 2),
        n_refits=max(settings.n_refits, 2),
        n_fresh=settings.n_fresh,
        seed=settings.seed,
        level=settings.level,
        hessian_steps=settings.hessian_steps,
    )


def _checked_rows(name: str, batches: Sequence[Batch]) -> int:
    n_rows = sum(len(batch["labels"]) for batch in batches)
    if n_rows < 2:
        raise ValueError(f"`{name}` must hold at least 2 rows, got {n_rows}.")
    return n_rows


def _notes(spectrum: Curvature, slope: Estimate, bank: MaskBank) -> tuple[str, ...]:
    notes = [
        "hessian_min_eig is taken in the trained coordinates: in the factors (A, B) the risk is "
        "not convex, and the scaling freedom of B A leaves flat directions at every stationary "
        "point; transverse_min_eig is across them.",
        "lipschitz is the value at one point: the proof needs a supremum over segments.",
        f"The solution is a minimizer up to a gradient norm of {slope.value:.3g}; curvature and "
        "penalty_kkt are those of this point.",
    ]
    if not bank.rescale:
        notes.append("Masks are not rescaled: the mean predictor applies (1 - p)^2 of the update.")
    return tuple(notes)
