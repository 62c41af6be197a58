"""One draw of the masks of all layers."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

LayerMasks = tuple[Bool[Tensor, "n_masks in_features"], Bool[Tensor, "n_masks out_features"]]


@dataclass(frozen=True, kw_only=True)
class MaskedLayer:
    """Where the masks of one layer lie among the columns of a draw.

    Attributes:
        name: Path of the layer in its model.
        in_features: Columns of its lora_A.
        out_features: Rows of its lora_B.
        offset: First column of the draw that belongs to it: column masks first, then row masks.
    """

    name: str
    in_features: int
    out_features: int
    offset: int

    @property
    def width(self) -> int:
        """Coordinates of the layer."""
        return self.in_features + self.out_features

    def split(self, masks: Bool[Tensor, "n_masks n_coordinates"]) -> LayerMasks:
        """Column masks (of A) and row masks (of B) of this layer in a draw, as views."""
        return self.halves(masks[:, self.offset : self.offset + self.width])

    def halves(self, masks: Bool[Tensor, "n_masks width"]) -> LayerMasks:
        """Column masks and row masks of a draw that was made for this layer alone, as views."""
        return masks[:, : self.in_features], masks[:, self.in_features :]


class Draw:
    """Masks, one per row, on the CPU and on each device that asked for them.

    Args:
        masks: True where a coordinate is kept, on the CPU. Never changed in place: the graphs of
            earlier passes hold on to their own draw.
    """

    def __init__(self, masks: Bool[Tensor, "n_masks n_coordinates"]) -> None:
        self.masks = masks
        self._copies = {masks.device: masks}

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Devices that hold a copy."""
        return tuple(self._copies)

    def to(self, device: torch.device) -> Bool[Tensor, "n_masks n_coordinates"]:
        """The masks on a device; copied there once."""
        if device not in self._copies:
            self._copies[device] = self.masks.to(device)
        return self._copies[device]
