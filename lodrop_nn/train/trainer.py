"""LoRA Dropout under ``transformers.Trainer``."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.train.callbacks import LoraDropoutCallback, training_bank
from lodrop_nn.train.micro_steps import (
    MaskPasses,
    check_mask_passes,
    choose_passes,
    tiled_unless_refused,
    ways_left,
)
from lodrop_nn.train.tiling import tile_batch

if TYPE_CHECKING:  # a mixin: the trainer is whatever it is mixed into
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class LoraDropoutTrainerMixin(_Trainer):
    """Lets each training step of a ``transformers.Trainer`` average over the N masks of its model.

    ``class MyTrainer(LoraDropoutTrainerMixin, Trainer)`` is all it takes, as with any trainer that
    derives from it (TRL's ``SFTTrainer``). Batches are tiled in the training step, after the
    trainer has counted, dealt out and logged them: evaluation stays as it is, the loss of a
    language model keeps its divisor (times N), and ``per_device_train_batch_size`` counts
    examples. In micro-steps the step runs N times, with one mask and an N-th of the gradient each.

    A :class:`~lodrop_nn.train.callbacks.LoraDropoutCallback` comes with it, for resumed trainings;
    give one with a schedule among the trainer's ``callbacks`` to change the rates over time.

    Attributes:
        lora_dropout_adapter: The adapter whose masks are meant.
        mask_passes: ``"tiled"``, ``"micro"``, or ``"auto"`` to choose by the size of each batch
            (:func:`lodrop_nn.train.micro_steps.choose_passes`); several processes, which must
            choose alike, then take micro-steps, and so does a model with a layer that serves one
            mask per pass, from the step that shows it.
    """

    lora_dropout_adapter: str = "default"
    mask_passes: MaskPasses = "auto"
    _lora_dropout_bank: MaskBank | None = None

    def get_train_dataloader(self) -> "DataLoader[Any]":
        """The trainer's training batches.

        Raises:
            ValueError: If the adapter has no LoRA Dropout, ``mask_passes`` is unknown, or one
                process drives several devices.
        """
        # Asking for the bank also gives an adapter made from a LoraDropoutConfig its one bank.
        self._lora_dropout_bank = training_bank(self.args, self.model, self.lora_dropout_adapter)
        check_mask_passes(self.mask_passes)
        self._callback().passes_are_made = True
        return super().get_train_dataloader()

    def training_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Accumulate the gradient of one batch, averaged over the masks; returns its loss.

        Raises:
            InstanceLayoutError: If a layer serves one mask per pass, and passes must be tiled.
            NotImplementedError: If DeepSpeed is to train in micro-steps.
        """
        bank = self._lora_dropout_bank
        if bank is None or bank.n_masks == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        n_masks = bank.n_masks
        if self._passes_of(inputs, n_masks) == "tiled":
            n_items = None if num_items_in_batch is None else num_items_in_batch * n_masks
            tiled, step = tile_batch(inputs, n_masks), super().training_step
            ways = "tiled" if self.is_deepspeed_enabled else self.mask_passes
            loss = tiled_unless_refused(bank, lambda: step(model, tiled, n_items), ways)
            if loss is not None:
                return loss
        if self.is_deepspeed_enabled:
            raise NotImplementedError(
                "`mask_passes='micro'` does not work under DeepSpeed, whose engine steps the "
                "optimizer in the backward pass: use `mask_passes='tiled'`, or n_masks=1."
            )
        losses = []
        for index in range(n_masks):
            last = index == n_masks - 1
            synchronized = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
            with bank.micro_pass(index), synchronized, self._share_of(n_masks):
                losses.append(super().training_step(model, inputs, num_items_in_batch))
        return torch.stack(losses).mean()

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Operations of the step on a batch that is not tiled: N times those of one pass."""
        n_masks = 1 if self._lora_dropout_bank is None else self._lora_dropout_bank.n_masks
        return n_masks * super().floating_point_ops(inputs)

    def _passes_of(self, inputs: Mapping[str, Any], n_masks: int) -> Literal["tiled", "micro"]:
        # Ranks with batches of different lengths must still pass equally often: sharded layers
        # and the metrics of some trainers communicate in each pass.
        if self.mask_passes == "auto" and self.args.world_size > 1:
            return "micro"
        bank, ways = self._lora_dropout_bank, self.mask_passes
        return choose_passes(inputs, n_masks, ways if bank is None else ways_left(bank, ways))

    def _callback(self) -> LoraDropoutCallback:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, LoraDropoutCallback):
                return callback
        callback = LoraDropoutCallback(adapter_name=self.lora_dropout_adapter)
        self.add_callback(callback)
        return callback

    @contextlib.contextmanager
    def _share_of(self, n_masks: int) -> Iterator[None]:
        """Scales gradients where the trainer asks for them: losses may be computed anywhere.

        Raises:
            RuntimeError: If it never asks.
        """
        accelerator, n_calls = self.accelerator, 0
        saved = vars(accelerator).get("backward")
        whole = accelerator.backward

        def share(loss: Tensor, **kwargs: Any) -> None:
            nonlocal n_calls
            n_calls += 1
            whole(loss / n_masks, **kwargs)

        accelerator.backward = share
        try:
            yield
        finally:
            if saved is None:
                del accelerator.backward
            else:
                accelerator.backward = saved
        if not n_calls:
            raise RuntimeError(
                "`mask_passes='micro'` needs a `training_step` that calls `accelerator.backward`, "
                f"which that of {type(self).__name__} does not: use `mask_passes='tiled'`."
            )
