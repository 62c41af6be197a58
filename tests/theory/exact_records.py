"""Records whose stabilities are exact: every sample of a finite population is listed."""

from dataclasses import replace

import numpy as np

from lodrop_theory import RunRecord
from lodrop_theory.records import StabilityEstimates, StabilityMethod
from lodrop_theory.solvable import ExactLaw
from tests.factories import estimate, exact, full_record, stability_measurement


def exact_record(
    law: ExactLaw, index: int = 0, method: StabilityMethod = "refit", **changes
) -> RunRecord:
    """The record of training on one sample of a law; its gap is that of the sample."""
    found = law.stabilities
    losses = np.concatenate([law.loss.ravel(), law.reduced_loss.ravel()])
    estimates = StabilityEstimates(
        pointwise_stability=exact(found.pointwise_stability),
        hypothesis_stability=exact(found.hypothesis_stability),
        remove_one_out=exact(found.remove_one_out),
        replace_one_out=exact(found.replace_one_out),
        replace_one_in=exact(found.replace_one_in),
        leave_one_out_risk=exact(float(law.leave_one_out_risk[index])),
        replace_one_gap=exact(found.signed_replacement),
    )
    stability = replace(
        stability_measurement((method,)),
        loss_variance=exact(max(law.loss_variance, 0.0)),
        estimates={method: estimates},
    )
    run = full_record(
        n_train=law.n_train,
        loss_range=exact(float(losses.max() - losses.min()) * (1 + 1e-11) + 1e-300),
        stability=stability,
        posterior=(),
    )
    mean = replace(
        run.predictors["mean"],
        empirical_risk=exact(float(law.empirical_risk[index])),
        generalization_gap=estimate(float(law.generalization_gap[index])),
        sample_variance=None,
    )
    predictors = {
        name: mean if name == "mean" else replace(scores, sample_variance=None)
        for name, scores in run.predictors.items()
    }
    return replace(run, **{"predictors": predictors, **changes})
