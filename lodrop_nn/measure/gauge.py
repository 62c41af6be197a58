r"""Directions in which the factors move without changing the update: the gauge.

The risk :math:`L(\theta)` depends on a layer's factors through :math:`BA` alone, so it is constant
along :math:`(e^{tX} A, B e^{-tX})` for every :math:`r \times r` matrix X. The tangent there is

.. math:: M_X \theta = (X A, -B X) .

Masks on the columns of A and on the rows of B leave the rank dimension alone, so the same holds for
every masked risk and for their mean.

An orthonormal basis of a layer's directions is in :mod:`~lodrop_nn.measure.layer_gauge`; layers
share no coordinate.

**The Hessian in closed form.** At every :math:`\theta` and for every X the gradient g satisfies
:math:`\langle g(\theta), M_X\theta \rangle = 0`. Its derivative in :math:`\theta` is

.. math:: H M_X \theta + M_X^\top g = 0, \qquad
          H M_X \theta = -M_X^\top g = (-X^\top g_A,\; g_B X^\top),

so the Hessian on gauge directions takes no product; it is zero where the gradient is, and it
leaves each layer's coordinates among themselves. The condition itself says
:math:`g_A A^\top = B^\top g_B =: N`, hence
:math:`\langle M_Y\theta, H M_X\theta \rangle = -\langle XY + YX, N \rangle`.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Float64
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lodrop_nn.adapter import kinds
from lodrop_nn.adapter.attach import adapter_layers
from lodrop_nn.adapter.variant import LinearKind
from lodrop_nn.measure.evaluation import trained_parameters
from lodrop_nn.measure.layer_gauge import LayerGauge, Square, layer_gauge

Vector = Float64[Tensor, " n_parameters"]
Coordinates = Float64[Tensor, " gauge_dimension"]
Symmetry = Literal["general", "orthogonal"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gauge:
    """The gauge directions of an adapter: Q, orthonormal, never stored as vectors.

    Attributes:
        layers: Layers with gauge directions.
        skipped: Layers of the adapter that contribute none here: a factor is frozen, shared or
            grouped, or the update is not the product of two matrices (AdaLoRA, expert tensors).
        n_parameters: Length of the flat vectors.
    """

    layers: tuple[LayerGauge, ...]
    skipped: tuple[str, ...]
    n_parameters: int

    @cached_property
    def dimension(self) -> int:
        """Number of independent directions of all layers."""
        return sum(layer.dimension for layer in self.layers)

    def coordinates(self, vector: Vector) -> Coordinates:
        r""":math:`Q^\top v`."""
        return self._gathered(
            vector, lambda layer, v_A, v_B: v_A @ layer.lora_A.T - layer.lora_B.T @ v_B
        )

    def direction(self, coordinates: Coordinates) -> Vector:
        r""":math:`Q c`."""
        return self._scattered(coordinates, lambda layer, x: (x @ layer.lora_A, -layer.lora_B @ x))

    def project_out(self, vector: Vector) -> Vector:
        r""":math:`v - Q Q^\top v`: the part across the gauge."""
        return vector - self.direction(self.coordinates(vector))

    def hessian_product(self, coordinates: Coordinates, gradient: Vector) -> Vector:
        r""":math:`H Q c` of a gauge-invariant risk from its gradient; see the module."""

        def image(layer: LayerGauge, x: Square) -> tuple[Tensor, Tensor]:
            g_A, g_B = layer.parts(gradient)
            return -x.T @ g_A, g_B @ x.T

        return self._scattered(coordinates, image)

    def hessian_coordinates(self, vector: Vector, gradient: Vector) -> Coordinates:
        r""":math:`Q^\top H v` of a gauge-invariant risk from its gradient."""

        def image(layer: LayerGauge, v_A: Tensor, v_B: Tensor) -> Square:
            g_A, g_B = layer.parts(gradient)
            return v_B.T @ g_B - g_A @ v_A.T

        return self._gathered(vector, image)

    def hessian_blocks(self, gradient: Vector) -> list[tuple[Tensor, Tensor]]:
        r"""The blocks of :math:`Q^\top H Q` and of :math:`Q^\top H^2 Q`, layer by layer.

        Both matrices are block diagonal; layers without directions have no block. On the CPU.
        """
        return [self._blocks(layer, gradient) for layer in self.layers if layer.dimension]

    def residual(self, gradient: Vector) -> float:
        """Largest length of H q over unit vectors q of the gauge; 0 where the gradient is 0."""
        squares = [float(torch.linalg.eigvalsh(b)[-1]) for _, b in self.hessian_blocks(gradient)]
        return math.sqrt(max(0.0, *squares)) if squares else 0.0

    def _blocks(self, layer: LayerGauge, gradient: Vector) -> tuple[Tensor, Tensor]:
        g_A, g_B = layer.parts(gradient)
        basis = layer.basis()
        slope = (g_A @ layer.lora_A.T + layer.lora_B.T @ g_B) / 2  # N, both ways rounded
        # <XY + YX, N> = <X^T N + N X^T, Y>;
        # <M_X^T g, M_Y^T g> = <g_A g_A^T X + X g_B^T g_B, Y>.
        along = -(basis.mT @ slope + slope @ basis.mT)
        square = (g_A @ g_A.T) @ basis + basis @ (g_B.T @ g_B)
        flat = basis.flatten(1)
        blocks = [(flat @ each.flatten(1).T).cpu() for each in (along, square)]
        return (blocks[0] + blocks[0].T) / 2, (blocks[1] + blocks[1].T) / 2

    def _gathered(
        self, vector: Vector, image: Callable[[LayerGauge, Tensor, Tensor], Square]
    ) -> Coordinates:
        pieces = [layer.coordinates(image(layer, *layer.parts(vector))) for layer in self.layers]
        return torch.cat(pieces) if pieces else vector.new_empty(0)

    def _scattered(
        self,
        coordinates: Coordinates,
        image: Callable[[LayerGauge, Square], tuple[Tensor, Tensor]],
    ) -> Vector:
        vector = coordinates.new_zeros(self.n_parameters)
        pieces = coordinates.split([layer.dimension for layer in self.layers])
        for layer, piece in zip(self.layers, pieces, strict=True):
            part_A, part_B = image(layer, layer.matrix(piece))
            vector[layer.at_A], vector[layer.at_B] = part_A.flatten(), part_B.flatten()
        return vector


def gauge(
    model: PeftModel,
    *,
    adapter_name: str = "default",
    symmetry: Symmetry = "general",
    device: torch.device | None = None,
) -> Gauge:
    """The gauge directions of an adapter among its model's trained parameters.

    Args:
        model: Adapted model; flat vectors hold its trained parameters in their order.
        adapter_name: Name of the adapter.
        symmetry: ``"general"`` for all r x r matrices; ``"orthogonal"`` for skew ones, the
            symmetry that a ridge on both factors leaves.
        device: Where the vectors are; None is the device of the first trained parameter.

    Returns:
        The directions; a layer that is not of the form B A with both factors trained contributes
        none and is named in ``skipped``.

    Raises:
        ValueError: If nothing is trained, the adapter does not exist or ``symmetry`` is unknown.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from torch import nn
        >>> base = nn.Sequential(nn.Linear(4, 3))
        >>> model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
        >>> gauge(model).dimension, gauge(model, symmetry="orthogonal").dimension
        (4, 1)
    """
    if symmetry not in get_args(Symmetry):
        raise ValueError(f"`symmetry` must be 'general' or 'orthogonal', got {symmetry!r}.")
    parameters = trained_parameters(model)
    places = _places(parameters)
    device = next(iter(parameters.values())).device if device is None else device
    keys = {
        name: _factor_keys(layer, name, adapter_name)
        for name, layer in adapter_layers(model, adapter_name).items()
    }
    uses = Counter(key for pair in keys.values() if pair is not None for key in pair)
    found, skipped = [], []
    for name, pair in keys.items():
        pieces = None
        if pair is not None and all(key in places and uses[key] == 1 for key in pair):
            pieces = _matrices(parameters[pair[0]], parameters[pair[1]], device)
        if pair is None or pieces is None:
            skipped.append(name)
            continue
        at_A, at_B = (places[key] for key in pair)
        found.append(layer_gauge(name, *pieces, at_A, at_B, is_skew=symmetry == "orthogonal"))
    return Gauge(
        layers=tuple(found),
        skipped=tuple(skipped),
        n_parameters=sum(p.numel() for p in parameters.values()),
    )


def _places(parameters: Mapping[str, Tensor]) -> dict[str, slice]:
    """Where each parameter lies in the flat vector."""
    places, start = {}, 0
    for name, parameter in parameters.items():
        places[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return places


def _factor_keys(layer: LoraLayer, name: str, adapter_name: str) -> tuple[str, str] | None:
    """Names of the parameters A and B, or None if the update is not their product."""
    try:
        kind = kinds.kind_of(layer, name)
    except NotImplementedError:
        return None
    if not isinstance(kind, LinearKind):  # what AdaLoRA and expert tensors are not
        return None
    key = kind.lora_B_key(name, adapter_name)
    return f"{name}{key.removeprefix(name).replace('_B.', '_A.', 1)}", key


def _matrices(lora_A: Tensor, lora_B: Tensor, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Both factors as matrices; None if they share no rank dimension (grouped convolutions)."""
    matrix_A, matrix_B = (
        each.detach().flatten(1).to(device, torch.float64) for each in (lora_A, lora_B)
    )
    return (matrix_A, matrix_B) if matrix_A.shape[0] == matrix_B.shape[1] else None
