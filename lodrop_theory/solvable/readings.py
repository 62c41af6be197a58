"""How the inputs of the theorems are read off an exact truth, rounded outward."""

from typing import Any

import numpy as np

from lodrop_theory.inputs import (
    BernsteinHoldOutInputs,
    BinaryHoldOutInputs,
    CompressionInputs,
    HoldOutInputs,
    InformationInputs,
    L2LeaveOneOutInputs,
    L2StabilityInputs,
    LeaveOneOutInputs,
    PacBayesInputs,
    TwoStabilityInputs,
    UniformStabilityInputs,
)
from lodrop_theory.solvable.enumerable import ExactLaw
from lodrop_theory.solvable.truth import OUTWARD, GroundTruth


def _exact(truth: GroundTruth) -> ExactLaw:
    assert truth.exact is not None
    return truth.exact


def two_stabilities(truth: GroundTruth, delta: float) -> TwoStabilityInputs:
    """Mean changes at a fresh and at the removed point."""
    exact = _exact(truth).stabilities
    return TwoStabilityInputs(
        hypothesis_stability=exact.hypothesis_stability * OUTWARD,
        pointwise_stability=exact.pointwise_stability * OUTWARD,
        **truth.tail(delta),
    )


def mean_square(truth: GroundTruth, delta: float) -> L2StabilityInputs:
    """Root mean square changes, and the variance of the loss."""
    exact, tail = _exact(truth), truth.tail(delta)
    return L2StabilityInputs(
        replace_one_out=exact.stabilities.replace_one_out * OUTWARD,
        replace_one_in=exact.stabilities.replace_one_in * OUTWARD,
        loss_variance=min(exact.loss_variance * OUTWARD, tail["loss_range"] ** 2 / 4),
        **tail,
    )


def uniform(truth: GroundTruth, delta: float) -> UniformStabilityInputs:
    """The supremum of the change when one example is replaced."""
    supremum = _exact(truth).stabilities.uniform_stability * OUTWARD
    return UniformStabilityInputs(uniform_stability=supremum, **truth.tail(delta))


def _left_out(truth: GroundTruth, delta: float) -> dict[str, Any]:
    # The losses of what was learned from n - 1 examples count too.
    law = _exact(truth)
    both = np.concatenate([law.loss, law.reduced_loss])
    length = max(float(both.max() - both.min()) * OUTWARD, truth.interval[1])
    return {
        **truth.tail(delta),
        "loss_range": length,
        "leave_one_out_risk": law.leave_one_out_risk,
        "empirical_risk": law.empirical_risk,
    }


def left_out_mean(truth: GroundTruth, delta: float) -> LeaveOneOutInputs:
    """Leave-one-out risks, with the mean change at a fresh point."""
    stability = _exact(truth).stabilities.hypothesis_stability * OUTWARD
    return LeaveOneOutInputs(hypothesis_stability=stability, **_left_out(truth, delta))


def left_out_square(truth: GroundTruth, delta: float) -> L2LeaveOneOutInputs:
    """Leave-one-out risks, with the root mean square change at a fresh point."""
    stability = _exact(truth).stabilities.remove_one_out * OUTWARD
    return L2LeaveOneOutInputs(remove_one_out=stability, **_left_out(truth, delta))


def posterior(truth: GroundTruth, delta: float) -> PacBayesInputs:
    """Gibbs risks and divergences of every training set."""
    return PacBayesInputs(
        empirical_risk=truth.law.empirical_risk,
        kl_nats=truth.kl_nats if truth.kl_nats is not None else np.inf,
        loss_min=truth.interval[0],
        **truth.tail(delta),
    )


def held_out(truth: GroundTruth, delta: float) -> HoldOutInputs:
    """Mean losses on held-out sets."""
    return HoldOutInputs(**_held_out(truth, delta))


def _held_out(truth: GroundTruth, delta: float) -> dict[str, Any]:
    return {
        "n_test": truth.law.n_train,
        "loss_range": truth.interval[1],
        "delta": delta,
        "held_out_risk": truth.law.empirical_risk,
    }


def held_out_scatter(truth: GroundTruth, delta: float) -> BernsteinHoldOutInputs:
    """Mean and variance of the losses on held-out sets."""
    law, n = truth.law, truth.law.n_train
    squares = np.sum(law.counts * (law.loss - law.empirical_risk[:, None]) ** 2, axis=1)
    return BernsteinHoldOutInputs(
        sample_variance=squares * OUTWARD / (n - 1), **_held_out(truth, delta)
    )


def held_out_errors(truth: GroundTruth, delta: float) -> BinaryHoldOutInputs:
    """Numbers of errors on held-out sets."""
    errors = np.sum(truth.law.counts * truth.law.loss, axis=1)
    return BinaryHoldOutInputs(
        n_test=truth.law.n_train,
        n_errors=np.round(errors),
        delta=delta,
        empirical_risk=np.clip(truth.law.empirical_risk, 0.0, 1.0),
    )


def information(truth: GroundTruth, delta: float) -> InformationInputs:
    """The entropy of the training set as a multiset, which bounds what the solution can tell."""
    law = _exact(truth)
    return InformationInputs(
        n_train=law.n_train,
        loss_range=truth.interval[1],
        information_nats=float(-law.chance @ np.log(law.chance)) * OUTWARD,
    )


def code(truth: GroundTruth, delta: float) -> CompressionInputs:
    """The number of the multiset, from which whoever knows the algorithm decodes the solution."""
    law = _exact(truth)
    return CompressionInputs(
        code_length_bits=max(1, (len(law.counts) - 1).bit_length()),
        empirical_risk=np.maximum(law.empirical_risk - truth.interval[0], 0.0),
        **truth.tail(delta),
    )
