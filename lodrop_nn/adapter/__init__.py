"""LoRA Dropout on any PEFT model."""

from lodrop_nn.adapter.attach import attach_lora_dropout, detach_lora_dropout, mask_bank
from lodrop_nn.adapter.report import (
    AdapterReport,
    adapted_layers,
    adapter_report,
    delta_weights,
    realized_sparsity,
)

__all__ = [
    "AdapterReport",
    "adapted_layers",
    "adapter_report",
    "attach_lora_dropout",
    "delta_weights",
    "detach_lora_dropout",
    "mask_bank",
    "realized_sparsity",
]
