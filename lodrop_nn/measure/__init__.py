"""Measurements of what the theorems read; each function is named after the field that it fills."""

from lodrop_nn.measure.calibration import brier_scores, calibration_error
from lodrop_nn.measure.environment import environment
from lodrop_nn.measure.hessian import (
    ExtremeEigenvalues,
    hessian_extreme_eigs,
    hessian_max_eig,
    hessian_min_eig,
)
from lodrop_nn.measure.lipschitz import (
    ExampleGradients,
    example_gradients,
    gradient_norm,
    lipschitz,
)
from lodrop_nn.measure.penalty import delta_weight_norm, penalty, penalty_kkt
from lodrop_nn.measure.predictions import Predictions, predict_all
from lodrop_nn.measure.risk import predictor_measurement
from lodrop_nn.measure.run import loss_range, measure
from lodrop_nn.measure.sparsity import update_sparsity

__all__ = [
    "ExampleGradients",
    "ExtremeEigenvalues",
    "Predictions",
    "brier_scores",
    "calibration_error",
    "delta_weight_norm",
    "environment",
    "example_gradients",
    "gradient_norm",
    "hessian_extreme_eigs",
    "hessian_max_eig",
    "hessian_min_eig",
    "lipschitz",
    "loss_range",
    "measure",
    "penalty",
    "penalty_kkt",
    "predict_all",
    "predictor_measurement",
    "update_sparsity",
]
