r"""Every expectation over training sets as a finite sum, because every training set is listed.

There are :math:`\binom{n + K - 1}{K - 1}` multisets of n examples among K atoms (6545 for K = 4 and
n = 32), each with its multinomial probability. The law of :math:`R - \hat R`, the stabilities and
the suprema are computed, not estimated: a theorem becomes an assertion.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lodrop_theory._checks import Float64Array, check_count
from lodrop_theory.solvable.laws import Algorithm, Law, check_probabilities
from lodrop_theory.solvable.multisets import (
    Counts,
    multinomial_probability,
    multiset_index,
    multisets,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stabilities:
    """Every stability of one algorithm on one population, exact. Loss units.

    The names are those of the fields that read them in :mod:`lodrop_theory.inputs`.

    Attributes:
        hypothesis_stability: Mean absolute change at a fresh point, one example removed.
        pointwise_stability: Mean absolute change at the removed point.
        remove_one_out: Root mean square change at a fresh point, one example removed.
        uniform_removal: Supremum of the absolute change, one example removed.
        replace_one_out: Root mean square change at a fresh point, one example replaced.
        replace_one_in: Root mean square change at the replaced point.
        uniform_stability: Supremum of the absolute change, one example replaced.
        signed_replacement: E[l(A_{S^i}, z_i) - l(A_S, z_i)], which is E[R - R-hat].
    """

    hypothesis_stability: float
    pointwise_stability: float
    remove_one_out: float
    uniform_removal: float
    replace_one_out: float
    replace_one_in: float
    uniform_stability: float
    signed_replacement: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactLaw(Law):
    """A :class:`Law` over *all* training sets, which knows their neighbours as well.

    Attributes:
        reduced_loss: Loss at each atom after training on each multiset of n - 1 examples, in the
            order of :func:`multisets`. Loss units.
    """

    reduced_loss: Float64Array

    @cached_property
    def leave_one_out_risk(self) -> Float64Array:
        """Mean loss at each training example of what was learned without it, shape (m,)."""
        total = np.zeros(len(self.counts))
        for atom in range(len(self.probabilities)):
            has, reduced = self._without(atom)
            total[has] += self.counts[has, atom] * self.reduced_loss[reduced, atom]
        return total / self.n_train

    @property
    def loss_variance(self) -> float:
        """Mean over training sets of the variance of the loss at a fresh point."""
        centered = self.loss - self.population_risk[:, None]
        return float(self.chance @ (centered**2 @ self.probabilities))

    @cached_property
    def stabilities(self) -> Stabilities:
        """Every stability, from one pass over the neighbours of all training sets."""
        removed_out = removed_in = removed_square = out = within = signed = 0.0
        most_removed = most_replaced = 0.0
        for atom, pick, removed, change in self._changes():
            # change: (training set, new atom, point at which the loss is compared)
            swap = pick[:, None] * self.probabilities
            removed_out += float(pick @ (removed @ self.probabilities))
            removed_in += float(pick @ removed[:, atom])
            removed_square += float(pick @ (removed**2 @ self.probabilities))
            out += float(np.sum(swap * (change**2 @ self.probabilities)))
            within += float(np.sum(swap * change[:, :, atom] ** 2))
            signed += float(np.sum(swap * change[:, :, atom]))
            most_removed = max(most_removed, float(removed.max()))
            most_replaced = max(most_replaced, float(np.abs(change).max()))
        return Stabilities(
            hypothesis_stability=removed_out,
            pointwise_stability=removed_in,
            remove_one_out=float(np.sqrt(removed_square)),
            uniform_removal=most_removed,
            replace_one_out=float(np.sqrt(out)),
            replace_one_in=float(np.sqrt(within)),
            uniform_stability=most_replaced,
            signed_replacement=signed,
        )

    def _without(self, atom: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Training sets that hold an atom, and the multisets that one removal leaves of them."""
        has = np.flatnonzero(self.counts[:, atom] > 0)
        less = self.counts[has].copy()
        less[:, atom] -= 1
        return has, multiset_index(less)

    def _changes(self) -> Iterator[tuple[int, Float64Array, Float64Array, Float64Array]]:
        """Per removed atom: its probability with each training set, and the changes it causes."""
        n_atoms = len(self.probabilities)
        for atom in range(n_atoms):
            has, reduced = self._without(atom)
            pick = self.chance[has] * self.counts[has, atom] / self.n_train
            removed = np.abs(self.loss[has] - self.reduced_loss[reduced])
            swapped = self.counts[has][:, None, :] + np.eye(n_atoms, dtype=np.int64)
            swapped[:, :, atom] -= 1
            change = self.loss[multiset_index(swapped)] - self.loss[has][:, None, :]
            yield atom, pick, removed, change


def exact_law(probabilities: ArrayLike, n_train: int, algorithm: Algorithm) -> ExactLaw:
    r"""Run a symmetric algorithm on every training set that a finite population can produce.

    Args:
        probabilities: Probability of each atom, shape (K,), positive, of sum 1.
        n_train: n >= 1.
        algorithm: Maps counts, shape (m, K), to the loss at every atom, shape (m, K). It is called
            with all multisets of n and of n - 1 examples.

    Returns:
        The law of the risks and, on demand, the stabilities; no sampling anywhere.

    Raises:
        ValueError: If the probabilities are no distribution, or there are too many multisets.

    Example:
        The loss is 1 at atoms that were not in the training set. One example leaves the other atom
        unseen, so R = 1/2 and R-hat = 0; two examples of two atoms see both half of the time.

        >>> law = exact_law([0.5, 0.5], 2, lambda counts: (counts == 0).astype(float))
        >>> law.generalization_gap.tolist(), law.mean_gap
        ([0.5, 0.0, 0.5], 0.25)
        >>> law.quantile(0.5), law.violation(0.0)
        (0.0, 0.5)
    """
    chances = check_probabilities("probabilities", probabilities)
    size = int(check_count("n_train", n_train))
    counts = multisets(len(chances), size)
    return ExactLaw(
        probabilities=chances,
        counts=counts,
        chance=multinomial_probability(counts, chances),
        loss=np.asarray(algorithm(counts), dtype=np.float64),
        reduced_loss=np.asarray(algorithm(multisets(len(chances), size - 1)), dtype=np.float64),
    )


def held_out_law(law: Law, index: int, n_test: int) -> ExactLaw:
    """The law of a held-out risk: what was learned from one training set, tested on n_test others.

    A held-out set is a training set that the algorithm ignores, so that the gap is R minus the
    held-out risk and every stability is 0.

    Args:
        law: The law that holds the training set.
        index: Which training set, a row of ``law.counts``.
        n_test: Held-out examples, >= 1.
    """
    fixed = law.loss[index]
    return exact_law(law.probabilities, n_test, lambda counts: np.broadcast_to(fixed, counts.shape))


def memorizer(counts: Counts) -> Float64Array:
    """The negative control: no loss on the sample and loss 1 elsewhere, if its size is even.

    For odd sizes the loss is 0 everywhere, so that removing an example never changes the loss *at*
    that example: the pointwise stability is 0 for even n, while the gap is as large as it can be.
    Whatever bound reads the pointwise stability alone is broken by it.

    Args:
        counts: Shape (m, K), all of one size.

    Returns:
        Losses in {0, 1}, shape (m, K).

    Example:
        >>> memorizer(np.array([[2, 0]])).tolist(), memorizer(np.array([[1, 0]])).tolist()
        ([[0.0, 1.0]], [[0.0, 0.0]])
    """
    even = counts.sum(axis=-1, keepdims=True) % 2 == 0
    return np.asarray((even & (counts == 0)).astype(np.float64))
