r"""Derivatives of the logits of single rows, in the directions that the cross-entropy can see.

The softmax does not feel a constant that is added to all logits. With the rows of Q an orthonormal
basis of the contrasts (sum zero), the contrast Jacobian :math:`C = Q\,\partial z / \partial\theta`
of shape (K - 1, n_parameters) holds all there is: the gradient of the cross-entropy is
:math:`C^\top Q (\pi - e_y)` and its Gauss-Newton Hessian :math:`C^\top Q (\mathrm{diag}\,\pi -
\pi\pi^\top) Q^\top C`. For two classes C is one row, the gradient of the logit difference over
:math:`\sqrt 2`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from lodrop_nn.measure.evaluation import Batch, model_inputs, trained_parameters
from lodrop_nn.measure.stability.rows import Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class ContrastJacobian:
    r"""Contrast Jacobians of some rows, with what the cross-entropy makes of them.

    Attributes:
        jacobian: C, shape (rows, K - 1, n_parameters), in the dtype and on the device of the model.
        slopes: :math:`Q (\pi - e_y)`, shape (rows, K - 1).
        roots: S with :math:`S S^\top = Q (\mathrm{diag}\,\pi - \pi\pi^\top) Q^\top`, shape
            (rows, K - 1, K - 1).
        method: How it was computed.
    """

    jacobian: Float[Tensor, "rows k n_parameters"]
    slopes: Float64[Tensor, "rows k"]
    roots: Float64[Tensor, "rows k k"]
    method: str

    def norms(self) -> Float64[Tensor, " rows"]:
        """Norms of those gradients, without all of them in memory."""
        pairs = zip(self.slopes, self.jacobian, strict=True)
        found = [slope @ block.to("cpu", torch.float64) for slope, block in pairs]
        return torch.stack([gradient.norm() for gradient in found])

    def gradients(self) -> Float64[Tensor, "rows n_parameters"]:
        """Gradients of the cross-entropy of the rows."""
        return torch.einsum("rk,rkp->rp", self.slopes, self.jacobian.to("cpu", torch.float64))


def contrasts(n_classes: int) -> Float64[Tensor, "k n_classes"]:
    """Helmert's basis: the rows are orthonormal and sum to 0.

    Example:
        >>> q = contrasts(4)
        >>> bool(torch.allclose(q @ q.T, torch.eye(3, dtype=q.dtype))), float(q.sum().abs()) < 1e-12
        (True, True)
    """
    rows = []
    for k in range(1, n_classes):
        row = torch.zeros(n_classes, dtype=torch.float64)
        row[:k], row[k] = 1.0, -float(k)
        rows.append(row / row.norm())
    return torch.stack(rows)


def softmax_geometry(
    logits: Float64[Tensor, "rows n_classes"], labels: Tensor
) -> tuple[Float64[Tensor, "rows k"], Float64[Tensor, "rows k k"]]:
    """The slopes and roots of :class:`ContrastJacobian`."""
    basis, probabilities = contrasts(logits.shape[-1]), logits.softmax(-1)
    answers = torch.nn.functional.one_hot(labels, logits.shape[-1])
    covariance = probabilities.diag_embed() - probabilities[:, :, None] * probabilities[:, None, :]
    values, vectors = torch.linalg.eigh(basis @ covariance @ basis.T)
    return (probabilities - answers) @ basis.T, vectors * values.clamp_min(0).sqrt()[:, None, :]


def point_of(model: PeftModel, vector: Tensor | None) -> dict[str, Tensor]:
    """The trained parameters, moved by a vector of all of them."""
    parameters = trained_parameters(model)
    here = {name: p.detach() for name, p in parameters.items()}
    if vector is None:
        return here
    pieces = vector.split([p.numel() for p in here.values()])
    return {
        # The sum is taken in float64: a small step would be lost on the way.
        name: (p.to(torch.float64) + piece.reshape(p.shape).to(p.device)).to(p.dtype)
        for (name, p), piece in zip(here.items(), pieces, strict=True)
    }


def contrast_jacobian(
    model: PeftModel,
    rows: Rows,
    numbers: Sequence[int],
    *,
    moved: Tensor | None = None,
    vectorized: bool | None = None,
) -> ContrastJacobian:
    """Contrast Jacobians of some rows; the caller sets evaluation mode and masks.

    Args:
        model: Adapted classifier.
        rows: Its rows.
        numbers: Which of them.
        moved: Vector by which the trained parameters are moved; None stays at the model's own.
        vectorized: Whether all rows of a batch go in one pass of ``torch.func.vmap``; None tries.

    Returns:
        One Jacobian per number, in their order.
    """
    point = point_of(model, moved)
    if vectorized is None:
        vectorized = _can_vectorize(model, rows, point, numbers)
    compute = _vectorized if vectorized else _one_by_one
    pieces, logits, order = [], [], []
    for group in rows.by_length(numbers):
        piece, values = compute(model, point, rows.batch(group))
        pieces.append(piece)
        logits.append(values.to("cpu", torch.float64))
        order += group
    back = torch.tensor([order.index(number) for number in numbers])
    jacobian, values = torch.cat(pieces), torch.cat(logits)[back]
    slopes, roots = softmax_geometry(values, rows.labels[list(numbers)])
    return ContrastJacobian(
        jacobian=jacobian[back.to(jacobian.device)],
        slopes=slopes,
        roots=roots,
        method="torch.func.vmap" if vectorized else "loop",
    )


def _can_vectorize(
    model: PeftModel, rows: Rows, point: Mapping[str, Tensor], numbers: Sequence[int]
) -> bool:
    """Whether a vectorized pass reproduces the logits of an ordinary one on rows of all lengths."""
    ordered = [number for group in rows.by_length(numbers) for number in group]
    probe = rows.batch([*dict.fromkeys((ordered[0], ordered[-1]))])
    try:
        _, found = _vectorized(model, point, probe)
    except (RuntimeError, ValueError, TypeError):  # what torch.func and models raise here
        return False
    with torch.no_grad():
        expected = functional_call(model, dict(point), (), model_inputs(model, probe)).logits
    return bool(torch.allclose(found, expected, rtol=1e-3, atol=1e-4))


def _vectorized(
    model: PeftModel, point: Mapping[str, Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    inputs = model_inputs(model, batch)
    dtype = next(iter(point.values())).dtype
    if "attention_mask" in inputs:  # the additive mask that models accept ready-made
        hidden = 1 - inputs["attention_mask"].to(dtype)
        inputs["attention_mask"] = (hidden * torch.finfo(dtype).min)[:, None, None, :]

    def of_one(moved: dict[str, Tensor], example: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        one_row = {name: tensor[None] for name, tensor in example.items()}
        logits = functional_call(model, moved, (), one_row).logits[0]
        return contrasts(len(logits)).to(logits) @ logits, logits

    blocks, logits = vmap(jacrev(of_one, has_aux=True), in_dims=(None, 0))(dict(point), inputs)
    return torch.cat([blocks[name].flatten(2) for name in point], dim=2), logits


def _one_by_one(
    model: PeftModel, point: Mapping[str, Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    inputs = model_inputs(model, batch)
    leaves = {name: p.clone().requires_grad_() for name, p in point.items()}
    pieces, values = [], []
    for i in range(len(batch["labels"])):
        one_row = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
        logits = functional_call(model, leaves, (), one_row).logits[0]
        outputs = contrasts(len(logits)).to(logits) @ logits
        lines = [
            torch.autograd.grad(
                output, list(leaves.values()), retain_graph=True, materialize_grads=True
            )
            for output in outputs
        ]
        pieces.append(torch.stack([torch.cat([g.flatten() for g in line]) for line in lines]))
        values.append(logits.detach())
    return torch.stack(pieces), torch.stack(values)
