"""Batches of replicas, side by side."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad

from lodrop_nn.data.examples import Batch


def stack_batches(parts: Sequence[Batch], pad_token_id: int) -> tuple[Batch, Bool[Tensor, "K b"]]:
    """The batches of K replicas as one, slice after slice.

    Shorter rows are padded on the right; batches of fewer rows are filled up with copies of their
    first row.

    Args:
        parts: Batches of :func:`~lodrop_nn.data.examples.batches`, one for each replica.
        pad_token_id: What fills the end of shorter rows.

    Returns:
        The batch of K b rows, and which rows only fill up their slice.

    Raises:
        ValueError: If there is no batch, or one has no row.

    Example:
        >>> rows = [{"input_ids": torch.tensor([[5, 6]])}, {"input_ids": torch.tensor([[7], [8]])}]
        >>> batch, is_padding = stack_batches(rows, pad_token_id=0)
        >>> batch["input_ids"].tolist()
        [[5, 6], [5, 6], [7, 0], [8, 0]]
        >>> is_padding.tolist()
        [[False, True], [False, False]]
    """
    n_rows = [len(part["input_ids"]) for part in parts]
    if not parts or min(n_rows) == 0:
        raise ValueError(f"`parts` must be batches of one row or more, got rows {n_rows}.")
    most, width = max(n_rows), max(part["input_ids"].shape[1] for part in parts)
    stacked = {}
    for name in parts[0]:
        fill = pad_token_id if name == "input_ids" else 0
        rows = []
        for part, present in zip(parts, n_rows, strict=True):
            value = part[name]
            if value.dim() > 1:
                value = pad(value, (0, width - value.shape[1]), value=fill)
            missing = value[:1].expand(most - present, *value.shape[1:])
            rows.append(torch.cat([value, missing]))
        stacked[name] = torch.cat(rows)
    places = torch.arange(most, device=stacked["input_ids"].device)
    return stacked, places >= places.new_tensor(n_rows)[:, None]
