"""Risks and scores of the three predictors of an adapter: Gibbs, ensemble and mean."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lodrop_nn.measure.calibration import (
    brier_scores,
    calibration_error,
    debiased_calibration_error,
    vote_distances,
)
from lodrop_nn.measure.intervals import fraction_estimate, mean_estimate, variance_estimate
from lodrop_nn.measure.predictions import Predictions
from lodrop_nn.measure.smooth_calibration import smooth_calibration_error
from lodrop_theory.losses import smoothed_cross_entropy
from lodrop_theory.records import Estimate, Predictor, PredictorMeasurement

Float64Array = NDArray[np.float64]


def predictor_measurement(
    train: Predictions,
    test: Predictions,
    predictor: Predictor,
    smoothing: float,
    *,
    level: float = 0.95,
    vote_shares: Float64Array | None = None,
) -> PredictorMeasurement:
    r"""Risks and scores of one predictor.

    .. math:: \text{gibbs: } \frac1N \sum_m \ell(\pi^m), \qquad
              \text{ensemble: } \ell\Bigl(\frac1N \sum_m \pi^m\Bigr), \qquad
              \text{mean: } \ell(\pi^{\text{masks off}})

    Intervals say what is random. On the training rows, which are given, that is the choice of
    masks: Student's interval over the members for gibbs, none for the other two. On the held-out
    rows it is the choice of rows, with the masks given: Student's interval over rows for means,
    Clopper-Pearson (Wilson for gibbs) for the accuracy. The interval of the gap is that of the
    held-out risk, less the training risk. The calibration errors have none: they are means of
    absolute values, biased upward, and resampling the rows would add to the bias instead of
    showing it. One row or one member has no interval either, but for the exact ones.

    Args:
        train: Predictions on the training rows.
        test: Predictions on the held-out rows, by the same members.
        predictor: Which of the three.
        smoothing: a in (0, 1) of the smoothed cross-entropy.
        level: Coverage of the intervals, in (0, 1).
        vote_shares: Shares of human votes for the held-out rows, where there are any: shape
            (n_test,) in [0, 1] for class 1 of two, or (n_test, K).

    Returns:
        The measurement; risks in nats. ``sample_variance`` is that of the losses which
        ``population_risk`` is the mean of (for gibbs each row's mean over members); None for one
        row.

    Raises:
        ValueError: If ``smoothing`` or ``level`` is outside (0, 1), or a share is outside its
            range.

    Source:
        Predictors: Lin et al. (2024), arXiv:2404.09610v1, sections 3 and 4.
    """
    on_train = _TrainScores(train, predictor, level)
    on_test = _TestScores(test, predictor, level)

    def risk_of(probabilities: Float64Array, labels: NDArray[np.int64]) -> Float64Array:
        return smoothed_cross_entropy(probabilities, labels, smoothing)

    empirical_risk = on_train.estimate(risk_of, "mean smoothed cross-entropy")
    population_risk = on_test.estimate(risk_of, "mean smoothed cross-entropy")
    return PredictorMeasurement(
        empirical_risk=empirical_risk,
        population_risk=population_risk,
        generalization_gap=_gap(population_risk, empirical_risk),
        train_accuracy=on_train.estimate(_correct, "fraction correct"),
        test_accuracy=on_test.fraction(_correct, "fraction correct"),
        train_nll=on_train.estimate(negative_log_likelihoods, "mean -log probability"),
        test_nll=on_test.estimate(negative_log_likelihoods, "mean -log probability"),
        calibration_error=on_test.of_all_rows(
            calibration_error, "expected calibration error, 15 bins, biased upward"
        ),
        brier_score=on_test.estimate(brier_scores, "mean Brier score"),
        debiased_calibration_error=on_test.of_all_rows(
            debiased_calibration_error,
            "expected calibration error, 15 bins, less what noise adds; biased upward still",
        ),
        smooth_calibration_error=on_test.of_all_rows(
            smooth_calibration_error, "smooth calibration error, biased upward"
        ),
        vote_distance=None if vote_shares is None else on_test.vote_distance(vote_shares),
        sample_variance=on_test.variance(risk_of, "variance of the smoothed cross-entropy"),
        n_errors=None if predictor == "gibbs" else on_test.n_errors(),
    )


Score = Callable[[Float64Array, NDArray[np.int64]], Float64Array]
_ErrorOfRows = Callable[[Float64Array, NDArray[np.int64]], float]


class _TrainScores:
    """Scores on given rows: what varies is the mask."""

    def __init__(self, predictions: Predictions, predictor: Predictor, level: float) -> None:
        self.probabilities, self.labels = predictions.of(predictor), predictions.labels
        self.level = level

    def estimate(self, score: Score, what: str) -> Estimate:
        per_draw = score(self.probabilities, self.labels).mean(-1)
        what = f"{what} on the training rows"
        if per_draw.size == 1:
            return Estimate(value=float(per_draw[0]), n_draws=len(self.labels), method=what)
        return mean_estimate(per_draw, self.level, f"{what}, masks drawn")


class _TestScores:
    """Scores on drawn rows: what varies is the row, under given masks."""

    def __init__(self, predictions: Predictions, predictor: Predictor, level: float) -> None:
        self.probabilities, self.labels = predictions.of(predictor), predictions.labels
        self.level = level

    def estimate(self, score: Score, what: str) -> Estimate:
        return mean_estimate(self._per_row(score), self.level, f"{what} on the held-out rows")

    def fraction(self, score: Score, what: str) -> Estimate:
        return fraction_estimate(self._per_row(score), self.level, f"{what} on the held-out rows")

    def variance(self, score: Score, what: str) -> Estimate | None:
        return variance_estimate(self._per_row(score), self.level, f"{what} on the held-out rows")

    def vote_distance(self, vote_shares: Float64Array) -> Estimate:
        distances = vote_distances(self.probabilities, vote_shares).mean(0)
        what = "mean total variation distance to the votes on the held-out rows"
        return fraction_estimate(np.minimum(distances, 1.0), self.level, what)

    def n_errors(self) -> int:
        return int(np.sum(self._per_row(_correct) == 0.0))

    def of_all_rows(self, error: _ErrorOfRows, what: str) -> Estimate:
        value = error(self.probabilities, self.labels)
        return Estimate(
            value=value, n_draws=len(self.labels), method=f"{what}, on the held-out rows"
        )

    def _per_row(self, score: Score) -> Float64Array:
        return score(self.probabilities, self.labels).mean(0)


def negative_log_likelihoods(
    probabilities: Float64Array, labels: NDArray[np.int64]
) -> Float64Array:
    """-ln of the probability of the label, shape (..., n); finite also where it underflows."""
    chosen = np.take_along_axis(
        probabilities, np.broadcast_to(labels, probabilities.shape[:-1])[..., None], axis=-1
    )[..., 0]
    return -np.log(np.maximum(chosen, np.finfo(np.float64).tiny))


def _correct(probabilities: Float64Array, labels: NDArray[np.int64]) -> Float64Array:
    return (probabilities.argmax(-1) == labels).astype(np.float64)


def _gap(population_risk: Estimate, empirical_risk: Estimate) -> Estimate:
    shift = empirical_risk.value
    bounds = (population_risk.low, population_risk.high)
    low, high = (None if end is None else end - shift for end in bounds)
    return Estimate(
        value=population_risk.value - shift,
        low=low,
        high=high,
        level=population_risk.level,
        n_draws=population_risk.n_draws,
        method="held-out risk minus training risk; interval of the former, training rows given",
    )
