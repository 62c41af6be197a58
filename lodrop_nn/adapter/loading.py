"""Anyone's LoRA adapter of a sequence classifier, loaded so that it can be measured."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lodrop_nn.adapter.attach import adapter_layers, attach_lora_dropout, detach_lora_dropout
from lodrop_nn.adapter.saving import restore_masks
from lodrop_nn.adapter.sidecar import (
    FILE_NAME,
    WEIGHTS_NAME,
    AdapterFileError,
    SideCar,
    read_sidecar,
)
from lodrop_nn.data.models import model_folder, read_classifier
from lodrop_nn.masks.bank import MaskBank

CONFIG_NAME = "adapter_config.json"
_PICKLE_NAME = "adapter_model.bin"
_PREFIX = "base_model.model."
_HEADS = (".classifier.weight", ".score.weight", ".classifier.out_proj.weight")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_Shapes = dict[str, tuple[int, ...]]


def load_classifier(
    folder: str | os.PathLike[str],
    *,
    base: str | None = None,
    n_classes: int | None = None,
    dropout_rate: float | None = None,
    train_A: bool = True,
    seed: int = 0,
) -> tuple[PeftModel, PreTrainedTokenizerBase, MaskBank]:
    """A saved adapter on its base model, with its tokenizer and its masks.

    The base and the adapter are in fp32, the adapter's weights require gradients, the model is in
    evaluation mode, and every dropout but the masks is off. Nothing is asked of a model hub, no
    pickle is read, and no weight is made up: what neither the adapter nor the base holds is an
    error.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT writes
            them for LoRA; with ``lora_dropout.json`` the masks come back as they were.
        base: The model that the adapter was trained on: a known name or a local folder. None
            takes the one that ``adapter_config.json`` names, if that is a local folder or in the
            Hugging Face cache.
        n_classes: Classes that the adapter must tell apart; None takes what its head says.
        dropout_rate: p in [0, 1) of the masks, instead of the adapter's own; None keeps that, and
            is 0 for an adapter without LoRA Dropout.
        train_A: Whether the factors A require gradients too; else B and the head alone do.
        seed: Seed >= 0 of the masks of an adapter without LoRA Dropout.

    Returns:
        (model, tokenizer, masks). The tokenizer is the adapter's own where it has one.

    Raises:
        AdapterFileError: If the files are missing, pickled, damaged, not those of a LoRA adapter
            of a sequence classifier, or do not belong together.
        ValueError: If ``base`` is not given and not at hand, is not the model that the adapter
            was trained on, or ``n_classes`` or ``dropout_rate`` is refused.
    """
    path = Path(folder).expanduser()
    config = _adapter_config(path)
    sidecar = read_sidecar(path) if (path / FILE_NAME).is_file() else None
    if sidecar is not None and sidecar.alpha_as_trained is not None:
        vars(config).update(sidecar.alpha_as_trained)
    stored = _stored_shapes(path)
    width = _head_width(stored)
    place = base_folder(path, base)
    model, tokenizer, absent = read_classifier(place, width, seed, other_head=width is not None)
    _check_classes(n_classes, model.config.num_labels, path)
    adapted = _with_new_adapter(model, config, place, seed)
    _check_weights(adapted, stored, absent, place)
    # Now that names and shapes agree: of what PEFT's own way would have passed over, nothing.
    adapted.load_adapter(str(path), "default", is_trainable=True, torch_device="cpu")
    bank = _with_masks(adapted, sidecar, dropout_rate, seed)
    for layer in adapter_layers(adapted, "default").values():
        layer.lora_A.requires_grad_(train_A)
    return adapted.eval(), _tokenizer(path, tokenizer, model), bank


def base_folder(folder: str | os.PathLike[str], base: str | None = None) -> Path:
    """The local folder of the model that an adapter was trained on.

    Args:
        folder: The adapter's.
        base: A known name or a local folder; None looks for the model that the adapter names.

    Returns:
        A folder with a ``config.json``.

    Raises:
        ValueError: If it is not at hand; the text says how to name it.
    """
    if base is not None:
        return model_folder(base)
    content = _json_of(Path(folder).expanduser() / CONFIG_NAME)
    name = content.get("base_model_name_or_path")
    if name and (Path(name).expanduser() / "config.json").is_file():
        return Path(name).expanduser()
    if name:
        try:
            found = snapshot_download(name, revision=content.get("revision"), local_files_only=True)
            if (Path(found) / "config.json").is_file():
                return Path(found)
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            pass
    raise ValueError(
        f"`base` must name the model that the adapter was trained on, a known name ('minilm-l6') "
        f"or a local folder: {CONFIG_NAME} says {name!r}, which is neither a local folder nor in "
        "the Hugging Face cache."
    )


def _adapter_config(path: Path) -> LoraConfig:
    content = _json_of(path / CONFIG_NAME)
    kind, task = content.get("peft_type"), content.get("task_type")
    if kind != "LORA":
        raise AdapterFileError(f"{path} must hold an adapter of type LORA, got {kind!r}.")
    if task not in ("SEQ_CLS", None):
        raise AdapterFileError(
            f"{path} must hold the adapter of a sequence classifier (task_type SEQ_CLS), got "
            f"{task}: what is measured is the loss of one class per text."
        )
    config: LoraConfig = LoraConfig.from_pretrained(str(path))
    config.inference_mode = False
    config.base_model_name_or_path = None  # the caller says which; PEFT would warn of a moved one
    config.lora_dropout = 0.0  # the masks of the bank are to be the only noise
    return config


def _json_of(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AdapterFileError(
            f"{path.parent} must be the folder of an adapter: it holds no {path.name}."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterFileError(f"{path} must hold a JSON object: {error}.") from error
    if not isinstance(content, dict):
        raise AdapterFileError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def _stored_shapes(path: Path) -> _Shapes:
    # The header alone is read.
    file = path / WEIGHTS_NAME
    if not file.is_file():
        reason = (
            f" {_PICKLE_NAME} is a pickle, which can run code on loading: save the adapter again "
            "with `save_pretrained(folder, safe_serialization=True)`."
            if (path / _PICKLE_NAME).is_file()
            else ""
        )
        raise AdapterFileError(f"{path} must hold {WEIGHTS_NAME}.{reason}")
    try:
        with safe_open(file, framework="pt") as weights:
            return {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise AdapterFileError(f"{file} is damaged or no safetensors file: {error}.") from error


def _head_width(stored: _Shapes) -> int | None:
    """Outputs of the head that was saved with the adapter, or None if none was."""
    widths = [shape[0] for key, shape in stored.items() if key.endswith(_HEADS)]
    return widths[0] if widths else None


def _check_classes(wanted: int | None, width: int, path: Path) -> None:
    if wanted is not None and wanted != width:
        raise ValueError(
            f"`n_classes` must be {width}, the width of the head of {path}, got {wanted!r}."
        )


def _with_new_adapter(
    base: PreTrainedModel, config: LoraConfig, place: Path, seed: int
) -> PeftModel:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT reads a name that transformers has deprecated; the reader can do nothing about it.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        torch.default_generator.manual_seed(seed)
        try:
            return get_peft_model(base, config)
        except ValueError as error:  # no target module exists
            raise ValueError(f"{_not_this_base(place)}: {error}") from error


def _not_this_base(place: Path) -> str:
    return f"`base` must be the model that the adapter was trained on, got {place}"


def _check_weights(model: PeftModel, stored: _Shapes, absent: frozenset[str], place: Path) -> None:
    """Refuse an adapter whose names or shapes are not those that this base gives it.

    Raises:
        ValueError: Naming the first that differs.
    """
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {key: tuple(value.shape) for key, value in state.items()}
    # An adapter may also hold whole weights of the base, such as a resized embedding.
    here = own | expected
    differing = [
        f"{key} has shape {shape} in the adapter and {here[key]} here"
        for key, shape in stored.items()
        if key in here and here[key] != shape
    ]
    differing += [
        f"the adapter holds {key}, for which this model has no place"
        for key in stored
        if key not in here
    ]
    differing += [f"the adapter does not hold {key}" for key in expected if key not in stored]
    if differing:
        more = f" ({len(differing) - 1} more differ)" if len(differing) > 1 else ""
        raise ValueError(f"{_not_this_base(place)}: {differing[0]}{more}.")
    new = sorted(key for key in absent if f"{_PREFIX}{key}" not in stored)
    if new:
        raise ValueError(
            f"{_not_this_base(place)}: neither of them holds {', '.join(new)}, and random values "
            "would be measured instead. Take a base that holds them, or train the adapter with "
            "them in `modules_to_save`."
        )


def _with_masks(
    model: PeftModel, sidecar: SideCar | None, dropout_rate: float | None, seed: int
) -> MaskBank:
    if sidecar is None:
        return attach_lora_dropout(model, dropout_rate or 0.0, seed=seed)
    bank = restore_masks(model, sidecar)  # at the rates that the saved weights were folded with
    if dropout_rate is None:
        return bank
    detach_lora_dropout(model)
    settings: Mapping[str, Any] = {
        **sidecar.settings.as_json(),
        "dropout_rate": dropout_rate,
        "rate_pattern": {},
    }
    return attach_lora_dropout(model, **settings)


def _tokenizer(
    path: Path, of_base: PreTrainedTokenizerBase, model: PreTrainedModel
) -> PreTrainedTokenizerBase:
    if not all((path / name).is_file() for name in _TOKENIZER_FILES):
        return of_base
    own: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if len(own) > (known := model.get_input_embeddings().num_embeddings):
        raise AdapterFileError(
            f"{path} has a tokenizer of {len(own)} tokens, but its model knows {known}."
        )
    if model.config.pad_token_id is None and own.pad_token_id is not None:
        model.config.pad_token_id = own.pad_token_id
    return own
