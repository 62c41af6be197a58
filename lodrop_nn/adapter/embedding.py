"""LoRA Dropout on embeddings: masks of vocabulary entries and of embedding coordinates.

Like :mod:`lodrop_nn.adapter.variant`, this module places variants on PEFT's layers. It reads the
look-up of PEFT's embedding layer, ``_embed``, and the scale that some models put on it.
"""

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding
from torch import Tensor

from lodrop_nn.adapter.kind import Factors
from lodrop_nn.adapter.variant import LinearKind, LoraDropoutVariant, refuse_variants
from lodrop_nn.masks.draw import LayerFactors
from lodrop_nn.masks.embedding import masked_embedding


class EmbeddingDropoutVariant(LoraDropoutVariant):
    """Masks the entries and coordinates of one LoRA embedding."""

    def _prepared(self, module: LoraLayer, adapter_name: str, x: Tensor) -> Tensor:
        return x  # PEFT's `lora_dropout` does not reach embeddings

    def _weight(self, module: LoraLayer, adapter_name: str) -> Tensor:
        weight: Tensor = module.lora_embedding_A[adapter_name]
        return weight

    def _stored(self, module: LoraLayer, adapter_name: str, x: Tensor) -> Tensor:
        hidden = module._embed(x, module.lora_embedding_A[adapter_name].T)
        update = hidden @ module.lora_embedding_B[adapter_name].T
        return _scaled_as_base(module, update * module.scaling[adapter_name])

    def _masked(
        self, module: LoraLayer, adapter_name: str, x: Tensor, masks: LayerFactors
    ) -> Tensor:
        hidden = module._embed(x, module.lora_embedding_A[adapter_name].T)
        lora_B, scaling = module.lora_embedding_B[adapter_name], module.scaling[adapter_name]
        return _scaled_as_base(module, masked_embedding(x, hidden, lora_B, *masks, scaling))


def _scaled_as_base(module: LoraLayer, update: Tensor) -> Tensor:
    """Apply the scale that some models multiply the output of their embedding with."""
    scale = module._get_embed_scale()
    return update if scale is None else update * scale.to(update.dtype)


class EmbeddingKind(LinearKind):
    """LoRA on embeddings, whose input coordinates are vocabulary entries."""

    variant_class = EmbeddingDropoutVariant

    def matches(self, layer: LoraLayer) -> bool:
        """Whether the layer is of this kind."""
        return isinstance(layer, Embedding)

    def check(self, layer: LoraLayer, name: str, adapter_name: str) -> None:
        """Refuse variants and embeddings whose vocabulary is spread over devices.

        Raises:
            ValueError: If the adapter is a LoRA variant already.
            NotImplementedError: If the layer is sharded.
        """
        refuse_variants(layer, name, adapter_name)
        if layer.tp_layer is not None:
            raise NotImplementedError(
                f"embedding layer {name!r} is sharded by tensor parallelism, where a device holds "
                "a part of the vocabulary: use `mask_embeddings=False`."
            )

    def factors(self, layer: LoraLayer, adapter_name: str) -> Factors:
        """A, (r, entries), and B."""
        return Factors(
            layer.lora_embedding_A[adapter_name],
            layer.lora_embedding_B[adapter_name],
            float(layer.scaling[adapter_name]),
        )

    def lora_B_key(self, name: str, adapter_name: str) -> str:
        """Key of the layer's B in the state dictionary of the model."""
        return f"{name}.lora_embedding_B.{adapter_name}"
