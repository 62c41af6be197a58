"""Predicted probabilities of an adapter: under each of N masks, and with the masks off."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.masks.settings import check_count
from lodrop_nn.measure.checks import check_finite, check_labels
from lodrop_nn.measure.evaluation import (
    Batch,
    count_rows,
    model_inputs,
    only_tokens_read,
)
from lodrop_nn.predict.ensemble import member_chunks
from lodrop_nn.predict.late_tiling import FrozenPrefix
from lodrop_nn.train.prefix_cache import PrefixCache
from lodrop_theory.records import PREDICTORS, Predictor

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Predicted probabilities of one set of examples, in its original order.

    Attributes:
        member_probabilities: Shape (n_masks, n, K), float64: one row of members per mask draw.
        mean_probabilities: Shape (n, K), float64: masks off.
        labels: Shape (n,), whole numbers in [0, K).

    Raises:
        ValueError: If the shapes disagree, there is no example or no member, a label is outside
            its range, or a probability is not finite.
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
        if not self.member_probabilities.size:
            raise ValueError(
                "`member_probabilities` must hold at least one member, example and class, "
                f"got shape {self.member_probabilities.shape}."
            )
        check_labels(self.labels, self.n_classes)
        check_finite("probabilities", self.mean_probabilities, rows_axis=0)
        check_finite("probabilities", self.member_probabilities, rows_axis=1)

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
    stored: PrefixCache | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Probabilities under each of N masks and with the masks off.

    The masks depend on ``n_masks`` and ``seed`` alone: the same members predict every row of every
    set. The frozen blocks below the first adapted one run once per batch, not once per member. As
    many members share a pass as memory and cache allow, fewer where that turns out too many. At
    p = 0 there is nothing to draw and the members are views of the mean.

    Args:
        model: Adapted classifier; its modes come back unchanged.
        bank: The masks of its adapter.
        batches: Dictionaries with ``labels`` (b,), what the model reads, and optionally ``index``
            (b,), the position of each row in the original order.
        n_masks: N >= 1, members.
        seed: Seed >= 0 of the masks.
        stored: States below the adapter for the same rows, which ``index`` then numbers; None
            computes them.
        on_batch: Called as ``on_batch(rows_done, rows)``.

    Returns:
        Probabilities in float64, softmax included, in the order of ``index``.

    Raises:
        ValueError: If there is no row, a row has no label in [0, K), ``index`` is not a
            permutation of all rows, ``n_masks`` is outside its range, or a logit is not finite; the
            first such row of the original order is named.
        RuntimeError: If memory does not even suffice for one member and one batch (on CUDA
            ``torch.OutOfMemoryError``).
    """
    check_count("n_masks", n_masks)
    n_rows = count_rows(batches)
    order = original_order(batches, n_rows)
    mean_logits, member_logits, done = [], [], 0
    with (
        torch.no_grad(),
        evaluation_mode(model),
        bank.off(),
        only_tokens_read(model, batches),
        bank.fixed(n_masks=n_masks, seed=seed),
    ):
        prefix = FrozenPrefix.below_the_adapter(model, bank)
        for batch in batches:
            inputs = model_inputs(model, batch)
            with nullcontext() if stored is None else stored.replay(batch):
                with bank.off(), prefix.shared(1):
                    mean_logits.append(model(**inputs).logits)
                if bank.dropout_rate > 0.0:
                    chunks = member_chunks(
                        model, bank, prefix, inputs, n_masks=n_masks, chunk=None, read=_logits
                    )
                    member_logits.append(torch.cat(list(chunks)))
            done += len(batch["labels"])
            if on_batch is not None:
                on_batch(done, n_rows)
    mean_probabilities = _softmax("logits with masks off", mean_logits, order)
    if member_logits:
        member_probabilities = _softmax("logits under masks", member_logits, order)
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


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


def _softmax(what: str, logits: Sequence[Tensor], order: NDArray[np.int64]) -> Float64Array:
    # Tensors (b, K) or (n_masks, b, K) make one array (n, K) or (n_masks, n, K).
    joined = torch.cat(list(logits), dim=-2).to("cpu", torch.float64)[..., order, :]
    check_finite(what, joined.numpy(), rows_axis=-2)
    return joined.softmax(-1).numpy()


def original_order(batches: Sequence[Batch], n_rows: int) -> NDArray[np.int64]:
    """Where each row of the original order lies among the rows of the batches.

    Args:
        batches: Dictionaries, perhaps with ``index`` (b,), the position of each row in that order.
        n_rows: Rows of all batches.

    Returns:
        A permutation of ``range(n_rows)``, the identity without ``index``.

    Raises:
        ValueError: If ``index`` is not a permutation of all rows.
    """
    if not all("index" in batch for batch in batches):
        return np.arange(n_rows)
    index = torch.cat([batch["index"] for batch in batches]).cpu().numpy()
    if not np.array_equal(np.sort(index), np.arange(n_rows)):
        raise ValueError(f"`index` must name each of the {n_rows} rows once, got {index!r}.")
    return np.argsort(index)
