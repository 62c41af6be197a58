"""Records for tests: plausible numbers, no run behind them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from lodrop_nn.config import RunConfig
from lodrop_theory import Estimate, PredictorMeasurement, RunRecord
from lodrop_theory.records import (
    STABILITY_METHODS,
    PosteriorPoint,
    Provenance,
    StabilityEstimates,
    StabilityMeasurement,
    StabilityMethod,
)


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


def exact(value: float, n_draws: int = 1) -> Estimate:
    """An exact number."""
    return Estimate(value=value, low=value, high=value, n_draws=n_draws, method="made up, exact")


def predictor_scores(empirical_risk: float, population_risk: float) -> PredictorMeasurement:
    """Scores with the given risks, and no more than the first schema had."""
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
    """A record whose numbers move with rate and seed; ``changes`` replace fields.

    It has no more than the first schema had: see :func:`full_record`.
    """
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


def stability_estimates(size: float = 0.02) -> StabilityEstimates:
    """Stabilities of about the given size, in the order that theory gives them."""
    return StabilityEstimates(
        pointwise_stability=estimate(size, size / 4),
        hypothesis_stability=estimate(size / 4, size / 16),
        remove_one_out=estimate(size / 3, size / 12),
        replace_one_out=estimate(size / 2, size / 8),
        replace_one_in=estimate(1.5 * size, size / 2),
        leave_one_out_risk=estimate(0.6, 0.1),
        replace_one_gap=estimate(size, size / 2),
    )


def stability_measurement(
    methods: tuple[StabilityMethod, ...] = STABILITY_METHODS, **changes: Any
) -> StabilityMeasurement:
    """Stabilities by the given methods; true ones are a tenth larger than the others."""
    sizes = {m: 0.022 if m in ("refit", "retrain") else 0.02 for m in methods}
    measurement = StabilityMeasurement(
        objective="training risk, masks off, plus a ridge",
        ridge=0.01,
        center="solution",
        n_parameters=74498,
        gradient_norm=estimate(1e-6),
        objective_min_eig=estimate(0.004),
        loss_variance=estimate(0.7, 0.1),
        lipschitz_segment=estimate(25.0),
        trace_gap=estimate(0.3),
        newton_ratio=estimate(0.95, 0.04) if "refit" in methods else None,
        influence_ratio=estimate(0.2, 0.1) if "refit" in methods else None,
        estimates={m: stability_estimates(size) for m, size in sizes.items()},
    )
    return replace(measurement, **changes)


def posterior_points() -> tuple[PosteriorPoint, ...]:
    """A randomized adapter on a grid of three scales: less noise, more divergence."""
    return tuple(
        PosteriorPoint(
            noise_std=sigma,
            kl_nats=exact(0.004 / sigma**2),
            empirical_risk=estimate(0.2 + 4 * sigma, 0.01, n_draws=256),
            error_rate=estimate(0.05 + sigma, 0.01, n_draws=256),
        )
        for sigma in (0.003, 0.01, 0.03)
    )


def full_record(dropout_rate: float = 0.3, seed: int = 0, **changes: Any) -> RunRecord:
    """A record with every measurement there is."""
    record = run_record(dropout_rate, seed)
    more: dict[str, Any] = {
        "debiased_calibration_error": estimate(0.1, 0.03),
        "smooth_calibration_error": estimate(0.09),
        "vote_distance": estimate(0.2, 0.02),
        "sample_variance": estimate(0.6, 0.1),
    }
    predictors: Mapping[str, PredictorMeasurement] = {
        name: replace(scores, **more, n_errors=None if name == "gibbs" else 128)
        for name, scores in record.predictors.items()
    }
    masked = dropout_rate > 0
    everything: dict[str, Any] = {
        "predictors": predictors,
        "lipschitz_bound": exact(400.0),
        "dropout_lipschitz": estimate(18.0),
        "dropout_min_eig": estimate(0.05),
        "transverse_min_eig": estimate(0.1),
        "gauge_dimension": 768,
        "gauge_residual": estimate(0.003),
        "penalty_curvature": estimate(0.2) if masked else None,
        "output_covariance": estimate(0.3, 0.05),
        "jensen_gap": estimate(0.02, 0.01),
        "stability": stability_measurement(),
        "posterior": posterior_points(),
    }
    return replace(record, **{**everything, **changes})


# Strategies: records of any content that is allowed, each optional part there or not.

_numbers = st.floats(-1e6, 1e6)
_sizes = st.floats(0, 1e6)
_words = st.text(min_size=1, max_size=5)
OPTIONAL = (
    "lipschitz_bound",
    "dropout_lipschitz",
    "dropout_min_eig",
    "transverse_min_eig",
    "gauge_residual",
    "penalty",
    "penalty_kkt",
    "penalty_curvature",
    "output_covariance",
    "jensen_gap",
)
SIZES = ("lipschitz_bound", "dropout_lipschitz", "gauge_residual", "output_covariance")
SCORES = (
    "debiased_calibration_error",
    "smooth_calibration_error",
    "vote_distance",
    "sample_variance",
)


@st.composite
def estimates(draw: st.DrawFn, values: st.SearchStrategy[float] = _numbers) -> Estimate:
    """Any estimate: without an interval, with one of either kind, or with one that claims less."""
    value = draw(values)
    draws, method = draw(st.integers(1, 10**9)), draw(_words)
    kind: Provenance = draw(st.sampled_from(("certified", "interval", "plug-in")))
    if kind == "plug-in" and draw(st.booleans()):
        return Estimate(value=value, n_draws=draws, method=method)
    low, high = value - draw(_sizes), value + draw(_sizes)
    certain = kind == "certified" or (kind == "plug-in" and draw(st.booleans()))
    level = None if certain else draw(st.floats(0.01, 0.99))
    return Estimate(
        value=value, low=low, high=high, level=level, n_draws=draws, method=method, provenance=kind
    )


@st.composite
def predictor_measurements(draw: st.DrawFn) -> PredictorMeasurement:
    """Any scores, each optional one there or not."""
    first = replace(predictor_scores(0.1, 0.5), empirical_risk=draw(estimates()))
    more = {name: draw(st.none() | estimates(_sizes)) for name in SCORES}
    return replace(first, **more, n_errors=draw(st.none() | st.integers(0, 512)))


@st.composite
def stability_measurements(draw: st.DrawFn) -> StabilityMeasurement:
    """Any stabilities, by any methods."""
    methods = draw(st.lists(st.sampled_from(STABILITY_METHODS), min_size=1, unique=True))
    some = replace(
        stability_estimates(draw(st.floats(0, 1))), leave_one_out_risk=draw(estimates(_sizes))
    )
    return replace(
        stability_measurement(tuple(methods)),
        ridge=draw(_sizes),
        center=draw(st.sampled_from(("origin", "solution"))),
        trace_gap=draw(st.none() | estimates()),
        newton_ratio=draw(st.none() | estimates()),
        influence_ratio=draw(st.none() | estimates()),
        estimates=dict.fromkeys(methods, some),
    )


@st.composite
def run_records(draw: st.DrawFn) -> RunRecord:
    """Any record, every optional part there or not."""
    optional = {
        name: draw(st.none() | estimates(_sizes if name in SIZES else _numbers))
        for name in OPTIONAL
    }
    points = posterior_points()[: draw(st.integers(0, 3))]
    return run_record(
        draw(st.sampled_from((0.0, 0.1, 0.5))),
        **optional,
        lipschitz=draw(estimates(_sizes)),
        gauge_dimension=draw(st.none() | st.integers(0, 10**6)),
        stability=draw(st.none() | stability_measurements()),
        posterior=points,
        predictors={name: draw(predictor_measurements()) for name in ("gibbs", "ensemble", "mean")},
        notes=tuple(draw(st.lists(_words, max_size=2))),
    )
