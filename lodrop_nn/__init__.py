"""LoRA Dropout on any PEFT LoRA model, and measurements of what the theorems read.

Names are imported on first use: the parts below the record (``lodrop_nn.report``,
``lodrop_nn.config``) work without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lodrop_nn.adapter.attach import (
        attach_lora_dropout,
        detach_lora_dropout,
        mask_bank,
    )
    from lodrop_nn.adapter.config import LoraDropoutConfig
    from lodrop_nn.adapter.report import adapted_layers, realized_sparsity
    from lodrop_nn.adapter.saving import load_adapter, save_adapter
    from lodrop_nn.config import RunConfig
    from lodrop_nn.masks.bank import MaskBank
    from lodrop_nn.predict.ensemble import EnsemblePrediction, ensemble_predict, mean_predict
    from lodrop_nn.train.tiling import tile_batch
    from lodrop_nn.train.trainer import LoraDropoutTrainerMixin

_HOMES = {
    # put masks on an adapter, and look at them
    "LoraDropoutConfig": "lodrop_nn.adapter.config",
    "attach_lora_dropout": "lodrop_nn.adapter.attach",
    "detach_lora_dropout": "lodrop_nn.adapter.attach",
    "mask_bank": "lodrop_nn.adapter.attach",
    "MaskBank": "lodrop_nn.masks.bank",
    "adapted_layers": "lodrop_nn.adapter.report",
    "realized_sparsity": "lodrop_nn.adapter.report",
    # train
    "LoraDropoutTrainerMixin": "lodrop_nn.train.trainer",
    "tile_batch": "lodrop_nn.train.tiling",
    # predict
    "EnsemblePrediction": "lodrop_nn.predict.ensemble",
    "ensemble_predict": "lodrop_nn.predict.ensemble",
    "mean_predict": "lodrop_nn.predict.ensemble",
    # save and load
    "load_adapter": "lodrop_nn.adapter.saving",
    "save_adapter": "lodrop_nn.adapter.saving",
    # a run; `lodrop_nn.measure` measures it
    "RunConfig": "lodrop_nn.config",
}

__all__ = [
    "EnsemblePrediction",
    "LoraDropoutConfig",
    "LoraDropoutTrainerMixin",
    "MaskBank",
    "RunConfig",
    "adapted_layers",
    "attach_lora_dropout",
    "detach_lora_dropout",
    "ensemble_predict",
    "load_adapter",
    "mask_bank",
    "mean_predict",
    "realized_sparsity",
    "save_adapter",
    "tile_batch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError:
        from lodrop_nn._extras import require

        require("nn")  # says which line installs what is missing
        raise


def __dir__() -> list[str]:
    return __all__
