"""Base models of the presets, from the hub or from a local folder."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lodrop_nn.data.models import transformers_quiet
from lodrop_nn.reproduce.glue_rows import n_outputs
from lodrop_nn.reproduce.plan import Method, is_adapter
from lodrop_nn.reproduce.preset import Preset

_AUTO = {
    "glue": AutoModelForSequenceClassification,
    "squad": AutoModelForQuestionAnswering,
    "mmlu": AutoModelForCausalLM,
}


class ModelUnavailableError(ValueError):
    """The base model cannot be had."""


def load_tokenizer(preset: Preset) -> PreTrainedTokenizerBase:
    """The tokenizer of a preset's base model.

    Raises:
        ModelUnavailableError: If it cannot be had; the text names both ways.
    """
    try:
        return AutoTokenizer.from_pretrained(preset.model)
    except (OSError, ValueError, ImportError) as error:
        raise ModelUnavailableError(_ways(preset.model, error)) from error


def load_base(preset: Preset, method: Method, seed: int) -> PreTrainedModel:
    """A preset's base model with a head that depends on the seed, in training mode.

    Weights that stay frozen are in the preset's precision where that is bfloat16; those that are
    trained are in fp32.

    Args:
        preset: The task.
        method: What is to be trained.
        seed: Seed >= 0 of the head. The global random state is left as it was.

    Raises:
        ModelUnavailableError: If it cannot be had; the text names both ways.
    """
    frozen_in_bf16 = preset.precision == "bf16" and is_adapter(method)
    try:
        config = AutoConfig.from_pretrained(preset.model, **_head(preset))
        if preset.head_dropout is not None and hasattr(config, "pooler_dropout"):
            config.cls_dropout = preset.head_dropout  # the name that DeBERTa's classifier reads
        with transformers_quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model: PreTrainedModel = _AUTO[preset.family].from_pretrained(
                preset.model,
                config=config,
                dtype=torch.bfloat16 if frozen_in_bf16 else torch.float32,
            )
    except (OSError, ValueError, ImportError) as error:
        raise ModelUnavailableError(_ways(preset.model, error)) from error
    return model.train()


def model_name(preset: Preset) -> str:
    """What records call the base model: its name on the hub, or the digest of a local folder.

    Example:
        >>> from lodrop_nn.reproduce.presets import preset
        >>> model_name(preset("rte"))
        'microsoft/deberta-v3-base'
    """
    folder = Path(preset.model).expanduser()
    if not folder.is_dir():
        return preset.model
    content = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        content.update(path.name.encode())
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return f"local:{content.hexdigest()[:16]}"


def count_matrix_weights(preset: Preset) -> int:
    """Weights of the linear maps that each token of a preset's base model passes.

    They are counted in an empty copy of the architecture. Embeddings are looked up, not multiplied;
    heads other than a language model's are passed once per row.

    Raises:
        ModelUnavailableError: If its configuration cannot be had.
    """
    try:
        config = AutoConfig.from_pretrained(preset.model)
    except (OSError, ValueError) as error:
        raise ModelUnavailableError(_ways(preset.model, error)) from error
    auto = AutoModelForCausalLM if preset.family == "mmlu" else AutoModel
    with torch.device("meta"):
        model: nn.Module = auto.from_config(config)
    return sum(
        parameter.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() == 2
    )


def _head(preset: Preset) -> dict[str, Any]:
    if preset.family != "glue":
        return {}
    width = n_outputs(preset.task)
    kind = "regression" if width == 1 else "single_label_classification"
    return {"num_labels": width, "problem_type": kind}


def _ways(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"`model` {name!r} must come from the hub (online, or with its cache; a sentencepiece "
        "tokenizer needs pip install sentencepiece protobuf), or from a local folder with "
        "config.json, safetensors weights and a tokenizer: `--model FOLDER`. transformers said: "
        f"{reason[0] if reason else type(error).__name__}"
    )
