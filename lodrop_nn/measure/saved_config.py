"""What a measurement of a saved adapter depends on: the content of weights, rows and settings."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from lodrop_nn.adapter.loading import CONFIG_NAME, base_folder
from lodrop_nn.adapter.sidecar import weights_sha256
from lodrop_nn.config import RunConfig
from lodrop_nn.data import TextClassificationData
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.settings import MeasureSettings
from lodrop_theory.records import content_hash


def config_of(
    folder: Path,
    base: str | None,
    train: TextClassificationData,
    test: TextClassificationData,
    bank: MaskBank,
    settings: MeasureSettings,
    model: PeftModel,
    *,
    split_seed: int | None,
    run: RunConfig | None,
) -> dict[str, Any]:
    """The configuration of a record, JSON-able.

    Args:
        folder: The adapter's.
        base: The base model, or None where the adapter names it.
        train: Training rows.
        test: Held-out rows.
        bank: The masks of the adapter.
        settings: What the measurement draws.
        model: The adapted classifier.
        split_seed: Seed of the split, or None where the rows came divided.
        run: The run that trained the adapter, or None where it is not known: it gives the prior
            of the randomized adapter its center.
    """
    place = base_folder(folder, base)
    files = [place / "config.json", *sorted(place.glob("*.safetensors"))]
    trained = (name for name, weight in model.named_parameters() if weight.requires_grad)
    return {
        "adapter": folder.name,
        "adapter_sha256": weights_sha256(folder),
        "adapter_config_sha256": _sha256([folder / CONFIG_NAME]),
        "model": place.name if base is None else Path(base).name,
        "model_sha256": _sha256(files),
        "data": train.name,
        "data_sha256": content_hash({"train": _rows(train), "test": _rows(test)}),
        "split_seed": split_seed,
        "run": None if run is None else run.run_id,
        "dropout_rate": bank.settings.dropout_rate,
        "rescale": bank.settings.rescale,
        "masks": bank.settings.as_json(),
        "train_A": any("lora_A" in name for name in trained),
        "seed": settings.seed,
        "measurement": settings.as_json(),
    }


def content_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration names a measurement: content, not the names of files."""
    names = {"adapter", "model", "data", "split_seed"}
    return {key: value for key, value in config.items() if key not in names}


def _rows(rows: TextClassificationData) -> dict[str, Any]:
    votes = None if rows.vote_shares is None else rows.vote_shares.tolist()
    return {"texts": list(rows.texts), "labels": rows.labels.tolist(), "vote_shares": votes}


def _sha256(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
