"""Everything that a bound may ask of one algorithm on one population, exact."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array
from lodrop_theory.bounds.gaussian_masks import masked_factors_kl
from lodrop_theory.inputs import CurvatureInputs
from lodrop_theory.solvable.enumerable import ExactLaw, Stabilities, exact_law, held_out_law
from lodrop_theory.solvable.frozen_a import FrozenARegression
from lodrop_theory.solvable.laws import Algorithm, Law
from lodrop_theory.solvable.masked_sign import masked_sign_risk
from lodrop_theory.solvable.multisets import Counts

# Enumerated sums are off by a few ulps per term; what is read from them moves outward by far more.
OUTWARD = 1.0 + 1e-11


@dataclass(frozen=True, kw_only=True, eq=False)
class GroundTruth:
    """One algorithm on one population.

    Attributes:
        law: What the algorithm makes of every training set.
        loss_interval: Both ends of an interval that holds every loss; None takes the smallest,
            which is right for an :class:`~lodrop_theory.solvable.enumerable.ExactLaw`.
        curvature: Inputs of the stability argument, exact or on the safe side; None where the
            objective is not strongly convex.
        kl_nats: KL(posterior || prior) of each training set, for a law of Gibbs risks.
        held_out: Whether the training sets of the law stand for held-out sets.
    """

    law: Law
    loss_interval: tuple[float, float] | None = None
    curvature: CurvatureInputs | None = None
    kl_nats: Float64Array | None = None
    held_out: bool = False

    @property
    def exact(self) -> ExactLaw | None:
        """The law, if all training sets are listed: then their neighbours are known too."""
        return self.law if isinstance(self.law, ExactLaw) else None

    @property
    def stabilities(self) -> Stabilities | None:
        """Exact stabilities, where all training sets are listed."""
        return None if self.exact is None else self.exact.stabilities

    @property
    def zero_one(self) -> bool:
        """Whether every loss is 0 or 1."""
        return bool(np.isin(self.law.loss, (0.0, 1.0)).all())

    @property
    def interval(self) -> tuple[float, float]:
        """The left end of the interval of the loss, and its length, rounded outward."""
        low, high = self.loss_interval or (float(self.law.loss.min()), float(self.law.loss.max()))
        # A constant loss has range 0, which no inputs object accepts, and means that are not equal.
        rounding = 1e-13 * max(abs(low), abs(high)) + float(np.finfo(np.float64).tiny)
        return low, (high - low) * OUTWARD + rounding

    def tail(self, delta: float) -> dict[str, Any]:
        """``n_train``, ``loss_range`` and ``delta``, as the inputs objects read them."""
        return {"n_train": self.law.n_train, "loss_range": self.interval[1], "delta": delta}


def truth_of_regression(
    problem: FrozenARegression, probabilities: ArrayLike, n_train: int
) -> GroundTruth:
    """LoRA Dropout regression with a frozen A, trained to its minimum on every training set.

    Args:
        problem: The objective; the law is that of the loss that it averages.
        probabilities: Probability of each atom, shape (K,).
        n_train: n >= 2.
    """
    return GroundTruth(
        law=exact_law(probabilities, n_train, problem.algorithm()),
        curvature=problem.curvature(n_train),
    )


def sign_classifier(
    inputs: Float64Array, labels: Float64Array, *, dropout_rate: float, noise_scale: float
) -> tuple[Algorithm, Callable[[Counts], Float64Array]]:
    r"""A Gibbs classifier and its divergence, as functions of the training set.

    The weights are twice the mean of :math:`y x` over the training set; masks and noise are those
    of :mod:`~lodrop_theory.solvable.masked_sign`, and the prior is the same law around 0.

    Args:
        inputs: The atoms x, shape (K, d).
        labels: y of each atom, -1 or 1, shape (K,).
        dropout_rate: p in [0, 1).
        noise_scale: sigma > 0.

    Returns:
        Two functions of the counts, shape (m, K): the probability of an error at each atom, shape
        (m, K), and the divergence of posterior and prior in nats, shape (m,).
    """

    def weights(counts: Counts) -> Float64Array:
        size = np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return np.asarray(2.0 * (counts / size) @ (labels[:, None] * inputs))

    def algorithm(counts: Counts) -> Float64Array:
        return masked_sign_risk(
            weights(counts), inputs, labels, dropout_rate=dropout_rate, noise_scale=noise_scale
        )

    def divergence(counts: Counts) -> Float64Array:
        squares = np.sum(weights(counts) ** 2, axis=1) * OUTWARD
        return masked_factors_kl(squares, dropout_rate, noise_scale, rescale=False)

    return algorithm, divergence


def truth_of_hold_out(
    law: Law, index: int, n_test: int, *, loss_interval: tuple[float, float] | None = None
) -> GroundTruth:
    """A held-out test of what was learned from one training set of a law.

    Args:
        law: The law that holds the training set.
        index: Which one, a row of ``law.counts``.
        n_test: Held-out examples, >= 1.
        loss_interval: As in :class:`GroundTruth`.
    """
    return GroundTruth(
        law=held_out_law(law, index, n_test), loss_interval=loss_interval, held_out=True
    )
