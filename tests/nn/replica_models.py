"""Tiny classifiers with several adapters, and the training of one alone, written down plainly."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.data.examples import Examples
from lodrop_nn.train.replica_settings import ReplicaSettings
from lodrop_nn.train.tiling import tile_batch
from tests.nn import classifiers

N_EXAMPLES = 10
Masks = Mapping[str, Any] | None  # arguments of attach_lora_dropout


def base_model(kind: str) -> nn.Module:
    """The same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return classifiers._base(kind)


def adapter_config(kind: str, **options: Any) -> LoraConfig:
    fields: dict[str, Any] = {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": classifiers.TARGETS[kind],
        "layers_to_transform": [1, 2],
        "layers_pattern": classifiers.BLOCK_LISTS[kind],
        "task_type": "SEQ_CLS",
        "init_lora_weights": False,
    }
    return LoraConfig(**{**fields, **options})


def adapted(
    kind: str,
    masks: Mapping[str, Masks],
    *,
    configs: Mapping[str, LoraConfig] | None = None,
    dtype: torch.dtype = torch.float64,
) -> PeftModel:
    """One random adapter per name, heads included, with LoRA Dropout where asked for."""
    base, model = base_model(kind), None
    for name in masks:
        config = (configs or {}).get(name) or adapter_config(kind)
        if model is None:
            model = get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    assert model is not None
    model = model.to(dtype)
    stream = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            with torch.no_grad():
                fresh = torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
                parameter.copy_(0.4 * fresh)
    put_masks_on(model, masks)
    return model


def put_masks_on(model: PeftModel, masks: Mapping[str, Masks]) -> None:
    for name, arguments in masks.items():
        if arguments is not None:
            attach_lora_dropout(model, adapter_name=name, **arguments)


def weights_of(model: PeftModel, name: str) -> dict[str, Tensor]:
    """What plain PEFT would save of an adapter."""
    state = get_peft_model_state_dict(model, adapter_name=name)
    return {key: value.detach().clone() for key, value in state.items()}


def alone(kind: str, model: PeftModel, name: str, masks: Masks) -> PeftModel:
    """A model of its own with a copy of one adapter."""
    dtype = next(model.parameters()).dtype
    config = model.peft_config[name]
    single = get_peft_model(base_model(kind), config, adapter_name=name).to(dtype)
    set_peft_model_state_dict(single, weights_of(model, name), adapter_name=name)
    put_masks_on(single, {name: masks})
    return single


def train_alone(
    model: PeftModel,
    name: str,
    settings: ReplicaSettings,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    n_masks: int = 1,
    rates: Sequence[float] | None = None,
    skip: int | None = None,
) -> dict[str, Tensor]:
    """An ordinary loop over one adapter, with the penalty of the full update.

    ``rates`` multiply the learning rate step by step; a batch of example ``skip`` alone is passed
    over.
    """
    for key, parameter in model.named_parameters():
        if "lora_A" in key and not settings.train_A:
            parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    model.train()
    for step, batch in enumerate(batches):
        if batch["index"].tolist() == [skip]:
            continue
        if rates is not None:
            optimizer.param_groups[0]["lr"] = settings.learning_rate * rates[step]
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels", "index")}
        inputs = tile_batch(inputs, n_masks)
        labels, index = inputs.pop("labels"), inputs.pop("index")
        logits = model(**inputs).logits
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        if settings.example_weights is not None:
            losses = losses * torch.tensor(settings.example_weights).to(losses)[index]
        objective = losses.mean() + settings.penalty * penalized(model, name, settings.penalized)
        optimizer.zero_grad()
        objective.backward()
        if settings.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
    model.eval()
    return weights_of(model, name)


def penalized(model: PeftModel, name: str, of: str) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for module in model.modules():
        if hasattr(module, "lora_A") and name in module.lora_A:
            lora_A, lora_B = module.lora_A[name].weight, module.lora_B[name].weight
            if of == "update":
                total = total + (module.scaling[name] * lora_B @ lora_A).square().sum()
            else:
                total = total + lora_A.square().sum() + lora_B.square().sum()
    return total


def some_examples(n: int = N_EXAMPLES) -> Examples:
    """Rows of 2 to 6 tokens in no order of length."""
    rows = tuple((3, *(4 + (row + k) % 9 for k in range(1 + 2 * row % 5))) for row in range(n))
    return Examples(input_ids=rows, labels=tuple(row % 3 for row in range(n)), pad_token_id=0)
