"""Rows of a trainer's data sets, collated as the trainer does, for measurements beside it."""

import hashlib
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader

from lodrop_nn.masks.hooks import is_packed
from lodrop_nn.measure.checks import check_labeled
from lodrop_nn.measure.evaluation import Batch
from lodrop_nn.train.measured_state import undisturbed

Task = Literal["classifier", "language"]
_IGNORED = -100


@dataclass(frozen=True, eq=False)
class MeasuredRows:
    """A random sample of a data set, in random order.

    Attributes:
        batches: Tensors with one row per example, on the CPU.
        n_rows: Rows in them.
        n_all: Rows of the data set.
        n_unlabeled: Rows of the sample that were left out: no token of theirs has a label.
    """

    batches: tuple[Batch, ...]
    n_rows: int
    n_all: int
    n_unlabeled: int = 0

    @property
    def is_sample(self) -> bool:
        """Whether rows of the data set were not drawn."""
        return self.n_rows + self.n_unlabeled < self.n_all

    def to(self, device: torch.device) -> list[Batch]:
        """The batches on a device."""
        return [{name: t.to(device) for name, t in batch.items()} for batch in self.batches]

    def sha256(self) -> str:
        """SHA-256 of all tensors, as 64 hexadecimal digits."""
        whole = hashlib.sha256()
        for batch in self.batches:
            for name in sorted(batch):
                tensor = batch[name].contiguous()
                whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                whole.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredPair:
    """Rows of both sides, collated.

    Attributes:
        train: Training rows.
        test: Held-out rows, or None.
    """

    train: MeasuredRows
    test: MeasuredRows | None


def measured_rows(
    loader: "DataLoader[Any]", *, task: Task, at_most: int, batch_size: int, seed: int
) -> MeasuredRows:
    """Draw rows of the data set of a loader, and collate them without touching the loader.

    No random number of the training is drawn, and no state of its sampler changes.

    Args:
        loader: A loader of the trainer: its data set and its collator are used.
        task: What the labels are.
        at_most: Rows to draw, >= 2; all of them where there are not more.
        batch_size: Rows per batch, >= 1.
        seed: Seed >= 0 of the draw.

    Returns:
        The rows. Those of a language model without a token to predict are left out.

    Raises:
        TypeError: If rows cannot be had by their number (a stream).
        ValueError: If a row has no label, or a batch does not have one row per example.
    """
    n_all = _n_rows(loader)
    chosen = np.random.default_rng(seed).permutation(n_all)[:at_most].tolist()
    batches = []
    with undisturbed():
        for start in range(0, len(chosen), batch_size):
            batches.append(_collated(loader, chosen[start : start + batch_size]))
    if task == "classifier":
        check_labeled(batches)
    else:
        batches = [kept for batch in batches if (kept := _with_labels(batch)) is not None]
    n_rows = sum(len(batch["labels"]) for batch in batches)
    return MeasuredRows(tuple(batches), n_rows, n_all, n_unlabeled=len(chosen) - n_rows)


def task_of(model: PeftModel, loader: "DataLoader[Any]") -> Task:
    """Whether labels are classes of rows or tokens to predict, by the first row of a data set.

    Args:
        model: The adapted model.
        loader: A loader of the trainer.

    Raises:
        TypeError: If rows cannot be had by their number (a stream).
        ValueError: If there is no row, the labels are of neither kind, or rows are packed.
    """
    if not _n_rows(loader):
        raise ValueError("`trainer` must have rows to measure, got an empty data set.")
    with undisturbed():
        batch = _collated(loader, [0])
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        can_generate = getattr(model.get_base_model(), "can_generate", lambda: False)
        if can_generate():
            return "language"
        raise ValueError(
            "`labels` must be one class per row or the tokens that a language model predicts, "
            f"got shape {tuple(labels.shape)} for {type(model.get_base_model()).__name__}."
        )
    check_labeled([batch])
    return "classifier"


def _n_rows(loader: "DataLoader[Any]") -> int:
    dataset = loader.dataset
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            "the trainer's data sets must have a length and rows by number to be measured, got "
            f"{type(dataset).__name__}: a stream has no training risk to come back to."
        )
    return len(dataset)


def _collated(loader: "DataLoader[Any]", rows: Sequence[int]) -> dict[str, Tensor]:
    """One batch, without what is no tensor with a row per example.

    Raises:
        ValueError: If its rows are not the examples.
    """
    collate: Callable[[list[Any]], Any] = loader.collate_fn
    batch = dict(collate([loader.dataset[row] for row in rows]))
    tensors = {k: v.cpu() for k, v in batch.items() if isinstance(v, Tensor) and v.dim() > 0}
    sizes = {k: len(v) for k, v in tensors.items()}
    if is_packed(batch) or set(sizes.values()) - {len(rows)}:
        raise ValueError(
            f"the trainer's collator must make one row per example, got {sizes} of {len(rows)} "
            "examples: packed rows are not independent examples. Use `packing=False` and "
            "`padding_free=False`, or train without measuring."
        )
    return tensors


def _with_labels(batch: Batch) -> dict[str, Tensor] | None:
    """The rows in which there is a token to predict; None if there are none."""
    # The first token of a row has no prediction. (An encoder-decoder predicts its first label too,
    # and has an end token beside it.)
    kept = (batch["labels"][:, 1:] != _IGNORED).any(-1)
    return {name: tensor[kept] for name, tensor in batch.items()} if bool(kept.any()) else None
