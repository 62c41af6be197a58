"""Training by transformers' Trainer, with masks and ranks where the method has them."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from lodrop_nn.reproduce.best_epoch import BestEpoch
from lodrop_nn.reproduce.plan import (
    Method,
    Schedule,
    has_masks,
    is_adalora,
    peak_learning_rate,
)
from lodrop_nn.reproduce.preset import Preset
from lodrop_nn.reproduce.task import PreparedTask
from lodrop_nn.train.adalora_callback import AdaLoraCallback
from lodrop_nn.train.trainer import LoraDropoutTrainerMixin

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What training did.

    Attributes:
        loss: Mean training loss over all steps, masks on. Nats (STS-B: squared units).
        seconds: Wall-clock seconds of the loop.
        step_seconds: Those of each optimizer step.
        n_steps: Optimizer steps.
        n_tokens: Tokens of the batches, padding included, before masks multiply them.
        epoch_scores: Scores of the mean predictor after each epoch; empty where the last is taken.
    """

    loss: float
    seconds: float
    step_seconds: tuple[float, ...]
    n_steps: int
    n_tokens: int
    epoch_scores: tuple[Mapping[str, float], ...] = ()


class _CountingTrainer(Trainer):
    """Counts the tokens that pass."""

    n_tokens = 0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> Tensor:
        self.n_tokens += inputs["input_ids"].numel()
        loss: Tensor = super().training_step(model, inputs, *args)
        return loss


class _DropoutTrainer(LoraDropoutTrainerMixin, _CountingTrainer):
    """N masks per step; DeBERTa's pass one after the other, as it has room for one per pass."""

    mask_passes = "auto"


@dataclass
class _Clock(TrainerCallback):
    """Seconds of each step."""

    on_step: OnStep | None
    seconds: list[float] = field(default_factory=list)
    _start: float = 0.0

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps)


def _check_one_device(arguments: TrainingArguments) -> None:
    """Refuse what would train on other batches than the protocol's.

    Raises:
        ValueError: If there are several devices or processes.
    """
    if arguments.n_gpu > 1 or arguments.world_size > 1:
        raise ValueError(
            "a run must have one device and one process, since each would take a whole batch, got "
            f"{arguments.n_gpu} devices and {arguments.world_size} processes: set "
            "CUDA_VISIBLE_DEVICES=0, and start other seeds beside it on other devices."
        )


def train(
    model: nn.Module,
    task: PreparedTask,
    preset: Preset,
    method: Method,
    schedule: Schedule,
    *,
    seed: int,
    folder: Path,
    device_batch: int | None = None,
    best: BestEpoch | None = None,
    on_step: OnStep | None = None,
) -> TrainingResult:
    """Train a model in place by AdamW, with a rate that rises and then falls linearly to 0.

    Gradients are clipped at norm 1, the trainer's default, which AdaLoRA's scripts keep.

    Args:
        model: From :func:`~lodrop_nn.reproduce.methods.put_method_on`.
        task: The task.
        preset: Its settings.
        method: What is trained.
        schedule: Its steps.
        seed: Seed >= 0 of the order. Random states are left as they were.
        folder: Where the trainer may write.
        device_batch: Rows that go through the model together, a divisor of the batch; None takes
            all.
        best: Chooses an epoch; None takes the last.
        on_step: Called after each step with the steps done and the steps in all.

    Returns:
        Loss, time and counts.

    Raises:
        ValueError: If ``device_batch`` does not divide the batch, or there are several devices.
        FloatingPointError: If the loss stops being finite.
    """
    rows = preset.batch_size if device_batch is None else device_batch
    if rows < 1 or preset.batch_size % rows:
        raise ValueError(
            f"`device_batch` must divide batch_size = {preset.batch_size}, got {device_batch!r}."
        )
    arguments = TrainingArguments(
        str(folder),
        max_steps=schedule.n_steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=preset.batch_size // rows,
        learning_rate=peak_learning_rate(preset, method),
        warmup_steps=schedule.warmup_steps,
        weight_decay=preset.weight_decay,
        lr_scheduler_type="linear",
        bf16=preset.precision == "bf16",
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
    )
    _check_one_device(arguments)
    clock = _Clock(on_step)
    callbacks: list[TrainerCallback] = [clock] if best is None else [clock, best]
    if is_adalora(method):
        callbacks.append(AdaLoraCallback())  # after `best`: it reads the ranks that are put back
    kind = _DropoutTrainer if has_masks(method) else _CountingTrainer
    with _random_states_restored():
        trainer = kind(
            model,
            arguments,
            train_dataset=list(task.train),
            data_collator=task.collate,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        if preset.family != "mmlu":
            # Their models take the number of items in a step, do not divide by it, and would make
            # the gradient of an accumulated batch as many times too large as it has parts.
            trainer.model_accepts_loss_kwargs = False
        start = time.perf_counter()
        output = trainer.train()
        seconds = time.perf_counter() - start
    model.eval().zero_grad(set_to_none=True)
    if not math.isfinite(output.training_loss):
        raise FloatingPointError(
            f"The training loss must be finite, got {output.training_loss!r}; lower the learning "
            f"rate, {peak_learning_rate(preset, method)!r} now."
        )
    return TrainingResult(
        loss=output.training_loss,
        seconds=seconds,
        step_seconds=tuple(clock.seconds),
        n_steps=output.global_step,
        n_tokens=trainer.n_tokens,
        epoch_scores=() if best is None else tuple(best.scores),
    )


@contextmanager
def _random_states_restored() -> Iterator[None]:
    """The trainer seeds every generator there is."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
