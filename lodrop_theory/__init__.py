"""Generalization bounds for LoRA Dropout: what a run proves, and what it only suggests.

*Inputs* are what a theorem reads, *results* what it says, *records* what happened in a run.
Importing this package loads NumPy and nothing heavier.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from lodrop_theory.bounds.bousquet2002 import (
    expectation_bound,
    two_stability_bound,
    uniform_bound,
)
from lodrop_theory.bounds.hold_out import hold_out_bound, hold_out_kl_bound
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
from lodrop_theory.compare import BoundTable, compare, minimum, minimum_at
from lodrop_theory.evaluate import curvature_bounds, evaluate_record, stability_of_record
from lodrop_theory.inputs import (
    BernsteinHoldOutInputs,
    BinaryHoldOutInputs,
    CompressionInputs,
    CoveringInputs,
    CurvatureInputs,
    DropoutCurvatureInputs,
    HoldOutInputs,
    InformationInputs,
    L2LeaveOneOutInputs,
    L2StabilityInputs,
    LeaveOneOutInputs,
    PacBayesInputs,
    SgdInputs,
    TailInputs,
    TransverseInputs,
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
    PosteriorPoint,
    PredictorMeasurement,
    RecordError,
    RunRecord,
    StabilityEstimates,
    StabilityMeasurement,
    read_record,
    write_record,
)
from lodrop_theory.results import BoundResult, StabilityResult

if TYPE_CHECKING:
    from lodrop_theory.assumptions import AssumptionTable, Hypothesis, audit
    from lodrop_theory.bounds.bousquet2020 import uniform_log_bound
    from lodrop_theory.bounds.catoni2007 import catoni_bound, mcallester2013_bound
    from lodrop_theory.bounds.clopper1934 import clopper_pearson_bound
    from lodrop_theory.bounds.covering import covering_bound, low_rank_dimension
    from lodrop_theory.bounds.dropout_stability import dropout_stability
    from lodrop_theory.bounds.feldman2018 import feldman_vondrak_bound
    from lodrop_theory.bounds.from_stability import stability_bounds
    from lodrop_theory.bounds.frozen_a import frozen_a_curvature
    from lodrop_theory.bounds.gaussian_masks import masked_factors_kl, masked_update_kl
    from lodrop_theory.bounds.hardt2016 import sgd_stability
    from lodrop_theory.bounds.leave_one_out import l2_leave_one_out_bound, leave_one_out_bound
    from lodrop_theory.bounds.lotfi2023 import compression_bound, compression_kl_bound
    from lodrop_theory.bounds.majority_vote import majority_vote_bound
    from lodrop_theory.bounds.maurer2004 import (
        pac_bayes_kl_bound,
        pac_bayes_quadratic_bound,
        pac_bayes_root_bound,
    )
    from lodrop_theory.bounds.maurer2009 import empirical_bernstein_bound
    from lodrop_theory.bounds.transverse import gauge_dimension, transverse_stability
    from lodrop_theory.bounds.xu2017 import information_bound, parameter_information_nats
    from lodrop_theory.claims import CLAIMS, Claim, claims_table
    from lodrop_theory.clopper_pearson import clopper_pearson_lower, clopper_pearson_upper
    from lodrop_theory.ensemble import (
        finite_n_excess,
        jensen_gap,
        log_loss_curvature,
        mean_over_subsets,
        n_masks_for_tolerance,
    )
    from lodrop_theory.ensemble_gain import (
        curvature_gain_bracket,
        log_gain_bracket,
        log_loss_ambiguity,
        logit_ambiguity,
    )
    from lodrop_theory.gain_confidence import gain_lower_bound
    from lodrop_theory.grids import GAP_FORMULAS, GapFormula, gap_grid
    from lodrop_theory.intervals import (
        Interval,
        IntervalBound,
        bound_over_intervals,
        interval_of_estimate,
    )
    from lodrop_theory.kl_inverse import binary_kl, binary_kl_inverse, binary_kl_inverse_lower
    from lodrop_theory.mask_variance import (
        AveragedMasks,
        balanced_masks_average,
        crossed_masks_average,
        ensemble_covariance,
        iid_masks_average,
        variance_ratio,
    )
    from lodrop_theory.penalty_of_masks import (
        frozen_a_hessian,
        implied_penalty,
        second_order_penalty,
        softmax_hessian,
    )
    from lodrop_theory.placements import (
        PLACEMENTS,
        Placement,
        placement_covariance,
        placement_penalty,
    )
    from lodrop_theory.planner.elasticity import Elasticities, elasticities
    from lodrop_theory.planner.selection import (
        RateSelection,
        leave_one_out_losses,
        select_dropout_rate,
    )
    from lodrop_theory.planner.solve import Plan, solve
    from lodrop_theory.ridge_minimizer import ridge_bounds, ridge_stability
    from lodrop_theory.slack import Looseness, looseness
    from lodrop_theory.stability_table import StabilityTable, bound_table

# Imported on first use: most sessions need few of them, and together they would be most of the
# import time.
_HOMES = {
    "AssumptionTable": "lodrop_theory.assumptions",
    "AveragedMasks": "lodrop_theory.mask_variance",
    "CLAIMS": "lodrop_theory.claims",
    "Claim": "lodrop_theory.claims",
    "Elasticities": "lodrop_theory.planner.elasticity",
    "GAP_FORMULAS": "lodrop_theory.grids",
    "GapFormula": "lodrop_theory.grids",
    "Hypothesis": "lodrop_theory.assumptions",
    "Interval": "lodrop_theory.intervals",
    "IntervalBound": "lodrop_theory.intervals",
    "Looseness": "lodrop_theory.slack",
    "PLACEMENTS": "lodrop_theory.placements",
    "Placement": "lodrop_theory.placements",
    "Plan": "lodrop_theory.planner.solve",
    "RateSelection": "lodrop_theory.planner.selection",
    "StabilityTable": "lodrop_theory.stability_table",
    "audit": "lodrop_theory.assumptions",
    "balanced_masks_average": "lodrop_theory.mask_variance",
    "binary_kl": "lodrop_theory.kl_inverse",
    "binary_kl_inverse": "lodrop_theory.kl_inverse",
    "binary_kl_inverse_lower": "lodrop_theory.kl_inverse",
    "bound_over_intervals": "lodrop_theory.intervals",
    "bound_table": "lodrop_theory.stability_table",
    "catoni_bound": "lodrop_theory.bounds.catoni2007",
    "claims_table": "lodrop_theory.claims",
    "clopper_pearson_bound": "lodrop_theory.bounds.clopper1934",
    "clopper_pearson_lower": "lodrop_theory.clopper_pearson",
    "clopper_pearson_upper": "lodrop_theory.clopper_pearson",
    "compression_bound": "lodrop_theory.bounds.lotfi2023",
    "compression_kl_bound": "lodrop_theory.bounds.lotfi2023",
    "covering_bound": "lodrop_theory.bounds.covering",
    "crossed_masks_average": "lodrop_theory.mask_variance",
    "curvature_gain_bracket": "lodrop_theory.ensemble_gain",
    "dropout_stability": "lodrop_theory.bounds.dropout_stability",
    "elasticities": "lodrop_theory.planner.elasticity",
    "empirical_bernstein_bound": "lodrop_theory.bounds.maurer2009",
    "ensemble_covariance": "lodrop_theory.mask_variance",
    "feldman_vondrak_bound": "lodrop_theory.bounds.feldman2018",
    "finite_n_excess": "lodrop_theory.ensemble",
    "frozen_a_curvature": "lodrop_theory.bounds.frozen_a",
    "frozen_a_hessian": "lodrop_theory.penalty_of_masks",
    "gain_lower_bound": "lodrop_theory.gain_confidence",
    "gap_grid": "lodrop_theory.grids",
    "gauge_dimension": "lodrop_theory.bounds.transverse",
    "iid_masks_average": "lodrop_theory.mask_variance",
    "implied_penalty": "lodrop_theory.penalty_of_masks",
    "information_bound": "lodrop_theory.bounds.xu2017",
    "interval_of_estimate": "lodrop_theory.intervals",
    "jensen_gap": "lodrop_theory.ensemble",
    "l2_leave_one_out_bound": "lodrop_theory.bounds.leave_one_out",
    "leave_one_out_bound": "lodrop_theory.bounds.leave_one_out",
    "leave_one_out_losses": "lodrop_theory.planner.selection",
    "log_gain_bracket": "lodrop_theory.ensemble_gain",
    "log_loss_ambiguity": "lodrop_theory.ensemble_gain",
    "log_loss_curvature": "lodrop_theory.ensemble",
    "logit_ambiguity": "lodrop_theory.ensemble_gain",
    "looseness": "lodrop_theory.slack",
    "ridge_bounds": "lodrop_theory.ridge_minimizer",
    "ridge_stability": "lodrop_theory.ridge_minimizer",
    "low_rank_dimension": "lodrop_theory.bounds.covering",
    "majority_vote_bound": "lodrop_theory.bounds.majority_vote",
    "masked_factors_kl": "lodrop_theory.bounds.gaussian_masks",
    "masked_update_kl": "lodrop_theory.bounds.gaussian_masks",
    "mcallester2013_bound": "lodrop_theory.bounds.catoni2007",
    "mean_over_subsets": "lodrop_theory.ensemble",
    "n_masks_for_tolerance": "lodrop_theory.ensemble",
    "pac_bayes_kl_bound": "lodrop_theory.bounds.maurer2004",
    "pac_bayes_quadratic_bound": "lodrop_theory.bounds.maurer2004",
    "pac_bayes_root_bound": "lodrop_theory.bounds.maurer2004",
    "parameter_information_nats": "lodrop_theory.bounds.xu2017",
    "placement_covariance": "lodrop_theory.placements",
    "placement_penalty": "lodrop_theory.placements",
    "second_order_penalty": "lodrop_theory.penalty_of_masks",
    "select_dropout_rate": "lodrop_theory.planner.selection",
    "sgd_stability": "lodrop_theory.bounds.hardt2016",
    "softmax_hessian": "lodrop_theory.penalty_of_masks",
    "solve": "lodrop_theory.planner.solve",
    "stability_bounds": "lodrop_theory.bounds.from_stability",
    "transverse_stability": "lodrop_theory.bounds.transverse",
    "uniform_log_bound": "lodrop_theory.bounds.bousquet2020",
    "variance_ratio": "lodrop_theory.mask_variance",
}

__all__ = [  # noqa: RUF022 -- grouped by role, the order in which they are used
    # records: what happened
    "Estimate",
    "PredictorMeasurement",
    "StabilityEstimates",
    "StabilityMeasurement",
    "PosteriorPoint",
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
    "LeaveOneOutInputs",
    "L2LeaveOneOutInputs",
    "HoldOutInputs",
    "BinaryHoldOutInputs",
    "BernsteinHoldOutInputs",
    "PacBayesInputs",
    "DropoutCurvatureInputs",
    "TransverseInputs",
    "SgdInputs",
    "InformationInputs",
    "CoveringInputs",
    "CompressionInputs",
    # results: what it says
    "BoundResult",
    "StabilityResult",
    # from a record, or from a curvature, to all that applies
    "evaluate_record",
    "stability_of_record",
    "curvature_bounds",
    # what they rest on, and how loose they are
    "audit",
    "AssumptionTable",
    "Hypothesis",
    "bound_table",
    "StabilityTable",
    "looseness",
    "Looseness",
    "ridge_bounds",
    "ridge_stability",
    # stability
    "strong_convexity",
    "repair_dropout_rate",
    "lin2024_stability",
    "remove_one_stability",
    "replace_one_stability",
    "local_stability",
    "frozen_a_curvature",
    "dropout_stability",
    "transverse_stability",
    "gauge_dimension",
    "sgd_stability",
    # bounds
    "lin2024_bound",
    "theorem44_floor",
    "two_stability_bound",
    "uniform_bound",
    "expectation_bound",
    "l2_stability_bound",
    "uniform_log_bound",
    "feldman_vondrak_bound",
    "stability_bounds",
    "leave_one_out_bound",
    "l2_leave_one_out_bound",
    "hold_out_bound",
    "hold_out_kl_bound",
    "clopper_pearson_bound",
    "empirical_bernstein_bound",
    "pac_bayes_kl_bound",
    "pac_bayes_quadratic_bound",
    "pac_bayes_root_bound",
    "catoni_bound",
    "mcallester2013_bound",
    "masked_factors_kl",
    "masked_update_kl",
    "majority_vote_bound",
    "information_bound",
    "parameter_information_nats",
    "covering_bound",
    "low_rank_dimension",
    "compression_bound",
    "compression_kl_bound",
    "ensemble_bound",
    # side by side
    "compare",
    "BoundTable",
    "minimum",
    "minimum_at",
    # planning
    "solve",
    "Plan",
    "elasticities",
    "Elasticities",
    "Interval",
    "IntervalBound",
    "interval_of_estimate",
    "bound_over_intervals",
    "leave_one_out_losses",
    "select_dropout_rate",
    "RateSelection",
    "gap_grid",
    "GapFormula",
    "GAP_FORMULAS",
    # exact limits
    "binary_kl",
    "binary_kl_inverse",
    "binary_kl_inverse_lower",
    "clopper_pearson_upper",
    "clopper_pearson_lower",
    # the paper's claims
    "CLAIMS",
    "Claim",
    "claims_table",
    # laws of the masks
    "update_sparsity",
    "dropout_rate_for_sparsity",
    "masked_update_mean",
    "masked_update_covariance",
    "squared_loss_penalty",
    "isotropic_penalty",
    "Placement",
    "PLACEMENTS",
    "placement_covariance",
    "placement_penalty",
    "implied_penalty",
    "second_order_penalty",
    "softmax_hessian",
    "frozen_a_hessian",
    "AveragedMasks",
    "iid_masks_average",
    "balanced_masks_average",
    "crossed_masks_average",
    "ensemble_covariance",
    "variance_ratio",
    # ensembles
    "jensen_gap",
    "log_loss_curvature",
    "finite_n_excess",
    "n_masks_for_tolerance",
    "mean_over_subsets",
    "log_loss_ambiguity",
    "logit_ambiguity",
    "log_gain_bracket",
    "curvature_gain_bracket",
    "gain_lower_bound",
    # losses
    "smoothed_cross_entropy",
    "smoothed_loss_range",
    "__version__",  # noqa: F822 -- see __getattr__
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = globals()[name] = getattr(_import_module(_HOMES[name]), name)
        return found
    if name == "__version__":  # reading the installed metadata is slow too
        from importlib import metadata

        try:
            return metadata.version("lodrop")
        except metadata.PackageNotFoundError:  # run from a checkout that was never installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
