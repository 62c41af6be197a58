"""The layers of an adapter and their kinds."""

from peft.tuners.lora import Embedding, LoraLayer
from torch import nn

from lodrop_nn.adapter import slots
from lodrop_nn.adapter.adalora import AdaLoraKind
from lodrop_nn.adapter.conv import ConvKind
from lodrop_nn.adapter.embedding import EmbeddingKind
from lodrop_nn.adapter.experts import ExpertsKind
from lodrop_nn.adapter.kind import Installed, LayerKind
from lodrop_nn.adapter.quantized import QuantizedKind
from lodrop_nn.adapter.slots import SlotKind
from lodrop_nn.adapter.variant import LinearKind
from lodrop_nn.masks import MaskBank, MaskSettings

# Asked in this order.
KINDS: tuple[LayerKind, ...] = (
    LinearKind(),
    ConvKind(),
    EmbeddingKind(),
    QuantizedKind(),
    SlotKind(),
    AdaLoraKind(),
    ExpertsKind(),
)

# Layers that add the stored update where others ask for the mean update: when they merge
# (torchao), or wherever the update is not masked.
_STORED_IS_MEAN = ("TorchaoLoraLinear", *slots.CLASSES)

_REASONS = {
    "MultiheadAttention": "it computes attention from weights that PEFT merges in each pass",
    "LoraParallelLinear": "Megatron's tensor parallelism spreads its coordinates over devices",
}


def lora_layers(model: nn.Module, adapter_name: str) -> dict[str, LoraLayer]:
    """Layers that carry an adapter, by their path in the model; shared layers once."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        and (adapter_name in module.lora_A or adapter_name in module.lora_embedding_A)
    }


def kind_of(layer: LoraLayer, name: str) -> LayerKind:
    """The kind of a layer.

    Args:
        layer: A layer that PEFT made.
        name: Its path in the model, for the error.

    Raises:
        NotImplementedError: If masks cannot be put on a layer of its class.
    """
    for kind in KINDS:
        if kind.matches(layer):
            return kind
    reason = _REASONS.get(type(layer).__name__)
    raise NotImplementedError(
        f"layer {name!r} is a {type(layer).__module__}.{type(layer).__qualname__}, which LoRA "
        f"Dropout cannot mask{f' ({reason})' if reason else ''}: leave its module out of "
        "`target_modules`."
    )


def why_unmasked(layer: LoraLayer, settings: MaskSettings) -> str | None:
    """Why an adapter with these settings leaves a layer plain LoRA, or None if it masks it."""
    if isinstance(layer, Embedding) and not settings.mask_embeddings:
        return "embedding, and mask_embeddings is False"
    return None


def refuse_only_embeddings(adapter_name: str) -> None:
    """Refuse an adapter that would train without any mask.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"adapter {adapter_name!r} adapts embeddings only, which LoRA Dropout masks with "
        "`mask_embeddings=True` alone: whole vocabulary entries are then dropped."
    )


def check_layer(layer: LoraLayer, name: str, adapter_name: str, settings: MaskSettings) -> None:
    """Refuse a layer that masks cannot be put on.

    Raises:
        ValueError: If the adapter already has LoRA Dropout, or something is in its way.
        NotImplementedError: If the layer is of a kind that is not supported.
    """
    kind = kind_of(layer, name)
    if kind.installed(layer, adapter_name) is not None:
        raise ValueError(
            f"adapter {adapter_name!r} already has LoRA Dropout: call `detach_lora_dropout` first."
        )
    kind.check(layer, name, adapter_name)
    if not settings.rescale and type(layer).__name__ in _STORED_IS_MEAN:
        raise ValueError(
            f"`rescale` must be True for layer {name!r}, a {type(layer).__name__}, which adds the "
            "stored update where masks are off: it must be the mean update. Got False."
        )


def install(layer: LoraLayer, name: str, adapter_name: str, bank: MaskBank) -> None:
    """Reserve the masks of a layer in a bank and let it take them from there."""
    kind = kind_of(layer, name)
    in_features, out_features = kind.mask_sizes(layer, adapter_name)
    slot = bank.register(name, in_features=in_features, out_features=out_features)
    kind.install(layer, adapter_name, Installed(bank, slot))


def uninstall(layer: LoraLayer, name: str, adapter_name: str) -> None:
    """Make a layer an ordinary LoRA layer again."""
    kind_of(layer, name).uninstall(layer, adapter_name)


def installed(layer: LoraLayer, name: str, adapter_name: str) -> Installed | None:
    """Where a layer takes its masks from, or None for an ordinary adapter."""
    return kind_of(layer, name).installed(layer, adapter_name)
