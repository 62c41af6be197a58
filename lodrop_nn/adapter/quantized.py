"""LoRA Dropout over quantized weights, where PEFT's layers consult the variant.

The layers compute their base result themselves and convert dtypes around the variant, which
therefore is the one of full-precision layers. Classes are recognized by name: their modules need
a backend that is not installed everywhere, and is not imported here.
"""

from peft.tuners.lora import LoraLayer

from lodrop_nn.adapter.variant import LinearKind

# bitsandbytes, GPTQ, HQQ, torchao and Intel Neural Compressor.
CLASSES = (
    "Linear8bitLt",
    "Linear4bit",
    "GPTQLoraLinear",
    "HqqLoraLinear",
    "TorchaoLoraLinear",
    "IncLoraLinear",
)


class QuantizedKind(LinearKind):
    """LoRA on quantized linear layers that consult the variant."""

    def matches(self, layer: LoraLayer) -> bool:
        """Whether the layer is of this kind."""
        kind = type(layer)
        return kind.__module__.startswith("peft.tuners.lora.") and kind.__name__ in CLASSES
