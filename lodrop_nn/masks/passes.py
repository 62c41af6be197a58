"""Masks of training passes: one draw per pass, for all layers, outside of them."""

from collections.abc import Sequence

import torch

from lodrop_nn.masks.draw import Draw, LayerMasks, MaskedLayer
from lodrop_nn.masks.hooks import in_backward
from lodrop_nn.masks.laws import iid_masks, seeded_generator
from lodrop_nn.masks.settings import MaskSettings

# First element of the key of a random stream: members of an ensemble never share a stream with
# training, even under the same seed.
PASS_STREAM, ALONE_STREAM, MEMBER_STREAM = range(3)


class TrainingPasses:
    """Follows the forward passes of a model in training and serves their masks.

    Drawing at the start of a pass rather than in the layers makes recomputation under gradient
    checkpointing right whether or not it restores the random state, and gives compiled layers
    masks that are plain inputs.

    Args:
        settings: The law of the masks.
        layers: The layers served; the list may still grow.

    Attributes:
        n_drawn: Passes drawn so far, all that seeded masks depend on beside the seed.
        draw: Masks of the latest pass.
        alone: Masks of layers that were called outside any pass since then, by slot.
    """

    def __init__(self, settings: MaskSettings, layers: Sequence[MaskedLayer]) -> None:
        self._settings = settings
        self._layers = layers
        self.n_drawn = 0
        self.draw: Draw | None = None
        self.alone: dict[int, Draw] = {}
        self._n_alone = 0
        self._depth: int | None = None  # of the outermost root of the pass under way
        self._is_drawn = False  # whether that root's call drew masks

    def begin(self, depth: int) -> bool:
        """A root is entered; whether that begins a pass."""
        # A deeper root is part of the pass under way. Depths are compared, not counted: a pass
        # that an interrupt left open is simply begun again.
        if self._depth is not None and depth > self._depth:
            return False
        self._depth, self._is_drawn = depth, False
        return True

    def end(self, depth: int) -> None:
        """A root is left, be it by an error."""
        if depth == self._depth:
            self._depth, self._is_drawn = None, False

    def draw_pass(self, n_rows: int | None) -> None:
        """Draw the masks of the pass that has begun.

        Args:
            n_rows: Rows of the batch, None if not known.

        Raises:
            ValueError: If each example needs a mask and the number of examples is not known.
        """
        if in_backward():
            return  # recomputation must see the masks that the pass saw
        devices = () if self.draw is None else self.draw.devices
        width = sum(layer.width for layer in self._layers)
        self.draw = self._iid(self._n_masks(n_rows), width, PASS_STREAM, self.n_drawn)
        self.alone = {}
        self.n_drawn += 1
        self._is_drawn = True
        for device in devices:  # ahead of time: compiled layers find their masks in place
            self.draw.to(device)

    def masks(self, slot: int, n_rows: int, device: torch.device) -> LayerMasks:
        """Masks of one layer in the pass under way.

        Args:
            slot: Index of the layer.
            n_rows: Leading dimension of the layer's input.
            device: Where the masks are needed.

        Returns:
            Column masks (of A) and row masks (of B).

        Raises:
            RuntimeError: If a recomputed layer finds no masks of the pass that it belongs to.
        """
        layer = self._layers[slot]
        if not self._is_drawn and not in_backward():
            # Called past all roots (a bare block, a sub-module put in training mode by hand): the
            # layer draws for itself, and keeps the draw for a recomputation.
            self.alone[slot] = self._iid(
                self._n_masks(n_rows), layer.width, ALONE_STREAM, slot, self._n_alone
            )
            self._n_alone += 1
        if slot in self.alone:
            return layer.halves(self.alone[slot].to(device))
        if self.draw is None:
            raise RuntimeError(
                f"layer {layer.name!r} is recomputed, but the masks of its forward pass are gone: "
                "run the backward pass inside the same context, or give "
                "`bank.checkpoint_contexts` to the checkpoint as its `context_fn`."
            )
        return layer.split(self.draw.to(device))

    def _n_masks(self, n_rows: int | None) -> int:
        if self._settings.mask_scope == "batch":
            return self._settings.n_masks
        if n_rows is None:
            raise ValueError(
                "`mask_scope='example'` needs a tensor among the model's inputs whose leading "
                "dimension is the batch, got none."
            )
        return n_rows

    def _iid(self, n_masks: int, n_coordinates: int, *key: int) -> Draw:
        seed = self._settings.seed
        generator = None if seed is None else seeded_generator(seed, *key)
        return Draw(iid_masks(n_masks, n_coordinates, self._settings.dropout_rate, generator))
