r"""LoRA Dropout on AdaLoRA, whose update is :math:`s P \Lambda Q`.

Masks act on the columns of Q (PEFT's ``lora_A``) and on the rows of P (``lora_B``); the singular
values (``lora_E``) and the orthogonality loss, which PEFT computes on the stored factors, stay as
they are. PEFT's AdaLoRA layers consult no variant, so the class of a layer is exchanged for a
subclass that knows masks, and back again on detaching. No parameter and no state-dict key changes.

This module reads the factors as the layers of PEFT's ``tuners/adalora`` keep them, and
``trainable_adapter_name`` of its model. It is tested with the oldest and the newest release of the
supported range.
"""

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lodrop_nn.adapter.kind import Factors, Installed
from lodrop_nn.masks import masked_update
from lodrop_nn.masks.draw import LayerFactors

if TYPE_CHECKING:  # a mixin: the layer is whatever it is mixed into
    from peft.tuners.adalora.layer import SVDLinear as _SVDLayer
else:
    _SVDLayer = object

# The layers that multiply their input with both factors, in full precision and quantized.
PLAIN_CLASSES = ("SVDLinear", "SVDLinear8bitLt", "SVDLinear4bit")


class MaskedSVD(_SVDLayer):
    """What masks add to an AdaLoRA layer.

    Attributes:
        plain_class: PEFT's class of the layer.
        mask_sources: Where the adapters with LoRA Dropout take their masks from.
    """

    plain_class: type[AdaLoraLayer]
    mask_sources: dict[str, Installed]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output: the base output plus the updates, masked where masks are due."""
        adapters: list[str] = []
        if not self.disable_adapters and not self.merged:
            adapters = [name for name in self.active_adapters if name in self.lora_A]
        masks = {name: self._masks(name, x) for name in adapters}
        if all(masks[name] is None and self._mean_factor(name) == 1.0 for name in adapters):
            return super().forward(x, *args, **kwargs)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for name in adapters:
            # Added in the wider of the two precisions, as PEFT does.
            result = (result + self._update(name, x, masks[name])).to(result.dtype)
        return result

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The mean update: what merging adds."""
        update: Tensor = super().get_delta_weight(adapter)
        return update * self._mean_factor(adapter)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its masks: a new one of the same name begins without."""
        super().delete_adapter(adapter_name)
        self.mask_sources.pop(adapter_name, None)

    def _masks(self, adapter_name: str, x: Tensor) -> LayerFactors | None:
        source = self.mask_sources.get(adapter_name)
        if source is None:
            return None
        return source.masks(
            x.shape,
            training=self.training,
            device=x.device,
            dtype=self.lora_A[adapter_name].dtype,
        )

    def _mean_factor(self, adapter_name: str) -> float:
        source = self.mask_sources.get(adapter_name)
        return 1.0 if source is None else source.mean_factor

    def _update(self, adapter_name: str, x: Tensor, masks: LayerFactors | None) -> Tensor:
        """Output of the update under masks, or of the mean update."""
        lora_A, lora_B = self.lora_A[adapter_name], self.lora_B[adapter_name]
        x = self.lora_dropout[adapter_name](self._cast_input_dtype(x, lora_A.dtype))
        scaled_Q = lora_A * (self.lora_E[adapter_name] * _scaling(self, adapter_name))
        if masks is None:
            update: Tensor = x @ scaled_Q.T @ lora_B.T
            return update * self._mean_factor(adapter_name)
        return masked_update(x, scaled_Q, lora_B, *masks, 1.0)


def _scaling(layer: LoraLayer, adapter_name: str) -> Tensor:
    """PEFT's factor of the update, with the constant that guards it against rank 0."""
    scaling: Tensor = layer.scaling[adapter_name] / (layer.ranknum[adapter_name] + 1e-5)
    return scaling


@cache
def _masked_class(name: str) -> type[MaskedSVD]:
    """The subclass of one of PEFT's layer classes that knows masks."""
    plain = getattr(importlib.import_module("peft.tuners.adalora"), name)
    content = {"__module__": __name__, "plain_class": plain}
    return type(f"Masked{name}", (MaskedSVD, plain), content)


def __getattr__(name: str) -> type[MaskedSVD]:
    # Unpickling a model looks the classes above up by name.
    plain = name.removeprefix("Masked")
    if name != plain and plain in PLAIN_CLASSES:
        return _masked_class(plain)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class AdaLoraKind:
    """AdaLoRA on Linear and GPT-2's Conv1D, also over 8-bit and 4-bit weights."""

    def matches(self, layer: LoraLayer) -> bool:
        """Whether the layer is of this kind."""
        plain = layer.plain_class if isinstance(layer, MaskedSVD) else type(layer)
        return issubclass(plain, AdaLoraLayer) and plain.__name__ in PLAIN_CLASSES

    def check(self, layer: LoraLayer, name: str, adapter_name: str) -> None:
        """Refuse a layer whose forward pass is not that of its class.

        Raises:
            NotImplementedError: If a hook (accelerate's, for a model that is dispatched over
                devices) has replaced it.
        """
        if "forward" in vars(layer):
            raise NotImplementedError(
                f"the forward pass of AdaLoRA layer {name!r} was replaced, which is how accelerate "
                "moves inputs between devices: attach LoRA Dropout to a model on one device."
            )

    def mask_sizes(self, layer: LoraLayer, adapter_name: str) -> tuple[int, int]:
        """Columns of Q and rows of P."""
        return layer.lora_A[adapter_name].shape[1], layer.lora_B[adapter_name].shape[0]

    def install(self, layer: LoraLayer, adapter_name: str, masks: Installed) -> None:
        """Let the layer take its masks from there."""
        if not isinstance(layer, MaskedSVD):
            layer.__class__ = _masked_class(type(layer).__name__)
            layer.mask_sources = {}
        layer.mask_sources[adapter_name] = masks

    def uninstall(self, layer: LoraLayer, adapter_name: str) -> None:
        """Make the adapter ordinary AdaLoRA again; the last one gives the layer its class back."""
        if not isinstance(layer, MaskedSVD):
            return
        layer.mask_sources.pop(adapter_name, None)
        if not layer.mask_sources:
            del layer.mask_sources
            layer.__class__ = layer.plain_class

    def installed(self, layer: LoraLayer, adapter_name: str) -> Installed | None:
        """Where the layer takes its masks from, or None for an ordinary adapter."""
        return layer.mask_sources.get(adapter_name) if isinstance(layer, MaskedSVD) else None

    def factors(self, layer: LoraLayer, adapter_name: str) -> Factors:
        r"""A = :math:`\Lambda Q` (a triplet that was pruned is a zero row) and B = P."""
        lora_A = layer.lora_A[adapter_name] * layer.lora_E[adapter_name]
        return Factors(lora_A, layer.lora_B[adapter_name], float(_scaling(layer, adapter_name)))

    def lora_B_key(self, name: str, adapter_name: str) -> str:
        """Key of the layer's P in the state dictionary of the model."""
        return f"{name}.lora_B.{adapter_name}"


def accept_labels(model: PeftModel, adapter_name: str) -> None:
    """Let an AdaLoRA adapter that was loaded for inference see batches with labels.

    PEFT adds the orthogonality loss of the adapter named ``trainable_adapter_name`` to every loss,
    but names one only where an adapter is trainable; without, a batch with labels ends in an
    AttributeError. Other models, and models that name one already, stay as they are.

    Args:
        model: A model with adapters.
        adapter_name: The adapter whose orthogonality loss counts, as it did in training.
    """
    tuner = model.base_model
    if isinstance(tuner, AdaLoraModel) and not hasattr(tuner, "trainable_adapter_name"):
        tuner.trainable_adapter_name = adapter_name
