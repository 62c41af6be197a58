"""The records of a training under ``transformers.Trainer``, and the numbers that it logs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from peft import PeftModel

from lodrop_nn.language_record import LanguageRecord
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.environment import environment
from lodrop_nn.measure.evaluation import trained_parameters
from lodrop_nn.measure.language import (
    language_jensen_gap,
    language_loss_range,
    language_measurement,
)
from lodrop_nn.measure.language_losses import sequence_losses
from lodrop_nn.measure.predictions import predict_all
from lodrop_nn.measure.run import measure
from lodrop_nn.measure.settings import MeasureSettings
from lodrop_nn.train.measured_config import run_id_of
from lodrop_nn.train.measured_rows import MeasuredPair, MeasuredRows, Task
from lodrop_theory.losses import smoothed_cross_entropy
from lodrop_theory.records import PREDICTORS, Estimate, Predictor, RunRecord

OnStage = Callable[[str, float], None]
_OF_TRAINING_ROWS = (
    "lipschitz",
    "lipschitz_bound",
    "dropout_lipschitz",
    "hessian_min_eig",
    "hessian_max_eig",
    "dropout_min_eig",
    "transverse_min_eig",
    "gauge_residual",
    "gradient_norm",
    "penalty",
    "penalty_kkt",
    "penalty_curvature",
)
_SCORES_OF_TRAINING_ROWS = ("empirical_risk", "train_accuracy", "train_nll", "generalization_gap")


def logged_numbers(
    model: PeftModel, bank: MaskBank, rows: MeasuredPair, task: Task, settings: MeasureSettings
) -> dict[str, float]:
    """Risks and gaps for a trainer's log, in nats (of a language model: per token).

    Args:
        model: The model in training; it is measured in evaluation mode.
        bank: The masks of its adapter.
        rows: What is measured.
        task: What the labels are.
        settings: Number and seed of the masks, and the smoothing.

    Returns:
        ``train_risk``, ``test_risk`` and ``gap`` of the mean predictor; with masks the same of the
        ensemble, as ``ensemble_gap`` and so on; of language models ``train_perplexity`` and
        ``test_perplexity`` beside. What takes held-out rows is left out where there are none.
    """
    device = next(model.parameters()).device
    predictors: dict[str, Predictor] = {"": "mean"}
    if bank.dropout_rate > 0:
        predictors["ensemble_"] = "ensemble"
    numbers = {}
    for side, part in (("train", rows.train), ("test", rows.test)):
        if part is None:
            continue
        batches = part.to(device)
        if task == "classifier":
            found = predict_all(model, bank, batches, n_masks=settings.n_masks, seed=settings.seed)
            for prefix, name in predictors.items():
                losses = smoothed_cross_entropy(found.of(name), found.labels, settings.smoothing)
                numbers[f"{prefix}{side}_risk"] = float(losses.mean())
        else:
            by_row = sequence_losses(model, bank, batches, **_draws(settings))
            for prefix, name in predictors.items():
                numbers[f"{prefix}{side}_risk"] = float(by_row.smoothed[name].mean())
                numbers[f"{prefix}{side}_perplexity"] = by_row.perplexity(name)
    if rows.test is not None:
        for prefix in predictors:
            risks = (numbers[f"{prefix}{side}_risk"] for side in ("test", "train"))
            numbers[f"{prefix}gap"] = next(risks) - next(risks)
    return numbers


def classifier_record(
    model: PeftModel,
    bank: MaskBank,
    rows: MeasuredPair,
    settings: MeasureSettings,
    config: Mapping[str, Any],
    *,
    notes: Sequence[str],
    on_stage: OnStage | None = None,
) -> RunRecord:
    """The record of a classifier at the end of its training.

    Args:
        model: The trained model.
        bank: The masks of its adapter.
        rows: What is measured, with held-out rows.
        settings: What is drawn, and which parts are run.
        config: What made the adapter.
        notes: What a reader must know of the rows.
        on_stage: Called as ``on_stage(stage, fraction)``.

    Returns:
        The record. ``n_train`` counts all training rows; where a sample of them was measured, what
        it measured of them is a plug-in value.
    """
    assert rows.test is not None
    device = next(model.parameters()).device
    record = measure(
        model,
        bank,
        rows.train.to(device),
        rows.test.to(device),
        settings,
        config=config,
        run_id=run_id_of(config),
        environment=environment(device),
        n_masks_train=bank.settings.n_masks,
        on_stage=on_stage,
    )
    record = replace(record, notes=(*notes, *record.notes))
    return _of_a_sample(record, rows.train) if rows.train.is_sample else record


def language_record(
    model: PeftModel,
    bank: MaskBank,
    rows: MeasuredPair,
    settings: MeasureSettings,
    config: Mapping[str, Any],
    *,
    notes: Sequence[str],
    on_stage: OnStage | None = None,
) -> LanguageRecord:
    """The record of a language model at the end of its training; as :func:`classifier_record`."""
    assert rows.test is not None
    device, start = next(model.parameters()).device, time.perf_counter()
    whole = rows.train.n_rows + rows.test.n_rows
    seconds = {}

    def losses(stage: str, part: MeasuredRows, before: int) -> Any:
        nonlocal start

        def on_batch(done: int, _: int) -> None:
            if on_stage is not None:
                on_stage(stage, (before + done) / whole)

        found = sequence_losses(model, bank, part.to(device), **_draws(settings), on_batch=on_batch)
        seconds[stage] = time.perf_counter() - start
        start = time.perf_counter()
        return found

    train = losses("predict train", rows.train, 0)
    test = losses("predict test", rows.test, rows.train.n_rows)
    scale = language_loss_range(model, settings.smoothing)
    all_train = not rows.train.is_sample
    return LanguageRecord(
        run_id=run_id_of(config),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=dict(config),
        environment=environment(device),
        n_train=rows.train.n_all - rows.train.n_unlabeled,
        n_train_measured=rows.train.n_rows,
        n_test=rows.test.n_rows,
        n_train_tokens=int(train.n_tokens.sum()),
        n_test_tokens=int(test.n_tokens.sum()),
        n_parameters=sum(p.numel() for p in trained_parameters(model).values()),
        dropout_rate=bank.dropout_rate,
        n_masks_test=settings.n_masks if bank.dropout_rate > 0 else 1,
        smoothing=settings.smoothing,
        loss_range=scale,
        predictors={
            name: language_measurement(train, test, name, all_train=all_train, level=settings.level)
            for name in PREDICTORS
        },
        jensen_gap=language_jensen_gap(test, scale.value, level=settings.level),
        seconds=seconds,
        notes=tuple(notes),
    )


def _draws(settings: MeasureSettings) -> dict[str, Any]:
    return {
        "n_masks": settings.n_masks,
        "seed": settings.seed,
        "smoothing": settings.smoothing,
    }


def _of_a_sample(record: RunRecord, rows: MeasuredRows) -> RunRecord:
    """The record of all training rows, with what was measured on some of them marked as that."""

    def marked(holder: Any, names: Sequence[str]) -> dict[str, Estimate | None]:
        return {name: _plug_in(getattr(holder, name)) for name in names}

    predictors = {
        name: replace(scores, **marked(scores, _SCORES_OF_TRAINING_ROWS))  # type: ignore[arg-type]
        for name, scores in record.predictors.items()
    }
    return replace(
        record,
        n_train=rows.n_all,
        predictors=predictors,
        **marked(record, _OF_TRAINING_ROWS),  # type: ignore[arg-type]
        notes=(
            f"A random sample of {rows.n_rows} of the {rows.n_all} training rows was measured: "
            "training risk, gap, gradients, curvature and penalties are plug-in values for those "
            "of all rows. n_train counts all rows. The risk bounds of held-out rows are not "
            "affected; the gap beside them is counted from the training risk of the sample.",
            *record.notes,
        ),
    )


def _plug_in(estimate: Estimate | None) -> Estimate | None:
    if estimate is None:
        return None
    method = f"{estimate.method}; on a sample of the training rows"
    return replace(estimate, method=method, provenance="plug-in")
