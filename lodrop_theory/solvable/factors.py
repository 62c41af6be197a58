r"""Both factors trained: the non-convex companion, whose global minimum is still exact.

The masks of LoRA Dropout lie on inputs and outputs, so that the averaged half-squared loss is a
function of :math:`D = B A` alone, :math:`F(D) = \mathrm{const} + \tfrac12 \operatorname{tr} (D -
\hat D) H (D - \hat D)^\top`, and the best D of rank r is a truncated singular value decomposition
(reduced-rank regression; Izenman 1975): :math:`D = [\hat D H^{1/2}]_r H^{-1/2}`. Every bound that
asks for nothing but a symmetric algorithm can be held against it.

The bounds that ask for strong convexity cannot: in the factors the objective is constant along
:math:`(B G, G^{-1} A)`, so that its Hessian at a minimum of rank r has :math:`r^2` zero eigenvalues
at *every* dropout rate, and at the usual start B = 0 a negative one. A ridge on the factors leaves
the rotations, :math:`r(r-1)/2` zeros.
"""

from dataclasses import dataclass

import numpy as np

from lodrop_theory._checks import Float64Array, as_float64, check_count
from lodrop_theory.solvable.frozen_a import FrozenARegression
from lodrop_theory.solvable.laws import Algorithm
from lodrop_theory.solvable.multisets import Counts


@dataclass(frozen=True, kw_only=True, eq=False)
class FactorRegression:
    """LoRA Dropout regression in which A and B are both trained, to the global minimum.

    Attributes:
        full: The same problem for an update of full rank: its ``factor`` must be the identity.
        rank: r, in [1, min(k, d)].

    Raises:
        ValueError: If ``full`` has a frozen factor or ``rank`` is outside its range.
    """

    full: FrozenARegression
    rank: int

    def __post_init__(self) -> None:
        if not np.array_equal(self.full.factor, np.eye(self.full.inputs.shape[1])):
            raise ValueError(
                "`full.factor` must be the identity: the factor A is trained here, not frozen."
            )
        most = min(self.full.targets.shape[1], self.full.inputs.shape[1])
        if int(check_count("rank", self.rank)) > most:
            raise ValueError(f"`rank` must be at most min(k, d) = {most}, got {self.rank!r}.")

    def hessian(self, counts: Counts) -> Float64Array:
        """H of each training set, the Hessian of the objective in each row of D, (m, d, d)."""
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        hessians = np.einsum("mk,kab->mab", share, self.full.atom_hessians)
        return np.asarray(hessians + self.full.penalty_hessian)

    def minimizer(self, counts: Counts) -> Float64Array:
        """The best update of rank r for each training set, shape (m, k, d)."""
        values, vectors = np.linalg.eigh(self.hessian(counts))
        root = np.sqrt(values)[:, None, :]
        turned = (self.full.minimizer(counts) @ vectors) * root
        left, singular, right = np.linalg.svd(turned, full_matrices=False)
        singular[:, self.rank :] = 0.0
        best = (left * singular[:, None, :]) @ right
        return np.asarray((best / root) @ np.swapaxes(vectors, 1, 2))

    def algorithm(self, *, n_masks: float = 1) -> Algorithm:
        """Training, as :func:`~lodrop_theory.solvable.enumerable.exact_law` reads it."""
        return lambda counts: self.full.loss(self.minimizer(counts), n_masks=n_masks)


def balanced_factors(update: Float64Array, rank: int) -> tuple[Float64Array, Float64Array]:
    """B, shape (k, r), and A, shape (r, d), with B A = D and B'B = A A'.

    Args:
        update: D of rank at most r, shape (k, d).
        rank: r.

    Example:
        >>> b, a = balanced_factors(np.diag([4.0, 0.0]), 1)
        >>> abs(b).ravel().tolist(), (b @ a).tolist()
        ([2.0, 0.0], [[4.0, 0.0], [0.0, 0.0]])
    """
    left, singular, right = np.linalg.svd(as_float64("update", update), full_matrices=False)
    root = np.sqrt(singular[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def factor_hessian(
    b: Float64Array, a: Float64Array, hessian: Float64Array, gradient: Float64Array
) -> Float64Array:
    r"""Hessian in the factors of an objective that is quadratic in their product.

    .. math:: d^2 f = 2 \langle R, dB\, dA \rangle + \operatorname{tr} E H E^\top, \qquad
        E = dB\, A + B\, dA,

    where R is the gradient and H the row Hessian of the objective in D = B A.

    Args:
        b: B, shape (k, r).
        a: A, shape (r, d).
        hessian: H, shape (d, d).
        gradient: R, shape (k, d).

    Returns:
        Shape (kr + rd, kr + rd), the entries of B before those of A, each in C order.
    """
    (k, r), d = b.shape, a.shape[1]
    # The map from (dB, dA) to E, both flattened in C order.
    from_b = np.einsum("ij,rd->idjr", np.eye(k), a).reshape(k * d, k * r)
    from_a = np.einsum("ir,de->idre", b, np.eye(d)).reshape(k * d, r * d)
    change = np.concatenate([from_b, from_a], axis=1)
    result = change.T @ np.kron(np.eye(k), hessian) @ change
    cross = np.einsum("id,rs->irsd", gradient, np.eye(r)).reshape(k * r, r * d)
    result[: k * r, k * r :] += cross
    result[k * r :, : k * r] += cross.T
    return np.asarray(result)


def gauge_directions(b: Float64Array, a: Float64Array) -> Float64Array:
    r"""Directions in which the factors move and their product does not: :math:`(-B X, X A)`.

    Args:
        b: B, shape (k, r), of rank r.
        a: A, shape (r, d), of rank r.

    Returns:
        An orthonormal basis, shape (r^2, kr + rd), in the coordinates of :func:`factor_hessian`.
    """
    r = len(a)
    generators = np.eye(r * r).reshape(r * r, r, r)
    moves = np.concatenate(
        [-(b @ generators).reshape(r * r, -1), (generators @ a).reshape(r * r, -1)], axis=1
    )
    return np.asarray(np.linalg.qr(moves.T)[0].T)


def transverse_min_eig(hessian: Float64Array, directions: Float64Array) -> float:
    """Smallest eigenvalue of a symmetric matrix on the complement of some directions.

    Args:
        hessian: Shape (P, P).
        directions: Orthonormal rows, shape (g, P), with g < P.

    Example:
        >>> transverse_min_eig(np.diag([0.0, 2.0, 3.0]), np.array([[1.0, 0.0, 0.0]]))
        2.0
    """
    full, _ = np.linalg.qr(directions.T, mode="complete")
    rest = full[:, len(directions) :]
    return float(np.linalg.eigvalsh(rest.T @ hessian @ rest)[0])
