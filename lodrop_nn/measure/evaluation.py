"""The common ground of all measurements: evaluation mode, masks off, plain cross-entropy."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.measure.checks import check_labeled
from lodrop_nn.predict.first_token import first_token_only

Batch = Mapping[str, Tensor]
_NOT_INPUTS = frozenset({"labels", "index"})


def model_inputs(model: PeftModel, batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch that the model reads, on its device."""
    return {name: t.to(model.device) for name, t in batch.items() if name not in _NOT_INPUTS}


def count_rows(batches: Sequence[Batch]) -> int:
    """Number of examples in all batches.

    Raises:
        ValueError: If there is none, or one has no label.
    """
    check_labeled(batches)
    n_rows = sum(len(batch["labels"]) for batch in batches)
    if n_rows == 0:
        raise ValueError("`batches` must hold at least one example, got none.")
    return n_rows


def trained_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """The parameters that fine-tuning moves, by name.

    Raises:
        ValueError: If there is none.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(
            "`model` must have parameters that require gradients, got none; "
            "load the adapter with is_trainable=True."
        )
    return trained


def only_tokens_read(model: PeftModel, batches: Sequence[Batch]) -> AbstractContextManager[bool]:
    """Skip tokens that no head reads, where the model is of a kind that allows it."""
    count_rows(batches)
    widest = max(batches, key=lambda batch: max(t[0].numel() for t in batch.values() if len(t)))
    probe = {name: tensor[:4] for name, tensor in model_inputs(model, widest).items()}
    return first_token_only(model, probe)


@contextmanager
def mean_predictor(model: PeftModel, bank: MaskBank, batches: Sequence[Batch]) -> Iterator[None]:
    """The point at which gradients and curvature are measured: evaluation mode, masks off.

    Attention is made of elementary operations: fused kernels have no second derivative and cannot
    be vectorized over examples.

    Raises:
        ValueError: If weights are in half precision, or there is no example.
    """
    # One example moves parameters by less than the rounding of such weights.
    half = {str(p.dtype) for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)}
    if half:
        raise ValueError(
            f"`model` must have weights in float32 or float64, got {', '.join(sorted(half))}, "
            "whose rounding spoils gradients and curvature: load the base model in float32."
        )
    with (
        evaluation_mode(model),
        bank.off(),
        sdpa_kernel(SDPBackend.MATH),
        only_tokens_read(model, batches),
    ):
        yield


@dataclass(frozen=True, eq=False)
class FixedMasks:
    """Some of the masks that a bank holds fixed, for the rows of one pass.

    Attributes:
        bank: The masks of the adapter, inside of ``bank.fixed``.
        start: First of the masks.
        stop: One past the last: one mask for all rows, or one per row.
    """

    bank: MaskBank
    start: int
    stop: int

    def rows(self, start: int, stop: int) -> "FixedMasks":
        """The masks of some of the rows."""
        if self.stop - self.start == 1:
            return self
        return FixedMasks(self.bank, self.start + start, self.start + stop)


@dataclass(frozen=True, eq=False)
class LossPart:
    """A part of a mean cross-entropy: the losses of some rows over the number of all. Nats.

    Attributes:
        model: The classifier.
        batch: The rows.
        n_rows: Number that their sum is divided by.
        masks: The masks that they see; None for those that the bank applies.
    """

    model: PeftModel
    batch: Batch
    n_rows: int
    masks: FixedMasks | None = None

    def __call__(self) -> Tensor:
        """The part, differentiable."""
        masks = self.masks
        with nullcontext() if masks is None else masks.bank.members(masks.start, masks.stop):
            logits = self.model(**model_inputs(self.model, self.batch)).logits
        labels = self.batch["labels"].to(logits.device)
        return cross_entropy(logits, labels, reduction="sum") / self.n_rows

    def halves(self) -> "tuple[LossPart, LossPart] | None":
        """Two parts with the same sum; None for a single row."""
        size = len(self.batch["labels"])
        if size < 2:
            return None
        return self._rows(0, size // 2), self._rows(size // 2, size)

    def _rows(self, start: int, stop: int) -> "LossPart":
        return replace(
            self,
            batch={name: tensor[start:stop] for name, tensor in self.batch.items()},
            masks=None if self.masks is None else self.masks.rows(start, stop),
        )


def mean_losses(model: PeftModel, batches: Sequence[Batch]) -> list[LossPart]:
    """One function per batch; their sum is the mean cross-entropy of all examples. Nats."""
    n_rows = count_rows(batches)
    return [LossPart(model, batch, n_rows) for batch in batches]


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One float64 vector on the CPU, in the order given."""
    return torch.cat([t.detach().flatten().to("cpu", torch.float64) for t in tensors])
