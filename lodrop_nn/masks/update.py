"""The low-rank update under masks."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear


def masked_update(
    x: Float[Tensor, "rows *tokens in_features"],
    lora_A: Float[Tensor, "rank in_features"],
    lora_B: Float[Tensor, "out_features rank"],
    column_factors: Float[Tensor, "n_masks in_features"],
    row_factors: Float[Tensor, "n_masks out_features"],
    scaling: float,
) -> Float[Tensor, "rows *tokens out_features"]:
    r"""Output of the masked update for each row of a batch.

    Rows come instance-major: the first ``rows / n_masks`` of them see mask 1, the next as many
    see mask 2, and so on. A row :math:`x` under the factors :math:`m_A, m_B` becomes

    .. math:: s \, \mathrm{diag}(m_B) B \, A \, \mathrm{diag}(m_A) \, x .

    The masks act on the factors, not on the activations: a mask is shared by all tokens of its
    instance, so ``rank * (in + out)`` numbers are masked and kept for the backward pass instead
    of ``rows * tokens * (in + out)``.

    Args:
        x: Inputs; the leading dimension is a multiple of ``n_masks``.
        lora_A: First factor A.
        lora_B: Second factor B.
        column_factors: What the columns of A are multiplied with, one row per instance: 0 where
            dropped, else 1 or 1 / (1 - p).
        row_factors: The same for the rows of B.
        scaling: s, PEFT's scaling of the update.

    Returns:
        The update's contribution to the layer's output.

    Raises:
        ValueError: If the leading dimension of ``x`` is not a multiple of ``n_masks``.
        RuntimeError: If only a shard of a factor is at hand.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eqs. (2) and (3).

    Example:
        Dropping the only output drops everything, dropping an input drops its share:

        >>> x, ones = torch.ones(2, 2), torch.ones(1, 1)
        >>> columns = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> rows = torch.tensor([[1.0], [0.0]])
        >>> masked_update(x, torch.ones(1, 2), ones, columns, rows, 3.0).flatten().tolist()
        [3.0, 0.0]
    """
    _check_whole(lora_A, lora_B)
    n_masks = column_factors.shape[0]
    # The factors may be of higher precision than the weights (bf16 cannot hold 1 / 0.7).
    if n_masks == 1:
        masked_A = (lora_A * column_factors).to(lora_A.dtype)
        masked_B = (lora_B * (row_factors.T * scaling)).to(lora_B.dtype)
        return linear(linear(x, masked_A), masked_B)
    check_instances(x, n_masks)
    # An empty batch has no inferable dimension, so the size of a group is spelled out.
    group = x.shape[:-1].numel() // n_masks
    grouped = x.reshape(n_masks, group, x.shape[-1])
    A_per_mask = (lora_A * column_factors[:, None, :]).to(lora_A.dtype)
    B_per_mask = (lora_B * (row_factors[:, :, None] * scaling)).to(lora_B.dtype)
    update = torch.bmm(torch.bmm(grouped, A_per_mask.mT), B_per_mask.mT)
    return update.reshape(*x.shape[:-1], lora_B.shape[0])


def _check_whole(lora_A: Tensor, lora_B: Tensor) -> None:
    # FSDP1 and ZeRO-3 leave flat or empty shards outside of the modules that they wrap, FSDP2
    # distributed tensors, which alone have `full_tensor`.
    if lora_A.dim() != 2 or lora_B.dim() != 2 or hasattr(lora_A, "full_tensor"):
        raise RuntimeError(
            "lora_A and lora_B are read outside of their modules, where only a shard of them is "
            f"at hand (shapes {tuple(lora_A.shape)} and {tuple(lora_B.shape)}): apply "
            "`fully_shard` (FSDP2) to whole transformer layers, not to the factors alone; FSDP1 "
            "by PEFT's wrapping policy and ZeRO-3 are not supported."
        )


def check_instances(x: Tensor, n_masks: int) -> None:
    """Refuse inputs whose leading dimension cannot be dealt out to the masks of a pass.

    Raises:
        ValueError: Naming the shape and the ways out.
    """
    if x.dim() < 2 or x.shape[0] % n_masks:
        raise ValueError(
            f"the leading dimension of `x` must be a multiple of the {n_masks} masks of this pass, "
            f"got shape {tuple(x.shape)}: tile the batch (lodrop_nn.train.tiling.tile_batch) or "
            "use n_masks=1. An input that all rows share, as DeBERTa's relative positions, can "
            "have one mask per pass: train with `backward_over_masks`, predict with `chunk=1`."
        )
