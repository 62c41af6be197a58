"""Adapters for replicas: copies of one that differ in their masks."""

import copy
from collections.abc import Mapping

from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from lodrop_nn.adapter.attach import adapter_layers, attach_lora_dropout
from lodrop_nn.masks import MaskSettings


def add_replicas(
    model: PeftModel, masks: Mapping[str, MaskSettings | None], *, start: str = "default"
) -> None:
    """Add adapters to a model that start where one of its adapters is now.

    For replicas that are to differ in their masks, penalty or examples and not in their start.
    Any adapters that PEFT made may be replicas, also without this function.

    Args:
        model: Model with the adapter ``start``, whose factors and trained modules are copied.
        masks: Names of the new adapters, with the law of their masks; None for plain LoRA.
        start: Name of a plain LoRA adapter; its own masks, if any, are not copied.

    Raises:
        TypeError: If ``model`` is not a PeftModel.
        ValueError: If there is no adapter ``start``, a name is taken, or the adapter was made from
            another class of config than ``LoraConfig``.

    Example:
        >>> from peft import get_peft_model
        >>> from torch import nn
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), LoraConfig(target_modules=["0"]))
        >>> add_replicas(model, {f"p{p}": MaskSettings(p / 10, seed=0) for p in (1, 3, 5)})
        >>> sorted(model.peft_config)
        ['default', 'p1', 'p3', 'p5']
    """
    adapter_layers(model, start)
    config = model.peft_config[start]
    if type(config) is not LoraConfig:
        raise ValueError(
            f"`start` must be an adapter made from a LoraConfig, got {type(config).__name__}."
        )
    taken = [name for name in masks if name in model.peft_config]
    if taken:
        raise ValueError(f"`masks` must have new names of adapters, but the model has {taken}.")
    weights = get_peft_model_state_dict(model, adapter_name=start)
    for name, law in masks.items():
        model.add_adapter(name, copy.deepcopy(config))
        # A copy: PEFT 0.19 takes entries out of what it is given.
        set_peft_model_state_dict(model, dict(weights), adapter_name=name)
        if law is not None:
            attach_lora_dropout(model, adapter_name=name, **law.as_json())
