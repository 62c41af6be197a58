"""The methods of the paper's tables, put on a base model."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lodrop_nn.adapter.attach import attach_lora_dropout
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.reproduce.plan import Method, Schedule, has_masks, is_adalora, is_adapter
from lodrop_nn.reproduce.preset import Preset
from lodrop_nn.train.finetune import INITIALIZATION

_TASK_TYPES: Mapping[str, TaskType] = {
    "glue": TaskType.SEQ_CLS,
    "squad": TaskType.QUESTION_ANS,
    "mmlu": TaskType.CAUSAL_LM,
}
# What is new on top of a checkpoint; DeBERTa's pooler is. A language model's head is not.
_HEADS: Mapping[str, tuple[str, ...]] = {
    "glue": ("pooler", "classifier", "score"),
    "squad": ("qa_outputs",),
    "mmlu": (),
}


def put_method_on(
    base: PreTrainedModel, preset: Preset, method: Method, schedule: Schedule, seed: int
) -> nn.Module:
    """The base model, made ready to be trained by a method.

    The head is trained by every method. The base keeps the dropout of its checkpoint. Masks of
    LoRA Dropout are the paper's: N per step, each for a whole batch, drawn independently.

    Args:
        base: The model; it is changed in place.
        preset: The task.
        method: What is to be trained.
        schedule: The steps of the run, which AdaLoRA must know.
        seed: Seed >= 0 of the adapter and its masks.

    Returns:
        ``base`` itself, or a PEFT model around it.

    Raises:
        ValueError: If the base has no bias to train, or no module of the adapter's targets.
    """
    heads = [name for name, _ in base.named_children() if name in _HEADS[preset.family]]
    if method == "bitfit":
        return _only_biases(base, heads)
    if not is_adapter(method):
        return base.requires_grad_(True)
    common: dict[str, Any] = {
        "task_type": _TASK_TYPES[preset.family],
        "lora_alpha": preset.lora_alpha,
        "target_modules": list(preset.target_modules),
        "modules_to_save": heads or None,
    }
    config = _adalora(preset, schedule, common) if is_adalora(method) else None
    start = seeded_generator(seed, INITIALIZATION)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT reads a name that transformers has deprecated; the reader can do nothing about it.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        torch.default_generator.manual_seed(start.initial_seed())
        model = get_peft_model(base, config or LoraConfig(r=preset.rank, **common))
    if has_masks(method):
        attach_lora_dropout(
            model,
            preset.dropout_rate,
            n_masks=preset.n_masks_train,
            rescale=preset.rescale,
            seed=seed,
        )
    return model


def _adalora(preset: Preset, schedule: Schedule, common: Mapping[str, Any]) -> AdaLoraConfig:
    """AdaLoRA's configuration.

    Raises:
        ValueError: If there are not the two steps that it needs.
    """
    if schedule.n_steps < 2:
        raise ValueError(
            "`n_steps` must be >= 2 for AdaLoRA, which weighs its ranks before it allocates them, "
            f"got {schedule.n_steps!r}."
        )
    return AdaLoraConfig(
        init_r=preset.initial_rank,
        target_r=preset.rank,
        tinit=schedule.warm_steps,
        tfinal=schedule.final_steps,
        deltaT=schedule.allocation_interval,
        total_step=schedule.n_steps,
        orth_reg_weight=preset.orthogonality,
        **common,  # beta1 = beta2 = 0.85 is the default, and the scripts' value
    )


def _only_biases(base: PreTrainedModel, heads: Sequence[str]) -> nn.Module:
    """Leave biases and the head to be trained.

    Raises:
        ValueError: If there is no bias outside the head.
    """
    n_biases = 0
    for name, parameter in base.named_parameters():
        in_head = name.split(".", 1)[0] in heads
        is_bias = name.endswith(".bias")
        n_biases += is_bias and not in_head
        parameter.requires_grad_(is_bias or in_head)
    if not n_biases:
        raise ValueError(
            f"`methods` must leave out bitfit for {type(base).__name__}: it has no bias to train."
        )
    return base


def n_trained(model: nn.Module) -> int:
    """Parameters that training changes."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)
