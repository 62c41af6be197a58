"""K adapters of a model in one pass, as one variant of PEFT's LoRA layer.

Beside :mod:`lodrop_nn.adapter.variant` the only module that touches PEFT's ``LoraVariant``. For
the time of a ``with`` block, the active adapter's forward pass is replaced by one that runs K
adapters on the K slices of the batch; parameters and state-dict keys stay as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.nn.functional import pad

from lodrop_nn.adapter.kind import Installed
from lodrop_nn.adapter.variant import LoraDropoutVariant


def check_replicas(layer: LoraLayer, name: str, adapter_names: Sequence[str]) -> None:
    """Refuse a layer whose adapters cannot run side by side.

    Args:
        layer: A layer of the model.
        name: Its path, for the error.
        adapter_names: The adapters.

    Raises:
        NotImplementedError: If the layer is of a kind that is not supported.
        ValueError: If an adapter is missing here, merged, a variant, or trains a bias.
    """
    if type(layer) is not Linear:  # derived layers compute otherwise
        raise NotImplementedError(
            f"layer {name!r} is a {type(layer).__module__}.{type(layer).__qualname__}; replicas "
            "are adapters of PEFT's LoRA on Linear and Conv1D only."
        )
    missing = [adapter for adapter in adapter_names if adapter not in layer.lora_A]
    if missing:
        raise ValueError(
            f"replicas must adapt the same modules: layer {name!r} has no adapter {missing}."
        )
    if layer.merged:
        raise ValueError(
            f"replicas must not be merged, but layer {name!r} has {layer.merged_adapters} merged: "
            "call `model.unmerge_adapter()` first."
        )
    for adapter in adapter_names:
        variant = layer.lora_variant.get(adapter)
        if variant is not None and not isinstance(variant, LoraDropoutVariant):
            raise ValueError(
                f"adapter {adapter!r} is the LoRA variant {type(variant).__name__} in layer "
                f"{name!r}; replicas are plain LoRA or LoRA Dropout."
            )
        if layer.lora_B[adapter].bias is not None:
            raise ValueError(
                f"adapter {adapter!r} trains a bias of lora_B in layer {name!r}; replicas have "
                "weights only: use `lora_bias=False`."
            )


def masks_of(layer: LoraLayer, adapter_name: str) -> Installed | None:
    """Where an adapter takes its masks from in a layer, or None for plain LoRA."""
    variant = layer.lora_variant.get(adapter_name)
    return variant.source if isinstance(variant, LoraDropoutVariant) else None


def stacked_factors(
    layer: LoraLayer, adapter_names: Sequence[str]
) -> tuple[Float[Tensor, "K rank in_features"], Float[Tensor, "K out_features rank"]]:
    """The factors A and s B of adapters, lower ranks filled up with zeros.

    Args:
        layer: A layer that carries them all.
        adapter_names: The adapters.

    Returns:
        New tensors, differentiable in the adapters' weights.
    """
    all_A = [layer.lora_A[name].weight for name in adapter_names]
    all_B = [layer.lora_B[name].weight for name in adapter_names]
    ranks = [lora_A.shape[0] for lora_A in all_A]
    if len(set(ranks)) > 1:
        missing = [max(ranks) - rank for rank in ranks]
        all_A = [pad(lora_A, (0, 0, 0, more)) for lora_A, more in zip(all_A, missing, strict=True)]
        all_B = [pad(lora_B, (0, more)) for lora_B, more in zip(all_B, missing, strict=True)]
    scaling = all_B[0].new_tensor([float(layer.scaling[name]) for name in adapter_names])
    return torch.stack(all_A), torch.stack(all_B) * scaling[:, None, None]


class ReplicaVariant(LoraVariant):
    """Runs K adapters on the K slices of a batch, each with its own masks.

    Args:
        adapter_names: The adapters, in the order of their slices.
        sources: Where each takes its masks from, or None.
    """

    def __init__(self, adapter_names: Sequence[str], sources: Sequence[Installed | None]) -> None:
        self.adapter_names = tuple(adapter_names)
        self.sources = tuple(sources)

    def supports_lora_conversion(self) -> bool:
        """Never: the layer stands for several adapters."""
        return False

    def init(self, module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """PEFT re-initializes the adapter of this layer; nothing here depends on it."""

    def forward(
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """The layer's output: the base output plus, slice by slice, the update of a replica.

        Raises:
            ValueError: If the leading dimension of ``x`` cannot be dealt out.
        """
        n_replicas = len(self.adapter_names)
        _check_rows(x, n_replicas, f"{n_replicas} replicas")
        x = self._dropped(module, x)
        lora_A, lora_B = stacked_factors(module, self.adapter_names)
        factors = self._mask_factors(module, x, lora_A.dtype)
        if factors is not None:
            columns, rows = factors
            n_groups = n_replicas * columns.shape[1]
            _check_rows(x, n_groups, f"{n_replicas} replicas with {columns.shape[1]} masks each")
            # Masks may be of higher precision than the weights (bf16 cannot hold 1 / 0.7).
            lora_A = (lora_A[:, None] * columns[:, :, None, :]).flatten(0, 1).to(lora_A.dtype)
            lora_B = (lora_B[:, None] * rows[:, :, :, None]).flatten(0, 1).to(lora_B.dtype)
        grouped = x.reshape(len(lora_A), x.shape[:-1].numel() // len(lora_A), x.shape[-1])
        update = torch.bmm(torch.bmm(grouped, lora_A.mT), lora_B.mT)
        return result + update.reshape(*x.shape[:-1], update.shape[-1])

    def _dropped(self, module: LoraLayer, x: Tensor) -> Tensor:
        """The input under PEFT's own ``lora_dropout`` of each replica, where there is any."""
        dropouts = [module.lora_dropout[name] for name in self.adapter_names]
        if all(isinstance(dropout, nn.Identity) for dropout in dropouts):
            return x
        slices = x.chunk(len(dropouts))
        return torch.cat([dropout(part) for dropout, part in zip(dropouts, slices, strict=True)])

    def _mask_factors(
        self, module: LoraLayer, x: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor] | None:
        """Factors (K, n_masks, in) of A and (K, n_masks, out) of B; None if all are 1."""
        host = self.adapter_names[0]
        n_in, n_out = module.lora_A[host].weight.shape[1], module.lora_B[host].weight.shape[0]
        placed: dict[str, Any] = {
            "dtype": torch.promote_types(dtype, torch.float32),
            "device": x.device,
        }
        pairs, are_one = [], True
        for source in self.sources:
            mean_factor, masks = 1.0, None
            if source is not None:
                mean_factor, bank = source.mean_factor, source.bank
                n_rows = x.shape[0] // len(self.sources)
                masks = bank.masks(source.slot, training=module.training, n_rows=n_rows, **placed)
            are_one = are_one and masks is None and mean_factor == 1.0
            if masks is None:
                masks = torch.full((1, n_in), mean_factor, **placed), torch.ones(1, n_out, **placed)
            pairs.append(masks)
        if are_one:
            return None
        columns, rows = zip(*pairs, strict=True)
        return _same_number(columns), _same_number(rows)

    def merge_safe(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a base weight cannot hold K updates."""
        self._refuse_merging()

    merge_unsafe = unmerge = merge_safe

    def _refuse_merging(self) -> NoReturn:
        raise RuntimeError("replicas cannot be merged while they run in one pass: leave the block.")


@contextmanager
def run_together(layers: Mapping[str, LoraLayer], adapter_names: Sequence[str]) -> Iterator[None]:
    """Let the first of some adapters stand for all of them, each on its slice of the batch.

    Args:
        layers: The layers of the adapters, checked by :func:`check_replicas`.
        adapter_names: The adapters; the first must be the active one.

    Yields:
        Nothing.

    Raises:
        RuntimeError: If they do already.
    """
    host = adapter_names[0]
    if any(isinstance(x.lora_variant.get(host), ReplicaVariant) for x in layers.values()):
        raise RuntimeError("replicas already run in one pass: leave that block first.")
    before = {name: layer.lora_variant.get(host) for name, layer in layers.items()}
    try:
        for layer in layers.values():
            sources = [masks_of(layer, adapter) for adapter in adapter_names]
            layer.lora_variant[host] = ReplicaVariant(adapter_names, sources)
        yield
    finally:
        for name, layer in layers.items():
            layer.lora_variant.pop(host, None)
            if before[name] is not None:
                layer.lora_variant[host] = before[name]


def _same_number(masks: Sequence[Tensor]) -> Tensor:
    """Masks of replicas as one tensor; those with fewer repeat them.

    Raises:
        ValueError: If they cannot be repeated evenly.
    """
    n_masks = max(len(each) for each in masks)
    if any(n_masks % len(each) for each in masks):
        raise ValueError(
            "numbers of masks of replicas must divide the largest of them, got "
            f"{[len(each) for each in masks]}."
        )
    return torch.stack([each.repeat_interleave(n_masks // len(each), 0) for each in masks])


def _check_rows(x: Tensor, n_groups: int, meaning: str) -> None:
    if x.dim() < 2 or x.shape[0] % n_groups:
        raise ValueError(
            f"the leading dimension of a layer's input must be a multiple of {n_groups} "
            f"({meaning}), got shape {tuple(x.shape)}: tile the batch (tile_batch)."
        )
