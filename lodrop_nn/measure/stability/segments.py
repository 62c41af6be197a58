"""Gradients of single examples between the solution and those of neighboring training sets."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from peft import PeftModel
from torch import Tensor

from lodrop_nn.measure.stability.jacobian import contrast_jacobian
from lodrop_nn.measure.stability.neighbors import Draw
from lodrop_nn.measure.stability.rows import Rows
from lodrop_theory.records import Estimate

Vector = Float64[Tensor, " n_parameters"]
_PLACES = (0.5, 1.0)


def lipschitz_segment(
    model: PeftModel,
    rows: Rows,
    draw: Draw,
    moves: Sequence[Vector],
    norms: Float64[Tensor, " rows"],
    *,
    vectorized: bool,
) -> Estimate:
    r"""Largest gradient norm found on segments to the solutions without one example.

    .. math:: \max_{i,\, z,\, t} \|\nabla \ell_z(\hat\theta + t\,\delta_i)\|_2, \qquad
              t \in \{0, \tfrac12, 1\}

    over the left-out example and its fresh rows for t > 0, over all rows for t = 0. Still a lower
    estimate of the supremum that the stability proof needs, over fewer points than all.

    Args:
        model: Adapted classifier in evaluation mode, masks off.
        rows: Its rows.
        draw: The left-out examples and their fresh rows.
        moves: The moves of the first of them.
        norms: Gradient norms at the solution.
        vectorized: How gradients are computed.

    Returns:
        Nats per parameter norm; ``n_draws`` counts the gradients.
    """
    found = [norms]
    for i, fresh, move in zip(draw.left_out.tolist(), draw.felt_at.tolist(), moves, strict=False):
        for t in _PLACES:
            derivative = contrast_jacobian(
                model, rows, [i, *fresh], moved=t * move, vectorized=vectorized
            )
            found.append(derivative.gradients().norm(dim=1))
    every = torch.cat(found)
    return Estimate(
        value=float(every.max()),
        n_draws=len(every),
        method=(
            f"largest gradient norm of one example on {len(moves)} segments at t = 0, 1/2, 1, "
            "masks off"
        ),
    )
