"""Risks of a language model by sequences: of the mean, of one mask, of the ensemble over masks."""

import math

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from scipy import stats

from lodrop_nn.language_record import LanguageMeasurement
from lodrop_nn.measure.intervals import mean_estimate, variance_estimate
from lodrop_nn.measure.language_losses import SequenceLosses, vocabulary
from lodrop_theory.gain_confidence import gain_lower_bound
from lodrop_theory.losses import smoothed_loss_range
from lodrop_theory.records import Estimate, Predictor

Float64Array = NDArray[np.float64]


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
