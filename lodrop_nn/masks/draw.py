"""One draw of the masks of all layers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# What a layer multiplies the columns of its A and the rows of its B with: 0, or the kept factor.
LayerFactors = tuple[Float[Tensor, "n_masks in_features"], Float[Tensor, "n_masks out_features"]]
LayerMasks = tuple[Bool[Tensor, "n_masks in_features"], Bool[Tensor, "n_masks out_features"]]


def mean_factor(input_rate: float, output_rate: float, *, rescale: bool) -> float:
    """Mean of a masked update over the stored update: 1, or (1 - p_A)(1 - p_B) as in the paper."""
    return 1.0 if rescale else (1.0 - input_rate) * (1.0 - output_rate)


@dataclass(frozen=True, kw_only=True)
class MaskedLayer:
    """Where the masks of one layer lie among the columns of a draw, and their law.

    Attributes:
        name: Path of the layer in its model.
        in_features: Columns of its lora_A.
        out_features: Rows of its lora_B.
        offset: First column of the draw that belongs to it: column masks first, then row masks.
        input_rate: Probability in [0, 1) that a column of lora_A is dropped.
        output_rate: Probability in [0, 1) that a row of lora_B is dropped.
        rescale: Whether kept coordinates are divided by their probability.

    Example:
        >>> layer = MaskedLayer(
        ...     name="query", in_features=2, out_features=3, offset=0,
        ...     input_rate=0.5, output_rate=0.2, rescale=False)
        >>> layer.width, layer.mean_factor
        (5, 0.4)
    """

    name: str
    in_features: int
    out_features: int
    offset: int
    input_rate: float
    output_rate: float
    rescale: bool

    @property
    def width(self) -> int:
        """Coordinates of the layer."""
        return self.in_features + self.out_features

    @property
    def mean_factor(self) -> float:
        """Mean of the masked update over the stored update, in (0, 1]; 1 with rescaling."""
        return mean_factor(self.input_rate, self.output_rate, rescale=self.rescale)

    def split(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's share of a draw, as views: columns (of A) and rows (of B)."""
        return self.halves(masks[:, self.offset : self.offset + self.width])

    def halves(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Columns and rows of a draw that was made for this layer alone, as views."""
        return masks[:, : self.in_features], masks[:, self.in_features :]


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """The columns of a draw: input and output coordinates of some layers, side by side.

    Attributes:
        rates: Probability in [0, 1) that each is dropped.
        kept_factors: What a kept one is multiplied with: 1 / (1 - p), or 1 without rescaling.
        layers: Index of the layer that each belongs to.
        is_row: Whether it is a row of lora_B rather than a column of lora_A.
    """

    rates: Float[Tensor, "n_coordinates"]
    kept_factors: Float[Tensor, "n_coordinates"]
    layers: Int[Tensor, "n_coordinates"]
    is_row: Bool[Tensor, "n_coordinates"]

    @classmethod
    def of(cls, layers: Sequence[MaskedLayer], rate_multiplier: float = 1.0) -> "Coordinates":
        """The coordinates of layers, in their order.

        Args:
            layers: The layers.
            rate_multiplier: Number in [0, 1] that all rates are multiplied with.
        """
        # Outside inference mode and with the device spelled out: neither a surrounding
        # `torch.inference_mode()` nor a default device reaches tensors that training will read.
        with torch.inference_mode(False), torch.device("cpu"):
            widths = torch.tensor(
                [[x.in_features, x.out_features] for x in layers], dtype=torch.long
            )
            pairs = torch.tensor(
                [[x.input_rate, x.output_rate] for x in layers], dtype=torch.float64
            )
            widths, pairs = widths.reshape(-1), pairs.reshape(-1) * rate_multiplier
            rescale = torch.tensor([x.rescale for x in layers], dtype=torch.bool)
            factors = torch.where(rescale.repeat_interleave(2), 1.0 / (1.0 - pairs), 1.0)
            index = torch.arange(widths.numel()).repeat_interleave(widths)
            return cls(
                rates=pairs[index],
                kept_factors=factors[index],
                layers=index // 2,
                is_row=index % 2 == 1,
            )

    def __len__(self) -> int:
        """Number of coordinates."""
        return len(self.rates)


Place = tuple[torch.device, torch.dtype]
_CPU: Place = (torch.device("cpu"), torch.float32)


class Draw:
    """Masks, one per row, and the factors that follow from them wherever layers ask for them.

    Args:
        masks: True where a coordinate is kept, on the CPU. Never changed in place: the graphs of
            earlier passes hold on to their own draw.
        kept_factors: What a kept coordinate is multiplied with.
        places: Devices and dtypes at which factors are made now, not when a layer asks: compiled
            layers then find them in place.
    """

    def __init__(
        self,
        masks: Bool[Tensor, "n_masks n_coordinates"],
        kept_factors: Float[Tensor, "n_coordinates"],
        places: Iterable[Place] = (_CPU,),
    ) -> None:
        self.masks = masks
        self.kept_factors = kept_factors
        with torch.inference_mode(False):
            self._factors = {place: self._factors_at(place) for place in places}

    @property
    def places(self) -> tuple[Place, ...]:
        """Devices and dtypes at which the factors are kept."""
        return tuple(self._factors)

    def rows(self, start: int, stop: int) -> "Draw":
        """The masks ``start`` to ``stop - 1`` alone."""
        return Draw(self.masks[start:stop], self.kept_factors, self.places)

    def to(
        self, device: torch.device, dtype: torch.dtype
    ) -> Float[Tensor, "n_masks n_coordinates"]:
        """The factors, 0 where dropped; kept for the next layer, masks travel as single bytes."""
        place = (device, dtype)
        if place not in self._factors:
            with torch.inference_mode(False):  # a later pass may have to train with them
                self._factors[place] = self._factors_at(place)
        return self._factors[place]

    def _factors_at(self, place: Place) -> Tensor:
        device, dtype = place
        return self.masks.to(device) * self.kept_factors.to(device, dtype)
