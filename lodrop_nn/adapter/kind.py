"""What LoRA Dropout must know of a kind of layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lodrop_nn.masks import MaskBank
from lodrop_nn.masks.draw import LayerFactors


class Factors(NamedTuple):
    r"""What a layer's update is made of: :math:`\Delta W = s B A`.

    Attributes:
        lora_A: A, (r, in_features); a leading dimension, if any, numbers parts (experts).
        lora_B: B, (out_features, r), with the same leading dimension.
        scaling: s.
    """

    lora_A: Tensor
    lora_B: Tensor
    scaling: float

    @property
    def n_parts(self) -> int:
        """Number of parts that have masks of their own, >= 1."""
        return self.lora_A.shape[0] if self.lora_A.dim() == 3 else 1

    @property
    def delta_weight(self) -> Tensor:
        """The stored update, (out_features, in_features), differentiable in the factors."""
        return self.lora_B @ self.lora_A * self.scaling


@dataclass(frozen=True, eq=False)
class Installed:
    """Where a layer takes its masks from; the layer alone keeps it.

    Attributes:
        bank: The masks of the adapter.
        slot: The layer's place in it.
    """

    bank: MaskBank
    slot: int

    def __post_init__(self) -> None:
        self.bank.add_taker(self)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.bank.add_taker(self)

    @property
    def mean_factor(self) -> float:
        """Mean of the masked update over the stored update, in (0, 1]."""
        return self.bank.layer(self.slot).mean_factor

    def masks(
        self,
        shape: Sequence[int] | None,
        *,
        training: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> LayerFactors | None:
        """Masks that the layer must apply now, as factors, or None for the mean update.

        Args:
            shape: Shape of the layer's input, the rows first; None if the layer computes for all
                rows at once.
            training: Whether the layer is in training mode.
            device: Where the factors are needed.
            dtype: Of the layer's weights; factors are in float32 at least.

        Raises:
            InstanceLayoutError: If the layer cannot tell which rows belong to which mask.
        """
        n_rows = 1 if shape is None else shape[0]
        masks = self.bank.masks(
            self.slot, training=training, n_rows=n_rows, device=device, dtype=dtype
        )
        if masks is not None:
            self.bank.check_layout(self.slot, masks[0].shape[0], shape)
        return masks


class LayerKind(Protocol):
    """How masks get into the layers of one kind; stateless.

    ``name`` is the layer's path in the model, ``adapter_name`` that of an adapter that it carries.
    """

    def matches(self, layer: LoraLayer) -> bool:
        """Whether the layer is of this kind."""
        ...

    def check(self, layer: LoraLayer, name: str, adapter_name: str) -> None:
        """Refuse an adapter that masks cannot be put on, before anything is changed.

        Raises:
            ValueError: Saying what is in the way.
            NotImplementedError: If the layer's options are not supported yet.
        """
        ...

    def mask_sizes(self, layer: LoraLayer, adapter_name: str) -> tuple[int, int]:
        """Coordinates that the column mask (of A) and the row mask (of B) cover."""
        ...

    def install(self, layer: LoraLayer, adapter_name: str, masks: Installed) -> None:
        """Let the layer take its masks from there."""
        ...

    def uninstall(self, layer: LoraLayer, adapter_name: str) -> None:
        """Make the adapter ordinary LoRA again; without effect if it is."""
        ...

    def installed(self, layer: LoraLayer, adapter_name: str) -> Installed | None:
        """Where the layer takes its masks from, or None for an ordinary adapter."""
        ...

    def factors(self, layer: LoraLayer, adapter_name: str) -> Factors:
        """The factors of the layer's stored update."""
        ...

    def lora_B_key(self, name: str, adapter_name: str) -> str:
        """Key of the layer's B in the state dictionary of the model."""
        ...
