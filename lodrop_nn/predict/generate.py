"""Continuations of a prompt: one that the members agree on, or one of each member."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import log
from typing import Any

import torch
from jaxtyping import Int
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from lodrop_nn.config import MaskLaw
from lodrop_nn.masks.settings import check_seed
from lodrop_nn.predict.ensemble import ensemble_mode, model_inputs
from lodrop_nn.predict.late_tiling import FrozenPrefix
from lodrop_nn.train.tiling import tile_batch


def ensemble_generate(
    model: PeftModel,
    batch: Mapping[str, Any],
    *,
    n_masks: int,
    seed: int,
    adapter_name: str = "default",
    mask_law: MaskLaw = "balanced",
    sampling_seed: int | None = None,
    **generate_kwargs: Any,
) -> Int[Tensor, "b length"]:
    """One continuation of each prompt, whose next token always is the ensemble's.

    At every step the members' probabilities of the next token are averaged, a token is chosen from
    the average (the most probable, or a sample after the usual processors and warpers), and all
    members read it. Each member has its masks and its key-value cache for the whole continuation;
    blocks below the first adapted one are computed, and cached, once for all members.

    Args:
        model: A language model whose adapter has LoRA Dropout.
        batch: Prompts as the model reads them, one row each, padded on the left where the model is
            decoder-only. ``labels`` and ``index`` are left out.
        n_masks: N >= 1, members of the ensemble.
        seed: Seed >= 0 of the members' masks.
        adapter_name: The adapter whose masks are meant; it must be active and not merged.
        mask_law: How the members depend on each other.
        sampling_seed: Seed >= 0 of the sampled tokens, which leaves torch's global generators as
            they were; None samples from those, as ``generate`` does.
        **generate_kwargs: What ``model.generate`` takes: ``max_new_tokens``, ``do_sample``, ...

    Returns:
        What ``model.generate`` returns for the b prompts: by default the token ids, of a
        decoder-only model with the prompt before them.

    Raises:
        ValueError: If an argument is outside its range, the adapter has no LoRA Dropout or would
            have no effect, prompts are padded on the right, or the options ask for something else
            than greedy search or sampling (beams of an ensemble are not supported).
    """
    _check_one_continuation(model, generate_kwargs)
    inputs = _prompts(model, batch)
    with ExitStack() as stack:
        bank = stack.enter_context(ensemble_mode(model, n_masks, seed, adapter_name, mask_law))
        prefix = FrozenPrefix.below_the_adapter(model, bank)
        stack.enter_context(prefix.shared(n_masks, keep=False))
        stack.enter_context(_as_one_model(model.get_base_model(), n_masks))
        stack.enter_context(_sampling(model, sampling_seed))
        sequences: Tensor = model.generate(**inputs, **generate_kwargs)
    return sequences


def member_generate(
    model: PeftModel,
    batch: Mapping[str, Any],
    *,
    n_masks: int,
    seed: int,
    adapter_name: str = "default",
    mask_law: MaskLaw = "balanced",
    sampling_seed: int | None = None,
    **generate_kwargs: Any,
) -> Int[Tensor, "n_masks rows length"]:
    """A continuation of each prompt by each member, all in one call of ``generate``.

    Args:
        model: A language model whose adapter has LoRA Dropout.
        batch: Prompts as the model reads them, one row each, padded on the left where the model is
            decoder-only. ``labels`` and ``index`` are left out.
        n_masks: N >= 1, members of the ensemble.
        seed: Seed >= 0 of the members' masks.
        adapter_name: The adapter whose masks are meant; it must be active and not merged.
        mask_law: How the members depend on each other.
        sampling_seed: Seed >= 0 of the sampled tokens, which leaves torch's global generators as
            they were; None samples from those, as ``generate`` does.
        **generate_kwargs: What ``model.generate`` takes, beam search included.

    Returns:
        Token ids as ``model.generate`` returns them, member by member: b rows each, times
        ``num_return_sequences``, padded to a common length.

    Raises:
        ValueError: If an argument is outside its range, the adapter has no LoRA Dropout or would
            have no effect, or prompts are padded on the right.
    """
    inputs = _prompts(model, batch)
    with (
        ensemble_mode(model, n_masks, seed, adapter_name, mask_law),
        _sampling(model, sampling_seed),
    ):
        output = model.generate(**tile_batch(inputs, n_masks), **generate_kwargs)
    sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
    return sequences.unflatten(0, (n_masks, -1))


def _prompts(model: PeftModel, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the model reads of a batch.

    Raises:
        ValueError: If a decoder-only model would continue padding.
    """
    inputs = model_inputs(model, batch)
    mask = inputs.get("attention_mask")
    is_decoder_only = not model.get_base_model().config.is_encoder_decoder
    if is_decoder_only and isinstance(mask, Tensor) and not bool(mask[:, -1].all()):
        raise ValueError(
            "`batch` must be padded on the left for a decoder-only model, got an `attention_mask` "
            "that ends in 0: set `tokenizer.padding_side = 'left'`."
        )
    return inputs


def _check_one_continuation(model: PeftModel, options: Mapping[str, Any]) -> None:
    """Refuse what keeps several continuations of a prompt, or drafts of one, at a time.

    Raises:
        ValueError: Naming the way out.
    """
    chosen = options.get("generation_config")
    config = copy.deepcopy(model.get_base_model().generation_config if chosen is None else chosen)
    config.update(**{name: x for name, x in options.items() if name != "generation_config"})
    mode = config.get_generation_mode(options.get("assistant_model"))
    if mode not in ("greedy_search", "sample"):
        raise ValueError(
            "`generate_kwargs` must ask for greedy search or sampling, the decoding of one "
            f"continuation per prompt, got {mode.value!r}: use num_beams=1, or `member_generate` "
            "for the beams of each member."
        )


@contextmanager
def _as_one_model(base: Any, n_masks: int) -> Iterator[None]:
    """Let a model answer each call for b rows with the averaged prediction of N members."""
    handles: list[RemovableHandle] = []

    def tile(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _tiled((args, kwargs), n_masks)

    def average(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        # Log-probabilities are logits, too: processors and warpers then act on the average.
        members = output.logits.float().log_softmax(-1).unflatten(0, (n_masks, -1))
        output.logits = members.logsumexp(0) - log(n_masks)
        return output

    try:
        handles.append(base.register_forward_pre_hook(tile, with_kwargs=True))
        handles.append(base.register_forward_hook(average))
        if base.config.is_encoder_decoder:  # `generate` calls the encoder by itself
            handles.append(base.get_encoder().register_forward_pre_hook(tile, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tiled(inputs: tuple[Any, dict[str, Any]], n_masks: int) -> Any:
    """The arguments of a call with each row once per member, instance after instance."""
    args, kwargs = inputs
    first = next(
        value
        for value in (
            *(kwargs.get(name) for name in ("decoder_input_ids", "input_ids", "inputs_embeds")),
            *args,
            *kwargs.values(),
        )
        if isinstance(value, Tensor)
    )

    def repeat(value: Tensor) -> Tensor:
        # Vectors number tokens, not rows; what an encoder returned has N copies already.
        if value.dim() < 2 or value.shape[0] != first.shape[0]:
            return value
        return value.repeat(n_masks, *[1] * (value.dim() - 1))

    # A cache holds the rows of all members as they were computed.
    tiled = {
        name: value if name == "past_key_values" else tree_map_only(Tensor, repeat, value)
        for name, value in kwargs.items()
    }
    return tree_map_only(Tensor, repeat, args), tiled


@contextmanager
def _sampling(model: nn.Module, seed: int | None) -> Iterator[None]:
    """A stream of sampled tokens that a seed determines; the global generators come back."""
    if seed is None:
        yield
        return
    check_seed("sampling_seed", seed)
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not torch.manual_seed: that would also reseed other accelerators.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
