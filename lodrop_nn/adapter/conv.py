"""LoRA Dropout on convolutions: masks of input and output channels.

Like :mod:`lodrop_nn.adapter.variant`, this module places variants on PEFT's layers.
"""

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Conv1d, Conv2d, Conv3d
from torch import Tensor

from lodrop_nn.adapter.kind import Factors
from lodrop_nn.adapter.variant import LinearKind, LoraDropoutVariant
from lodrop_nn.masks.convolution import masked_convolution
from lodrop_nn.masks.draw import LayerFactors


class ConvDropoutVariant(LoraDropoutVariant):
    """Masks the channels of one LoRA convolution."""

    def _masked(
        self, module: LoraLayer, adapter_name: str, x: Tensor, masks: LayerFactors
    ) -> Tensor:
        lora_A, lora_B = module.lora_A[adapter_name], module.lora_B[adapter_name]
        return masked_convolution(x, lora_A, lora_B, *masks, module.scaling[adapter_name])


class ConvKind(LinearKind):
    """LoRA on Conv1d, Conv2d and Conv3d, with or without groups."""

    variant_class = ConvDropoutVariant

    def matches(self, layer: LoraLayer) -> bool:
        """Whether the layer is of this kind."""
        return type(layer) in (Conv1d, Conv2d, Conv3d)

    def mask_sizes(self, layer: LoraLayer, adapter_name: str) -> tuple[int, int]:
        """Input channels of A and output channels of B."""
        lora_A, lora_B = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        return lora_A.shape[1], lora_B.shape[0]

    def factors(self, layer: LoraLayer, adapter_name: str) -> Factors:
        """A as a matrix (r, in_channels * positions of the kernel), and B."""
        lora_B = layer.lora_B[adapter_name]
        # A group of outputs sees a group of the r hidden channels; PEFT never groups A.
        per_group = lora_B.weight.flatten(1).chunk(lora_B.groups)
        return Factors(
            layer.lora_A[adapter_name].weight.flatten(1),
            torch.block_diag(*per_group),
            float(layer.scaling[adapter_name]),
        )
