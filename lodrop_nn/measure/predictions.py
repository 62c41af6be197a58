"""Predicted probabilities of an adapter: under each of N masks, and with the masks off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.measure.evaluation import (
    Batch,
    count_rows,
    model_inputs,
    only_tokens_read,
)
from lodrop_nn.predict.late_tiling import FrozenPrefix, mean_and_member_logits
from lodrop_theory.records import PREDICTORS, Predictor

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Predicted probabilities of one set of examples, in its original order.

    Attributes:
        member_probabilities: Shape (n_masks, n, K), float64: one row of members per mask draw.
        mean_probabilities: Shape (n, K), float64: masks off.
        labels: Shape (n,), whole numbers in [0, K).
    """

    member_probabilities: Float64Array
    mean_probabilities: Float64Array
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = self.mean_probabilities.shape
        if self.member_probabilities.shape[1:] != shape or self.labels.shape != shape[:1]:
            raise ValueError(
                "`member_probabilities`, `mean_probabilities` and `labels` must have shapes "
                f"(n_masks, n, K), (n, K) and (n,), got {self.member_probabilities.shape}, "
                f"{shape} and {self.labels.shape}."
            )

    @property
    def n_masks(self) -> int:
        """Members."""
        return self.member_probabilities.shape[0]

    @property
    def n_classes(self) -> int:
        """K."""
        return self.mean_probabilities.shape[1]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def of(self, predictor: Predictor) -> Float64Array:
        """Probabilities of a predictor, shape (draws, n, K): n_masks draws for gibbs, else one.

        Raises:
            ValueError: If the predictor is unknown.
        """
        if predictor not in PREDICTORS:
            raise ValueError(f"`predictor` must be one of {PREDICTORS}, got {predictor!r}.")
        if predictor == "gibbs":
            return self.member_probabilities
        if predictor == "ensemble":
            return self.member_probabilities.mean(0, keepdims=True)
        return self.mean_probabilities[None]


def predict_all(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    n_masks: int,
    seed: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Probabilities under each of N masks and with the masks off.

    The masks depend on ``n_masks`` and ``seed`` alone: the same members predict every row of every
    set. The frozen blocks below the first adapted one run once per batch, not once per member. At
    p = 0 there is nothing to draw and the members are views of the mean.

    Args:
        model: Adapted classifier; its modes come back unchanged.
        bank: The masks of its adapter.
        batches: Dictionaries with ``labels`` (b,), what the model reads, and optionally ``index``
            (b,), the position of each row in the original order.
        n_masks: N >= 1, members.
        seed: Seed >= 0 of the masks.
        on_batch: Called as ``on_batch(rows_done, rows)``.

    Returns:
        Probabilities in float64, softmax included, in the order of ``index``.

    Raises:
        ValueError: If there is no row, or ``index`` is not a permutation of all rows.
    """
    n_rows = count_rows(batches)
    mean_logits, member_logits, done = [], [], 0
    with (
        torch.no_grad(),
        evaluation_mode(model),
        bank.off(),
        only_tokens_read(model, batches),
    ):
        prefix = FrozenPrefix.below_the_adapter(model, bank)
        for batch in batches:
            inputs = model_inputs(model, batch)
            if bank.dropout_rate == 0.0:
                mean_logits.append(model(**inputs).logits)
            else:
                mean, members = mean_and_member_logits(
                    model, bank, inputs, n_masks=n_masks, seed=seed, prefix=prefix
                )
                mean_logits.append(mean)
                member_logits.append(members)
            done += len(batch["labels"])
            if on_batch is not None:
                on_batch(done, n_rows)
    order = _original_order(batches, n_rows)
    mean_probabilities = _softmax(mean_logits)[order]
    if member_logits:
        members_first = _softmax([members.transpose(0, 1) for members in member_logits])[order]
        member_probabilities = np.ascontiguousarray(members_first.transpose(1, 0, 2))
    else:
        member_probabilities = np.broadcast_to(
            mean_probabilities, (n_masks, *mean_probabilities.shape)
        )
    labels = torch.cat([batch["labels"] for batch in batches]).cpu().numpy()
    return Predictions(
        member_probabilities=member_probabilities,
        mean_probabilities=mean_probabilities,
        labels=labels[order],
    )


def _softmax(logits: Sequence[Tensor]) -> Float64Array:
    return torch.cat(list(logits)).to("cpu", torch.float64).softmax(-1).numpy()


def _original_order(batches: Sequence[Batch], n_rows: int) -> NDArray[np.int64]:
    # Where each row of the original order lies among the rows of the batches.
    if not all("index" in batch for batch in batches):
        return np.arange(n_rows)
    index = torch.cat([batch["index"] for batch in batches]).cpu().numpy()
    if not np.array_equal(np.sort(index), np.arange(n_rows)):
        raise ValueError(f"`index` must name each of the {n_rows} rows once, got {index!r}.")
    return np.argsort(index)
