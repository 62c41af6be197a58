"""From a configuration and a base model to a fine-tuned adapter: a plain loop."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR
from transformers import PreTrainedModel

from lodrop_nn.adapter.attach import adapter_layers, attach_lora_dropout
from lodrop_nn.config import Precision, RunConfig
from lodrop_nn.data.examples import Examples, batches
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.predict.late_tiling import FrozenPrefix
from lodrop_nn.train.objective import masked_risk
from lodrop_nn.train.prefix_cache import PrefixCache

# Keys of the random streams of a run; those of its masks are in `lodrop_nn.masks.passes`.
INITIALIZATION, ORDER = 2, 3


@dataclass(frozen=True, kw_only=True)
class FineTuneResult:
    """What fine-tuning did.

    Attributes:
        epoch_losses: Mean training loss of each epoch, while the weights moved and with the
            masks on: not the empirical risk of the result. Nats.
        seconds: Wall-clock seconds of the loop.
        n_steps: Optimizer steps.
    """

    epoch_losses: tuple[float, ...]
    seconds: float
    n_steps: int


def native_precision(device: torch.device | str = "cpu") -> Precision:
    """'bf16' where the processor multiplies bfloat16 matrices itself, else 'fp32'.

    Elsewhere bfloat16 is emulated: slower than fp32, and less exact for nothing.

    Args:
        device: The device that will train.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if kind == "cpu":
        # An older torch cannot tell; fp32 is then the safe answer.
        capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        names = ("avx512_bf16", "amx_bf16", "bf16")
        return "bf16" if any(capabilities.get(name) for name in names) else "fp32"
    return "fp32"


def build_adapter(config: RunConfig, base: PreTrainedModel) -> tuple[PeftModel, MaskBank]:
    """A fresh LoRA adapter with LoRA Dropout on a sequence classifier.

    The head is trained too (PEFT keeps a copy of it beside the adapter). At the start B = 0, so
    the adapted model equals the base. The initialization depends on ``config.seed`` and not on
    the dropout rate: runs that differ in the rate alone start from the same point.

    Args:
        config: What to adapt and how strongly to drop.
        base: A classifier from :func:`~lodrop_nn.data.models.load_base_model`; it is changed in
            place, as PEFT does.

    Returns:
        (model in evaluation mode, its mask bank).

    Raises:
        ValueError: If a target module or a block of ``config`` does not exist in the base: PEFT
            itself passes over those as long as one is found.
    """
    blocks = _checked_blocks(config, base)
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.target_modules),
        layers_to_transform=blocks,
        lora_dropout=0.0,
    )
    start = seeded_generator(config.seed, INITIALIZATION)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT reads a name that transformers has deprecated; the reader can do nothing about it.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        torch.default_generator.manual_seed(start.initial_seed())
        model = get_peft_model(base, lora)
    _check_targets(config, model)
    bank = attach_lora_dropout(
        model,
        config.dropout_rate,
        n_masks=config.n_masks_train,
        mask_scope=config.mask_scope,
        mask_law=config.mask_law,
        rescale=config.rescale,
        seed=config.seed,
    )
    if not config.train_A:
        for layer in adapter_layers(model, "default").values():
            layer.lora_A["default"].weight.requires_grad_(False)
    return model.eval(), bank


def fine_tune(
    model: PeftModel,
    bank: MaskBank,
    examples: Examples,
    config: RunConfig,
    *,
    stored: PrefixCache | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> FineTuneResult:
    """Train the adapter in place, on the device that it is on; leaves it in evaluation mode.

    AdamW at a rate that falls linearly from ``config.learning_rate`` to 0, over batches of rows
    of like length in a random order that depends on ``config.seed`` only.

    Args:
        model: Adapter from :func:`build_adapter`.
        bank: Its mask bank.
        examples: Training rows.
        config: The configuration that the adapter was built from.
        stored: States below the adapter for the same ``examples``; None computes them in each
            pass.
        on_step: Called after each step with the steps done, the steps in all and the loss.

    Returns:
        Losses by epoch, seconds and steps.

    Raises:
        ValueError: If ``bank`` does not draw ``config.n_masks_train`` masks.
        FloatingPointError: If the loss stops being finite.
    """
    if bank.n_masks != config.n_masks_train:
        raise ValueError(
            f"`bank` must draw n_masks_train = {config.n_masks_train} masks per pass, "
            f"got {bank.n_masks!r}."
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device
    n_steps = config.epochs * math.ceil(len(examples) / config.batch_size)
    optimizer = AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=n_steps)
    prefix = FrozenPrefix.below_the_adapter(model, bank) if bank.n_masks > 1 else None
    shuffle = seeded_generator(config.seed, ORDER)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

    start, step, epoch_losses = time.perf_counter(), 0, []
    model.train()
    try:
        for _ in range(config.epochs):
            total = 0.0
            for batch in batches(
                examples, config.batch_size, order="length", generator=shuffle, device=device
            ):
                start_from = nullcontext() if stored is None else stored.replay(batch)
                with autocast, start_from:
                    risk = masked_risk(model, batch, n_masks=bank.n_masks, prefix=prefix)
                loss = risk.item()
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"The training loss must be finite, got {loss!r} at step {step + 1} of "
                        f"{n_steps}; lower `learning_rate`, {config.learning_rate!r} now."
                    )
                optimizer.zero_grad(set_to_none=True)
                risk.backward()
                optimizer.step()
                schedule.step()
                step += 1
                total += loss * len(batch["labels"])
                if on_step is not None:
                    on_step(step, n_steps, loss)
            epoch_losses.append(total / len(examples))
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)
    return FineTuneResult(
        epoch_losses=tuple(epoch_losses), seconds=time.perf_counter() - start, n_steps=step
    )


def _checked_blocks(config: RunConfig, base: PreTrainedModel) -> list[int] | None:
    if config.adapted_layers is None:
        return None
    n_blocks = base.config.num_hidden_layers
    # An empty list would mean every block to PEFT.
    if not config.adapted_layers or not all(0 <= b < n_blocks for b in config.adapted_layers):
        raise ValueError(
            f"`adapted_layers` must be one or more of the blocks [0, {n_blocks}) of "
            f"{config.model!r}, got {config.adapted_layers!r}."
        )
    return list(config.adapted_layers)


def _check_targets(config: RunConfig, model: PeftModel) -> None:
    adapted = model.base_model.targeted_module_names
    for target in config.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in adapted):
            raise ValueError(
                f"`target_modules` must each end the name of a module of {config.model!r}, "
                f"got {target!r}."
            )
