"""The masked layers of one adapter: the law of their masks, and seeded draws."""

import torch
from jaxtyping import Bool
from torch import Tensor

from lodrop_nn.config import MaskLaw, MaskScope
from lodrop_nn.masks.draw import Coordinates, LayerMasks, MaskedLayer
from lodrop_nn.masks.laws import draw_masks, iid_masks, seeded_generator
from lodrop_nn.masks.passes import JOINT_STREAM, MEMBER_STREAM
from lodrop_nn.masks.settings import MaskSettings, check_count, check_law, check_seed


class MaskedLayers:
    """Which layers an adapter masks, where their masks lie in a draw, and at which rates.

    Args:
        settings: The law of the masks.

    Attributes:
        settings: The law of the masks.

    Example:
        >>> masked = MaskedLayers(MaskSettings(0.5))
        >>> slot = masked.register("query", in_features=3, out_features=2)
        >>> columns, rows = masked.split(masked.draw(4, seed=0), slot)
        >>> columns.shape, rows.shape
        (torch.Size([4, 3]), torch.Size([4, 2]))
    """

    def __init__(self, settings: MaskSettings) -> None:
        self.settings = settings
        self._layers: list[MaskedLayer] = []
        self._is_zero = True  # no coordinate is ever dropped

    @property
    def dropout_rate(self) -> float:
        """Probability p in [0, 1) that a coordinate is dropped, where all have the same.

        Raises:
            ValueError: If layers, or inputs and outputs, have different rates.
        """
        rates = {rate for x in self._layers for rate in (x.input_rate, x.output_rate)}
        rates = rates or set(self.settings.rates_of(""))
        if len(rates) > 1:
            raise ValueError(
                "`dropout_rate` is asked for, but the adapter has several rates, from "
                f"{min(rates)} to {max(rates)}: read them from `bank.layers`."
            )
        return rates.pop()

    @property
    def n_masks(self) -> int:
        """N, masks per training pass."""
        return self.settings.n_masks

    @property
    def mask_scope(self) -> MaskScope:
        """Whether a training mask serves the whole batch or one example."""
        return self.settings.mask_scope

    @property
    def rescale(self) -> bool:
        """Whether kept coordinates are divided by 1 - p."""
        return self.settings.rescale

    @property
    def seed(self) -> int | None:
        """Seed of the training masks."""
        return self.settings.seed

    @property
    def layers(self) -> tuple[MaskedLayer, ...]:
        """The layers that the bank has masks for, in the order of their columns in a draw."""
        return tuple(self._layers)

    @property
    def n_coordinates(self) -> int:
        """Input and output coordinates of all layers together."""
        return sum(layer.width for layer in self._layers)

    def register(self, name: str, in_features: int, out_features: int) -> int:
        """Reserve the masks of a layer and return the slot under which it asks for them."""
        input_rate, output_rate = self.settings.rates_of(name)
        layer = MaskedLayer(
            name=name,
            in_features=in_features,
            out_features=out_features,
            offset=self.n_coordinates,
            input_rate=input_rate,
            output_rate=output_rate,
            rescale=self.rescale,
        )
        self._layers.append(layer)
        self._is_zero = self._is_zero and input_rate == output_rate == 0.0
        return len(self._layers) - 1

    def draw(
        self, n_masks: int, seed: int, mask_law: MaskLaw = "iid"
    ) -> Bool[Tensor, "n_masks n_coordinates"]:
        """Masks of the members of a seeded ensemble, as :meth:`fixed` holds them.

        Args:
            n_masks: Number of members, >= 1.
            seed: Seed >= 0.
            mask_law: How the members depend on each other, whatever the law of training masks;
                another law gives other members under the same seed.

        Returns:
            True where a coordinate is kept, on the CPU: neither the batch nor the device matters.
            With i.i.d. masks member i is a function of (seed, i) alone, so a larger ensemble
            extends a smaller one; under the other laws it also depends on the number of members.

        Raises:
            ValueError: If an argument is outside its range.
        """
        check_count("n_masks", n_masks)
        check_seed("seed", seed)
        check_law(mask_law)
        coordinates = Coordinates.of(self._layers)
        if mask_law != "iid":
            return draw_masks(mask_law, n_masks, coordinates, seeded_generator(seed, JOINT_STREAM))
        streams = (seeded_generator(seed, MEMBER_STREAM, member) for member in range(n_masks))
        return torch.cat([iid_masks(1, coordinates.rates, stream) for stream in streams])

    def layer(self, slot: int) -> MaskedLayer:
        """The layer of that slot; layers ask in each pass, and ``layers`` makes a new tuple."""
        return self._layers[slot]

    def split(self, masks: Bool[Tensor, "n_masks n_coordinates"], slot: int) -> LayerMasks:
        """Column masks (of A) and row masks (of B) of one layer in a draw."""
        return self._layers[slot].split(masks)
