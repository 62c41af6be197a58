"""Measurements of what the theorems read; each function is named after the field that it fills."""

from lodrop_nn.measure.calibration import (
    brier_scores,
    calibration_error,
    debiased_calibration_error,
    vote_distances,
)
from lodrop_nn.measure.calibration_curve import calibration_curve
from lodrop_nn.measure.curvature import Curvature, curvature
from lodrop_nn.measure.ensemble import jensen_gap, output_covariance
from lodrop_nn.measure.environment import environment
from lodrop_nn.measure.hessian import (
    dropout_min_eig,
    gauge_residual,
    hessian_max_eig,
    hessian_min_eig,
    transverse_min_eig,
)
from lodrop_nn.measure.linear_head import lipschitz_bound
from lodrop_nn.measure.lipschitz import (
    ExampleGradients,
    dropout_lipschitz,
    example_gradients,
    gradient_norm,
    lipschitz,
)
from lodrop_nn.measure.penalty import delta_weight_norm, penalty, penalty_curvature, penalty_kkt
from lodrop_nn.measure.posterior import posterior
from lodrop_nn.measure.predictions import Predictions, predict_all
from lodrop_nn.measure.retraining import LossChanges, retraining_stability
from lodrop_nn.measure.risk import predictor_measurement
from lodrop_nn.measure.run import loss_range, measure
from lodrop_nn.measure.settings import CORE, PARTS, MeasureSettings
from lodrop_nn.measure.smooth_calibration import smooth_calibration_error
from lodrop_nn.measure.sparsity import update_sparsity
from lodrop_nn.measure.stability import StabilitySettings, stability, strongly_convex

__all__ = [
    "CORE",
    "PARTS",
    "Curvature",
    "ExampleGradients",
    "LossChanges",
    "MeasureSettings",
    "Predictions",
    "StabilitySettings",
    "brier_scores",
    "calibration_curve",
    "calibration_error",
    "curvature",
    "debiased_calibration_error",
    "delta_weight_norm",
    "dropout_lipschitz",
    "dropout_min_eig",
    "environment",
    "example_gradients",
    "gauge_residual",
    "gradient_norm",
    "hessian_max_eig",
    "hessian_min_eig",
    "jensen_gap",
    "lipschitz",
    "lipschitz_bound",
    "loss_range",
    "measure",
    "output_covariance",
    "penalty",
    "penalty_curvature",
    "penalty_kkt",
    "posterior",
    "predict_all",
    "predictor_measurement",
    "retraining_stability",
    "smooth_calibration_error",
    "stability",
    "strongly_convex",
    "transverse_min_eig",
    "update_sparsity",
    "vote_distances",
]
