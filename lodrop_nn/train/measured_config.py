"""What made a measured adapter: the configuration that names its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodrop_nn.adapter.sidecar import weights_sha256
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.settings import MeasureSettings
from lodrop_nn.train.measured_rows import MeasuredPair
from lodrop_theory.records import content_hash

if TYPE_CHECKING:
    from transformers import Trainer

PROTOCOL = 1  # raise when the meaning of a measurement changes


def training_config(
    trainer: "Trainer", bank: MaskBank, rows: MeasuredPair, settings: MeasureSettings, folder: Path
) -> dict[str, Any]:
    """What made an adapter and how it is measured, JSON-able; nothing in it is a path.

    Args:
        trainer: The trainer at the end of its training.
        bank: The masks of its adapter.
        rows: What is measured.
        settings: How.
        folder: Where the adapter was saved.
    """
    model: Any = trainer.model
    args, lora = trainer.args, model.peft_config["default"]
    name = str(getattr(model.get_base_model().config, "_name_or_path", "") or "")
    targets = lora.target_modules
    optim, scheduler = (str(getattr(x, "value", x)) for x in (args.optim, args.lr_scheduler_type))
    return {
        "adapter": folder.name,
        "adapter_sha256": weights_sha256(folder),
        "model": Path(name).name or type(model.get_base_model()).__name__,
        "data": f"{type(trainer).__name__}'s",
        "train_sha256": rows.train.sha256(),
        "test_sha256": None if rows.test is None else rows.test.sha256(),
        "dropout_rate": bank.settings.dropout_rate,
        "rescale": bank.settings.rescale,
        "masks": bank.settings.as_json(),
        "train_A": any("lora_A" in n for n, p in model.named_parameters() if p.requires_grad),
        "seed": settings.seed,
        "lora": {
            "r": lora.r,
            "lora_alpha": lora.lora_alpha,
            "lora_dropout": getattr(lora, "lora_dropout", 0.0),
            "use_rslora": bool(getattr(lora, "use_rslora", False)),
            "target_modules": targets if isinstance(targets, str) else sorted(targets or ()),
        },
        "training": {
            "learning_rate": args.learning_rate,
            "epochs": args.num_train_epochs,
            "steps": trainer.state.global_step,
            "batch_size": args.train_batch_size
            * args.gradient_accumulation_steps
            * args.world_size,
            "seed": args.seed,
            "optimizer": optim,
            "schedule": scheduler,
            "weight_decay": args.weight_decay,
            "max_grad_norm": args.max_grad_norm,
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        },
        "measurement": settings.as_json(),
    }


def run_id_of(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a measurement by its configuration and weights."""
    return content_hash({"protocol": PROTOCOL, **config})[:12]
