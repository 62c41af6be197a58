"""Learning problems whose truth is exact, and the bounds held against it.

*enumerable*: any symmetric algorithm on a finite population, by listing every training set.
*frozen_a*: LoRA Dropout regression with a frozen A, strongly convex. *factors*: both factors
trained. *gaussian*: closed-form risks and rank-one leave-one-out. *masked_sign*: a Gibbs classifier
with an exact risk. *contest*: which bounds hold, and with how much slack.
"""

from lodrop_theory.solvable.contenders import CONTENDERS, Contender
from lodrop_theory.solvable.contest import Verdict, hold
from lodrop_theory.solvable.enumerable import (
    ExactLaw,
    Stabilities,
    exact_law,
    held_out_law,
    memorizer,
)
from lodrop_theory.solvable.factors import (
    FactorRegression,
    balanced_factors,
    factor_hessian,
    gauge_directions,
    transverse_min_eig,
)
from lodrop_theory.solvable.frozen_a import FrozenARegression
from lodrop_theory.solvable.gaussian import (
    GaussianRegression,
    fit_ridge,
    leave_one_out_updates,
    mask_penalty_matrix,
    replace_one_updates,
)
from lodrop_theory.solvable.laws import Law, sampled_law
from lodrop_theory.solvable.masked_sign import masked_sign_risk
from lodrop_theory.solvable.multisets import multinomial_probability, multiset_index, multisets
from lodrop_theory.solvable.truth import (
    GroundTruth,
    sign_classifier,
    truth_of_hold_out,
    truth_of_regression,
)

__all__ = [  # noqa: RUF022 -- grouped by module
    # every training set of a finite population
    "multisets",
    "multiset_index",
    "multinomial_probability",
    "Law",
    "ExactLaw",
    "Stabilities",
    "exact_law",
    "sampled_law",
    "held_out_law",
    "memorizer",
    # algorithms with exact solutions
    "FrozenARegression",
    "FactorRegression",
    "balanced_factors",
    "factor_hessian",
    "gauge_directions",
    "transverse_min_eig",
    "GaussianRegression",
    "fit_ridge",
    "leave_one_out_updates",
    "replace_one_updates",
    "mask_penalty_matrix",
    "masked_sign_risk",
    "sign_classifier",
    # the bounds against the truth
    "GroundTruth",
    "truth_of_regression",
    "truth_of_hold_out",
    "Contender",
    "CONTENDERS",
    "Verdict",
    "hold",
]
