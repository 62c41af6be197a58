"""A model in the middle of its training, measured and left as it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from peft import PeftModel

from lodrop_nn.adapter import attach_lora_dropout, detach_lora_dropout
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode, forward_replaced


@contextmanager
def undisturbed(device: torch.device | None = None) -> Iterator[None]:
    """A block of code whose random draws nobody sees: all global generators come back."""
    # Collators of others may draw from NumPy's global generator.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if device is not None and device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def masks_of(model: PeftModel, bank: MaskBank | None, seed: int) -> Iterator[MaskBank]:
    """The masks of an adapter; plain LoRA has some at rate 0 for the time of the block.

    Args:
        model: The model.
        bank: The masks of its adapter, or None for plain LoRA.
        seed: Seed >= 0 of masks that are not there yet.

    Yields:
        The masks.

    Raises:
        ValueError: If the adapter is of a kind that cannot be masked.
        NotImplementedError: If one of its layers is.
    """
    if bank is not None:
        yield bank
        return
    bank = attach_lora_dropout(model, 0.0, seed=seed)
    try:
        yield bank
    finally:
        detach_lora_dropout(model)


@contextmanager
def measuring(model: PeftModel) -> Iterator[None]:
    """Evaluation mode without autocast, and without a trace in the random generators."""
    # Where accelerate has wrapped the forward pass in autocast, it keeps the one beneath.
    plain = vars(model).get("_original_forward")
    device = next(model.parameters()).device
    with (
        undisturbed(device),
        evaluation_mode(model),
        nullcontext() if plain is None else forward_replaced(model, plain),
    ):
        yield
