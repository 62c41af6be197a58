"""The test-time ensemble over masks, and the mean predictor beside it."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from lodrop_nn.adapter.attach import adapter_layers, mask_bank
from lodrop_nn.config import MaskLaw
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.predict.late_tiling import FrozenPrefix
from lodrop_nn.predict.memory import in_chunks, members_per_pass
from lodrop_nn.predict.prediction import EnsemblePrediction
from lodrop_nn.train.tiling import tile_batch

_NOT_INPUTS = frozenset({"labels", "index"})


@contextmanager
def ensemble_mode(
    model: PeftModel, n_masks: int, seed: int, adapter_name: str, mask_law: MaskLaw
) -> Iterator[MaskBank]:
    """Evaluation mode with the masks of a seeded ensemble fixed.

    Args:
        model: A model whose adapter has LoRA Dropout.
        n_masks: N >= 1, members of the ensemble.
        seed: Seed >= 0 of the members' masks.
        adapter_name: The adapter whose masks are meant.
        mask_law: How the members depend on each other.

    Yields:
        The adapter's masks.

    Raises:
        ValueError: If an argument is outside its range, or the adapter has no LoRA Dropout or
            would have no effect.
    """
    bank = mask_bank(model, adapter_name)
    check_in_use(model, adapter_name)
    with evaluation_mode(model), bank.fixed(n_masks, seed, mask_law):
        yield bank


def check_in_use(model: PeftModel, adapter_name: str) -> None:
    """Refuse a model whose forward pass would not show the masks of an adapter.

    Raises:
        ValueError: If the adapter is not active, or merged into the base weights.
    """
    if adapter_name not in model.active_adapters:
        raise ValueError(
            f"`adapter_name` must be an active adapter, one of {model.active_adapters}, got "
            f"{adapter_name!r}: call `model.set_adapter({adapter_name!r})` first."
        )
    if any(adapter_name in x.merged_adapters for x in adapter_layers(model, adapter_name).values()):
        raise ValueError(
            f"adapter {adapter_name!r} is merged into the base weights, where masks do not reach "
            "it: call `model.unmerge_adapter()` first."
        )


def ensemble_predict(
    model: PeftModel,
    batch: Mapping[str, Any],
    *,
    n_masks: int,
    seed: int,
    adapter_name: str = "default",
    mask_law: MaskLaw = "balanced",
    chunk: int | None = None,
) -> EnsemblePrediction:
    """Predict a batch with each member of a seeded ensemble over masks.

    Member i is the same adapter for every batch. Only the masks are random: the rest of the model
    is in evaluation mode, and the modes of all modules come back at the end. What lies below the
    first adapted block is computed once for all members
    (:class:`~lodrop_nn.predict.late_tiling.FrozenPrefix`).

    Args:
        model: A model whose adapter has LoRA Dropout; with p = 0 all members agree.
        batch: What the model reads, one row per example. ``labels`` and ``index`` are left out.
        n_masks: N >= 1, members of the ensemble.
        seed: Seed >= 0 of the members' masks.
        adapter_name: The adapter whose masks are meant; it must be active and not merged.
        mask_law: How the members depend on each other. Under ``"balanced"`` four of them came as
            close to the infinite ensemble as 13 to 20 under ``"iid"`` on trained adapters
            (``tests/benchmarks/records/mask_variance.json``).
        chunk: Members per forward pass, >= 1; None chooses by memory and cache, and takes one where
            the model has a layer that serves no more. Where they do not fit, fewer are taken. It
            changes memory and time, and the result within rounding.

    Returns:
        The members' logits and what follows from them.

    Raises:
        ValueError: If an argument is outside its range, the adapter has no LoRA Dropout or would
            have no effect, or the batch cannot be tiled. If ``chunk`` members are more than a layer
            can serve in one pass, :class:`~lodrop_nn.masks.layout.InstanceLayoutError`.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eq. (8), which averages outputs; here the averaged
        probabilities are the ensemble's prediction.
    """
    inputs = one_pass_inputs(model, batch)
    with torch.no_grad(), ensemble_mode(model, n_masks, seed, adapter_name, mask_law) as bank:
        prefix = FrozenPrefix.below_the_adapter(model, bank)
        logits = list(
            member_chunks(model, bank, prefix, inputs, n_masks=n_masks, chunk=chunk, read=_logits)
        )
    return EnsemblePrediction(torch.cat(logits))


def member_chunks(
    model: PeftModel,
    bank: MaskBank,
    prefix: FrozenPrefix,
    inputs: Mapping[str, Any],
    *,
    n_masks: int,
    chunk: int | None,
    read: Callable[[Any], Tensor],
) -> Iterator[Tensor]:
    """What the members of fixed masks return for a batch, some members at a time.

    Args:
        model: Adapted model, in evaluation mode.
        bank: The masks of its adapter, ``n_masks`` of which are fixed.
        prefix: What the members share.
        inputs: What the model reads, b rows.
        n_masks: N >= 1.
        chunk: Members per pass, >= 1; None chooses by memory and cache, and takes one where the
            model has a layer that serves no more.
        read: Makes a tensor with one row per row of the pass from the model's output.

    Yields:
        Tensors of shape (members, b, ...), in the order of the members.
    """

    def run(start: int, stop: int) -> Tensor:
        n_copies = stop - start
        with bank.members(start, stop), prefix.shared(n_copies, keep=n_copies < n_masks):
            output = read(model(**tile_batch(inputs, n_copies)))
        return output.unflatten(0, (n_copies, -1))

    if chunk is not None:
        yield from in_chunks(n_masks, chunk, run)
        return
    chosen = 1 if bank.one_mask_per_pass else members_per_pass(model, inputs, n_masks)
    yield from in_chunks(n_masks, chosen, run, keep_chunk=False)


def mean_predict(
    model: PeftModel, batch: Mapping[str, Any], *, adapter_name: str = "default"
) -> Float[Tensor, "b *tokens K"]:
    """Logits of the mean predictor: masks off, the update at its mean.

    Args:
        model: A model whose adapter has LoRA Dropout.
        batch: What the model reads. ``labels`` and ``index`` are left out.
        adapter_name: The adapter whose masks are meant.

    Returns:
        The model's logits; the modes of all modules come back at the end.

    Raises:
        ValueError: If the adapter has no LoRA Dropout or would have no effect.
    """
    bank = mask_bank(model, adapter_name)
    check_in_use(model, adapter_name)
    with torch.no_grad(), evaluation_mode(model), bank.off():
        return _logits(model(**one_pass_inputs(model, batch)))


def model_inputs(model: PeftModel, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that the model reads, on the device of its first parameter.

    Args:
        model: The model.
        batch: Its inputs, and perhaps ``labels`` and ``index``.
    """
    device = next(model.parameters()).device
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name not in _NOT_INPUTS
    }


def one_pass_inputs(model: PeftModel, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the model reads of a batch in a pass that no other continues: without a cache.

    Args:
        model: The model.
        batch: Its inputs, and perhaps ``labels`` and ``index``.
    """
    inputs = model_inputs(model, batch)
    if "use_cache" in inspect.signature(model.get_base_model().forward).parameters:
        inputs.setdefault("use_cache", False)
    return inputs


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits
