"""LoRA Dropout as a variant of PEFT's LoRA layer.

This module touches names which PEFT calls private: ``LoraVariant``, the ``lora_variant`` dictionary
of a layer, and the module factories of a config; the modules of other kinds of layers build on it.
It is tested with the oldest and the newest release of the supported range.

PEFT consults ``layer.lora_variant[adapter]`` in forward, merge and unmerge. Placing an *instance*
there adds masks to an existing layer, trained or not, and changes no parameter, no state-dict key
and no ``peft_type``.
"""

from collections.abc import Callable
from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from peft.tuners.lora.model import LoraModel
from torch import Tensor, nn

from lodrop_nn.adapter.kind import Factors, Installed
from lodrop_nn.masks import masked_update
from lodrop_nn.masks.draw import LayerFactors

# Called with a layer, its path in the model and the name of the adapter.
PutMasksOn = Callable[[LoraLayer, str, str], None]


class LoraDropoutVariant(LoraVariant):
    """Masks the factors of one LoRA layer.

    Args:
        source: Where the masks come from.
    """

    def __init__(self, source: Installed) -> None:
        self.source = source

    def supports_lora_conversion(self) -> bool:
        """Whether the stored update is the mean update, which conversions assume."""
        return self.source.bank.rescale

    def init(self, module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """PEFT makes a new adapter of this name, which begins without masks."""
        # PEFT up to 0.19 forgets to delete the variant together with its adapter.
        del module.lora_variant[adapter_name]

    def forward(
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """The layer's output: the base output plus the update, masked if masks are due."""
        x = self._prepared(module, active_adapter, x)
        masks = self.source.masks(
            x.shape,
            training=module.training,
            device=x.device,
            dtype=self._weight(module, active_adapter).dtype,
        )
        if masks is None:
            return result + self._stored(module, active_adapter, x) * self.source.mean_factor
        return result + self._masked(module, active_adapter, x, masks)

    def _prepared(self, module: LoraLayer, adapter_name: str, x: Tensor) -> Tensor:
        """The input of the update."""
        prepared: Tensor = module.lora_dropout[adapter_name](x)
        return prepared

    def _weight(self, module: LoraLayer, adapter_name: str) -> Tensor:
        """A, for its dtype."""
        weight: Tensor = module.lora_A[adapter_name].weight
        return weight

    def _stored(self, module: LoraLayer, adapter_name: str, x: Tensor) -> Tensor:
        """Output of the stored update."""
        update: Tensor = module.lora_B[adapter_name](module.lora_A[adapter_name](x))
        return update * module.scaling[adapter_name]

    def _masked(
        self, module: LoraLayer, adapter_name: str, x: Tensor, masks: LayerFactors
    ) -> Tensor:
        """Output of the masked update."""
        lora_A, lora_B = module.lora_A[adapter_name].weight, module.lora_B[adapter_name].weight
        return masked_update(x, lora_A, lora_B, *masks, module.scaling[adapter_name])

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
        return update * self.source.mean_factor


def refuse_variants(layer: LoraLayer, name: str, adapter_name: str) -> None:
    """Refuse an adapter that is a LoRA variant in this layer.

    Raises:
        ValueError: If it is.
    """
    variant = layer.lora_variant.get(adapter_name)
    if variant is not None:
        raise ValueError(
            f"adapter {adapter_name!r} is the LoRA variant {type(variant).__name__} in layer "
            f"{name!r}; LoRA Dropout cannot be combined with another variant."
        )


class LinearKind:
    """LoRA on Linear and GPT-2's Conv1D, and what the kinds with variants of their own share."""

    variant_class: type[LoraDropoutVariant] = LoraDropoutVariant

    def matches(self, layer: LoraLayer) -> bool:
        """Whether the layer is of this kind."""
        # `type`, not `isinstance`: expert layers derive from it and compute otherwise.
        return type(layer) is Linear

    def check(self, layer: LoraLayer, name: str, adapter_name: str) -> None:
        """Refuse variants and trained biases.

        Raises:
            ValueError: If the adapter is a LoRA variant already, or trains a bias.
        """
        refuse_variants(layer, name, adapter_name)
        if layer.lora_B[adapter_name].bias is not None:
            raise ValueError(
                f"adapter {adapter_name!r} trains a bias of lora_B in layer {name!r}; LoRA Dropout "
                "masks weights only: use `lora_bias=False`."
            )

    def mask_sizes(self, layer: LoraLayer, adapter_name: str) -> tuple[int, int]:
        """Columns of A and rows of B."""
        lora_A, lora_B, _ = self.factors(layer, adapter_name)
        return lora_A.shape[1], lora_B.shape[0]

    def install(self, layer: LoraLayer, adapter_name: str, masks: Installed) -> None:
        """Let the layer take its masks from there."""
        layer.lora_variant[adapter_name] = self.variant_class(masks)

    def uninstall(self, layer: LoraLayer, adapter_name: str) -> None:
        """Make the adapter ordinary LoRA again."""
        if self.installed(layer, adapter_name) is not None:
            del layer.lora_variant[adapter_name]

    def installed(self, layer: LoraLayer, adapter_name: str) -> Installed | None:
        """Where the layer takes its masks from, or None for an ordinary adapter."""
        variant = layer.lora_variant.get(adapter_name)
        return variant.source if isinstance(variant, LoraDropoutVariant) else None

    def factors(self, layer: LoraLayer, adapter_name: str) -> Factors:
        """The factors of the layer's stored update."""
        return Factors(
            layer.lora_A[adapter_name].weight,
            layer.lora_B[adapter_name].weight,
            float(layer.scaling[adapter_name]),
        )

    def lora_B_key(self, name: str, adapter_name: str) -> str:
        """Key of the layer's B in the state dictionary of the model."""
        return f"{name}.lora_B.{adapter_name}.weight"


class _LayerFactory:
    """Lets PEFT make its own layer for a module, then puts masks on it."""

    def __init__(self, config: LoraConfig, put_masks_on: PutMasksOn) -> None:
        self.config = config
        self.put_masks_on = put_masks_on

    def __call__(
        self, target: nn.Module, adapter_name: str, *, config: LoraConfig, **kwargs: Any
    ) -> nn.Module:
        # PEFT asks the factories first; without them it dispatches on the kind of the module.
        config._custom_modules = None
        config.lora_dropout = float(config.lora_dropout)
        try:
            layer = LoraModel._create_new_module(config, adapter_name, target, **kwargs)
        finally:
            make_layers_with(config, self.put_masks_on)
        self.put_masks_on(layer, kwargs.get("target_name", ""), adapter_name)
        return layer


class _NewLayersOnly(float):
    """``lora_dropout`` of a config whose factory must make the layers.

    PEFT grows a further adapter inside existing layers without asking the factory, and the adapter
    would train without masks. There it compares this number with 0.
    """

    def __gt__(self, other: float, /) -> bool:
        raise ValueError(
            "a LoraDropoutConfig defines the first adapter of a model, PEFT does not ask it when "
            "it adds an adapter to layers that have one: add it with a LoraConfig, then call "
            "`attach_lora_dropout(model, dropout_rate, adapter_name=...)`."
        )


def make_layers_with(config: LoraConfig, put_masks_on: PutMasksOn) -> None:
    """Hand over every layer that PEFT makes from a config, to get masks."""
    config._custom_modules = {nn.Module: _LayerFactory(config, put_masks_on)}
    config.lora_dropout = _NewLayersOnly(config.lora_dropout)


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
