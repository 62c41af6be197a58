r"""A calibration error without bins.

The residuals :math:`r_i = \text{correct}_i - c_i` at the confidences :math:`c_i` are smoothed by
the heat kernel of [0, 1] with reflecting ends, which is the normal kernel folded at 0 and at 1:

.. math:: \mathrm{smECE}_\sigma = \int_0^1 \Bigl|\frac1n \sum_i r_i \tilde K_\sigma(t, c_i)\Bigr|
    \, dt, \qquad
    \tilde K_\sigma(t, c) = \sum_{k} \varphi_\sigma(t - c + 2k) + \varphi_\sigma(t + c + 2k).

The kernels form a semigroup of averages, so that this falls with :math:`\sigma` and there is one
width that equals its own error. It is computed in the eigenfunctions of the kernel,

.. math:: \tilde K_\sigma(t, c) = 1 + 2 \sum_{k \ge 1} e^{-(\pi k \sigma)^2 / 2}
    \cos(\pi k t) \cos(\pi k c),

whose coefficients serve every width.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import fft, optimize

from lodrop_nn.measure.calibration import top_label

Float64Array = NDArray[np.float64]

# Cosines, and intervals of the grid of the integral. At the smallest width the terms left out are
# below exp(-(pi 4096 0.001)^2 / 2) < 1e-35.
_N_TERMS = 4096
_SMALLEST_WIDTH = 0.001
_ROWS_AT_ONCE = 256


def smooth_calibration_error(probabilities: Float64Array, labels: NDArray[np.integer]) -> float:
    r"""Calibration error of a kernel estimate whose width is that error.

    .. math:: \mathrm{smECE} = \sigma_*, \qquad \mathrm{smECE}_{\sigma_*} = \sigma_*

    of the top probability and whether its class is right; see the top of this module. Continuous
    in the predictions, other than the error in bins. Like it, it is biased upward on few rows.

    Args:
        probabilities: Shape (..., n, K), rows on the simplex; several draws are pooled.
        labels: Shape (n,), whole numbers in [0, K).

    Returns:
        A number in [0, 1], within 1e-5 of the fixed point; where that is below 0.001, the error
        at width 0.001, which is not above it.

    Raises:
        ValueError: If there is no row, the shapes disagree, or a label is outside its range.

    Source:
        Blasiok and Nakkiran (2023), arXiv:2309.12236, written from the definition; the expansion
        in cosines is ours.

    Example:
        All rows at one confidence: at every width the error is the mean residual.

        >>> rows = np.array([[0.75, 0.25]] * 4)
        >>> round(smooth_calibration_error(rows, np.array([0, 0, 1, 1])), 5)
        0.25
    """
    coefficients = _coefficients(*top_label(probabilities, labels))

    def excess(width: float) -> float:
        return _smoothed(coefficients, width) - width

    if excess(_SMALLEST_WIDTH) <= 0:
        return _smoothed(coefficients, _SMALLEST_WIDTH)
    if excess(1.0) >= 0:  # all rows wrong at confidence 1, up to rounding
        return 1.0
    return float(optimize.brentq(excess, _SMALLEST_WIDTH, 1.0, xtol=1e-7))


def smoothed_calibration_error(
    probabilities: Float64Array, labels: NDArray[np.integer], width: float
) -> float:
    r"""The error :math:`\mathrm{smECE}_\sigma` at a given width of the kernel.

    Args:
        probabilities: Shape (..., n, K), rows on the simplex; several draws are pooled.
        labels: Shape (n,), whole numbers in [0, K).
        width: sigma >= 0.001.

    Returns:
        A number in [0, 1] that falls with ``width``, to |mean residual|.

    Raises:
        ValueError: If there is no row, the shapes disagree, or an argument is outside its range.
    """
    if not width >= _SMALLEST_WIDTH:
        raise ValueError(f"`width` must be >= {_SMALLEST_WIDTH}, got {width!r}.")
    return _smoothed(_coefficients(*top_label(probabilities, labels)), width)


def _coefficients(confidence: Float64Array, correct: Float64Array) -> Float64Array:
    """Mean of residual times cos(pi k confidence) for k = 0, ..., _N_TERMS."""
    residuals, angles = (correct - confidence).ravel(), np.pi * confidence.ravel()
    terms = np.arange(_N_TERMS + 1)
    total = np.zeros(_N_TERMS + 1)
    for start in range(0, len(angles), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        total += residuals[rows] @ np.cos(np.outer(angles[rows], terms))
    return total / len(angles)


def _smoothed(coefficients: Float64Array, width: float) -> float:
    damped = coefficients * np.exp(-0.5 * (np.pi * width * np.arange(_N_TERMS + 1)) ** 2)
    damped[-1] *= 2  # the transform counts its last term once, as the first
    density = fft.dct(damped, type=1)  # at the nodes j / _N_TERMS
    return min(_integral_of_size(density), 1.0)


def _integral_of_size(values: Float64Array) -> float:
    """Integral over [0, 1] of the absolute value of the function that is linear between nodes."""
    left, right = values[:-1], values[1:]
    size = np.abs(left) + np.abs(right)
    crosses = left * right < 0
    ratio = (left**2 + right**2) / np.where(crosses, size, 1.0)
    return float(np.mean(0.5 * np.where(crosses, ratio, size)))
