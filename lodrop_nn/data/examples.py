"""Texts as token ids, and token ids as padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lodrop_nn.data.classification import TextClassificationData

Batch = dict[str, Tensor]
# Larger pools save little more padding, and make the batches of one epoch like those of the next.
POOL_BATCHES = 8
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Tokenized rows with their labels.

    Attributes:
        input_ids: Token ids of each row, special tokens included, unpadded, none empty.
        labels: One class per row.
        pad_token_id: What fills the end of shorter rows in a batch.
    """

    input_ids: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    pad_token_id: int

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.labels):
            raise ValueError(
                f"`labels` must be as many as `input_ids`, "
                f"got {len(self.labels)} for {len(self.input_ids)}."
            )
        if not all(self.input_ids):
            raise ValueError("`input_ids` must have at least one token in every row.")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)


def tokenize(
    data: TextClassificationData, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 512
) -> Examples:
    """The rows of a data set as token ids.

    Args:
        data: Texts and labels.
        tokenizer: The base model's; must know a padding token.
        max_length: Tokens kept of a longer text, >= 1.

    Raises:
        ValueError: If the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("`tokenizer` must have a padding token, got pad_token_id=None.")
    encoded = tokenizer(list(data.texts), truncation=True, max_length=max_length)
    return Examples(
        input_ids=tuple(tuple(row) for row in encoded["input_ids"]),
        labels=tuple(data.labels.tolist()),
        pad_token_id=int(tokenizer.pad_token_id),
    )


def batches(
    examples: Examples,
    batch_size: int,
    *,
    order: Literal["length", "given"],
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> list[Batch]:
    """Every row once, padded on the right to the longest of its batch.

    Args:
        examples: Tokenized rows.
        batch_size: Rows per batch, >= 1; the last batch may have fewer.
        order: 'given' keeps the order of the rows; 'length' puts rows of like length together,
            which saves padding (a third of the tokens of short sentences).
        generator: Shuffles; None does not. A shuffled 'length' order draws random pools of eight
            batches, sorts within each pool only, and deals the batches out in random order.
        device: Where the batches lie.

    Returns:
        Dictionaries of ``input_ids`` and ``attention_mask`` (b, tokens), ``labels`` (b,) and
        ``index`` (b,), the position of each row in ``examples``. All int64.

    Raises:
        ValueError: If ``batch_size`` is below 1 or ``order`` is unknown.

    Example:
        >>> rows = Examples(input_ids=((5, 6, 7), (8,), (9, 4)), labels=(1, 0, 1), pad_token_id=0)
        >>> first, last = batches(rows, 2, order="length")
        >>> first["input_ids"].tolist(), first["index"].tolist()
        ([[8, 0], [9, 4]], [1, 2])
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be >= 1, got {batch_size!r}.")
    if order not in ("length", "given"):
        raise ValueError(f"`order` must be 'length' or 'given', got {order!r}.")
    rows = _permuted(range(len(examples)), generator)
    if order == "length":
        pool = len(rows) if generator is None else POOL_BATCHES * batch_size
        rows = [
            row
            for some in _chunks(rows, pool)
            for row in sorted(some, key=lambda row: len(examples.input_ids[row]))
        ]
    groups = _chunks(rows, batch_size)
    if order == "length":
        groups = _permuted(groups, generator)
    return [_padded(examples, group, torch.device(device)) for group in groups]


def _permuted(items: Sequence[_Item], generator: torch.Generator | None) -> list[_Item]:
    if generator is None:
        return list(items)
    return [items[at] for at in torch.randperm(len(items), generator=generator).tolist()]


def _chunks(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), max(size, 1))]


def _padded(examples: Examples, rows: Sequence[int], device: torch.device) -> Batch:
    tokens = [torch.tensor(examples.input_ids[row]) for row in rows]
    present = [torch.ones_like(each) for each in tokens]
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad(tokens, batch_first=True, padding_value=examples.pad_token_id),
        "attention_mask": pad(present, batch_first=True, padding_value=0),
        "labels": torch.tensor([examples.labels[row] for row in rows]),
        "index": torch.tensor(rows),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}
