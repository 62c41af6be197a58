"""The low-rank update of an embedding under masks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from lodrop_nn.masks.update import check_instances


def masked_embedding(
    ids: Int[Tensor, "*shape"],
    looked_up: Float[Tensor, "*shape rank"],
    lora_B: Float[Tensor, "out_features rank"],
    column_factors: Float[Tensor, "n_masks n_entries"],
    row_factors: Float[Tensor, "n_masks out_features"],
    scaling: float,
) -> Float[Tensor, "*shape out_features"]:
    """Output of the masked update of an embedding.

    The columns of A are vocabulary entries: a dropped entry loses its update at every place where
    it occurs. Factors are looked up beside the columns of A, so that the cost grows with the
    number of tokens and not with the vocabulary.

    Args:
        ids: Vocabulary entries. With several masks, the leading dimension holds their instances,
            one after the other.
        looked_up: The columns of A at these entries.
        lora_B: Second factor B.
        column_factors: What the columns of A are multiplied with, one row per instance: 0 where
            dropped, else 1 or 1 / (1 - p).
        row_factors: The same for the rows of B.
        scaling: s, PEFT's scaling of the update.

    Returns:
        The update's contribution to the layer's output.

    Raises:
        ValueError: If the leading dimension of ``ids`` is not a multiple of ``n_masks``, as with
            positions that all rows share.

    Example:
        >>> ids, A = torch.tensor([[0, 1]]), torch.ones(1, 2)
        >>> factors = torch.tensor([[1.0, 0.0]]), torch.ones(1, 1)
        >>> masked_embedding(ids, A.T[ids], torch.ones(1, 1), *factors, 3.0).flatten().tolist()
        [3.0, 0.0]
    """
    n_masks = column_factors.shape[0]
    if n_masks == 1:
        kept = (looked_up * column_factors[0][ids].unsqueeze(-1)).to(looked_up.dtype)
        return linear(kept, (lora_B * (row_factors.T * scaling)).to(lora_B.dtype))
    check_instances(ids, n_masks)
    group = ids.numel() // n_masks
    factors = column_factors.gather(1, ids.reshape(n_masks, group)).unsqueeze(-1)
    kept = (looked_up.reshape(n_masks, group, -1) * factors).to(looked_up.dtype)
    B_per_mask = (lora_B * (row_factors[:, :, None] * scaling)).to(lora_B.dtype)
    return torch.bmm(kept, B_per_mask.mT).reshape(*ids.shape, lora_B.shape[0])
