"""LoRA Dropout under ``transformers.Trainer``."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset

from lodrop_nn.adapter import mask_bank
from lodrop_nn.train.tiling import tile_batch

if TYPE_CHECKING:  # a mixin: the trainer is whatever it is mixed into
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

Collator = Callable[[list[Any]], dict[str, Any]]


class TilingCollator:
    """A collator whose batches hold their examples once per mask.

    Args:
        collator: Makes a batch of examples.
        n_masks: Number of instances, >= 1.
    """

    def __init__(self, collator: Collator, n_masks: int) -> None:
        self.collator = collator
        self.n_masks = n_masks

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """The tiled batch; see :func:`lodrop_nn.train.tiling.tile_batch`."""
        return tile_batch(self.collator(examples), self.n_masks)


class LoraDropoutTrainerMixin(_Trainer):
    """Tiles the training batches of a ``transformers.Trainer``, N instances per example.

    ``class MyTrainer(LoraDropoutTrainerMixin, Trainer)`` is all it takes; N is that of the model's
    masks. Only training batches are tiled, and before the trainer counts them: tiling inside the
    model makes losses of language models N times too large (their divisor is counted on the
    batch), and a tiling ``data_collator`` would also tile evaluation.

    ``per_device_train_batch_size`` counts examples; a pass then holds N times as many rows.

    Attributes:
        lora_dropout_adapter: The adapter whose masks are meant.
    """

    lora_dropout_adapter: str = "default"
    data_collator: Any

    def get_train_dataloader(self) -> "DataLoader[Any]":
        """The trainer's training batches, tiled.

        Raises:
            ValueError: If the adapter has no LoRA Dropout, or the rows of a batch would be dealt
                out to several devices, which breaks instances apart.
        """
        # Asking for the bank also gives an adapter made from a LoraDropoutConfig its one bank.
        model = self.accelerator.unwrap_model(self.model)
        n_masks = mask_bank(model, self.lora_dropout_adapter).n_masks
        if self.args.n_gpu > 1:
            raise ValueError(
                f"`Trainer` would split each batch over {self.args.n_gpu} devices of one process "
                "(DataParallel): start one process per device, or let it see one device only."
            )
        if n_masks == 1:
            return super().get_train_dataloader()
        dispatch = self.args.accelerator_config.dispatch_batches
        if dispatch is None:
            dispatch = isinstance(self.train_dataset, IterableDataset)
        if dispatch and self.args.world_size > 1:
            raise ValueError(
                "`dispatch_batches` deals the rows of a tiled batch out to processes: set "
                "`accelerator_config={'dispatch_batches': False}` or use n_masks=1."
            )
        collator = self.data_collator
        self.data_collator = TilingCollator(collator, n_masks)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator
