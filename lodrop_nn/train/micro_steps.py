"""N masks per training step: in one tiled pass, or one after the other at constant memory."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.layout import InstanceLayoutError
from lodrop_nn.train.tiling import check_tileable, tile_batch

MaskPasses = Literal["tiled", "micro", "auto"]

# Below so many tokens a pass is bound by reading the weights, which a tiled one reads once for all
# masks; above, by arithmetic, of which N masks need N times as much either way. It is the ratio of
# arithmetic to memory bandwidth of an H100 in bf16 (989e12 / 3.35e12 = 295 FLOP per byte).
TOKENS_WORTH_TILING = 300


def check_mask_passes(value: object) -> None:
    """Refuse what is no way of passing N masks.

    Raises:
        ValueError: Naming the argument.
    """
    if value not in get_args(MaskPasses):
        raise ValueError(f"`mask_passes` must be 'tiled', 'micro' or 'auto', got {value!r}.")


def choose_passes(
    batch: Mapping[str, Any], n_masks: int, mask_passes: MaskPasses = "auto"
) -> Literal["tiled", "micro"]:
    """How N masks pass over a batch.

    Both ways have the same gradient. ``"auto"`` tiles a batch of fewer than 300 tokens, padding
    included, where a larger pass costs little more time than a small one, and takes micro-steps
    for longer ones, for packed ones and for those whose tokens it cannot count. The 300 are
    derived for an H100; other processors have their own.

    Args:
        batch: The batch, not tiled.
        n_masks: N >= 1.
        mask_passes: ``"tiled"`` and ``"micro"`` decide themselves.

    Returns:
        ``"tiled"`` or ``"micro"``; one mask needs neither, and gets ``"tiled"``.

    Raises:
        ValueError: If ``mask_passes`` is none of the three.

    Example:
        >>> import torch
        >>> [choose_passes({"input_ids": torch.ones(4, n)}, 8) for n in (64, 128)]
        ['tiled', 'micro']
    """
    check_mask_passes(mask_passes)
    if mask_passes != "auto":
        return mask_passes
    if n_masks == 1:
        return "tiled"
    n_tokens = _n_tokens(batch)
    if n_tokens is None or n_tokens >= TOKENS_WORTH_TILING:
        return "micro"
    try:
        check_tileable(batch)
    except (TypeError, ValueError):
        return "micro"
    return "tiled"


def backward_over_masks(
    bank: MaskBank,
    risk: Callable[[dict[str, Any]], Float[Tensor, ""]],
    batch: Mapping[str, Any],
    *,
    mask_passes: MaskPasses = "auto",
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> Float[Tensor, ""]:
    r"""Accumulate the gradient of the mean of a risk over the N masks of a training step.

    .. math:: \nabla \frac{1}{N} \sum_{k=1}^{N} \hat R(\theta \odot m_k)

    Tiled, the N masks go through one pass over N instances of the batch; in micro-steps each goes
    through a forward and a backward pass of its own, which needs the memory of one mask. The masks
    are the same either way, and so is the gradient up to rounding.

    Args:
        bank: Masks of the adapter in training; they say what N is.
        risk: Mean loss of the batch that it is given, differentiable.
        batch: One row per example, not tiled.
        mask_passes: ``"tiled"``, ``"micro"``, or ``"auto"`` to choose by the size of the batch
            (see :func:`choose_passes`) and take micro-steps, from the first batch that shows it, in
            a model with a layer that serves one mask per pass.
        backward: Called with each loss; ``accelerator.backward`` under accelerate. Gradients of
            distributed training are right if each call averages over the ranks; it saves time to
            let all but the last skip that (``model.no_sync()``).

    Returns:
        The mean of the risk over the masks, detached.

    Raises:
        ValueError: If ``mask_passes`` is none of the three, or a batch that cannot be tiled is to
            be.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eq. (7).

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from torch import nn, ones
        >>> from lodrop_nn.adapter import attach_lora_dropout
        >>> base = nn.Sequential(nn.Linear(4, 3))
        >>> model = get_peft_model(base, LoraConfig(target_modules=["0"]))
        >>> bank = attach_lora_dropout(model, 0.5, n_masks=8, seed=0)
        >>> batch = {"x": ones(2, 4)}
        >>> risk = backward_over_masks(bank, lambda rows: model(rows["x"]).mean(), batch)
        >>> risk.requires_grad, bank.passes.n_drawn
        (False, 1)
    """
    if choose_passes(batch, bank.n_masks, ways_left(bank, mask_passes)) == "tiled":
        tiled = tile_batch(batch, bank.n_masks) if bank.n_masks > 1 else dict(batch)
        mean = tiled_unless_refused(bank, lambda: risk(tiled), mask_passes)
        if mean is not None:
            backward(mean)
            return mean.detach()
    shares = []
    for index in range(bank.n_masks):
        with bank.micro_pass(index):
            share = risk(dict(batch)) / bank.n_masks
            backward(share)
        shares.append(share.detach())
    return sum(shares[1:], shares[0])


def ways_left(bank: MaskBank, mask_passes: MaskPasses) -> MaskPasses:
    """How masks may pass: ``"auto"`` has no choice where a layer serves one mask per pass.

    Args:
        bank: Masks of the adapter in training.
        mask_passes: What was asked for.
    """
    return "micro" if mask_passes == "auto" and bank.one_mask_per_pass else mask_passes


def tiled_unless_refused(
    bank: MaskBank, run: Callable[[], Tensor], mask_passes: MaskPasses
) -> Tensor | None:
    """What a tiled pass returns, or None if micro-steps, with the same masks, must replace it.

    Args:
        bank: Masks of the adapter in training.
        run: Makes the pass; errors come before its backward pass, if it has one.
        mask_passes: Only ``"auto"`` lets micro-steps replace it.

    Raises:
        InstanceLayoutError: If a layer serves one mask per pass, and the pass is to be tiled.
    """
    if mask_passes != "auto" or bank.n_masks == 1:
        return run()
    try:
        with bank.passes.rewound_on(InstanceLayoutError):
            return run()
    except InstanceLayoutError:
        return None


def _n_tokens(batch: Mapping[str, Any]) -> int | None:
    for name in ("input_ids", "inputs_embeds"):
        value = batch.get(name)
        if isinstance(value, Tensor) and value.dim() >= 2:
            return value.shape[:2].numel()
    return None
