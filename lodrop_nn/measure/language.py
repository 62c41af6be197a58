"""Risks of a language model by sequences: of the mean, of one mask, of the ensemble over masks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from scipy import stats

from lodrop_nn.language_record import LanguageMeasurement
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.checks import check_finite
from lodrop_nn.measure.evaluation import Batch
from lodrop_nn.measure.intervals import mean_estimate, variance_estimate
from lodrop_nn.predict.memory import in_chunks
from lodrop_nn.predict.scoring import SequenceScores, score_sequences
from lodrop_theory.gain_confidence import gain_lower_bound
from lodrop_theory.losses import smoothed_loss_range
from lodrop_theory.records import Estimate, Predictor

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


def language_loss_range(model: PeftModel, smoothing: float) -> Estimate:
    """Length C of the interval of the smoothed loss of a token, exact. Nats."""
    value = float(smoothed_loss_range(smoothing, vocabulary(model)))
    return Estimate(
        value=value, low=value, high=value, n_draws=1, method="exact: ln(1 + (1 - a) V / a)"
    )


def language_measurement(
    train: SequenceLosses,
    test: SequenceLosses,
    predictor: Predictor,
    *,
    all_train: bool,
    level: float = 0.95,
) -> LanguageMeasurement:
    """Risks of one predictor of a language model.

    Intervals say what is random: on the held-out rows the choice of rows, with the masks given
    (Student's interval); on the training rows, where all of them were measured, the choice of
    masks (Student's over the members of gibbs, none for the other two), and where they are a
    sample the choice of that sample. Perplexities, ratios of sums, have none.

    Args:
        train: Losses of training rows.
        test: Losses of held-out rows, by the same members; at least 2 rows.
        predictor: Which of the three.
        all_train: Whether ``train`` are all rows that the adapter was trained on.
        level: Coverage of the intervals, in (0, 1).

    Raises:
        ValueError: If ``level`` is outside (0, 1), or there are fewer than 2 held-out rows.
    """
    risk = _train_mean(
        train.smoothed[predictor], "mean smoothed token loss", level=level, all_train=all_train
    )
    held_out = test.smoothed[predictor].mean(0)
    population_risk = mean_estimate(
        held_out, level, "mean smoothed token loss of the held-out rows"
    )
    variance = variance_estimate(held_out, level, "variance of the smoothed loss, held-out rows")
    if variance is None:
        raise ValueError(f"`test` must hold at least 2 rows, got {len(test)}.")
    sampled = None if all_train else train.smoothed[predictor].mean(0)
    return LanguageMeasurement(
        empirical_risk=risk,
        population_risk=population_risk,
        generalization_gap=_gap(risk.value, population_risk, held_out, sampled, level),
        train_nll=_train_mean(
            train.nll[predictor], "mean -log probability", level=level, all_train=all_train
        ),
        test_nll=mean_estimate(
            test.nll[predictor].mean(0), level, "mean -log probability of the held-out rows"
        ),
        train_perplexity=_perplexity(train, predictor),
        test_perplexity=_perplexity(test, predictor),
        sample_variance=variance,
    )


def language_jensen_gap(
    test: SequenceLosses, loss_range: float, *, level: float = 0.95
) -> Estimate:
    """What the ensemble gains over its members: mean member loss less ensemble loss.

    As :func:`~lodrop_nn.measure.ensemble.jensen_gap`, with sequences for examples: the gain of
    each is in [0, C], so that the betting interval holds at every number of rows, for these
    members.

    Args:
        test: Losses of held-out rows, in an order that does not depend on them.
        loss_range: C > 0.
        level: Coverage of the interval, in (0, 1).

    Returns:
        Nats per token, with 0 <= low <= value <= high <= C. One member gains nothing, exactly.
    """
    gains = test.smoothed["gibbs"].mean(0) - test.smoothed["ensemble"][0]
    n_masks = len(test.smoothed["gibbs"])
    if n_masks == 1:
        return Estimate(value=0.0, low=0.0, high=0.0, n_draws=len(test), method="exact: one member")
    gains = np.clip(gains, 0.0, loss_range)  # beyond by a rounding only
    value, delta = float(gains.mean()), (1 - level) / 2
    low = gain_lower_bound(gains, loss_range=loss_range, delta=delta)
    rest = gain_lower_bound(loss_range - gains, loss_range=loss_range, delta=delta)
    return Estimate(
        value=value,
        low=min(low, value),
        high=max(min(math.nextafter(loss_range - rest, math.inf), loss_range), value),
        level=level,
        n_draws=len(test),
        method=f"member loss less ensemble loss of {n_masks} given members on the held-out rows, "
        "smoothed token loss; betting interval for gains in [0, C]",
    )


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


def _train_mean(losses: Float64Array, what: str, *, level: float, all_train: bool) -> Estimate:
    if not all_train:
        return mean_estimate(losses.mean(0), level, f"{what} of a sample of the training rows")
    per_draw = losses.mean(1)
    if per_draw.size == 1:
        method = f"{what} of the training rows"
        return Estimate(value=float(per_draw[0]), n_draws=losses.shape[1], method=method)
    return mean_estimate(per_draw, level, f"{what} of the training rows, masks drawn")


def _gap(
    empirical: float,
    population: Estimate,
    held_out: Float64Array,
    sampled: Float64Array | None,
    level: float,
) -> Estimate:
    """Held-out less training risk; both rows drawn where the training rows are a sample."""
    samples = [held_out] if sampled is None else [held_out, sampled]
    error = math.sqrt(sum(float(np.var(s, ddof=1)) / len(s) for s in samples))
    # As many degrees of freedom as the smaller sample has: never more than Welch's.
    quantile = float(stats.t.ppf((1 + level) / 2, min(map(len, samples)) - 1))
    value, half = population.value - empirical, quantile * error
    given = "training rows given" if sampled is None else "training rows sampled"
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        level=level,
        n_draws=len(held_out),
        method=f"held-out risk minus training risk, {given}; Student's interval",
    )


def _perplexity(losses: SequenceLosses, predictor: Predictor) -> Estimate:
    return Estimate(
        value=losses.perplexity(predictor),
        n_draws=int(losses.n_tokens.sum()),
        method="exp of the mean -log probability over all scored tokens",
    )
