r"""Regression with a frozen factor A: LoRA Dropout whose minimizer is a linear solve.

Only B, of shape (k, r), is trained; A, of shape (r, d), is frozen (r = d and A = I is a full-rank
update). Masks with the moments :math:`m_1 = \mathbb E m`, :math:`m_2 = \mathbb E m^2` of one entry
lie on the inputs and on the outputs, and the loss is :math:`\tfrac12 \|y - m_B \odot B A (m_A \odot
x)\|^2`. Averaged over the masks it is a quadratic in each row b of B,

.. math:: \tfrac12 \|y\|^2 - \sum_i m_1^2 y_i\, b_i^\top A x + \tfrac12 \sum_i b_i^\top M_x b_i,
    \qquad M_x = m_2 \bigl[m_1^2 A x x^\top A^\top
        + (m_2 - m_1^2) A \operatorname{diag}(x^2) A^\top\bigr],

since :math:`\mathbb E (\sum_j D_{ij} m_j x_j)^2 = m_1^2 (D x)_i^2 + (m_2 - m_1^2) \sum_j D_{ij}^2
x_j^2` and the output mask multiplies it by :math:`m_2`. The objective is strongly convex, with an
affine gradient and one minimizer; on the convex hull of all minimizers that some training set can
reach, the norm of the gradient of an example is largest at one of them. So the strong convexity,
the Lipschitz constant and the range of the loss of *Lin et al.* are exact numbers here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lodrop_theory._checks import (
    Float64Array,
    as_float64,
    check_dropout_rate,
    check_nonnegative,
)
from lodrop_theory._numerics import round_down
from lodrop_theory.inputs import CurvatureInputs
from lodrop_theory.mask_laws import update_sparsity
from lodrop_theory.solvable.laws import Algorithm
from lodrop_theory.solvable.multisets import Counts, multisets

# A solve with a condition number below 1 / _SINGULAR is off by far less than _SOLVE.
_SINGULAR = 1e-6
_SOLVE = 1e-8


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenARegression:
    r"""Half-squared loss of a LoRA module with a frozen A, on a population of K atoms.

    The objective is :math:`\hat R_S(B) + \lambda (2p - p^2) \|B A\|_F^2` with the risk averaged
    over the masks (``masked``), or with the masks off: then only the penalty knows the dropout
    rate, which is the paper's surrogate.

    Attributes:
        inputs: The atoms x, shape (K, d).
        targets: What the update should add to the frozen output, shape (K, k).
        factor: A times PEFT's scaling, shape (r, d), of full row rank.
        dropout_rate: p in [0, 1).
        rescale: Whether kept coordinates are divided by 1 - p.
        penalty: lambda >= 0. Loss per parameter^2.
        masked: Whether the loss of an example is averaged over all masks.

    Raises:
        ValueError: If a number is outside its range or the shapes do not fit.
    """

    inputs: Float64Array
    targets: Float64Array
    factor: Float64Array
    dropout_rate: float
    rescale: bool
    penalty: float = 0.0
    masked: bool = True

    def __post_init__(self) -> None:
        x, y, a = (as_float64(n, getattr(self, n)) for n in ("inputs", "targets", "factor"))
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or a.ndim != 2 or len(a.T) != len(x.T):
            raise ValueError(
                "`inputs`, `targets` and `factor` must have shapes (K, d), (K, k) and (r, d), "
                f"got {x.shape}, {y.shape} and {a.shape}."
            )
        check_dropout_rate("dropout_rate", self.dropout_rate)
        check_nonnegative("penalty", self.penalty)
        if _smallest_singular_value(a) <= _SINGULAR * np.linalg.norm(a):
            raise ValueError(f"`factor` must have full row rank, got {a!r}.")
        for name, value in (("inputs", x), ("targets", y), ("factor", a)):
            object.__setattr__(self, name, value)

    @property
    def mask_moments(self) -> tuple[float, float]:
        """Mean and second moment of one mask entry of the objective."""
        q = 1.0 - self.dropout_rate
        if not self.masked:
            return 1.0, 1.0
        return (1.0, 1.0 / q) if self.rescale else (q, q)

    @property
    def atom_hessians(self) -> Float64Array:
        """M_x of every atom, the Hessian of its loss in each row of B, shape (K, r, r)."""
        m1, m2 = self.mask_moments
        z = self.inputs @ self.factor.T
        spread = np.einsum("ri,ki,si->krs", self.factor, self.inputs**2, self.factor)
        return np.asarray(m2 * (m1**2 * np.einsum("kr,ks->krs", z, z) + (m2 - m1**2) * spread))

    @property
    def penalty_hessian(self) -> Float64Array:
        """Hessian of the explicit penalty in each row of B, shape (r, r)."""
        weight = self.penalty * float(update_sparsity(self.dropout_rate))
        return 2.0 * weight * self.factor @ self.factor.T

    def minimizer(self, counts: Counts, divide_by: int | None = None) -> Float64Array:
        r"""The exact minimizer B of the objective for each training set.

        Args:
            counts: Training sets, shape (m, K).
            divide_by: What the sum of losses is divided by; None divides by the number of
                examples.

        Returns:
            Shape (m, k, r).

        Raises:
            ValueError: If the objective of some training set is not strongly convex.
        """
        m1, _ = self.mask_moments
        share = counts / (divide_by or np.maximum(counts.sum(axis=1, keepdims=True), 1))
        hessian = np.einsum("mk,krs->mrs", share, self.atom_hessians) + self.penalty_hessian
        slopes = m1**2 * np.einsum("ki,kr->kri", self.targets, self.inputs @ self.factor.T)
        values = np.linalg.eigvalsh(hessian)
        if np.any(values[:, 0] <= _SINGULAR * np.abs(values[:, -1])):
            raise ValueError(
                "`counts` must leave the objective strongly convex, got a training set with a "
                "singular Hessian: raise `penalty` or `dropout_rate`."
            )
        solved = np.linalg.solve(hessian, np.einsum("mk,kri->mri", share, slopes))
        return np.asarray(np.swapaxes(solved, 1, 2))

    def loss(self, weights: Float64Array, *, n_masks: float = 1) -> Float64Array:
        r"""Expected loss of the average over N masks, at every atom.

        .. math:: \tfrac12 \|y - m_1^2 B A x\|^2 + \frac1{2N} \operatorname{tr}
            \operatorname{Cov} z

        N = 1 is the Gibbs predictor, whose loss is minimized in training; infinity is the ensemble
        of all masks, which for a linear model is also the model with its masks off.

        Args:
            weights: B, shape (m, k, r).
            n_masks: N >= 1, or infinity.

        Returns:
            Shape (m, K). Loss units.
        """
        m1, _ = self.mask_moments
        z = self.inputs @ self.factor.T
        predicted = m1**2 * np.einsum("mir,kr->mki", weights, z)
        residual = 0.5 * np.sum((self.targets - predicted) ** 2, axis=2)
        whole = 0.5 * np.einsum("mir,krs,mis->mk", weights, self.atom_hessians, weights)
        variance = whole - 0.5 * np.sum(predicted**2, axis=2)
        return np.asarray(residual + np.maximum(variance, 0.0) / n_masks)

    def gradient_norms(self, weights: Float64Array) -> Float64Array:
        """Norm in B of the gradient of each atom's unregularized loss, shape (m, K)."""
        m1, _ = self.mask_moments
        pull = m1**2 * np.einsum("ki,kr->kir", self.targets, self.inputs @ self.factor.T)
        gradient = np.einsum("mir,krs->mkis", weights, self.atom_hessians) - pull
        return np.asarray(np.sqrt(np.sum(gradient**2, axis=(2, 3))))

    def smallest_eigenvalue(self, counts: Counts) -> Float64Array:
        """Smallest Hessian eigenvalue of each unregularized empirical risk, shape (m,)."""
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return np.asarray(
            np.linalg.eigvalsh(np.einsum("mk,krs->mrs", share, self.atom_hessians))[:, 0]
        )

    def algorithm(self, *, n_masks: float = 1) -> Algorithm:
        """Training, as :func:`~lodrop_theory.solvable.enumerable.exact_law` reads it."""
        return lambda counts: self.loss(self.minimizer(counts), n_masks=n_masks)

    def curvature(self, n_train: int) -> CurvatureInputs:
        r"""The numbers of Theorem 4.4, as suprema over everything that can happen.

        In the coordinates of B. The penalty is given as :math:`\lambda \sigma_{\min}(A)^2`, which
        is what its Hessian is at least.

        Args:
            n_train: n >= 2.

        Returns:
            Inputs on the safe side of the exact numbers: a certificate may be built on them for
            the loss that the objective averages.
        """
        samples = [multisets(len(self.inputs), size) for size in (n_train, n_train - 1)]
        largest = max(float(self.gradient_norms(self.minimizer(c)).max()) for c in samples)
        smallest = min(float(self.smallest_eigenvalue(c).min()) for c in samples)
        scale = float(np.abs(self.atom_hessians).max()) * len(self.factor)
        numbers: dict[str, Any] = {
            "n_train": n_train,
            "dropout_rate": self.dropout_rate,
            "lipschitz": largest * (1.0 + _SOLVE),
            "hessian_min_eig": smallest - _SOLVE * scale,
            "penalty": round_down(self.penalty * _smallest_singular_value(self.factor) ** 2)
            * (1.0 - _SOLVE),
        }
        return CurvatureInputs(**numbers)


def _smallest_singular_value(factor: Float64Array) -> float:
    if factor.shape[0] > factor.shape[1]:
        return 0.0
    return float(np.linalg.svd(factor, compute_uv=False)[-1])
