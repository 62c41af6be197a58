"""References computed without the library's masked updates."""

import copy

import torch
from peft import PeftModel
from peft.tuners.lora import Embedding
from torch import Tensor, nn

from lodrop_nn.adapter import detach_lora_dropout
from lodrop_nn.masks import MaskBank

CLOSE = {"rtol": 1e-3, "atol": 1e-5}


def masked_by_hand(
    model: PeftModel, bank: MaskBank, masks: Tensor, adapter_name: str = "default"
) -> PeftModel:
    """The model as ordinary LoRA whose stored factors are multiplied by one mask each."""
    model = copy.deepcopy(model)
    detach_lora_dropout(model, adapter_name)
    for slot, spec in enumerate(bank.layers):
        columns, rows = (part[0].float() for part in bank.split(masks[None], slot))
        if bank.rescale:
            columns, rows = columns / (1 - spec.input_rate), rows / (1 - spec.output_rate)
        layer = model.get_submodule(spec.name)
        if isinstance(layer, Embedding):
            lora_A, lora_B = layer.lora_embedding_A[adapter_name], layer.lora_embedding_B
            lora_A.data *= columns
            lora_B[adapter_name].data *= rows[:, None]
            continue
        lora_A, lora_B = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        positions = [1] * (lora_A.dim() - 2)
        lora_A.data *= columns.reshape(1, -1, *positions)
        lora_B.data *= rows.reshape(-1, 1, *positions)
    return model


def assert_members_are_masked_by_hand(
    model: nn.Module,
    bank: MaskBank,
    batch: dict[str, Tensor],
    n_masks: int,
    seed: int,
    adapter_name: str = "default",
    *,
    in_one_pass: bool = True,
    **tolerance: float,
) -> None:
    """Run the members of an ensemble in one pass or one by one, and each as ordinary LoRA."""
    tiled = {k: v.repeat(n_masks, *[1] * (v.dim() - 1)) for k, v in batch.items()}
    with bank.fixed(n_masks, seed):
        if in_one_pass:
            members = output_of(model(**tiled)).unflatten(0, (n_masks, -1))
        else:
            members = torch.stack([_member(model, bank, batch, i) for i in range(n_masks)])
    for member, masks in zip(members, bank.draw(n_masks, seed), strict=True):
        reference = output_of(masked_by_hand(model, bank, masks, adapter_name)(**batch))
        torch.testing.assert_close(member, reference, **{**CLOSE, **tolerance})


def _member(model: nn.Module, bank: MaskBank, batch: dict[str, Tensor], index: int) -> Tensor:
    with bank.members(index, index + 1):
        return output_of(model(**batch))


def output_of(result: object) -> Tensor:
    """The output of a model, bare or in the wrapping of transformers."""
    return result if isinstance(result, Tensor) else result.logits
