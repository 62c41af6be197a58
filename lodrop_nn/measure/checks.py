"""Data that no measurement can be made of, refused by the row that is to blame."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_IGNORED = -100  # what collators put where there is no label


def check_labeled(batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse batches of which a row has no class.

    Args:
        batches: Dictionaries with ``labels`` (b,), whole numbers >= 0.

    Raises:
        ValueError: If a batch has no labels, or they are not whole numbers of one dimension, or
            one is negative (-100 marks a row without one).
    """
    for place, batch in enumerate(batches):
        labels = batch.get("labels")
        if labels is None:
            raise ValueError(
                f"`batches[{place}]` must have `labels` to be measured by, "
                f"got {sorted(batch)}: leave unlabeled rows out."
            )
        if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"`batches[{place}]['labels']` must be whole numbers of shape (b,), "
                f"got {labels.dtype} of shape {tuple(labels.shape)}."
            )
        if bool((labels < 0).any()):
            row = int((labels < 0).int().argmax())
            label = int(labels[row])
            why = " (a row without a label)" if label == _IGNORED else ""
            raise ValueError(
                f"`batches[{place}]['labels']` must be in [0, K), got {label}{why} in row {row}."
            )


def check_labels(labels: NDArray[np.integer], n_classes: int) -> None:
    """Refuse labels that name no class.

    Args:
        labels: Shape (n,), whole numbers in [0, n_classes).
        n_classes: K, >= 1.

    Raises:
        ValueError: If one is outside; the first such row is named.

    Example:
        >>> check_labels(np.array([0, 2, 3]), 3)
        Traceback (most recent call last):
        ...
        ValueError: `labels` must be whole numbers in [0, 3), got 3 in row 2.
    """
    if labels.dtype.kind not in "iu":
        raise ValueError(f"`labels` must be whole numbers in [0, {n_classes}), got {labels.dtype}.")
    outside = (labels < 0) | (labels >= n_classes)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"`labels` must be whole numbers in [0, {n_classes}), got {labels[row]} in row {row}."
        )


def check_finite(what: str, numbers: NDArray[np.float64], *, rows_axis: int) -> None:
    """Refuse numbers of which one is not finite.

    Args:
        what: What the model was to give, as in "logits with masks off".
        numbers: One entry per row along ``rows_axis``, in the original order of the rows.
        rows_axis: The axis of the rows.

    Raises:
        ValueError: If one is not finite; the first row with such a number is named.
    """
    by_row = np.moveaxis(numbers, rows_axis, 0)
    bad = ~np.asarray(np.isfinite(by_row).reshape(len(by_row), -1).all(1))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"`model` must give finite {what}, got others in {int(bad.sum())} of {len(bad)} rows, "
            f"the first of them row {row}."
        )
