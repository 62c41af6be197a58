"""Whether a trainer can be measured, which rows of it, and what a reader must know of them."""

from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer

from lodrop_nn.adapter import kinds, mask_bank
from lodrop_nn.adapter.attach import adapter_layers
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.settings import CORE, MeasureSettings
from lodrop_nn.predict.ensemble import check_in_use
from lodrop_nn.train.measured_rows import MeasuredPair, Task


def check_trainer(trainer: Trainer) -> MaskBank | None:
    """Refuse a trainer whose model or rows cannot be measured.

    Args:
        trainer: About to train.

    Returns:
        The masks of its adapter, or None for plain LoRA.

    Raises:
        TypeError: If its model is no PeftModel.
        ValueError: If the adapter is not LoRA, not in use or masked at several rates, or rows are
            packed.
        NotImplementedError: If its weights are sharded.
    """
    model: Any = trainer.model
    layers = adapter_layers(model, "default")
    check_in_use(model, "default")
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if trainer.is_fsdp_enabled or getattr(plugin, "zero_stage", 0) == 3:
        raise NotImplementedError(
            "a model whose weights are sharded (FSDP, ZeRO-3) cannot be measured on one process: "
            "train with DDP, or save the adapter and measure it afterwards (`lodrop measure`)."
        )
    packing = [n for n in ("packing", "eval_packing", "padding_free") if _is_on(trainer.args, n)]
    if packing:
        raise ValueError(
            f"`{packing[0]}` must be off to measure (rows that hold several texts are not "
            "independent examples), got True."
        )
    if all(kinds.installed(layer, name, "default") is None for name, layer in layers.items()):
        return None
    bank = mask_bank(model)
    settings = bank.settings
    if isinstance(settings.dropout_rate, tuple) or settings.rate_pattern:
        raise ValueError(
            "`dropout_rate` must be one number for all layers, their inputs and outputs: a record "
            f"has one p. The adapter has {settings.dropout_rate}, by layer "
            f"{dict(settings.rate_pattern)}."
        )
    return bank


def held_out_rows(trainer: Trainer, test_dataset: Any) -> Any:
    """The data set to hold out: the one that is given, else that of the trainer; None if none.

    Raises:
        ValueError: If the trainer has several and none is given.
    """
    rows = trainer.eval_dataset if test_dataset is None else test_dataset
    if isinstance(rows, dict):
        raise ValueError(
            "`test_dataset` must be one data set where the trainer evaluates on several, got "
            f"those named {sorted(rows)}: give one of them."
        )
    return rows


def why_no_record(trainer: Trainer, task: Task, test_dataset: Any) -> str | None:
    """Why there will be no record although there may be numbers in the log; None if there is one.

    Args:
        trainer: About to train.
        task: What the labels are.
        test_dataset: Held-out rows that were given beside the trainer's, or None.
    """
    if held_out_rows(trainer, test_dataset) is None:
        return (
            "there are no held-out rows, and a gap needs some: give the trainer an `eval_dataset`"
        )
    if test_dataset is None and (chooser := _what_chooses(trainer)) is not None:
        return (
            f"{chooser} lets the evaluation rows choose the model, and bounds are about rows that "
            "no choice has seen: give others as `test_dataset`"
        )
    weights = {str(p.dtype) for p in trainer.model.parameters() if p.dtype in _HALF}  # type: ignore[union-attr]
    if task == "classifier" and weights:
        return (
            f"weights are in {', '.join(sorted(weights))}, whose rounding spoils gradients and "
            "curvature: load the base model in float32"
        )
    return None


def check_rows(rows: MeasuredPair, settings: MeasureSettings, task: Task) -> None:
    """Refuse rows that are too few, or a part of them where a measurement needs them all.

    Raises:
        ValueError: If they are.
    """
    for name, part in (("train_dataset", rows.train), ("test_dataset", rows.test)):
        if part is not None and part.n_rows < 2:
            raise ValueError(
                f"`{name}` must hold at least 2 rows with labels, got {part.n_rows} of "
                f"{part.n_all}."
            )
    more = [part for part in settings.parts if part in ("stability", "posterior")]
    if task == "classifier" and more and rows.train.is_sample:
        raise ValueError(
            f"`settings.parts` must be among {(*CORE, 'dropout-curvature')} where only a sample of "
            f"the training rows is measured ({rows.train.n_rows} of {rows.train.n_all}), got "
            f"{more}: raise the first of `measured_rows`."
        )


def notes_of(trainer: Trainer, rows: MeasuredPair, task: Task) -> tuple[str, ...]:
    """What a reader must know of the rows and of the loss that was trained."""
    test = rows.test
    assert test is not None
    notes = [
        "The rows are those of the trainer, as its collator makes them, cut off where it cuts."
    ]
    if test.is_sample:
        notes.append(f"Held out: a random sample of {test.n_rows} of {test.n_all} evaluation rows.")
    if task == "classifier" and _has_own_loss(trainer):
        notes.append(
            "The trainer minimizes a loss of its own: gradients, curvature and penalties are those "
            "of the plain cross-entropy, of which the solution need not be a minimizer."
        )
    if task == "language":
        notes.append(
            "A row is one example; its loss is the mean over its scored tokens. Bounds and "
            "intervals take rows for independent draws, which rows cut from one text are not."
        )
        if rows.train.is_sample:
            notes.append(
                f"The training risk is that of a random sample of {rows.train.n_rows} of "
                f"{rows.train.n_all} training rows, with an interval for that choice."
            )
        for name, part in (("training", rows.train), ("held-out", test)):
            if part.n_unlabeled:
                notes.append(f"{part.n_unlabeled} {name} rows have no token to predict: left out.")
    return tuple(notes)


_HALF = (torch.float16, torch.bfloat16)


def _is_on(args: Any, name: str) -> bool:
    return getattr(args, name, None) is True


def _has_own_loss(trainer: Trainer) -> bool:
    """Whether what it minimizes is perhaps not the mean cross-entropy of the model."""
    overridden = type(trainer).compute_loss is not Trainer.compute_loss
    smoothed = trainer.args.label_smoothing_factor != 0
    return overridden or smoothed or trainer.compute_loss_func is not None


def _what_chooses(trainer: Trainer) -> str | None:
    args = trainer.args
    if args.load_best_model_at_end:
        return "`load_best_model_at_end`"
    if any(isinstance(c, EarlyStoppingCallback) for c in trainer.callback_handler.callbacks):
        return "`EarlyStoppingCallback`"
    scheduler = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    return "`reduce_lr_on_plateau`" if scheduler == "reduce_lr_on_plateau" else None
