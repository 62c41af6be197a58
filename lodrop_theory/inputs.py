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


__all__ = [
    "CurvatureInputs",
    "Float64Array",
    "HoldOutInputs",
    "L2StabilityInputs",
    "TailInputs",
    "TwoStabilityInputs",
    "UniformStabilityInputs",
]
