"""AdaLoRA under ``transformers.Trainer``, which does not allocate ranks by itself."""

import warnings
from pathlib import Path
from typing import Any

from accelerate.utils import extract_model_from_parallel  # type: ignore[import-untyped]
from peft.tuners.adalora import AdaLoraModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, zeros_like
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

IMPORTANCE_NAME = "adalora_importance.safetensors"
_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")  # of PEFT's RankAllocator


class AdaLoraCallback(TrainerCallback):
    """Calls PEFT's ``update_and_allocate`` after each optimizer step, and makes training resumable.

    Without such a call AdaLoRA keeps all its ranks. The trainer's ``on_optimizer_step`` is the
    event to make it in: the step is done, its gradients (of all accumulated batches) are still
    there. The step passed on counts from 1, so that the final ranks are allocated at step
    ``total_step - tfinal`` also where ``tfinal`` is 0.

    PEFT saves only the ranks in use once some are pruned, and cannot load that into a model that
    is to go on training. While the trainer trains, its checkpoints therefore hold all ranks, with
    zeros in ``lora_E`` where they are pruned (the same function), and the running importance of
    the ranks in a file of their own; a resumed training allocates what it would have allocated.
    After training, PEFT saves the ranks in use again.

    Works with LoRA Dropout and without.

    Example:
        >>> from transformers import Trainer
        >>> trainer = Trainer(model, args, callbacks=[AdaLoraCallback()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._pattern: dict[str, list[bool]] | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the schedule, and take up the allocation where a checkpoint left it.

        Raises:
            ValueError: If the model has no AdaLoRA adapter to train, or training ends before the
                final ranks are allocated.
        """
        tuner = _tuner(model)
        config = _config(tuner)
        last = config.total_step - config.tfinal
        if state.max_steps < last:
            raise ValueError(
                "AdaLoRA allocates its final ranks at step `total_step - tfinal` = "
                f"{config.total_step} - {config.tfinal}, but training ends after "
                f"{state.max_steps} steps: set `total_step` to the number of optimizer steps."
            )
        config.rank_pattern = None
        self._pattern = _ranks_in_use(tuner) if state.global_step > 0 else None
        if 0 < state.global_step < last:
            _read_importance(tuner, _checkpoint(args, state))

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Update the importance of ranks and prune the least important ones."""
        tuner = _tuner(model)
        config = _config(tuner)
        step = state.global_step + 1
        # A step that mixed precision skips has infinite gradients, which would spoil the averages.
        # From the final allocation on, gradients are not read.
        was_skipped = getattr(optimizer, "step_was_skipped", False)
        if was_skipped and step < config.total_step - config.tfinal:
            return
        config.rank_pattern = self._pattern
        tuner.update_and_allocate(step)
        self._pattern, config.rank_pattern = config.rank_pattern, None

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the importance of ranks beside the checkpoint's weights."""
        folder = _checkpoint(args, state)
        if not state.is_world_process_zero or not folder.is_dir():
            return
        allocator = _tuner(model).rankallocator
        averages = {
            f"{kind}:{name}": value.contiguous()
            for kind in _AVERAGES
            for name, value in getattr(allocator, kind).items()
        }
        save_file(averages, folder / IMPORTANCE_NAME)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell PEFT which ranks are in use, so that it saves only those."""
        tuner = _tuner(model)
        # From the weights, not from the last allocation: the trainer may have loaded its best
        # checkpoint meanwhile.
        pattern = _ranks_in_use(tuner)
        is_pruned = not all(all(ranks) for ranks in pattern.values())
        _config(tuner).rank_pattern = pattern if is_pruned else None


def _tuner(model: nn.Module | None) -> AdaLoraModel:
    tuner = getattr(extract_model_from_parallel(model), "base_model", None)
    if not isinstance(tuner, AdaLoraModel) or not hasattr(tuner, "rankallocator"):
        raise ValueError(
            "AdaLoraCallback needs a PeftModel with an AdaLoRA adapter that is trainable, got "
            f"{type(tuner if isinstance(tuner, AdaLoraModel) else model).__name__}."
        )
    return tuner


def _config(tuner: AdaLoraModel) -> Any:
    return tuner.peft_config[tuner.trainable_adapter_name]


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir, f"checkpoint-{state.global_step}")


def _ranks_in_use(tuner: AdaLoraModel) -> dict[str, list[bool]]:
    """Which singular values are not zero, under the names that PEFT's allocator gives them."""
    suffix = f"lora_E.{tuner.trainable_adapter_name}"
    return {
        name: (value != 0).flatten().tolist()
        for name, value in tuner.model.named_parameters()
        if name.endswith(suffix)
    }


def _read_importance(tuner: AdaLoraModel, folder: Path) -> None:
    if not (folder / IMPORTANCE_NAME).is_file():
        warnings.warn(
            f"{folder / IMPORTANCE_NAME} does not exist: training goes on, but the importance of "
            "ranks is averaged anew from here.",
            stacklevel=2,
        )
        return
    allocator = tuner.rankallocator
    parameters: dict[str, Tensor] = dict(tuner.model.named_parameters())
    for key, value in load_file(folder / IMPORTANCE_NAME).items():
        kind, name = key.split(":", 1)
        getattr(allocator, kind)[name] = value.to(parameters[name].device)
        allocator.ipt[name] = zeros_like(parameters[name])  # overwritten before it is read
