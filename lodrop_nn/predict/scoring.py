"""How probable given continuations are to the mean predictor, to each member, to the ensemble."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor

from lodrop_nn.config import MaskLaw
from lodrop_nn.predict.ensemble import ensemble_mode, member_chunks, one_pass_inputs
from lodrop_nn.predict.late_tiling import FrozenPrefix

_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class SequenceScores:
    r"""Log-probabilities, in nats and float64, of the labels of a batch.

    There are two ways to make one predictor of N members. The *ensemble* averages the members'
    probabilities of each token given those before it, :math:`\prod_t \frac{1}{N} \sum_i p_i(y_t
    \mid y_{<t})`: it is what :func:`~lodrop_nn.predict.generate.ensemble_generate` samples from.
    The *mixture* averages their probabilities of whole sequences, :math:`\frac{1}{N} \sum_i
    \prod_t p_i(y_t \mid y_{<t})`: the law of a continuation by one member drawn at random.

    Attributes:
        member_token_log_probs: Of each label under each member, <= 0; 0 where none is scored.
        mean_token_log_probs: The same with masks off, the update at its mean.
        is_scored: Where a label is scored: it is not -100 and, in a decoder-only model, not the
            first token of its row.

    Example:
        One member knows the first token, the other the second:

        >>> half = [[[0.0, -log(2)]], [[-log(2), 0.0]]]
        >>> scores = SequenceScores(
        ...     member_token_log_probs=torch.tensor(half, dtype=torch.float64),
        ...     mean_token_log_probs=torch.zeros(1, 2), is_scored=torch.ones(1, 2, dtype=bool))
        >>> float(scores.ensemble_log_likelihood.exp()), float(scores.mixture_log_likelihood.exp())
        (0.5625, 0.5)
    """

    member_token_log_probs: Float[Tensor, "n_masks b tokens"]
    mean_token_log_probs: Float[Tensor, "b tokens"]
    is_scored: Bool[Tensor, "b tokens"]

    @property
    def n_tokens(self) -> Int[Tensor, "b"]:
        """Scored labels of each row."""
        return self.is_scored.sum(-1)

    @property
    def ensemble_token_log_probs(self) -> Float[Tensor, "b tokens"]:
        """Logarithm of the members' averaged probability of each label."""
        return _log_mean_exp(self.member_token_log_probs)

    @property
    def mean_log_likelihood(self) -> Float[Tensor, "b"]:
        """Log-likelihood of each row with masks off."""
        return self.mean_token_log_probs.sum(-1)

    @property
    def member_log_likelihood(self) -> Float[Tensor, "n_masks b"]:
        """Log-likelihood of each row under each member."""
        return self.member_token_log_probs.sum(-1)

    @property
    def ensemble_log_likelihood(self) -> Float[Tensor, "b"]:
        """Log-likelihood of each row where members are averaged token by token."""
        return self.ensemble_token_log_probs.sum(-1)

    @property
    def mixture_log_likelihood(self) -> Float[Tensor, "b"]:
        """Log-likelihood of each row where members are averaged over the whole row."""
        return _log_mean_exp(self.member_log_likelihood)

    @property
    def mean_perplexity(self) -> Float[Tensor, ""]:
        """Perplexity over all scored labels, >= 1, with masks off."""
        return self._perplexity(self.mean_log_likelihood)

    @property
    def member_perplexity(self) -> Float[Tensor, "n_masks"]:
        """Perplexity over all scored labels, >= 1, of each member."""
        return self._perplexity(self.member_log_likelihood)

    @property
    def ensemble_perplexity(self) -> Float[Tensor, ""]:
        """Perplexity over all scored labels, >= 1, of members averaged token by token."""
        return self._perplexity(self.ensemble_log_likelihood)

    def _perplexity(self, log_likelihood: Tensor) -> Tensor:
        return torch.exp(-log_likelihood.sum(-1) / self.n_tokens.sum())


def score_sequences(
    model: PeftModel,
    batch: Mapping[str, Any],
    *,
    n_masks: int,
    seed: int,
    adapter_name: str = "default",
    mask_law: MaskLaw = "balanced",
    chunk: int | None = None,
) -> SequenceScores:
    """Log-probabilities of the labels of a batch under each member, and with masks off.

    Logits are reduced to the labels' log-probabilities some members at a time, and those of tokens
    before the first label are not computed where the model can leave them out.

    Args:
        model: A language model whose adapter has LoRA Dropout.
        batch: What the model reads, one row per example, with ``labels`` (b, tokens) as for
            training: the input ids themselves (decoder-only; the model shifts them) or the target
            ids (encoder-decoder), and -100 for what is not scored, such as prompts and padding.
        n_masks: N >= 1, members of the ensemble.
        seed: Seed >= 0 of the members' masks.
        adapter_name: The adapter whose masks are meant; it must be active and not merged.
        mask_law: How the members depend on each other.
        chunk: Members per forward pass, >= 1; None chooses by memory and cache, and takes one where
            the model has a layer that serves no more.

    Returns:
        The scores and what follows from them.

    Raises:
        ValueError: If an argument is outside its range, ``batch`` has no ``labels`` or none to
            score, or the adapter has no LoRA Dropout or would have no effect.
    """
    inputs = one_pass_inputs(model, batch)
    labels, targets = _targets(model, batch, inputs)
    is_scored = targets != _IGNORED
    if not bool(is_scored.any()):
        raise ValueError("`batch['labels']` must hold a label to score, got none but -100.")
    if targets.shape != labels.shape:
        inputs |= _only_logits_of(model, is_scored)

    def read(output: Any) -> Tensor:
        return _log_probs(output.logits, targets, n_logits=labels.shape[1])

    with torch.no_grad(), ensemble_mode(model, n_masks, seed, adapter_name, mask_law) as bank:
        prefix = FrozenPrefix.below_the_adapter(model, bank)
        with bank.off(), prefix.shared(1):
            mean = read(model(**inputs))
        members = torch.cat(
            list(
                member_chunks(model, bank, prefix, inputs, n_masks=n_masks, chunk=chunk, read=read)
            )
        )
    if targets.shape != labels.shape:  # shifted by one: the first token of a row has no score
        mean, members, is_scored = (_after_a_zero(x) for x in (mean, members, is_scored))
    return SequenceScores(
        member_token_log_probs=members, mean_token_log_probs=mean, is_scored=is_scored
    )


def _targets(
    model: PeftModel, batch: Mapping[str, Any], inputs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The labels, and those of them that the model's logits (but the last, if shifted) predict.

    Raises:
        ValueError: If there are no labels.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        raise ValueError("`batch` must hold `labels` of shape (b, tokens) to score.")
    base = model.get_base_model()
    labels = labels.to(next(model.parameters()).device)
    if not base.config.is_encoder_decoder:
        ids = inputs.get("input_ids")
        if isinstance(ids, Tensor) and ids.shape != labels.shape:
            raise ValueError(
                "`batch['labels']` must have the shape of `input_ids` for a decoder-only model, "
                f"{tuple(ids.shape)}, got {tuple(labels.shape)}."
            )
        return labels, labels[:, 1:]
    if "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels=labels)
    return labels, labels


def _only_logits_of(model: PeftModel, is_scored: Tensor) -> dict[str, int]:
    """The option, where the model has it, that leaves out logits before the first that count."""
    if "logits_to_keep" not in inspect.signature(model.get_base_model().forward).parameters:
        return {}
    first = int(is_scored.any(0).int().argmax())
    return {"logits_to_keep": is_scored.shape[1] - first + 1}  # one more: the last predicts nothing


def _log_probs(logits: Tensor, targets: Tensor, n_logits: int) -> Tensor:
    """Log-probabilities of targets (b, tokens) in N instances of their rows; 0 for ignored ones.

    Of ``n_logits`` logits, the t-th of which predicts target t, the last ones are given.
    """
    result = torch.zeros(len(logits), targets.shape[1], dtype=torch.float64, device=logits.device)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # Row by row and at scored tokens only: a second tensor of the size of all logits may not fit.
    for row, row_logits in enumerate(logits):
        target = targets[row % len(targets)]
        (tokens,) = (target != _IGNORED).nonzero(as_tuple=True)
        scored = row_logits[tokens - (n_logits - len(row_logits))].to(dtype).log_softmax(-1)
        result[row, tokens] = scored.gather(-1, target[tokens, None]).squeeze(-1).double()
    return result


def _log_mean_exp(values: Tensor) -> Tensor:
    return values.logsumexp(0) - log(len(values))


def _after_a_zero(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (1, 0))
