r"""The bounds that follow from curvature, over grids of millions of points.

:func:`~lodrop_theory.evaluate.curvature_bounds` makes results with standing, reasons and remedies.
A map of a bound over :math:`10^7` points needs the number alone, at the cost of a few passes over
memory. Here the grid is cut into blocks that fit the cache; each is computed by one short formula
on operands that were not broadcast beforehand; and nothing is allocated beyond the result and the
temporaries of one block.

The gaps are rounded outward like those that they stand for (16 ulps) and agree with them to a
relative :math:`10^{-13}`, but for cancellation in mu; they are infinite where mu is not positive.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lodrop_theory import _checks
from lodrop_theory._checks import Float64Array
from lodrop_theory._numerics import SLACK
from lodrop_theory.evaluate import curvature_bounds
from lodrop_theory.inputs import CurvatureInputs, TailInputs

_BLOCK = 1 << 15  # points: the three scratch arrays and the block stay in the cache
_SMALL, _LARGE = 1e-70, 1e70  # within them no product of four factors leaves float64
_UP = 1.0 + SLACK
_BELOW_ONE = float(np.nextafter(1.0, 0.0))
_TINIEST = 5e-324
_LARGEST = float(np.finfo(np.float64).max)

Operands = Mapping[str, Float64Array]
_Block = tuple[slice, ...]
_Check = Callable[[str, ArrayLike], Float64Array]

# Name: its check, and the closed interval that passes it; `n_train` must be whole besides.
_DOMAINS: Mapping[str, tuple[_Check, float, float]] = {
    "n_train": (_checks.check_count, 1.0, _LARGEST),
    "dropout_rate": (_checks.check_dropout_rate, 0.0, _BELOW_ONE),
    "lipschitz": (_checks.check_nonnegative, 0.0, _LARGEST),
    "hessian_min_eig": (_checks.check_finite, -_LARGEST, _LARGEST),
    "penalty": (_checks.check_nonnegative, 0.0, _LARGEST),
    "loss_range": (_checks.check_positive, _TINIEST, _LARGEST),
    "delta": (_checks.check_failure_probability, _TINIEST, _BELOW_ONE),
}
# Between these no step of the short formulas overflows or loses digits to underflow.
_MODERATE: Mapping[str, tuple[float, float]] = {
    "n_train": (1.0, _LARGE),
    "lipschitz": (_SMALL, _LARGE),
    "hessian_min_eig": (-_LARGE, _LARGE),
    "penalty": (0.0, _LARGE),
    "loss_range": (_SMALL, _LARGE),
    "delta": (1e-300, 1.0),
}


@dataclass(frozen=True)
class GapFormula:
    """The arithmetic of one bound.

    Attributes:
        bound: Identifier of the :class:`~lodrop_theory.results.BoundResult` that it stands for.
        write: ``write(mu, operands, out, scratch)`` puts the gaps, rounded upward, into ``out``;
            mu > 0 and the operands are moderate, all broadcast against ``out``.
    """

    bound: str
    write: Callable[[Float64Array, Operands, Float64Array, Float64Array], None]


# In each formula the factors of single axes come first and are small; every line with `out=` is one
# pass over the block.


def _write_lin2024(
    mu: Float64Array, at: Operands, out: Float64Array, scratch: Float64Array, factor: float = 24.0
) -> None:
    c, rho = at["loss_range"], at["lipschitz"]
    np.divide(factor * c * rho * rho, mu, out=out)
    np.add(out, c * c, out=out)
    np.sqrt(out, out=out)
    np.multiply(out, _UP / np.sqrt(2.0 * at["n_train"] * at["delta"]), out=out)


def _write_two_stability(
    mu: Float64Array, at: Operands, out: Float64Array, scratch: Float64Array
) -> None:
    _write_lin2024(mu, at, out, scratch, factor=20.0)  # both stabilities are 2 rho^2 / (mu n)


def _write_uniform_tail(
    mu: Float64Array, at: Operands, out: Float64Array, scratch: Float64Array
) -> None:
    n, root = at["n_train"], np.sqrt(-np.log(at["delta"]))
    per_g = _UP * (1.0 + np.sqrt(2.0 * n) * root)
    np.divide((2.0 * at["lipschitz"] ** 2 / n) * per_g, mu, out=out)
    np.add(out, (_UP * at["loss_range"]) * (root / np.sqrt(2.0 * n)), out=out)


def _write_expectation(
    mu: Float64Array, at: Operands, out: Float64Array, scratch: Float64Array
) -> None:
    np.divide(_UP * (2.0 * at["lipschitz"] ** 2) / at["n_train"], mu, out=out)


def _write_l2_stability(
    mu: Float64Array, at: Operands, out: Float64Array, scratch: Float64Array
) -> None:
    c, n = at["loss_range"], at["n_train"]
    np.divide(np.sqrt(2.0) * at["lipschitz"] ** 2 / n, mu, out=scratch)  # g / sqrt(2)
    np.multiply(scratch, scratch, out=out)
    np.add(out, c * c / (4.0 * n), out=out)
    np.sqrt(out, out=out)
    np.multiply(scratch, 1.0 + np.sqrt(2.0), out=scratch)
    np.add(out, scratch, out=out)
    np.multiply(out, _UP / np.sqrt(at["delta"]), out=out)


LIN2024 = GapFormula("lin2024", _write_lin2024)
TWO_STABILITY = GapFormula("two-stability", _write_two_stability)
UNIFORM_TAIL = GapFormula("uniform-tail", _write_uniform_tail)
EXPECTATION = GapFormula("expectation", _write_expectation)
L2_STABILITY = GapFormula("l2-stability", _write_l2_stability)

GAP_FORMULAS = (LIN2024, TWO_STABILITY, UNIFORM_TAIL, EXPECTATION, L2_STABILITY)


def gap_grid(
    formula: GapFormula,
    *,
    n_train: ArrayLike,
    dropout_rate: ArrayLike,
    lipschitz: ArrayLike,
    hessian_min_eig: ArrayLike,
    penalty: ArrayLike,
    loss_range: ArrayLike,
    delta: ArrayLike,
    out: Float64Array | None = None,
) -> Float64Array:
    """Gaps of one bound over a grid: the arguments broadcast against each other.

    Args:
        formula: One of ``GAP_FORMULAS``.
        n_train: Training examples, whole and >= 1.
        dropout_rate: p in [0, 1).
        lipschitz: rho >= 0. Loss per parameter norm.
        hessian_min_eig: Smallest eigenvalue of the training risk. Loss per parameter^2.
        penalty: lambda >= 0. Loss per parameter^2.
        loss_range: C > 0. Loss units.
        delta: Failure probability in (0, 1).
        out: Where to write, of the broadcast shape, or None.

    Returns:
        Upper bounds on the gap, rounded upward; +inf where mu <= 0. Loss units.

    Raises:
        ValueError: If an argument is outside its range, the shapes do not broadcast, or ``out`` has
            another shape or type.
        TypeError: If an argument is not a real number or an array of them.

    Example:
        The first row of the design's table of Theorem 4.4:

        >>> row = gap_grid(
        ...     LIN2024, n_train=2490, dropout_rate=[0.1, 0.5, 0.7], lipschitz=1,
        ...     hessian_min_eig=0, penalty=1, loss_range=1, delta=0.05,
        ... )
        >>> row.round(3).tolist()
        [0.508, 0.261, 0.239]
    """
    given = {
        "n_train": n_train,
        "dropout_rate": dropout_rate,
        "lipschitz": lipschitz,
        "hessian_min_eig": hessian_min_eig,
        "penalty": penalty,
        "loss_range": loss_range,
        "delta": delta,
    }
    arrays: dict[str, NDArray[Any]] = {name: np.asarray(value) for name, value in given.items()}
    shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
    if out is None:
        out = np.empty(shape)
    elif out.shape != shape or out.dtype != np.float64:
        raise ValueError(
            f"`out` must be float64 of shape {shape}, got {out.dtype} of shape {out.shape}."
        )
    # Axes are checked once; a full array is checked block by block, while it is in the cache.
    full = {name for name, array in arrays.items() if array.size > _BLOCK}
    arrays.update({n: _DOMAINS[n][0](n, a) for n, a in arrays.items() if n not in full})
    axes_moderate = all(_is_moderate(n, a) for n, a in arrays.items() if n not in full)
    if out.size == 0:
        return out
    scratch = np.empty((3, min(_BLOCK, out.size)))
    for block in _blocks(shape):
        parts = {name: _part(array, block, len(shape)) for name, array in arrays.items()}
        parts.update({name: _checked_part(name, parts[name]) for name in full})
        moderate = axes_moderate and all(_is_moderate(name, parts[name]) for name in full)
        # The ellipsis keeps a view of a 0-d result, where an index alone would give a number.
        target = np.asarray(out[(*block, Ellipsis)])  # type: ignore[arg-type]
        if not (moderate and _short_way(formula, parts, target, scratch)):
            target[...] = _long_way(formula, parts)
    return out if shape else out[()]


def _blocks(shape: tuple[int, ...]) -> Iterator[_Block]:
    """Slices of the leading axes that leave about ``_BLOCK`` points each."""
    axis, inner = len(shape), 1
    while axis > 0 and inner * shape[axis - 1] <= _BLOCK:
        axis -= 1
        inner *= shape[axis]
    if axis == 0:
        yield ()
        return
    step = _BLOCK // inner
    for outer in np.ndindex(shape[: axis - 1]):
        for start in range(0, shape[axis - 1], step):
            yield (*(slice(i, i + 1) for i in outer), slice(start, start + step))


def _part(array: NDArray[Any], block: _Block, n_axes: int) -> NDArray[Any]:
    """The part of an operand that a block of the result reads, its axes of length 1 kept."""
    own = block[n_axes - array.ndim :]
    return array[tuple(s if n > 1 else slice(None) for s, n in zip(own, array.shape, strict=False))]


def _checked_part(name: str, part: NDArray[Any]) -> Float64Array:
    """The part as float64; two reductions tell a sound one, only another is looked at closely."""
    check, low, high = _DOMAINS[name]
    if part.dtype != np.float64 or not (part.min() >= low and part.max() <= high):
        return check(name, part)
    return check(name, part) if name == "n_train" and np.any(part != np.rint(part)) else part


def _is_moderate(name: str, part: Float64Array) -> bool:
    if name not in _MODERATE or part.size == 0:
        return True
    low, high = _MODERATE[name]
    smallest = part.min()
    if name == "lipschitz" and smallest == 0.0:
        smallest = np.where(part > 0, part, 1.0).min()
    return bool(smallest >= low and part.max() <= high)


def _short_way(formula: GapFormula, at: Operands, out: Float64Array, scratch: Float64Array) -> bool:
    """Write the gaps of one block, or tell that some mu > 0 is too small for the short formula."""
    p, low, weight = at["dropout_rate"], at["hessian_min_eig"], at["penalty"]
    doubled = scratch[0, : p.size].reshape(p.shape)
    np.multiply(p, -2.0, out=doubled)
    np.add(doubled, 4.0, out=doubled)
    np.multiply(doubled, p, out=doubled)
    np.multiply(doubled, 1.0 - SLACK, out=doubled)  # 2 (2p - p^2), rounded downward
    shape = np.broadcast_shapes(p.shape, low.shape, weight.shape)
    mu = scratch[1, : prod(shape)].reshape(shape)
    np.multiply(doubled, weight, out=mu)
    np.add(mu, low - SLACK * np.abs(low), out=mu)
    positive = None
    if mu.min(initial=_LARGE) < _SMALL:
        positive = mu > 0
        np.copyto(mu, 1.0, where=~positive)
        if mu.min() < _SMALL:
            return False
    formula.write(mu, at, out, scratch[2, : out.size].reshape(out.shape))
    if positive is not None:
        np.copyto(out, np.inf, where=~positive)
    return True


def _long_way(formula: GapFormula, operands: Operands) -> Float64Array:
    """The bound itself, whose roots are split against overflow."""
    names = ("n_train", "dropout_rate", "lipschitz", "hessian_min_eig", "penalty")
    curvature = CurvatureInputs(**{n: operands[n] for n in names})
    tail = TailInputs(**{n: operands[n] for n in ("n_train", "loss_range", "delta")})
    results = {result.bound: result for result in curvature_bounds(curvature, tail)}
    return np.asarray(results[formula.bound].gap)


__all__ = [
    "EXPECTATION",
    "GAP_FORMULAS",
    "L2_STABILITY",
    "LIN2024",
    "TWO_STABILITY",
    "UNIFORM_TAIL",
    "GapFormula",
    "gap_grid",
]
