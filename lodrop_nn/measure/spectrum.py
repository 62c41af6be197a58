r"""Both ends of a Hessian and of its restriction across the gauge, from one Krylov run.

Let the columns of Q span the gauge directions (:mod:`~lodrop_nn.measure.gauge`) and
:math:`P = 1 - QQ^\top`. The run is made with :math:`PHP`, whose ends are the transverse
eigenvalues. What else H consists of, HQ, is known in closed form, so the whole Hessian costs no
further product:

- *Value.* The Rayleigh-Ritz values of H on the span of V and Q; by Cauchy they lie inside the
  spectrum of H.
- *Enclosure.* For unit vectors :math:`x = Qa + Pb`, with :math:`\lambda_g =
  \lambda_{\min}(Q^\top H Q)`, :math:`\lambda_t` the transverse minimum and
  :math:`c = \|PHQ\|`,

  .. math:: x^\top H x \ge \lambda_g |a|^2 + \lambda_t |b|^2 - 2 c |a| |b|
            \ge \tfrac12 (\lambda_g + \lambda_t)
            - \sqrt{\tfrac14 (\lambda_g - \lambda_t)^2 + c^2},

  and the same for the maximum. A lower bound of :math:`\lambda_t` may take its place.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lodrop_nn.measure.enclosure import spectrum_enclosure
from lodrop_nn.measure.gauge import Gauge
from lodrop_nn.measure.hessian_products import HessianOfSum
from lodrop_nn.measure.lanczos import KrylovSpace, krylov_space

Vector = Float64[Tensor, " n_parameters"]
OnStep = Callable[[int, int], None]
_DENSE_GAUGE = 1000  # gauge directions up to which all enter the small eigenproblem


@dataclass(frozen=True, kw_only=True)
class End:
    """One end of a spectrum.

    Attributes:
        value: A Rayleigh quotient: never outside of the spectrum but for rounding.
        low: Lower end of the enclosure of the eigenvalue.
        high: Upper end.
        residual: Norm of H y - value y for its unit vector y; 0 from a dense matrix.
    """

    value: float
    low: float
    high: float
    residual: float


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The ends of a Hessian and of its restriction across the gauge.

    Attributes:
        min: Smallest eigenvalue.
        max: Largest eigenvalue.
        transverse_min: Smallest across the gauge.
        transverse_max: Largest across the gauge.
        n_products: Products that were taken.
        method: How, in words.
    """

    min: End
    max: End
    transverse_min: End
    transverse_max: End
    n_products: int
    method: str


def krylov_spectrum(
    hessian: HessianOfSum,
    gauge: Gauge,
    start: Vector,
    *,
    steps: int,
    level: float,
    on_step: OnStep | None = None,
) -> Spectrum:
    """The ends by one Krylov run across the gauge.

    Args:
        hessian: The Hessian of a risk that the gauge leaves alone.
        gauge: Its gauge directions.
        start: A normal vector: uniform in direction.
        steps: Products.
        level: Probability in (0, 1) with which all enclosures hold together.
        on_step: Called as ``on_step(step, steps)`` after each product.
    """
    project = gauge.project_out if gauge.dimension else None
    space = krylov_space(hessian.product, start, steps=steps, project=project, on_step=on_step)
    ritz = space.ritz()
    low, high = spectrum_enclosure(
        space, dimension=hessian.n_parameters - gauge.dimension, level=level
    )
    values, residuals = ritz.values.tolist(), ritz.residuals.tolist()
    across = (
        _lower(values[0], low, ritz.asymmetry, residuals[0]),
        _upper(values[-1], high, ritz.asymmetry, residuals[-1]),
    )
    whole = across
    if gauge.dimension:
        whole = _whole(space, gauge, hessian.gradient, (low, high), ritz.asymmetry)
    return Spectrum(
        min=whole[0],
        max=whole[1],
        transverse_min=across[0],
        transverse_max=across[1],
        n_products=len(values),
        method="Lanczos with a random start",
    )


def dense_spectrum(
    hessian: HessianOfSum, gauge: Gauge, *, on_step: OnStep | None = None
) -> Spectrum:
    """The ends from the whole matrix, enclosed by twice its visible rounding."""
    matrix = hessian.dense(on_step).cpu()
    rounding = 2 * float(torch.linalg.matrix_norm((matrix - matrix.T) / 2, ord=2))
    matrix = (matrix + matrix.T) / 2
    ends = [_dense_ends(matrix, rounding)]
    if 0 < gauge.dimension < len(matrix):
        identity = torch.eye(gauge.dimension, dtype=torch.float64, device=hessian.device)
        directions = torch.stack([gauge.direction(row) for row in identity], dim=1).cpu()
        frame = torch.linalg.qr(directions, mode="complete").Q[:, gauge.dimension :]
        ends.append(_dense_ends(frame.T @ matrix @ frame, rounding))
    return Spectrum(
        min=ends[0][0],
        max=ends[0][1],
        transverse_min=ends[-1][0],
        transverse_max=ends[-1][1],
        n_products=len(matrix),
        method="dense",
    )


def _dense_ends(matrix: Float64[Tensor, "n n"], rounding: float) -> tuple[End, End]:
    values = torch.linalg.eigvalsh(matrix).tolist()
    first, last = (
        End(value=x, low=x - rounding, high=x + rounding, residual=0.0)
        for x in (values[0], values[-1])
    )
    return first, last


def _lower(value: float, low: float, rounding: float, residual: float) -> End:
    return End(
        value=value, low=min(low, value - rounding), high=value + rounding, residual=residual
    )


def _upper(value: float, high: float, rounding: float, residual: float) -> End:
    return End(
        value=value, low=value - rounding, high=max(high, value + rounding), residual=residual
    )


def _whole(
    space: KrylovSpace,
    gauge: Gauge,
    gradient: Vector,
    across: tuple[float, float],
    rounding: float,
) -> tuple[End, End]:
    """The ends of H from those across the gauge."""
    blocks = gauge.hessian_blocks(gradient)
    along = [torch.linalg.eigvalsh(block) for block, _ in blocks]
    squares = [torch.linalg.eigvalsh(square - block @ block)[-1] for block, square in blocks]
    coupling = math.sqrt(max(0.0, *(float(square) for square in squares)))
    low = -_two_by_two(-min(float(v[0]) for v in along), -across[0], coupling)
    high = _two_by_two(max(float(v[-1]) for v in along), across[1], coupling)
    first, last = _ritz_pairs(space, gauge, gradient, [block for block, _ in blocks])
    return _lower(first[0], low, rounding, first[1]), _upper(last[0], high, rounding, last[1])


def _two_by_two(one: float, other: float, coupling: float) -> float:
    """Largest eigenvalue of [[one, coupling], [coupling, other]]."""
    return (one + other) / 2 + math.hypot((one - other) / 2, coupling)


def _ritz_pairs(
    space: KrylovSpace, gauge: Gauge, gradient: Vector, blocks: list[Tensor]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last Ritz value of H on the span of V and Q, each with its residual."""
    coupled = torch.stack([gauge.hessian_coordinates(v, gradient) for v in space.basis], dim=1)
    frame = _gauge_frame(blocks, coupled.cpu())
    projected, corner = space.projected, frame.T @ coupled.cpu()
    top = torch.cat([(projected + projected.T) / 2, corner.T], dim=1)
    bottom = torch.cat([corner, frame.T @ _block_product(blocks, frame)], dim=1)
    values, vectors = torch.linalg.eigh(torch.cat([top, bottom]))

    def residual(i: int) -> float:
        inside, outside = vectors[: len(projected), i], frame @ vectors[len(projected) :, i]
        s, c = inside.to(space.basis.device), outside.to(space.basis.device)
        image = s @ space.images + gauge.direction(coupled @ s)
        image += gauge.hessian_product(c, gradient)
        return float((image - values[i].item() * (s @ space.basis + gauge.direction(c))).norm())

    return (float(values[0]), residual(0)), (float(values[-1]), residual(-1))


def _gauge_frame(blocks: list[Tensor], coupled: Float64[Tensor, "d k"]) -> Float64[Tensor, "d m"]:
    """All gauge coordinates, or where they are many those that curve most or couple to V."""
    dimension = len(coupled)
    if dimension <= _DENSE_GAUGE:
        return torch.eye(dimension, dtype=torch.float64)
    columns = []
    share = max(1, _DENSE_GAUGE // (2 * len(blocks)))
    start = 0
    for block in blocks:
        vectors = torch.linalg.eigh(block).eigenvectors
        chosen = torch.cat([vectors[:, :share], vectors[:, -share:]], dim=1)
        columns.append(torch.nn.functional.pad(chosen.T, (start, dimension - start - len(block))).T)
        start += len(block)
    return torch.linalg.qr(torch.cat([*columns, coupled], dim=1)).Q


def _block_product(blocks: list[Tensor], matrix: Float64[Tensor, "d m"]) -> Tensor:
    pieces = matrix.split([len(block) for block in blocks])
    return torch.cat([block @ piece for block, piece in zip(blocks, pieces, strict=True)])
