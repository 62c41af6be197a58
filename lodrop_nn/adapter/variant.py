"""LoRA Dropout as a variant of PEFT's LoRA layer.

This is the only module that touches names which PEFT calls private: ``LoraVariant``, the
``lora_variant`` dictionary of a layer, and the module factories of a config. It is tested with the
oldest and the newest release of the supported range.

PEFT consults ``layer.lora_variant[adapter]`` in forward, merge and unmerge. Placing an *instance*
there adds masks to an existing layer, trained or not, and changes no parameter, no state-dict key
and no ``peft_type``.
"""

from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from peft.tuners.lora.model import LoraModel
from torch import Tensor, nn

from lodrop_nn.masks import MaskBank, masked_update


class LoraDropoutVariant(LoraVariant):
    """Masks the factors of one LoRA layer.

    Args:
        bank: Where the masks come from.
        slot: The layer's place in the bank.
    """

    def __init__(self, bank: MaskBank, slot: int) -> None:
        self.bank = bank
        self.slot = slot

    def supports_lora_conversion(self) -> bool:
        """Whether the stored update is the mean update, which conversions assume."""
        return self.bank.rescale

    def init(self, module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """PEFT re-initializes the adapter of this layer; its masks stay as they are."""

    def forward(
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """The layer's output: the base output plus the update, masked if masks are due."""
        lora_A, lora_B = module.lora_A[active_adapter], module.lora_B[active_adapter]
        scaling = module.scaling[active_adapter]
        x = module.lora_dropout[active_adapter](x)
        masks = self.bank.masks(
            self.slot, training=module.training, n_rows=x.shape[0], device=x.device
        )
        if masks is None:
            return result + lora_B(lora_A(x)) * (scaling * self.bank.mean_factor)
        scale = scaling * self.bank.settings.active_factor
        return result + masked_update(x, lora_A.weight, lora_B.weight, *masks, scale)

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The base weight with the mean update added, as a new tensor."""
        return orig_weight + self._mean_update(module, active_adapter).to(orig_weight.dtype)

    def merge_unsafe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the mean update to the base weight in place."""
        orig_weight.data += self._mean_update(module, active_adapter).to(orig_weight.dtype)

    def unmerge(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The base weight with the mean update taken away again."""
        return orig_weight - self._mean_update(module, active_adapter).to(orig_weight.dtype)

    def _mean_update(self, module: LoraLayer, active_adapter: str) -> Tensor:
        update: Tensor = module.get_delta_weight(active_adapter)
        return update * self.bank.mean_factor


def lora_layers(model: nn.Module, adapter_name: str) -> dict[str, LoraLayer]:
    """Layers that carry an adapter, by their path in the model; shared layers once."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        and (adapter_name in module.lora_A or adapter_name in module.lora_embedding_A)
    }


def check_supported(layer: LoraLayer, name: str, adapter_name: str) -> None:
    """Refuse a layer whose forward pass does not consult the variant, or not as assumed here.

    Raises:
        NotImplementedError: If the layer is of a kind that is not supported yet.
        ValueError: If the adapter is a LoRA variant already, or trains a bias.
    """
    # `type`, not `isinstance`: quantized and expert layers derive from these and compute otherwise.
    if type(layer) is not Linear:
        raise NotImplementedError(
            f"not supported yet: layer {name!r} is a {type(layer).__module__}."
            f"{type(layer).__qualname__}; LoRA Dropout masks PEFT's LoRA on Linear and Conv1D."
        )
    variant = layer.lora_variant.get(adapter_name)
    if isinstance(variant, LoraDropoutVariant):
        raise ValueError(
            f"adapter {adapter_name!r} already has LoRA Dropout: call `detach_lora_dropout` first."
        )
    if variant is not None:
        raise ValueError(
            f"adapter {adapter_name!r} is the LoRA variant {type(variant).__name__} in layer "
            f"{name!r}; LoRA Dropout cannot be combined with another variant."
        )
    if layer.lora_B[adapter_name].bias is not None:
        raise ValueError(
            f"adapter {adapter_name!r} trains a bias of lora_B in layer {name!r}; LoRA Dropout "
            "masks weights only: use `lora_bias=False`."
        )


def factors(layer: LoraLayer, adapter_name: str) -> tuple[Tensor, Tensor, float]:
    """The factors A (r x in), B (out x r) and PEFT's scaling of one layer."""
    return (
        layer.lora_A[adapter_name].weight,
        layer.lora_B[adapter_name].weight,
        float(layer.scaling[adapter_name]),
    )


def install(layer: LoraLayer, name: str, adapter_name: str, bank: MaskBank) -> None:
    """Let a layer take its masks from a bank."""
    lora_A, lora_B, _ = factors(layer, adapter_name)
    slot = bank.register(name, in_features=lora_A.shape[1], out_features=lora_B.shape[0])
    layer.lora_variant[adapter_name] = LoraDropoutVariant(bank, slot)


def installed_bank(layer: LoraLayer, adapter_name: str) -> MaskBank | None:
    """The bank that a layer takes its masks from, or None."""
    variant = getattr(layer, "lora_variant", {}).get(adapter_name)
    return variant.bank if isinstance(variant, LoraDropoutVariant) else None


def uninstall(layer: LoraLayer, adapter_name: str) -> None:
    """Make a layer an ordinary LoRA layer again."""
    if installed_bank(layer, adapter_name) is not None:
        del layer.lora_variant[adapter_name]


def lora_B_key(name: str, adapter_name: str) -> str:
    """Key of a layer's B in the state dictionary of the model."""
    return f"{name}.lora_B.{adapter_name}.weight"


class _LayerFactory:
    """Lets PEFT make its own layer for a module, then installs masks in it."""

    def __init__(self, config: LoraConfig, bank: MaskBank) -> None:
        self.config = config
        self.bank = bank

    def __call__(
        self, target: nn.Module, adapter_name: str, *, config: LoraConfig, **kwargs: Any
    ) -> nn.Module:
        # PEFT asks the factories first; without them it dispatches on the kind of the module.
        config._custom_modules = None
        try:
            layer = LoraModel._create_new_module(config, adapter_name, target, **kwargs)
        finally:
            make_layers_with(config, self.bank)
        name = kwargs.get("target_name", "")
        check_supported(layer, name, adapter_name)
        install(layer, name, adapter_name, self.bank)
        return layer


def make_layers_with(config: LoraConfig, bank: MaskBank) -> None:
    """Let every layer that PEFT makes from a config take its masks from a bank."""
    config._custom_modules = {nn.Module: _LayerFactory(config, bank)}


def pass_roots(model: PeftModel) -> list[nn.Module]:
    """Modules through which a forward pass is entered, outermost first.

    PEFT up to 0.19 calls ``forward`` of the wrapped model, which skips its hooks; ``generate``
    calls the wrapped model itself; some trainers call the backbone beneath the task head.
    """
    base = model.get_base_model()
    backbone = getattr(base, getattr(base, "base_model_prefix", ""), None)
    candidates = (model, model.base_model, base, backbone)
    roots: list[nn.Module] = []
    for module in candidates:
        if isinstance(module, nn.Module) and all(module is not root for root in roots):
            roots.append(module)
    return roots
