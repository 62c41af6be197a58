"""A symmetric algorithm on a finite population: training sets as counts, risks as sums.

The population has K atoms of known probability, so that the population risk of whatever was learned
is a sum of K terms. A symmetric algorithm cannot tell the order of its examples: a training set is
a multiset of atoms, a row of counts that sums to n.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import Float64Array, check_count, check_positive
from lodrop_theory.solvable.multisets import Counts

Algorithm = Callable[[Counts], Float64Array]
"""A symmetric learner: counts, shape (m, K), to the loss at every atom after training, (m, K)."""


def check_probabilities(name: str, value: ArrayLike) -> Float64Array:
    """A vector of positive probabilities of sum 1.

    Raises:
        ValueError: If it is not.
    """
    chances = check_positive(name, value)
    if chances.ndim != 1 or abs(float(chances.sum()) - 1.0) > 1e-12:
        raise ValueError(f"`{name}` must be a vector of sum 1, got {value!r}.")
    return chances


@dataclass(frozen=True, kw_only=True, eq=False)
class Law:
    """A weighted list of training sets, and what one algorithm makes of each of them.

    Attributes:
        probabilities: Probability of each atom, shape (K,).
        counts: Training sets as counts, shape (m, K).
        chance: Probability of each training set, or 1/m for m draws, shape (m,).
        loss: Loss at each atom after training, shape (m, K). Loss units.
    """

    probabilities: Float64Array
    counts: Counts
    chance: Float64Array
    loss: Float64Array

    @property
    def n_train(self) -> int:
        """Examples in a training set."""
        return int(self.counts[0].sum())

    @cached_property
    def population_risk(self) -> Float64Array:
        """R of each training set, exact. Loss units."""
        return np.asarray(self.loss @ self.probabilities)

    @cached_property
    def empirical_risk(self) -> Float64Array:
        """R-hat of each training set. Loss units."""
        return np.asarray(np.einsum("mk,mk->m", self.counts, self.loss) / self.n_train)

    @cached_property
    def generalization_gap(self) -> Float64Array:
        """R - R-hat of each training set. Loss units."""
        # The weights sum to 0: a common part of the losses must not leave its rounding behind.
        weight = self.probabilities - self.counts / self.n_train
        rest = self.loss - self.loss.min(axis=1, keepdims=True)
        return np.asarray(np.einsum("mk,mk->m", weight, rest))

    @property
    def loss_range(self) -> float:
        """Length of the smallest interval that holds every loss in the list. Loss units."""
        return float(self.loss.max() - self.loss.min())

    @property
    def mean_gap(self) -> float:
        """E[R - R-hat]. Loss units."""
        return float(self.chance @ self.generalization_gap)

    @property
    def second_moment(self) -> float:
        """E (R - R-hat)^2. Loss units squared."""
        return float(self.chance @ self.generalization_gap**2)

    def violation(self, gap: ArrayLike) -> float:
        """Probability that R - R-hat exceeds a bound.

        Args:
            gap: The bound: one number, or one per training set. Loss units.
        """
        return float(self.chance[self.generalization_gap > np.asarray(gap)].sum())

    def quantile(self, delta: float) -> float:
        """The smallest number that R - R-hat exceeds with probability at most ``delta``."""
        order = np.argsort(self.generalization_gap)
        # From the top: how much probability lies strictly above each value.
        above = np.concatenate([np.cumsum(self.chance[order][::-1])[::-1][1:], [0.0]])
        return float(self.generalization_gap[order][np.argmax(above <= delta)])


def sampled_law(
    probabilities: ArrayLike,
    n_train: int,
    algorithm: Algorithm,
    *,
    n_draws: int,
    generator: np.random.Generator,
) -> Law:
    """Independent draws of the training set, where listing all of them is out of reach.

    The population risk of every draw is still exact.

    Args:
        probabilities: As in :func:`~lodrop_theory.solvable.enumerable.exact_law`.
        n_train: n >= 1.
        algorithm: As in :func:`~lodrop_theory.solvable.enumerable.exact_law`.
        n_draws: Training sets to draw, >= 1.
        generator: Source of the draws.

    Returns:
        A law with weight 1 / n_draws per training set.

    Raises:
        ValueError: If an argument is outside its range.
    """
    chances = check_probabilities("probabilities", probabilities)
    size, many = int(check_count("n_train", n_train)), int(check_count("n_draws", n_draws))
    counts = generator.multinomial(size, chances, size=many).astype(np.int64)
    return Law(
        probabilities=chances,
        counts=counts,
        chance=np.full(many, 1.0 / many),
        loss=np.asarray(algorithm(counts), dtype=np.float64),
    )
