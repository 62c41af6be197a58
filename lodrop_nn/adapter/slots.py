r"""LoRA Dropout where PEFT's layers do not consult a variant.

The layers of several backends compute ``lora_B(lora_A(lora_dropout(x)))`` and nothing else can be
told to them. Masking the columns of A is masking its input, and masking the rows of B its output,
so a module in the slot of ``lora_dropout`` and a hook on ``lora_B`` have the same effect as masked
factors. They mask activations, which costs memory: the way of
:mod:`lodrop_nn.adapter.variant` is taken wherever it is open.

Merging, where such a layer can merge, adds the stored update, so masks must be rescaled.
"""

from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lodrop_nn.adapter.kind import Installed
from lodrop_nn.adapter.variant import LinearKind
from lodrop_nn.masks.activations import mask_activations

# AWQ, AQLM, EETQ and TransformerEngine.
CLASSES = ("AwqLoraLinear", "AqlmLoraLinear", "EetqLoraLinear", "TeLinear")


class SlotMask(nn.Module):
    """Masks the input of lora_A and, by a hook, the output of lora_B.

    Args:
        lora_dropout: PEFT's own dropout, which the slot held before; it still acts first.
        lora_B: The module whose output is masked.
        source: Where the masks come from.
    """

    def __init__(self, lora_dropout: nn.Module, lora_B: nn.Module, source: Installed) -> None:
        super().__init__()
        self.train(lora_dropout.training)
        self.lora_dropout = lora_dropout
        self.source = source
        self.row_factors: Tensor | None = None  # of the pass under way, for the hook
        self.hook = lora_B.register_forward_hook(_MaskOutput(self))

    def forward(self, x: Tensor) -> Tensor:
        """The input of lora_A, masked if masks are due."""
        x = self.lora_dropout(x)
        masks = self.source.masks(
            x.shape,
            training=self.training,
            device=x.device,
            dtype=x.dtype,
        )
        if masks is None:
            self.row_factors = None
            return x
        column_factors, self.row_factors = masks
        return mask_activations(x, column_factors)


class _MaskOutput:
    """Hook on lora_B; an object, so that a copied model has the hook of its own mask."""

    def __init__(self, mask: SlotMask) -> None:
        self.mask = mask

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        row_factors, self.mask.row_factors = self.mask.row_factors, None
        return output if row_factors is None else mask_activations(output, row_factors)


class SlotKind(LinearKind):
    """LoRA on linear layers of backends whose forward pass is fixed."""

    def matches(self, layer: LoraLayer) -> bool:
        """Whether the layer is of this kind."""
        kind = type(layer)
        return kind.__module__.startswith("peft.tuners.lora.") and kind.__name__ in CLASSES

    def install(self, layer: LoraLayer, adapter_name: str, masks: Installed) -> None:
        """Put a mask into the slot of PEFT's dropout."""
        layer.lora_dropout[adapter_name] = SlotMask(
            layer.lora_dropout[adapter_name], layer.lora_B[adapter_name], masks
        )

    def uninstall(self, layer: LoraLayer, adapter_name: str) -> None:
        """Give the slot back; without effect if there is no mask in it."""
        mask = layer.lora_dropout[adapter_name]
        if isinstance(mask, SlotMask):
            mask.hook.remove()
            layer.lora_dropout[adapter_name] = mask.lora_dropout

    def installed(self, layer: LoraLayer, adapter_name: str) -> Installed | None:
        """Where the layer takes its masks from, or None for an ordinary adapter."""
        mask = layer.lora_dropout[adapter_name]
        return mask.source if isinstance(mask, SlotMask) else None
