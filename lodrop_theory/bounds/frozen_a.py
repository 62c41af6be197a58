r"""From the coordinates of the update to those of B, when A is frozen.

With :math:`\Delta W = s B A` the map :math:`B \mapsto \Delta W` is linear, one to one if A has full
row rank, and stretches by a factor between :math:`s\sigma_{\min}(A)` and
:math:`s\sigma_{\max}(A)`. There is no symmetry left, and every theorem about strongly convex
objectives applies in the entries of B, with the constants pulled back:

.. math:: \rho_B \le s \sigma_{\max} \rho, \quad \Lambda_B \ge \begin{cases} s^2 \sigma_{\min}^2
    \Lambda & \Lambda \ge 0 \\ s^2 \sigma_{\max}^2 \Lambda & \Lambda < 0 \end{cases}, \quad
    \lambda \|\Delta W\|_F^2 \succeq \lambda s^2 \sigma_{\min}^2 \|B\|_F^2 .

For orthonormal rows and s = 1 nothing changes; otherwise every stability grows by the squared
condition number of A at most.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import as_float64, check_positive
from lodrop_theory._numerics import round_down, round_up
from lodrop_theory.inputs import CurvatureInputs


def _extreme_singular_values(matrices: Sequence[ArrayLike]) -> tuple[float, float]:
    smallest, largest = np.inf, 0.0
    for matrix in matrices:
        array = as_float64("lora_A", matrix)
        if array.ndim != 2 or not np.isfinite(array).all():
            raise ValueError(
                f"`lora_A` must hold finite matrices (r, in_features), got shape {array.shape}."
            )
        values = np.linalg.svd(array, compute_uv=False)
        # LAPACK is backward stable: each is off by a small multiple of eps times the largest
        error = 8.0 * max(array.shape) * np.finfo(np.float64).eps * float(values[0])
        last = float(values[-1]) - error if array.shape[0] <= array.shape[1] else 0.0
        smallest, largest = min(smallest, last), max(largest, float(values[0]) + error)
    if not 0.0 < smallest < np.inf:
        raise ValueError(
            "`lora_A` must hold at least one matrix (r, in_features), each of full row rank; "
            f"the smallest singular value is {smallest:.3g}."
        )
    return smallest, largest


def frozen_a_curvature(
    inputs: CurvatureInputs, lora_A: Sequence[ArrayLike], *, scaling: ArrayLike
) -> CurvatureInputs:
    r"""The same curvature in the entries of B.

    Args:
        inputs: Lipschitz constant, smallest eigenvalue and penalty in the entries of the updates
            of all modules.
        lora_A: The frozen A of every module, each of shape (r, in_features).
        scaling: s > 0, PEFT's ``scaling`` (``lora_alpha / r``).

    Returns:
        Inputs for every bound that reads a curvature, each number on the safe side.

    Raises:
        ValueError: If a matrix has not full row rank, or an argument is outside its range.

    Source:
        Derived here.

    Example:
        >>> from lodrop_theory.inputs import CurvatureInputs
        >>> inputs = CurvatureInputs(
        ...     n_train=100, dropout_rate=0.5, lipschitz=1, hessian_min_eig=-1, penalty=1
        ... )
        >>> in_b = frozen_a_curvature(inputs, [[[3.0, 0.0], [0.0, 4.0]]], scaling=1.0)
        >>> [round(float(x), 9) for x in (in_b.lipschitz, in_b.hessian_min_eig, in_b.penalty)]
        [4.0, -16.0, 9.0]
    """
    s = check_positive("scaling", scaling)
    smallest, largest = _extreme_singular_values(lora_A)
    least, most = round_down(s * smallest), round_up(s * largest)
    eigenvalue = np.asarray(inputs.hessian_min_eig)
    return replace(
        inputs,
        lipschitz=round_up(np.asarray(inputs.lipschitz) * most),
        hessian_min_eig=round_down(eigenvalue * np.where(eigenvalue < 0, most, least) ** 2),
        penalty=np.maximum(round_down(np.asarray(inputs.penalty) * least**2), 0.0),
    )


__all__ = ["frozen_a_curvature"]
