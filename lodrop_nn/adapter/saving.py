"""Save an adapter so that plain PEFT loads its mean predictor; load it with its masks."""

import json
import os
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lodrop_nn.adapter import kinds
from lodrop_nn.adapter.attach import adapter_layers, attach_lora_dropout, mask_bank
from lodrop_nn.adapter.sidecar import (
    WEIGHTS_NAME,
    AdapterFileError,
    SideCar,
    read_sidecar,
    write_sidecar,
)
from lodrop_nn.masks import MaskBank

_PEFT_FILES = (WEIGHTS_NAME, "adapter_config.json")


def save_adapter(
    model: PeftModel, path: str | os.PathLike[str], adapter_name: str = "default"
) -> Path:
    """Save an adapter with LoRA Dropout as an ordinary LoRA adapter with a side-car.

    The weights (safetensors) and ``adapter_config.json`` are what PEFT writes for plain LoRA.
    Where masks are not rescaled (the paper's form), the mean factor (1 - p_A)(1 - p_B) of each
    layer is multiplied into its saved lora_B: plain PEFT and serving engines then load the mean
    predictor instead of an update that is 1 / ((1 - p_A)(1 - p_B)) too strong.
    ``lora_dropout.json`` says that this was done, and how masks are drawn.

    Args:
        model: A model whose adapter has LoRA Dropout; it is left as it is.
        path: Folder to write to, made if need be. Its files of the same names are replaced, the
            side-car last, so that an interrupted save is noticed on loading.
        adapter_name: The adapter to save.

    Returns:
        The folder that holds the files. It is ``path`` for every adapter name.

    Raises:
        ValueError: If the adapter does not exist or has no LoRA Dropout.
    """
    bank = mask_bank(model, adapter_name)
    state = model.state_dict()
    for name, layer in adapter_layers(model, adapter_name).items():
        key = kinds.kind_of(layer, name).lora_B_key(name, adapter_name)
        state[key] = state[key] * _mean_factor(layer, name, adapter_name)  # the model keeps its own
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_plain_adapter(model, adapter_name, state, folder)
    write_sidecar(folder, bank.settings, is_folded=True)
    return folder


def write_plain_adapter(
    model: PeftModel, adapter_name: str, state: dict[str, Tensor], folder: Path
) -> None:
    """Write what plain PEFT loads as an adapter: its weights and its config, each at once.

    Args:
        model: The model.
        adapter_name: One of its adapters.
        state: State dictionary of the model, with the weights to write.
        folder: An existing folder; its files of the same names are replaced.
    """
    # PEFT writes into a folder beside the files that it would replace, one by one, in place.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        model.save_pretrained(
            temporary, safe_serialization=True, selected_adapters=[adapter_name], state_dict=state
        )
        written = Path(temporary, "" if adapter_name == "default" else adapter_name)
        _write_alpha(written / _PEFT_FILES[1], model.peft_config[adapter_name])
        for file in _PEFT_FILES:
            os.replace(written / file, folder / file)


def load_adapter(
    base_model: nn.Module, path: str | os.PathLike[str], *, is_trainable: bool = False
) -> PeftModel:
    """Load a saved adapter onto its base model and attach its LoRA Dropout again.

    Args:
        base_model: The model that the adapter was trained on; PEFT changes it in place.
        path: Local folder that :func:`save_adapter` wrote, or that PEFT wrote for a
            :class:`~lodrop_nn.adapter.config.LoraDropoutConfig`.
        is_trainable: Whether the adapter's weights require gradients.

    Returns:
        The adapted model, in evaluation mode unless ``is_trainable``. The adapter's name is
        ``"default"``.

    Raises:
        TypeError: If ``base_model`` is a PeftModel already.
        AdapterFileError: If the files are missing, unknown, edited or do not belong together.
    """
    if isinstance(base_model, PeftModel):
        raise TypeError("`base_model` must be a model without adapters, got a PeftModel.")
    folder = Path(path)
    sidecar = read_sidecar(folder)
    # PEFT would fall back to a pickle, which can run code.
    if not (folder / WEIGHTS_NAME).is_file():
        raise AdapterFileError(f"{folder} must hold {WEIGHTS_NAME}; pickled weights are refused.")
    config = None
    if sidecar.alpha_as_trained is not None:
        config = LoraConfig.from_pretrained(str(folder))
        vars(config).update(sidecar.alpha_as_trained)
    model = PeftModel.from_pretrained(
        base_model, str(folder), is_trainable=is_trainable, config=config
    )
    restore_masks(model, sidecar)
    return model


def restore_masks(model: PeftModel, sidecar: SideCar) -> MaskBank:
    """Attach the masks of a saved adapter, and take what was folded into its lora_B out again.

    Args:
        model: A model that PEFT has loaded the adapter into, as ``"default"``; changed in place.
        sidecar: What was saved beside the adapter.

    Returns:
        The adapter's masks.
    """
    bank = attach_lora_dropout(model, **sidecar.settings.as_json())
    if sidecar.is_folded:
        with torch.no_grad():
            for name, layer in adapter_layers(model, "default").items():
                lora_B = model.get_parameter(kinds.kind_of(layer, name).lora_B_key(name, "default"))
                lora_B /= _mean_factor(layer, name, "default")
    return bank


def _write_alpha(path: Path, config: LoraConfig) -> None:
    """Have a config on disk say the alpha of the model: its factors need no other.

    Args:
        path: The ``adapter_config.json`` that PEFT wrote.
        config: The config of the adapter in the model.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"lora_alpha": config.lora_alpha, "alpha_pattern": config.alpha_pattern}
    path.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def _mean_factor(layer: LoraLayer, name: str, adapter_name: str) -> float:
    masks = kinds.installed(layer, name, adapter_name)
    return 1.0 if masks is None else masks.mean_factor  # None: an embedding that is not masked
