"""Instances of a batch: the same examples once per mask."""

from collections.abc import Mapping
from numbers import Number
from typing import Any

from torch import Tensor

from lodrop_nn.masks.hooks import is_packed
from lodrop_nn.masks.settings import check_count


def tile_batch(batch: Mapping[str, Any], n_masks: int) -> dict[str, Any]:
    """A batch that holds its examples ``n_masks`` times, instance after instance.

    Row ``k * b + i`` of the result is row ``i`` of the batch of ``b`` examples, for the k-th mask.
    A mean loss over the result is the mean over masks of the mean over examples.

    Args:
        batch: Tensors with one row per example; numbers, text, None and tensors without
            dimensions belong to the batch as a whole and are passed on.
        n_masks: Number of instances, >= 1.

    Returns:
        A new dictionary.

    Raises:
        ValueError: If ``n_masks`` is outside its range, or the batch is packed or tensors differ
            in their leading dimension: without a row per example instances cannot be told apart.
        TypeError: If a value is of a kind whose rows are not known.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eq. (7): the loss averaged over N masks.

    Example:
        >>> import torch
        >>> tile_batch({"x": torch.tensor([1, 2]), "flag": True}, 2)
        {'x': tensor([1, 2, 1, 2]), 'flag': True}
    """
    check_count("n_masks", n_masks)
    check_tileable(batch)
    return {
        name: value.repeat(n_masks, *[1] * (value.dim() - 1)) if _has_rows(value) else value
        for name, value in batch.items()
    }


def check_tileable(batch: Mapping[str, Any]) -> None:
    """Refuse a batch that does not hold one row per example in every tensor.

    Args:
        batch: What :func:`tile_batch` is to tile.

    Raises:
        ValueError: If the batch is packed or tensors differ in their leading dimension.
        TypeError: If a value is of a kind whose rows are not known.
    """
    rows = {name: value.shape[0] for name, value in batch.items() if _has_rows(value)}
    if len(set(rows.values())) > 1 or is_packed(batch):
        raise ValueError(
            "`batch` must hold one row per example in every tensor, got leading dimensions "
            f"{rows}: packed or variable-length inputs cannot be tiled; pass the masks one after "
            "the other (`mask_passes='micro'`) or use n_masks=1."
        )
    for name, value in batch.items():
        if not (value is None or isinstance(value, Tensor | Number | str)):
            raise TypeError(
                f"`batch[{name!r}]` must be a tensor, a number, text or None, got "
                f"{type(value).__name__}."
            )


def _has_rows(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
