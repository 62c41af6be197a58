"""The test-time ensemble over masks, its uncertainty, and the mean predictor beside it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from lodrop_nn.adapter import mask_bank
from lodrop_nn.masks.settings import check_count
from lodrop_nn.train.tiling import tile_batch

_NOT_INPUTS = frozenset({"labels", "index"})


@dataclass(frozen=True)
class EnsemblePrediction:
    """What the members of an ensemble say about each example.

    The derived quantities are in float64; entropies are in nats. K is the number of classes (for
    a language model the vocabulary, and each example then has an axis of tokens before it).

    Attributes:
        member_logits: Logits of each member, as the model computed them.

    Example:
        Two members that are sure of opposite answers leave all uncertainty to the masks:

        >>> sure = torch.tensor([[[200.0, 0.0]], [[0.0, 200.0]]])
        >>> prediction = EnsemblePrediction(sure)
        >>> prediction.mean_probabilities.tolist(), prediction.variance.tolist()
        ([[0.5, 0.5]], [[0.25, 0.25]])
        >>> bool(prediction.mutual_information == prediction.predictive_entropy)
        True
    """

    member_logits: Float[Tensor, "n_masks b *tokens K"]

    @property
    def member_probabilities(self) -> Float[Tensor, "n_masks b *tokens K"]:
        """Probabilities of each member."""
        return self.member_logits.double().softmax(-1)

    @property
    def mean_probabilities(self) -> Float[Tensor, "b *tokens K"]:
        """The ensemble's prediction: probabilities averaged over members."""
        return self.member_probabilities.mean(0)

    @property
    def mean_logits(self) -> Float[Tensor, "b *tokens K"]:
        """Logits averaged over members: the geometric instead of the arithmetic mean."""
        return self.member_logits.double().mean(0)

    @property
    def variance(self) -> Float[Tensor, "b *tokens K"]:
        """Variance over members of each probability (divisor N, so 0 for one member)."""
        return self.member_probabilities.var(0, correction=0)

    @property
    def predictive_entropy(self) -> Float[Tensor, "b *tokens"]:
        """Entropy of the averaged prediction, in [0, ln K]: the total uncertainty."""
        return torch.special.entr(self.mean_probabilities).sum(-1)

    @property
    def mutual_information(self) -> Float[Tensor, "b *tokens"]:
        """Predictive entropy less the members' mean entropy, >= 0: the share due to the masks."""
        member_entropy = torch.special.entr(self.member_probabilities).sum(-1)
        # Not negative by Jensen; rounding may say otherwise where members agree.
        return (self.predictive_entropy - member_entropy.mean(0)).clamp_min(0.0)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own mode comes back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def ensemble_predict(
    model: PeftModel,
    batch: Mapping[str, Any],
    *,
    n_masks: int,
    seed: int,
    adapter_name: str = "default",
    chunk: int | None = None,
) -> EnsemblePrediction:
    """Predict a batch with each member of a seeded ensemble over masks.

    Member i is the same adapter for every batch, and the first members of a larger ensemble are
    those of a smaller one. Only the masks are random: the rest of the model is in evaluation mode,
    and the modes of all modules come back at the end.

    Args:
        model: A model whose adapter has LoRA Dropout; with p = 0 all members agree.
        batch: What the model reads, one row per example. ``labels`` and ``index`` are left out.
        n_masks: N >= 1, members of the ensemble.
        seed: Seed >= 0 of the members' masks.
        adapter_name: The adapter whose masks are meant.
        chunk: Members per forward pass, >= 1; None takes all at once. It changes memory and time,
            and the result within rounding.

    Returns:
        The members' logits and what follows from them.

    Raises:
        ValueError: If an argument is outside its range, the adapter has no LoRA Dropout, or the
            batch cannot be tiled.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eq. (8), which averages outputs; here the averaged
        probabilities are the ensemble's prediction.
    """
    check_count("n_masks", n_masks)
    chunk = n_masks if chunk is None else chunk
    check_count("chunk", chunk)
    bank = mask_bank(model, adapter_name)
    inputs = _model_inputs(model, batch)
    logits = []
    with torch.no_grad(), evaluation_mode(model), bank.fixed(n_masks, seed):
        for start in range(0, n_masks, chunk):
            stop = min(start + chunk, n_masks)
            with bank.members(start, stop):
                output = _logits(model(**tile_batch(inputs, stop - start)))
            logits.append(output.unflatten(0, (stop - start, -1)))
    return EnsemblePrediction(torch.cat(logits))


def mean_predict(
    model: PeftModel, batch: Mapping[str, Any], *, adapter_name: str = "default"
) -> Float[Tensor, "b *tokens K"]:
    """Logits of the mean predictor: masks off, the update at its mean.

    Args:
        model: A model whose adapter has LoRA Dropout.
        batch: What the model reads. ``labels`` and ``index`` are left out.
        adapter_name: The adapter whose masks are meant.

    Returns:
        The model's logits; the modes of all modules come back at the end.

    Raises:
        ValueError: If the adapter has no LoRA Dropout.
    """
    bank = mask_bank(model, adapter_name)
    with torch.no_grad(), evaluation_mode(model), bank.off():
        return _logits(model(**_model_inputs(model, batch)))


def _model_inputs(model: PeftModel, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that the model reads, on the device of its first parameter."""
    device = next(model.parameters()).device
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name not in _NOT_INPUTS
    }


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits
