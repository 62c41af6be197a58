"""Predictions of a trained model on a task: masks off, and the ensemble over masks."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from lodrop_nn.adapter.attach import mask_bank
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.predict.ensemble import ensemble_mode, member_chunks
from lodrop_nn.predict.late_tiling import FrozenPrefix
from lodrop_nn.reproduce.task import EvaluationSplit, PreparedTask

ADAPTER = "default"


def scores_of(
    model: nn.Module,
    task: PreparedTask,
    *,
    n_masks: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, float]:
    """The scores of one predictor on all splits of a task.

    Args:
        model: Trained model, PEFT's or not.
        task: The task.
        n_masks: Members of the ensemble over masks, drawn independently as in the paper; None for
            the model as it is, which under LoRA Dropout is the mean predictor, masks off.
        seed: Seed >= 0 of the members.
        batch_size: Rows per batch, >= 1.

    Returns:
        Scores by name.
    """
    scores: dict[str, float] = {}
    for split in task.splits:
        scores |= split.score(_outputs(model, task, split, n_masks, seed, batch_size))
    return scores


def _outputs(
    model: nn.Module,
    task: PreparedTask,
    split: EvaluationSplit,
    n_masks: int | None,
    seed: int,
    batch_size: int,
) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """The averaged output for each feature of a split, in their order."""
    lengths = [len(each["input_ids"]) for each in split.features]
    order = np.argsort(lengths, kind="stable")  # rows of like length together: less padding
    found: dict[int, np.ndarray[Any, np.dtype[np.float64]]] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = task.collate_evaluation([split.features[i] for i in chosen])
        members = _members(model, task, batch, n_masks, seed)
        for i, row in zip(chosen, task.average(members).cpu().numpy(), strict=True):
            found[int(i)] = row
    return [found[i] for i in sorted(found)]


def _members(
    model: nn.Module, task: PreparedTask, batch: Mapping[str, Any], n_masks: int | None, seed: int
) -> Float[Tensor, "n_masks b *output"]:
    device = next(model.parameters()).device
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    if n_masks is None:
        masks_off = mask_bank(model).off() if _is_masked(model) else contextlib.nullcontext()
        with torch.no_grad(), evaluation_mode(model), masks_off:
            return task.read(model(**inputs))[None]
    with torch.no_grad(), ensemble_mode(model, n_masks, seed, ADAPTER, "iid") as bank:
        prefix = FrozenPrefix.below_the_adapter(model, bank)
        chunks = member_chunks(
            model, bank, prefix, inputs, n_masks=n_masks, chunk=None, read=task.read
        )
        return torch.cat(list(chunks))


def _is_masked(model: nn.Module) -> bool:
    if not isinstance(model, PeftModel):
        return False
    try:
        mask_bank(model)
    except ValueError:
        return False
    return True
