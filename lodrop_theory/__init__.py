"""Generalization bounds for LoRA Dropout: what a run proves, and what it only suggests.

*Inputs* are what a theorem reads, *results* what it says, *records* what happened in a run.
Importing this package loads NumPy and nothing heavier.
"""

from importlib import metadata as _metadata

from lodrop_theory.bounds.bousquet2002 import (
    expectation_bound,
    two_stability_bound,
    uniform_bound,
)
from lodrop_theory.bounds.hold_out import hold_out_bound
from lodrop_theory.bounds.l2_stability import l2_stability_bound
from lodrop_theory.bounds.lin2024 import (
    ensemble_bound,
    lin2024_bound,
    lin2024_stability,
    repair_dropout_rate,
    strong_convexity,
    theorem44_floor,
)
from lodrop_theory.bounds.strongconvex import (
    local_stability,
    remove_one_stability,
    replace_one_stability,
)
from lodrop_theory.ensemble import (
    finite_n_excess,
    jensen_gap,
    log_loss_curvature,
    mean_over_subsets,
    n_masks_for_tolerance,
)
from lodrop_theory.evaluate import curvature_bounds, evaluate_record, stability_of_record
from lodrop_theory.inputs import (
    CurvatureInputs,
    HoldOutInputs,
    L2StabilityInputs,
    TailInputs,
    TwoStabilityInputs,
    UniformStabilityInputs,
)
from lodrop_theory.losses import smoothed_cross_entropy, smoothed_loss_range
from lodrop_theory.mask_laws import (
    dropout_rate_for_sparsity,
    isotropic_penalty,
    masked_update_covariance,
    masked_update_mean,
    squared_loss_penalty,
    update_sparsity,
)
from lodrop_theory.records import (
    Estimate,
    PredictorMeasurement,
    RecordError,
    RunRecord,
    read_record,
    write_record,
)
from lodrop_theory.results import BoundResult, StabilityResult

try:
    __version__ = _metadata.version("lodrop")
except _metadata.PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [  # noqa: RUF022 -- grouped by role, the order in which they are used
    # records: what happened
    "Estimate",
    "PredictorMeasurement",
    "RunRecord",
    "RecordError",
    "read_record",
    "write_record",
    # inputs: what a theorem reads
    "CurvatureInputs",
    "TailInputs",
    "TwoStabilityInputs",
    "UniformStabilityInputs",
    "L2StabilityInputs",
    "HoldOutInputs",
    # results: what it says
    "BoundResult",
    "StabilityResult",
    # from a record, or from a curvature, to all that applies
    "evaluate_record",
    "stability_of_record",
    "curvature_bounds",
    # stability
    "strong_convexity",
    "repair_dropout_rate",
    "lin2024_stability",
    "remove_one_stability",
    "replace_one_stability",
    "local_stability",
    # bounds
    "lin2024_bound",
    "theorem44_floor",
    "two_stability_bound",
    "uniform_bound",
    "expectation_bound",
    "l2_stability_bound",
    "hold_out_bound",
    "ensemble_bound",
    # laws of the masks
    "update_sparsity",
    "dropout_rate_for_sparsity",
    "masked_update_mean",
    "masked_update_covariance",
    "squared_loss_penalty",
    "isotropic_penalty",
    # ensembles
    "jensen_gap",
    "log_loss_curvature",
    "finite_n_excess",
    "n_masks_for_tolerance",
    "mean_over_subsets",
    # losses
    "smoothed_cross_entropy",
    "smoothed_loss_range",
    "__version__",
]
