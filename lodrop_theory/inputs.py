"""What each theorem reads: frozen, keyword-only, validated once.

Every field is a number or an array; the fields of one object broadcast against each other like
the arguments of a NumPy ufunc. Two runs that agree on the fields of an inputs object have the same
bound. Where a number came from lives in :class:`~lodrop_theory.records.RunRecord`.
"""

# ruff: noqa: RUF009 -- `_checked` returns `dataclasses.field`, which ruff cannot see

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory import _checks
from lodrop_theory._checks import Float64Array


def _checked(check: Any, *, optional: bool = False) -> Any:
    metadata = {"check": check}
    if optional:
        return field(default=None, metadata=metadata)
    return field(metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Converts each field to float64 through the check declared beside it."""

    def __post_init__(self) -> None:
        for each in fields(self):
            check, value = each.metadata.get("check"), getattr(self, each.name)
            if check is not None and value is not None:
                object.__setattr__(self, each.name, check(each.name, value))
        try:
            self.shape  # noqa: B018
        except ValueError:
            shapes = {e.name: np.shape(getattr(self, e.name)) for e in fields(self)}
            raise ValueError(f"the inputs must broadcast together, got shapes {shapes}.") from None

    @property
    def shape(self) -> tuple[int, ...]:
        """Common shape of all fields after broadcasting; ``()`` when all are scalars."""
        values = (getattr(self, e.name) for e in fields(self) if "check" in e.metadata)
        return np.broadcast_shapes(*(np.shape(v) for v in values if v is not None))


@dataclass(frozen=True, kw_only=True)
class CurvatureInputs(_Inputs):
    r"""What the stability argument of the LoRA Dropout paper reads.

    The penalized objective :math:`\hat R(\theta) + \lambda s(p) \|\theta - \theta_0\|^2` with
    :math:`s(p) = 2p - p^2` has strong convexity :math:`\mu = \Lambda_{\min} + 2 \lambda s(p)`.

    Attributes:
        n_train: Number of i.i.d. training examples (sequences, not tokens), >= 1.
        dropout_rate: Probability p in [0, 1) that an input or output coordinate is dropped.
        lipschitz: Lipschitz constant of the *unregularized* per-example loss in the parameters,
            on the segment between the minimizers that are compared. Loss per parameter norm, >= 0.
        hessian_min_eig: Smallest eigenvalue of the Hessian of the unregularized empirical risk, in
            the coordinates of the proof. Loss per parameter^2; may be negative.
        penalty: Weight lambda of the squared-norm penalty. Loss per parameter^2, >= 0.
    """

    n_train: ArrayLike = _checked(_checks.check_count)
    dropout_rate: ArrayLike = _checked(_checks.check_dropout_rate)
    lipschitz: ArrayLike = _checked(_checks.check_nonnegative)
    hessian_min_eig: ArrayLike = _checked(_checks.check_finite)
    penalty: ArrayLike = _checked(_checks.check_nonnegative)


@dataclass(frozen=True, kw_only=True)
class TailInputs(_Inputs):
    """What turns a stability into a statement about the risk.

    Attributes:
        n_train: Number of i.i.d. training examples, >= 1.
        loss_range: Length C of the interval in which the loss lies. Loss units, > 0.
        delta: Failure probability in (0, 1); the bound holds with probability at least
            1 - delta over the draw of the training set.
        empirical_risk: Training risk of the predictor that the bound covers, or None when
            only the gap is wanted. Loss units.
    """

    n_train: ArrayLike = _checked(_checks.check_count)
    loss_range: ArrayLike = _checked(_checks.check_positive)
    delta: ArrayLike = _checked(_checks.check_failure_probability)
    empirical_risk: ArrayLike | None = _checked(_checks.check_finite, optional=True)


@dataclass(frozen=True, kw_only=True)
class TwoStabilityInputs(TailInputs):
    """What the corrected Chebyshev bound reads (Bousquet and Elisseeff 2002, repaired).

    Attributes:
        hypothesis_stability: b1, expected |change of the loss at a *fresh* point| when one
            training example is removed. Loss units, >= 0.
        pointwise_stability: b2, the same at the *removed* point. Loss units, >= 0.
    """

    hypothesis_stability: ArrayLike = _checked(_checks.check_nonnegative)
    pointwise_stability: ArrayLike = _checked(_checks.check_nonnegative)


@dataclass(frozen=True, kw_only=True)
class UniformStabilityInputs(TailInputs):
    """What the exponential-tail bound and the bound in expectation read.

    Attributes:
        uniform_stability: Supremum over data sets and points of the |change of the loss| when one
            training example is *replaced*. Loss units, >= 0.
    """

    uniform_stability: ArrayLike = _checked(_checks.check_nonnegative)


@dataclass(frozen=True, kw_only=True)
class L2StabilityInputs(TailInputs):
    """What the L2-stability bound reads; the algorithm must be symmetric in its examples.

    Attributes:
        replace_one_out: Root mean square change of the loss at a fresh point when one
            example is replaced. Loss units, >= 0.
        replace_one_in: The same at the replaced example. Loss units, >= 0.
        loss_variance: Mean over training sets of the variance of the loss at a fresh point,
            in [0, loss_range^2 / 4]; None takes that maximum.
    """

    replace_one_out: ArrayLike = _checked(_checks.check_nonnegative)
    replace_one_in: ArrayLike = _checked(_checks.check_nonnegative)
    loss_variance: ArrayLike | None = _checked(_checks.check_nonnegative, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_variance is not None:
            largest = np.asarray(self.loss_range) ** 2 / 4.0
            if np.any(np.asarray(self.loss_variance) > largest * (1 + 1e-12)):
                raise ValueError(
                    f"`loss_variance` must be at most loss_range^2 / 4 = {largest}, "
                    f"got {self.loss_variance}."
                )


@dataclass(frozen=True, kw_only=True)
class HoldOutInputs(_Inputs):
    """What a hold-out bound reads: examples that no choice during training has seen.

    Attributes:
        n_test: Number of held-out i.i.d. examples, >= 1.
        loss_range: Length C of the interval in which the loss lies. Loss units, > 0.
        delta: Failure probability in (0, 1), over the draw of the held-out set.
        held_out_risk: Mean loss on the held-out examples. Loss units.
        empirical_risk: Training risk of the same predictor, or None. Loss units.
    """

    n_test: ArrayLike = _checked(_checks.check_count)
    loss_range: ArrayLike = _checked(_checks.check_positive)
    delta: ArrayLike = _checked(_checks.check_failure_probability)
    held_out_risk: ArrayLike = _checked(_checks.check_finite)
    empirical_risk: ArrayLike | None = _checked(_checks.check_finite, optional=True)


@dataclass(frozen=True, kw_only=True)
class BinaryHoldOutInputs(_Inputs):
    """What the exact binomial limit reads: a loss that is 0 or 1.

    Attributes:
        n_test: Number of held-out i.i.d. examples, >= 1.
        n_errors: Number of them with loss 1; a whole number in [0, n_test].
        delta: Failure probability in (0, 1), over the draw of the held-out set.
        empirical_risk: Training risk of the same predictor in the same loss, or None.
    """

    n_test: ArrayLike = _checked(_checks.check_count)
    n_errors: ArrayLike = _checked(_checks.check_nonnegative)
    delta: ArrayLike = _checked(_checks.check_failure_probability)
    empirical_risk: ArrayLike | None = _checked(_checks.check_unit_interval, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        errors = np.asarray(self.n_errors)
        if np.any((errors > self.n_test) | (errors != np.floor(errors))):
            raise ValueError(
                f"`n_errors` must be a whole number in [0, n_test], got {self.n_errors}."
            )


@dataclass(frozen=True, kw_only=True)
class BernsteinHoldOutInputs(HoldOutInputs):
    """What the empirical Bernstein bound reads.

    Attributes:
        sample_variance: Variance of the held-out losses with divisor n_test - 1, in
            [0, n / (n - 1) * loss_range^2 / 4]. Loss units^2.
    """

    sample_variance: ArrayLike = _checked(_checks.check_nonnegative)

    def __post_init__(self) -> None:
        super().__post_init__()
        n = np.asarray(self.n_test)
        if np.any(n < 2):
            raise ValueError(
                f"`n_test` must be at least 2 for a sample variance, got {self.n_test}."
            )
        largest = np.asarray(self.loss_range) ** 2 / 4.0 * (n / (n - 1.0))
        if np.any(np.asarray(self.sample_variance) > largest * (1 + 1e-12)):
            raise ValueError(
                f"`sample_variance` must be at most {largest}, got {self.sample_variance}."
            )


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutInputs(TailInputs):
    """What the bounds around the leave-one-out risk read.

    Attributes:
        leave_one_out_risk: Mean over i of the loss at example i of what was learned without it.
            Loss units.
        hypothesis_stability: b1, expected |change of the loss at a *fresh* point| when one
            training example is removed. Loss units, >= 0.
    """

    leave_one_out_risk: ArrayLike = _checked(_checks.check_finite)
    hypothesis_stability: ArrayLike = _checked(_checks.check_nonnegative)


@dataclass(frozen=True, kw_only=True)
class L2LeaveOneOutInputs(TailInputs):
    """The same, with the root mean square in the place of the mean.

    Attributes:
        leave_one_out_risk: Mean over i of the loss at example i of what was learned without it.
            Loss units.
        remove_one_out: Root mean square change of the loss at a fresh point when one training
            example is removed. Loss units, >= 0.
    """

    leave_one_out_risk: ArrayLike = _checked(_checks.check_finite)
    remove_one_out: ArrayLike = _checked(_checks.check_nonnegative)


@dataclass(frozen=True, kw_only=True)
class PacBayesInputs(_Inputs):
    """What the PAC-Bayes bounds read; ``delta`` covers everything, Monte Carlo included.

    Attributes:
        n_train: Number of i.i.d. training examples, >= 1.
        loss_range: Length C of the interval in which the loss lies. Loss units, > 0.
        delta: Failure probability of the whole statement, in (0, 1).
        empirical_risk: Training risk of the randomized predictor: the mean over examples and
            over the posterior (masks and noise), not the loss of an averaged predictor. Exact if
            ``n_draws`` is None, else the mean over that many draws. Loss units.
        kl_nats: KL(posterior || prior) in nats, >= 0. The prior must not depend on the sample.
        loss_min: Left end of that interval; None means 0. Loss units.
        n_priors: Number of priors, fixed before the sample was seen, among which this one was
            chosen afterwards (a grid of noise scales or dropout rates); None means 1.
        n_draws: Number of independent draws from the posterior behind ``empirical_risk``, or None.
            A draw may serve some of the examples only: all in turn, in parts of equal size (else
            the number of examples served over the largest part, rounded down).
        delta_draws: Share of ``delta`` that pays for the draws, in (0, delta); None without draws.
    """

    n_train: ArrayLike = _checked(_checks.check_count)
    loss_range: ArrayLike = _checked(_checks.check_positive)
    delta: ArrayLike = _checked(_checks.check_failure_probability)
    empirical_risk: ArrayLike = _checked(_checks.check_finite)
    kl_nats: ArrayLike = _checked(_checks.check_nonnegative)
    loss_min: ArrayLike | None = _checked(_checks.check_finite, optional=True)
    n_priors: ArrayLike | None = _checked(_checks.check_count, optional=True)
    n_draws: ArrayLike | None = _checked(_checks.check_count, optional=True)
    delta_draws: ArrayLike | None = _checked(_checks.check_failure_probability, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        low = np.asarray(0.0 if self.loss_min is None else self.loss_min)
        risk, length = np.asarray(self.empirical_risk), np.asarray(self.loss_range)
        tolerance = 1e-12 * (np.abs(low) + length)
        if np.any((risk < low - tolerance) | (risk > low + length + tolerance)):
            raise ValueError(
                "`empirical_risk` must be in [loss_min, loss_min + loss_range] = "
                f"[{low}, {low + length}], got {self.empirical_risk}."
            )
        if (self.n_draws is None) != (self.delta_draws is None):
            raise ValueError(
                "`n_draws` and `delta_draws` must be given together, got "
                f"n_draws={self.n_draws!r}, delta_draws={self.delta_draws!r}."
            )
        if self.delta_draws is not None and np.any(
            np.asarray(self.delta_draws) >= np.asarray(self.delta)
        ):
            raise ValueError(
                f"`delta_draws` must be smaller than `delta`, got {self.delta_draws} "
                f"and {self.delta}."
            )


@dataclass(frozen=True, kw_only=True)
class SgdInputs(_Inputs):
    """What the stability of stochastic gradient descent reads; stopping early is a small sum.

    Attributes:
        n_train: Number of training examples, >= 1.
        lipschitz: Lipschitz constant of the loss of one example in the trained parameters,
            wherever the iterates go. Loss per parameter norm, >= 0.
        smoothness: Lipschitz constant of its gradient. Loss per parameter^2, >= 0.
        largest_step_size: Largest learning rate of the run, >= 0. Parameter^2 per loss.
        step_size_sum: Sum of the learning rates over all updates, >= 0.
    """

    n_train: ArrayLike = _checked(_checks.check_count)
    lipschitz: ArrayLike = _checked(_checks.check_nonnegative)
    smoothness: ArrayLike = _checked(_checks.check_nonnegative)
    largest_step_size: ArrayLike = _checked(_checks.check_nonnegative)
    step_size_sum: ArrayLike = _checked(_checks.check_nonnegative)


@dataclass(frozen=True, kw_only=True)
class InformationInputs(_Inputs):
    """What the mutual information bound reads.

    Attributes:
        n_train: Number of i.i.d. training examples, >= 1.
        loss_range: Length C of the interval in which the loss lies. Loss units, > 0.
        information_nats: Upper bound on the mutual information between the training set and
            the trained parameters, in nats, >= 0.
    """

    n_train: ArrayLike = _checked(_checks.check_count)
    loss_range: ArrayLike = _checked(_checks.check_positive)
    information_nats: ArrayLike = _checked(_checks.check_nonnegative)


@dataclass(frozen=True, kw_only=True)
class CoveringInputs(TailInputs):
    """What the covering bound over all low-rank updates reads.

    Attributes:
        lipschitz: Lipschitz constant of the loss in the updates of all modules together, in
            Frobenius norm, over all updates allowed. Loss per parameter norm, >= 0.
        norm_bound: Frobenius norm that no module's update exceeds, fixed in advance, > 0.
        dimension: Sum over modules of r (out_features + in_features + 1), >= 1.
        n_modules: Number of adapted modules, >= 1.
    """

    lipschitz: ArrayLike = _checked(_checks.check_nonnegative)
    norm_bound: ArrayLike = _checked(_checks.check_positive)
    dimension: ArrayLike = _checked(_checks.check_count)
    n_modules: ArrayLike = _checked(_checks.check_count)


@dataclass(frozen=True, kw_only=True)
class CompressionInputs(TailInputs):
    """What the compression bounds read.

    Attributes:
        code_length_bits: Length of the binary string from which the trained adapter is decoded by
            a decoder fixed in advance, >= 1. Everything that was chosen after the data were
            seen must be in it.
    """

    code_length_bits: ArrayLike = _checked(_checks.check_count)


@dataclass(frozen=True, kw_only=True)
class TransverseInputs(_Inputs):
    """What stability modulo a symmetry reads.

    Attributes:
        n_train: Number of i.i.d. training examples, >= 1.
        lipschitz: Lipschitz constant of the unregularized per-example loss between a solution
            and the nearest minimizer of the changed objective. Loss per parameter norm, >= 0.
        transverse_min_eig: Smallest eigenvalue of the Hessian of the *whole* objective on the
            complement of the orbit of the symmetry. Loss per parameter^2; may be negative.
    """

    n_train: ArrayLike = _checked(_checks.check_count)
    lipschitz: ArrayLike = _checked(_checks.check_nonnegative)
    transverse_min_eig: ArrayLike = _checked(_checks.check_finite)


@dataclass(frozen=True, kw_only=True)
class DropoutCurvatureInputs(_Inputs):
    """What the stability of the dropout objective itself reads: no penalty stands in for it.

    Attributes:
        n_train: Number of i.i.d. training examples, >= 1.
        dropout_rate: p in [0, 1); recorded, and already inside the other two.
        dropout_lipschitz: Lipschitz constant of the expected loss under masks of one example, in
            the trained parameters. Loss per parameter norm, >= 0.
        dropout_min_eig: Strong convexity of the objective: the smallest eigenvalue of the
            Hessian of the mean of these losses. Loss per parameter^2; may be negative.
    """

    n_train: ArrayLike = _checked(_checks.check_count)
    dropout_rate: ArrayLike = _checked(_checks.check_dropout_rate)
    dropout_lipschitz: ArrayLike = _checked(_checks.check_nonnegative)
    dropout_min_eig: ArrayLike = _checked(_checks.check_finite)


__all__ = [
    "BernsteinHoldOutInputs",
    "BinaryHoldOutInputs",
    "CompressionInputs",
    "CoveringInputs",
    "CurvatureInputs",
    "DropoutCurvatureInputs",
    "Float64Array",
    "HoldOutInputs",
    "InformationInputs",
    "L2LeaveOneOutInputs",
    "L2StabilityInputs",
    "LeaveOneOutInputs",
    "PacBayesInputs",
    "SgdInputs",
    "TailInputs",
    "TransverseInputs",
    "TwoStabilityInputs",
    "UniformStabilityInputs",
]
