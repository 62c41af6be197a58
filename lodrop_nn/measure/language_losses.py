"""Losses of a language model by sequences: of each member, of their ensemble, of the mean."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.checks import check_finite
from lodrop_nn.measure.evaluation import Batch
from lodrop_nn.predict.memory import in_chunks
from lodrop_nn.predict.scoring import SequenceScores, score_sequences
from lodrop_theory.records import Predictor

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceLosses:
    """Losses of one set of sequences, each a mean over the scored tokens of the sequence.

    Attributes:
        nll: By predictor, negative log-likelihoods, shape (draws, n): n_masks draws for ``gibbs``,
            else one. Nats per token.
        smoothed: The same in the smoothed loss. Nats per token.
        n_tokens: Scored tokens, shape (n,).
    """

    nll: Mapping[Predictor, Float64Array]
    smoothed: Mapping[Predictor, Float64Array]
    n_tokens: NDArray[np.int64]

    def __post_init__(self) -> None:
        for predictor, losses in self.nll.items():
            check_finite(f"log-probabilities ({predictor})", losses, rows_axis=1)

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.n_tokens)

    def perplexity(self, predictor: Predictor) -> float:
        """Perplexity, >= 1, over all scored tokens; of ``gibbs`` by its mean log-likelihood."""
        per_row = self.nll[predictor].mean(0)
        return math.exp(float(per_row @ self.n_tokens) / float(self.n_tokens.sum()))


def sequence_losses(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    n_masks: int,
    seed: int,
    smoothing: float,
    on_batch: Callable[[int, int], None] | None = None,
) -> SequenceLosses:
    r"""Mean losses of sequences under each of N masks, averaged over them, and with masks off.

    .. math:: \ell(x) = \frac1{|T|} \sum_{t \in T} -\ln\Bigl((1 - a) \pi(y_t \mid y_{<t}) +
        \frac aV\Bigr)

    The smoothed loss of a token lies in an interval of length :math:`\ln(1 + (1 - a) V / a)`, and
    so does its mean over a sequence, whatever the law of the tokens.

    Args:
        model: Language model whose adapter has LoRA Dropout, be it at p = 0.
        bank: The masks of its adapter.
        batches: Rows with ``labels`` (b, tokens), -100 where no token is scored; at least one
            scored token in each row.
        n_masks: N >= 1, members, independent of each other; one at p = 0, where all agree.
        seed: Seed >= 0 of the masks.
        smoothing: a in (0, 1).
        on_batch: Called as ``on_batch(rows_done, rows)``.

    Returns:
        The losses in float64, in the order of the rows.

    Raises:
        ValueError: If an argument is outside its range, or a log-probability is not finite.
    """
    n_rows = sum(len(batch["labels"]) for batch in batches)
    members = n_masks if bank.dropout_rate > 0 else 1
    floor = smoothing / vocabulary(model)
    parts: list[SequenceLosses] = []
    done = 0
    for batch in batches:
        rows = len(batch["labels"])

        def run(start: int, stop: int, batch: Batch = batch) -> SequenceLosses:
            scores = score_sequences(
                model,
                {name: tensor[start:stop] for name, tensor in batch.items()},
                n_masks=members,
                seed=seed,
                mask_law="iid",
            )
            return _losses(scores, smoothing, floor)

        parts += in_chunks(rows, rows, run)
        done += rows
        if on_batch is not None:
            on_batch(done, n_rows)
    return SequenceLosses(
        nll={p: np.concatenate([part.nll[p] for part in parts], axis=1) for p in parts[0].nll},
        smoothed={
            p: np.concatenate([part.smoothed[p] for part in parts], axis=1) for p in parts[0].nll
        },
        n_tokens=np.concatenate([part.n_tokens for part in parts]),
    )


def vocabulary(model: PeftModel) -> int:
    """V, the number of tokens that the model tells apart."""
    return int(model.get_base_model().config.get_text_config().vocab_size)


def _losses(scores: SequenceScores, smoothing: float, floor: float) -> SequenceLosses:
    scored, n_tokens = scores.is_scored, scores.n_tokens
    by_predictor: dict[Predictor, torch.Tensor] = {
        "gibbs": scores.member_token_log_probs,
        "ensemble": scores.ensemble_token_log_probs[None],
        "mean": scores.mean_token_log_probs[None],
    }

    def mean_over_tokens(losses: torch.Tensor) -> Float64Array:
        total = torch.where(scored, losses, 0.0).sum(-1)
        return np.asarray((total / n_tokens).cpu().numpy(), dtype=np.float64)

    return SequenceLosses(
        nll={p: mean_over_tokens(-logs) for p, logs in by_predictor.items()},
        smoothed={
            p: mean_over_tokens(-torch.log((1.0 - smoothing) * logs.exp() + floor))
            for p, logs in by_predictor.items()
        },
        n_tokens=n_tokens.cpu().numpy(),
    )
