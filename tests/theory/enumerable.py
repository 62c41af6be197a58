"""Small worlds in which every expectation is a finite sum.

The population has K atoms of known probability, and the algorithm is symmetric, so a training set
is a multiset: all of them are listed with their multinomial weights, and the law of R - R_hat, the
stabilities and the suprema are exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import factorial, prod

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = tuple[int, ...]


def multisets(n_atoms: int, size: int) -> list[Counts]:
    if n_atoms == 1:
        return [(size,)]
    return [
        (first, *rest) for first in range(size + 1) for rest in multisets(n_atoms - 1, size - first)
    ]


def _moved(counts: Counts, atom: int, by: int) -> Counts:
    return (*counts[:atom], counts[atom] + by, *counts[atom + 1 :])


@dataclass(frozen=True)
class World:
    """Exact numbers of one algorithm on one population; ``learn`` gives the loss at every atom."""

    probabilities: Array
    gap: Array  # R - R_hat of every training set
    weight: Array  # its probability
    loss_range: float
    hypothesis: float  # b1
    pointwise: float  # b2
    replace_in: float  # root mean square
    replace_out: float
    uniform_replace: float
    uniform_remove: float
    signed: float  # E[l(A_{S^i}, z_i) - l(A_S, z_i)]
    variance: float

    @property
    def second_moment(self) -> float:
        return float(self.weight @ self.gap**2)

    def violation(self, bound: float) -> float:
        """Probability that the gap exceeds a bound."""
        return float(self.weight[self.gap > bound].sum())


def world(probabilities: Array, size: int, learn: Callable[[Counts], Array]) -> World:
    atoms = range(len(probabilities))
    full, less = ({c: learn(c) for c in multisets(len(probabilities), n)} for n in (size, size - 1))
    weight, gap = [], []
    b1 = b2 = square_in = square_out = signed = variance = 0.0
    most_replace = most_remove = 0.0
    for counts, loss in full.items():
        ways = factorial(size) / prod(factorial(c) for c in counts)
        chance = ways * float(np.prod(probabilities ** np.array(counts)))
        risk = float(probabilities @ loss)
        weight.append(chance)
        gap.append(risk - float(np.array(counts) @ loss) / size)
        variance += chance * float(probabilities @ (loss - risk) ** 2)
        for out in atoms:
            if counts[out] == 0:
                continue
            pick = chance * counts[out] / size
            smaller = _moved(counts, out, -1)
            removed = np.abs(loss - less[smaller])
            b1 += pick * float(probabilities @ removed)
            b2 += pick * float(removed[out])
            most_remove = max(most_remove, float(removed.max()))
            for new in atoms:
                change = full[_moved(smaller, new, 1)] - loss
                swap = pick * float(probabilities[new])
                signed += swap * float(change[out])
                square_in += swap * float(change[out]) ** 2
                square_out += swap * float(probabilities @ change**2)
                most_replace = max(most_replace, float(np.abs(change).max()))
    losses = np.array(list(full.values()))
    return World(
        probabilities=probabilities,
        gap=np.array(gap),
        weight=np.array(weight),
        loss_range=float(losses.max() - losses.min()),
        hypothesis=b1,
        pointwise=b2,
        replace_in=float(np.sqrt(square_in)),
        replace_out=float(np.sqrt(square_out)),
        uniform_replace=most_replace,
        uniform_remove=most_remove,
        signed=signed,
        variance=variance,
    )


@dataclass(frozen=True)
class Ridge:
    """Exact minimizers of (1/n) sum of quadratic losses + kappa ||w||^2, over a finite population.

    The loss of atom z is w' M_z w / 2 - b_z' w + y_z^2 / 2.
    """

    hessians: Array  # (K, d, d)
    slopes: Array  # (K, d)
    offsets: Array  # (K,)
    kappa: float

    def minimizer(self, counts: Counts, divide_by: int | None = None) -> Array:
        share = np.array(counts) / (divide_by or max(sum(counts), 1))
        hessian = np.einsum("k,kij->ij", share, self.hessians)
        hessian = hessian + 2 * self.kappa * np.eye(hessian.shape[0])
        return np.linalg.solve(hessian, share @ self.slopes)

    def loss(self, w: Array) -> Array:
        return 0.5 * np.einsum("i,kij,j->k", w, self.hessians, w) - self.slopes @ w + self.offsets

    def gradient_norms(self, w: Array) -> Array:
        return np.linalg.norm(np.einsum("kij,j->ki", self.hessians, w) - self.slopes, axis=1)

    def smallest_eigenvalue(self, counts: Counts) -> float:
        share = np.array(counts) / sum(counts)
        return float(np.linalg.eigvalsh(np.einsum("k,kij->ij", share, self.hessians))[0])


def squared_loss(points: Array, answers: Array, kappa: float) -> Ridge:
    """Half-squared loss of a linear model, masks off."""
    hessians = np.einsum("ki,kj->kij", points, points)
    return Ridge(hessians, answers[:, None] * points, 0.5 * answers**2, kappa)


def masked_squared_loss(points: Array, answers: Array, rate: float, kappa: float) -> Ridge:
    """Half-squared loss of one output, averaged over all row and column masks, inverted scaling."""
    q = 1 - rate
    hessians = np.einsum("ki,kj->kij", points, points) / q
    hessians = hessians + (rate / q**2) * np.einsum(
        "ki,ij->kij", points**2, np.eye(points.shape[1])
    )
    return Ridge(hessians, answers[:, None] * points, 0.5 * answers**2, kappa)
