"""LoRA Dropout on any PEFT LoRA model, and measurements of what the theorems read.

Names are imported on first use: the parts below the record (``lodrop_nn.report``,
``lodrop_nn.config``) work without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lodrop_nn.adapter.attach import attach_lora_dropout, detach_lora_dropout, mask_bank
    from lodrop_nn.adapter.config import LoraDropoutConfig
    from lodrop_nn.adapter.loading import load_classifier
    from lodrop_nn.adapter.report import adapted_layers, adapter_report, realized_sparsity
    from lodrop_nn.adapter.saving import load_adapter, save_adapter
    from lodrop_nn.config import RunConfig
    from lodrop_nn.masks.bank import MaskBank
    from lodrop_nn.masks.settings import MaskSettings
    from lodrop_nn.predict.batches import ensemble_predict_batches
    from lodrop_nn.predict.ensemble import ensemble_predict, mean_predict
    from lodrop_nn.predict.export import export_ensemble
    from lodrop_nn.predict.generate import ensemble_generate, member_generate
    from lodrop_nn.predict.prediction import EnsemblePrediction
    from lodrop_nn.predict.scoring import SequenceScores, score_sequences
    from lodrop_nn.train.adalora_callback import AdaLoraCallback
    from lodrop_nn.train.callbacks import LoraDropoutCallback
    from lodrop_nn.train.measure_callback import MeasureCallback
    from lodrop_nn.train.micro_steps import backward_over_masks
    from lodrop_nn.train.prefix_cache import PrefixCache
    from lodrop_nn.train.replica_adapters import add_replicas
    from lodrop_nn.train.replica_settings import ReplicaSettings, leave_one_out_weights
    from lodrop_nn.train.replica_training import train_replicas
    from lodrop_nn.train.replicas import Replicas
    from lodrop_nn.train.schedule import PiecewiseLinear, linear_decay, linear_warmup
    from lodrop_nn.train.tiling import tile_batch
    from lodrop_nn.train.trainer import LoraDropoutTrainerMixin

_HOMES = {
    # put masks on an adapter, and look at them
    "LoraDropoutConfig": "lodrop_nn.adapter.config",
    "attach_lora_dropout": "lodrop_nn.adapter.attach",
    "detach_lora_dropout": "lodrop_nn.adapter.attach",
    "mask_bank": "lodrop_nn.adapter.attach",
    "MaskBank": "lodrop_nn.masks.bank",
    "MaskSettings": "lodrop_nn.masks.settings",
    "adapted_layers": "lodrop_nn.adapter.report",
    "adapter_report": "lodrop_nn.adapter.report",
    "realized_sparsity": "lodrop_nn.adapter.report",
    # train
    "LoraDropoutTrainerMixin": "lodrop_nn.train.trainer",
    "LoraDropoutCallback": "lodrop_nn.train.callbacks",
    "AdaLoraCallback": "lodrop_nn.train.adalora_callback",
    "MeasureCallback": "lodrop_nn.train.measure_callback",
    "PiecewiseLinear": "lodrop_nn.train.schedule",
    "linear_decay": "lodrop_nn.train.schedule",
    "linear_warmup": "lodrop_nn.train.schedule",
    "backward_over_masks": "lodrop_nn.train.micro_steps",
    "tile_batch": "lodrop_nn.train.tiling",
    # train many adapters at once
    "PrefixCache": "lodrop_nn.train.prefix_cache",
    "Replicas": "lodrop_nn.train.replicas",
    "ReplicaSettings": "lodrop_nn.train.replica_settings",
    "add_replicas": "lodrop_nn.train.replica_adapters",
    "leave_one_out_weights": "lodrop_nn.train.replica_settings",
    "train_replicas": "lodrop_nn.train.replica_training",
    # predict
    "EnsemblePrediction": "lodrop_nn.predict.prediction",
    "ensemble_predict": "lodrop_nn.predict.ensemble",
    "ensemble_predict_batches": "lodrop_nn.predict.batches",
    "mean_predict": "lodrop_nn.predict.ensemble",
    "ensemble_generate": "lodrop_nn.predict.generate",
    "member_generate": "lodrop_nn.predict.generate",
    "SequenceScores": "lodrop_nn.predict.scoring",
    "score_sequences": "lodrop_nn.predict.scoring",
    # save and load
    "export_ensemble": "lodrop_nn.predict.export",
    "load_adapter": "lodrop_nn.adapter.saving",
    "load_classifier": "lodrop_nn.adapter.loading",
    "save_adapter": "lodrop_nn.adapter.saving",
    # a run; `lodrop_nn.measure` measures it
    "RunConfig": "lodrop_nn.config",
}

__all__ = [
    "AdaLoraCallback",
    "EnsemblePrediction",
    "LoraDropoutCallback",
    "LoraDropoutConfig",
    "LoraDropoutTrainerMixin",
    "MaskBank",
    "MaskSettings",
    "MeasureCallback",
    "PiecewiseLinear",
    "PrefixCache",
    "ReplicaSettings",
    "Replicas",
    "RunConfig",
    "SequenceScores",
    "adapted_layers",
    "adapter_report",
    "add_replicas",
    "attach_lora_dropout",
    "backward_over_masks",
    "detach_lora_dropout",
    "ensemble_generate",
    "ensemble_predict",
    "ensemble_predict_batches",
    "export_ensemble",
    "leave_one_out_weights",
    "linear_decay",
    "linear_warmup",
    "load_adapter",
    "load_classifier",
    "mask_bank",
    "mean_predict",
    "member_generate",
    "realized_sparsity",
    "save_adapter",
    "score_sequences",
    "tile_batch",
    "train_replicas",
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
