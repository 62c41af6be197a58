"""Records for tests: plausible numbers, no run behind them."""

from dataclasses import replace
from typing import Any

from lodrop_nn.config import RunConfig
from lodrop_theory import Estimate, PredictorMeasurement, RunRecord


def estimate(value: float, half: float | None = None, n_draws: int = 10) -> Estimate:
    """An estimate with a symmetric 95% interval, or without one."""
    if half is None:
        return Estimate(value=value, n_draws=n_draws, method="made up")
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        level=0.95,
        n_draws=n_draws,
        method="made up",
    )


def predictor_scores(empirical_risk: float, population_risk: float) -> PredictorMeasurement:
    """Scores with the given risks."""
    return PredictorMeasurement(
        empirical_risk=estimate(empirical_risk),
        population_risk=estimate(population_risk, 0.05),
        generalization_gap=estimate(population_risk - empirical_risk, 0.05),
        train_accuracy=estimate(0.99),
        test_accuracy=estimate(0.75, 0.03),
        train_nll=estimate(empirical_risk),
        test_nll=estimate(population_risk),
        calibration_error=estimate(0.15, 0.02),
        brier_score=estimate(0.4, 0.02),
    )


def run_record(dropout_rate: float = 0.3, seed: int = 0, **changes: Any) -> RunRecord:
    """A record whose numbers move with rate and seed; ``changes`` replace fields."""
    config = RunConfig(dropout_rate=dropout_rate, seed=seed)
    risk = 0.05 + 0.2 * dropout_rate + 0.01 * seed
    record = RunRecord(
        run_id=config.run_id,
        created="2026-01-01T00:00:00+00:00",
        config=config.as_json(),
        environment={"torch": "2.13.0", "cpu": "a processor"},
        n_train=config.n_train,
        n_test=config.n_test,
        n_parameters=74498,
        dropout_rate=dropout_rate,
        n_masks_train=config.n_masks_train,
        n_masks_test=config.n_masks_test,
        loss_range=estimate(3.66, 0.0),
        lipschitz=estimate(20.0 + seed),
        hessian_min_eig=Estimate(value=-0.2, low=-0.21, high=-0.2, n_draws=12, method="made up"),
        hessian_max_eig=Estimate(value=9.0, low=9.0, high=9.1, n_draws=12, method="made up"),
        gradient_norm=estimate(0.01),
        delta_weight_norm=estimate(3.0),
        penalty=estimate(0.002) if dropout_rate > 0 else None,
        penalty_kkt=estimate(-0.001) if dropout_rate > 0 else None,
        update_sparsity=estimate(2 * dropout_rate - dropout_rate**2, 0.0),
        predictors={
            "gibbs": predictor_scores(risk + 0.05, 0.9 - 0.3 * dropout_rate),
            "ensemble": predictor_scores(risk, 0.8 - 0.4 * dropout_rate),
            "mean": predictor_scores(risk, 0.85 - 0.2 * dropout_rate),
        },
        seconds={"fine-tune": 40.0, "predict": 20.0},
        notes=("a note with <b>markup</b>",),
    )
    return replace(record, **changes)
