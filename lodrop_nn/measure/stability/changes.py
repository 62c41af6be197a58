"""What a move of the parameters does to the loss where a neighbor of the training set is felt."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from lodrop_nn.measure.stability.jacobian import point_of
from lodrop_nn.measure.stability.neighbors import Draw
from lodrop_nn.measure.stability.rows import Rows
from lodrop_theory.losses import smoothed_cross_entropy

Float64Array = NDArray[np.float64]
Vector = Float64[Tensor, " n_parameters"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Changes:
    """Smoothed losses on neighbors minus those on S, by left-out example. Nats.

    Attributes:
        loss: Loss on S at the left-out example, shape (m,).
        removed: Change there when it is left out, shape (m,).
        removed_fresh: Changes at fresh rows, shape (m, f).
        replaced: Change there when it is replaced, shape (m,).
        replaced_fresh: Changes at fresh rows, shape (m, f).
    """

    loss: Float64Array
    removed: Float64Array
    removed_fresh: Float64Array
    replaced: Float64Array
    replaced_fresh: Float64Array

    def first(self, count: int) -> "Changes":
        """Those of the first examples."""
        return Changes(**{name: values[:count] for name, values in vars(self).items()})


def smoothed_losses(logits: Float64[Tensor, "rows K"], labels: Tensor, a: float) -> Float64Array:
    """Smoothed cross-entropy of some rows."""
    return smoothed_cross_entropy(logits.softmax(-1).numpy(), labels.numpy(), a)


def evaluated_changes(
    model: PeftModel,
    rows: Rows,
    draw: Draw,
    losses: Float64Array,
    moves: Iterable[tuple[Vector, Vector]],
    smoothing: float,
    on_example: Callable[[], None] | None = None,
) -> Changes:
    """Changes by passes at the moved parameters.

    Args:
        model: Adapted classifier in evaluation mode, masks off.
        rows: Its rows.
        draw: The neighbors, as many as there are moves or more.
        losses: Smoothed losses of all rows on S.
        moves: For each left-out example the move when it is left out, and when it is replaced.
        smoothing: a in (0, 1).
        on_example: Called after each.
    """
    numbers = [
        [int(i), *fresh] for i, fresh in zip(draw.left_out, draw.felt_at.tolist(), strict=True)
    ]
    changes = []
    for number, pair in enumerate(moves):
        here = numbers[number]
        labels = rows.labels[here]
        changes.append(
            [
                smoothed_losses(rows.logits(here, point_of(model, move)), labels, smoothing)
                - losses[here]
                for move in pair
            ]
        )
        if on_example is not None:
            on_example()
    return _as_changes(np.array(changes), losses[draw.left_out.numpy()[: len(changes)]])


def linear_changes(
    draw: Draw,
    products: Float64[Tensor, "rows rows"],
    factors: Float64Array,
    losses: Float64Array,
) -> Changes:
    r"""First-order changes: classical influence functions.

    .. math:: \langle s_z g_z,\ H^{-1} (g_i - \bar g) \rangle / n, \qquad
              \langle s_z g_z,\ H^{-1} (g_i - g_{z'}) \rangle / n

    Args:
        draw: The neighbors.
        products: :math:`\langle g_j, H^{-1} g_k \rangle` of all rows.
        factors: s, by which the gradient of the smoothed loss is shorter than g.
        losses: Smoothed losses of all rows on S.

    Source:
        Koh and Liang (2017), arXiv:1703.04730, Eq. (2).
    """
    n = draw.n_train
    table = products.numpy()
    mean = table[:, :n].mean(1)
    changes = []
    for i, z, fresh in zip(
        draw.left_out.tolist(), draw.replaced_by.tolist(), draw.felt_at.tolist(), strict=True
    ):
        here = [i, *fresh]
        removed = table[here, i] - mean[here]
        replaced = table[here, i] - table[here, z]
        changes.append([factors[here] * removed / n, factors[here] * replaced / n])
    return _as_changes(np.array(changes), losses[draw.left_out.numpy()])


def smoothing_factors(
    logits: Float64[Tensor, "rows K"], labels: Tensor, smoothing: float
) -> Float64Array:
    r"""How much shorter the gradient of the smoothed loss is, in (0, 1).

    .. math:: s = \frac{(1-a)\,\pi_y}{(1-a)\,\pi_y + a/K}
    """
    chosen = logits.softmax(-1).gather(1, labels[:, None])[:, 0].numpy() * (1.0 - smoothing)
    factors: Float64Array = chosen / (chosen + smoothing / logits.shape[-1])
    return factors


def gradient_products(
    slopes: Float64[Tensor, "rows k"], kernel: Float64[Tensor, "rows_k rows_k"]
) -> Float64[Tensor, "rows rows"]:
    r"""The inner products :math:`\langle g_j, H^{-1} g_k \rangle` from C H^-1 C^T."""
    n, k = slopes.shape
    blocks = kernel.reshape(n, k, n, k)
    return torch.einsum("ik,ikjl,jl->ij", slopes, blocks, slopes)


def _as_changes(changes: Float64Array, losses: Float64Array) -> Changes:
    return Changes(
        loss=losses,
        removed=changes[:, 0, 0],
        removed_fresh=changes[:, 0, 1:],
        replaced=changes[:, 1, 0],
        replaced_fresh=changes[:, 1, 1:],
    )
