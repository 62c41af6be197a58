r"""Theorem 4.4 solved for any one of its quantities, before rounding.

With the ratio :math:`a = g \sqrt{2 n \delta} / C` of a target gap g to the floor, and :math:`r = 24
\rho^2 / (C \mu)`, the theorem reads :math:`a^2 \ge 1 + r`. So, with :math:`s = 2p - p^2` and
:math:`\mu^* = 24 \rho^2 / (C (a^2 - 1))`, which exists for a > 1,

.. math::
    n^* &= \frac{C^2 (1 + r)}{2 \delta g^2}, &
    \delta^* &= \frac{C^2 (1 + r)}{2 n g^2}, &
    \rho^* &= \sqrt{(a^2 - 1)\, C \mu / 24}, \\
    \Lambda^* &= \mu^* - 2 \lambda s, &
    \lambda^* &= \frac{\mu^* - \Lambda}{2 s}, &
    p^* &= 1 - \sqrt{1 - \frac{\mu^* - \Lambda}{2\lambda}},

and :math:`C^*` is the positive root of :math:`C^2 + (24 \rho^2/\mu) C = 2 n \delta g^2`.
"""

from collections.abc import Mapping

import numpy as np

from lodrop_theory._checks import Float64Array
from lodrop_theory.bounds.curvature import strong_convexity
from lodrop_theory.inputs import CurvatureInputs
from lodrop_theory.mask_laws import update_sparsity

_LARGEST = float(np.finfo(np.float64).max)
_ROOT24 = float(np.sqrt(24.0))

Numbers = Mapping[str, Float64Array]


def strong_convexity_of(numbers: Numbers) -> Float64Array:
    """Strong convexity at the given numbers; nan where it is not positive."""
    names = ("dropout_rate", "lipschitz", "hessian_min_eig", "penalty")
    defaults = {"lipschitz": np.asarray(0.0)}
    inputs = CurvatureInputs(n_train=1, **{n: {**defaults, **numbers}[n] for n in names})
    mu = np.asarray(strong_convexity(inputs))
    return np.where(mu > 0, mu, np.nan)


def _above_floor(numbers: Numbers, target: Float64Array) -> Float64Array:
    """a^2 - 1, as a product without cancellation; nan where a < 1."""
    roots = np.sqrt(2.0 * numbers["n_train"]) * np.sqrt(numbers["delta"])
    a = target / numbers["loss_range"] * roots
    return np.where(a >= 1.0, (a - 1.0) * (a + 1.0), np.nan)


def _needed_mu(numbers: Numbers, target: Float64Array) -> Float64Array:
    """mu*; nan where the target is not above the floor."""
    excess, rho = _above_floor(numbers, target), numbers["lipschitz"]
    root = _ROOT24 * (rho / np.sqrt(numbers["loss_range"])) / np.sqrt(excess)
    needed = np.where((rho == 0) & (excess >= 0), 0.0, root**2)
    return np.where(np.isfinite(needed), needed, np.nan)


def closed_form(
    unknown: str, numbers: Numbers, target: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """The exact solution, nan where there is none, and the size of the terms in its sum."""
    if unknown in {"n_train", "delta"}:
        c, mu = numbers["loss_range"], strong_convexity_of(numbers)
        spread = np.hypot(1.0, _ROOT24 * (numbers["lipschitz"] / np.sqrt(c)) / np.sqrt(mu))
        other = numbers["delta" if unknown == "n_train" else "n_train"]
        # Two factors, multiplied last: neither the square of c / g nor 2 n g^2 can overflow alone.
        root = c / target / np.sqrt(2.0 * other) * spread
        value = root * root
        return np.where(np.isfinite(value), value, np.nan), value
    if unknown == "lipschitz":
        root_c, root_mu = np.sqrt(numbers["loss_range"]), np.sqrt(strong_convexity_of(numbers))
        value = np.sqrt(_above_floor(numbers, target)) * root_c * root_mu / _ROOT24
        return np.minimum(value, _LARGEST), value
    if unknown == "loss_range":
        u = target * np.sqrt(2.0 * numbers["n_train"]) * np.sqrt(numbers["delta"])
        ratio = _ROOT24**2 * (numbers["lipschitz"] / np.sqrt(strong_convexity_of(numbers))) ** 2 / u
        value = np.minimum(u * 2.0 / (ratio + np.hypot(ratio, 2.0)), _LARGEST)
        return value, value
    needed, low = _needed_mu(numbers, target), numbers.get("hessian_min_eig", np.asarray(0.0))
    if unknown == "hessian_min_eig":
        added = 2.0 * numbers["penalty"] * update_sparsity(numbers["dropout_rate"])
        return np.minimum(needed - np.minimum(added, _LARGEST), _LARGEST), needed + added
    if unknown == "penalty":
        weight = 2.0 * update_sparsity(numbers["dropout_rate"])
    else:
        weight = 2.0 * numbers["penalty"]
    missing, size = needed - low, needed + np.abs(low)
    already = (low > 0) & (missing <= 0)
    share = np.where(already, 0.0, np.maximum(missing, 0.0) / weight)
    if unknown == "penalty":
        return np.where(np.isfinite(share), share, np.nan), size / weight
    reachable = share <= 1.0
    rate = np.where(reachable, share / (1.0 + np.sqrt(np.maximum(1.0 - share, 0.0))), np.nan)
    return rate, size / weight
