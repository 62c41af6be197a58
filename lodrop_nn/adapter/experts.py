r"""LoRA Dropout on the expert tensors of a mixture of experts (``target_parameters``).

The experts of a layer share one parameter of shape (experts, out, in), and PEFT keeps their factors
side by side: A is (experts * r, in), B is (out, r * experts). Each expert e has an update of its
own, :math:`s B_e A_e`, so the paper's definition gives each masks of its own,

.. math:: s \, \mathrm{diag}(m_{B,e}) \, B_e \, A_e \, \mathrm{diag}(m_{A,e}) ,

with the expected zero fraction 2p - p^2. (One mask for all would tie the updates of the experts
together.) A layer therefore has experts * in column masks and experts * out row masks.

PEFT computes the expert tensor once per forward pass, for all rows, and the router regroups rows by
expert. A pass can thus have one mask per expert, not N: see :class:`MaskedParamWrapper`.

This module reads PEFT's ``ParamWrapper``, whose class is exchanged for a subclass that knows
masks, and back again on detaching. It is tested with the oldest and the newest release of the
supported range.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor

from lodrop_nn.adapter.kind import Factors, Installed


class MaskedParamWrapper(ParamWrapper):
    """PEFT's wrapper of a parameter, with masks on the factors while it computes its output.

    Attributes:
        mask_sources: Where the adapters with LoRA Dropout take their masks from.
        is_activating: Whether the updates that are being computed are for a forward pass, and not
            for merging.
    """

    mask_sources: dict[str, Installed]
    is_activating: bool

    @contextlib.contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            self.is_activating = True
            try:
                stack.enter_context(super()._activate_lora(active_adapters))
            finally:
                self.is_activating = False
            yield

    def get_delta_factors(self, adapter_name: str) -> tuple[Tensor, Tensor, float]:
        """The factors of the update; newer releases of PEFT ask for them, where one is active."""
        left, right, scaling = super().get_delta_factors(adapter_name)
        masks = self._masks(adapter_name)
        if masks is None:
            return left, right, scaling * self._mean_factor(adapter_name)
        columns, rows = masks
        # PEFT's tensors are (experts, out, in), or transposed as in GPT-OSS.
        first, last = (rows, columns) if self._did_swap_in_out_features else (columns, rows)
        masked_left = (left * first[:, :, None]).to(left.dtype)
        return masked_left, (right * last[:, None, :]).to(right.dtype), scaling

    def get_delta_weight(self, adapter_name: str, *args: Any, **kwargs: Any) -> Tensor:
        """The mean update, which merging adds; in a forward pass the update under its masks."""
        update: Tensor = super().get_delta_weight(adapter_name, *args, **kwargs)
        masks = self._masks(adapter_name)
        if masks is None:
            return update * self._mean_factor(adapter_name)
        columns, rows = masks
        if update.dim() == 2 or self._did_swap_in_out_features:
            masked = update * rows[:, :, None] * columns[:, None, :]
        else:
            masked = update * columns[:, :, None] * rows[:, None, :]
        return masked.reshape(update.shape).to(update.dtype)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its masks: a new one of the same name begins without."""
        super().delete_adapter(adapter_name)
        self.mask_sources.pop(adapter_name, None)

    def _masks(self, adapter_name: str) -> tuple[Tensor, Tensor] | None:
        """Column factors (experts, in) and row factors (experts, out), or None for the mean.

        Raises:
            InstanceLayoutError: If the pass has several masks.
        """
        source = self.mask_sources.get(adapter_name)
        if source is None or not self.is_activating:
            return None
        weight = self.lora_A[adapter_name].weight
        masks = source.masks(None, training=self.training, device=weight.device, dtype=weight.dtype)
        if masks is None:
            return None
        columns, rows = masks
        return columns.reshape(self.num_experts, -1), rows.reshape(self.num_experts, -1)

    def _mean_factor(self, adapter_name: str) -> float:
        source = self.mask_sources.get(adapter_name)
        return 1.0 if source is None else source.mean_factor


# PEFT looks for nested wrappers by the name of their class when it adds a further adapter.
MaskedParamWrapper.__name__ = ParamWrapper.__name__


class ExpertsKind:
    """LoRA on a parameter: the experts of a mixture, (experts, out, in), or one matrix."""

    def matches(self, layer: LoraLayer) -> bool:
        """Whether the layer is of this kind."""
        return isinstance(layer, ParamWrapper)

    def check(self, layer: LoraLayer, name: str, adapter_name: str) -> None:
        """Nothing is in the way: PEFT refuses variants and biases on parameters itself."""

    def mask_sizes(self, layer: LoraLayer, adapter_name: str) -> tuple[int, int]:
        """Columns of A and rows of B of all experts together, expert after expert."""
        return layer.num_experts * layer.in_features, layer.num_experts * layer.out_features

    def install(self, layer: LoraLayer, adapter_name: str, masks: Installed) -> None:
        """Let the layer take its masks from there."""
        if not isinstance(layer, MaskedParamWrapper):
            layer.__class__ = MaskedParamWrapper
            layer.mask_sources, layer.is_activating = {}, False
        layer.mask_sources[adapter_name] = masks

    def uninstall(self, layer: LoraLayer, adapter_name: str) -> None:
        """Make the adapter ordinary LoRA again; the last one gives the layer its class back."""
        if not isinstance(layer, MaskedParamWrapper):
            return
        layer.mask_sources.pop(adapter_name, None)
        if not layer.mask_sources:
            del layer.mask_sources, layer.is_activating
            layer.__class__ = ParamWrapper

    def installed(self, layer: LoraLayer, adapter_name: str) -> Installed | None:
        """Where the layer takes its masks from, or None for an ordinary adapter."""
        if isinstance(layer, MaskedParamWrapper):
            return layer.mask_sources.get(adapter_name)
        return None

    def factors(self, layer: LoraLayer, adapter_name: str) -> Factors:
        """A, (experts, r, in), and B, (experts, out, r): the layout in which PEFT reads them."""
        lora_A, lora_B = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        parts = layer.num_experts
        return Factors(
            lora_A.reshape(parts, -1, lora_A.shape[1]),
            lora_B.reshape(lora_B.shape[0], -1, parts).permute(2, 0, 1),
            float(layer.scaling[adapter_name]),
        )

    def lora_B_key(self, name: str, adapter_name: str) -> str:
        """Key of the layer's B in the state dictionary of the model."""
        return f"{name}.lora_B.{adapter_name}.weight"
