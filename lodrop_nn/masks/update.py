"""The low-rank update under masks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import linear


def masked_update(
    x: Float[Tensor, "rows *tokens in_features"],
    lora_A: Float[Tensor, "rank in_features"],
    lora_B: Float[Tensor, "out_features rank"],
    column_masks: Bool[Tensor, "n_masks in_features"],
    row_masks: Bool[Tensor, "n_masks out_features"],
    scale: float,
) -> Float[Tensor, "rows *tokens out_features"]:
    r"""Output of the masked update for each row of a batch.

    Rows come instance-major: the first ``rows / n_masks`` of them see mask 1, the next as many
    see mask 2, and so on. A row :math:`x` under masks :math:`m_A, m_B` becomes

    .. math:: s \, \mathrm{diag}(m_B) B \, A \, \mathrm{diag}(m_A) \, x .

    The masks act on the factors, not on the activations: a mask is shared by all tokens of its
    instance, so ``rank * (in + out)`` numbers are masked and kept for the backward pass instead
    of ``rows * tokens * (in + out)``.

    Args:
        x: Inputs; the leading dimension is a multiple of ``n_masks``.
        lora_A: First factor A.
        lora_B: Second factor B.
        column_masks: True where a column of A is kept, one row per instance.
        row_masks: True where a row of B is kept, one row per instance.
        scale: s, the factor of the update (PEFT's scaling times any rescaling of the masks).

    Returns:
        The update's contribution to the layer's output.

    Raises:
        ValueError: If the leading dimension of ``x`` is not a multiple of ``n_masks``.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eqs. (2) and (3).

    Example:
        Dropping the only output drops everything, dropping an input drops its share:

        >>> x, ones = torch.ones(2, 2), torch.ones(1, 1)
        >>> columns = torch.tensor([[True, False], [True, True]])
        >>> rows = torch.tensor([[True], [False]])
        >>> masked_update(x, torch.ones(1, 2), ones, columns, rows, 3.0).flatten().tolist()
        [3.0, 0.0]
    """
    n_masks = column_masks.shape[0]
    if n_masks == 1:
        return linear(linear(x, lora_A * column_masks), lora_B * row_masks.T * scale)
    if x.dim() < 2 or x.shape[0] % n_masks:
        raise ValueError(
            f"the leading dimension of `x` must be a multiple of the {n_masks} masks of this pass, "
            f"got shape {tuple(x.shape)}: tile the batch (lodrop_nn.train.tiling.tile_batch) or "
            "use n_masks=1."
        )
    # An empty batch has no inferable dimension, so the size of a group is spelled out.
    group = x.shape[:-1].numel() // n_masks
    grouped = x.reshape(n_masks, group, x.shape[-1])
    A_per_mask = lora_A * column_masks[:, None, :]
    B_per_mask = lora_B * row_masks[:, :, None] * scale
    update = torch.bmm(torch.bmm(grouped, A_per_mask.mT), B_per_mask.mT)
    return update.reshape(*x.shape[:-1], lora_B.shape[0])
