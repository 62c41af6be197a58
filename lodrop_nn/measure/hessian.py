"""Smallest and largest eigenvalue of the Hessian of the training risk, masks off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from peft import PeftModel
from torch import Tensor

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.evaluation import (
    Batch,
    flatten,
    mean_losses,
    mean_predictor,
    trained_parameters,
)
from lodrop_nn.measure.lanczos import RitzValues, lanczos
from lodrop_theory.records import Estimate

Vector = Float64[Tensor, " n_parameters"]


class HessianOfSum:
    r"""Products with the Hessian of a sum of losses.

    .. math:: H v = \sum_b \nabla_\theta \langle \nabla_\theta \ell_b(\theta), v \rangle

    With ``retain`` the graph of every gradient is built once and kept, so that a product costs one
    pass through it instead of a forward pass and two backward passes. Memory then grows with the
    number of examples, without it with the largest part.

    Args:
        losses: Functions without arguments that return the scalar parts of the sum.
        parameters: Tensors that require gradients; a part need not depend on all of them.
        retain: Whether the graphs of the gradients are kept between products.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> hessian = HessianOfSum([lambda: (x**3).sum(), lambda: x[0] * x[1]], [x])
        >>> hessian.product(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
        [6.0, 1.0]
        >>> hessian.gradient.tolist()
        [5.0, 13.0]
    """

    def __init__(
        self,
        losses: Sequence[Callable[[], Tensor]],
        parameters: Sequence[Tensor],
        *,
        retain: bool = True,
    ) -> None:
        self._losses, self._parameters, self._retain = list(losses), list(parameters), retain
        self._sizes = [p.numel() for p in self._parameters]
        self._graphs = [self._gradients(loss) for loss in self._losses] if retain else None

    @property
    def n_parameters(self) -> int:
        """Length of the vectors."""
        return sum(self._sizes)

    @property
    def gradient(self) -> Vector:
        """Gradient of the sum, float64 on the CPU."""
        graphs = self._graphs or (self._gradients(loss) for loss in self._losses)
        return torch.stack([flatten(gradients) for gradients in graphs]).sum(0)

    def product(self, vector: Vector) -> Vector:
        """H v in float64 on the CPU; each part is computed in the dtype of the parameters."""
        pieces = [
            piece.reshape(p.shape).to(p.device, p.dtype)
            for piece, p in zip(vector.split(self._sizes), self._parameters, strict=True)
        ]
        total = torch.zeros(self.n_parameters, dtype=torch.float64)
        for gradients in self._graphs or (self._gradients(loss) for loss in self._losses):
            total += flatten(self._derivative(gradients, pieces))
        return total

    def dense(self) -> Float64[Tensor, "n_parameters n_parameters"]:
        """The whole matrix, one product per row."""
        identity = torch.eye(self.n_parameters, dtype=torch.float64)
        return torch.stack([self.product(row) for row in identity])

    def _gradients(self, loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            loss(), self._parameters, create_graph=True, materialize_grads=True
        )

    def _derivative(
        self, gradients: Sequence[Tensor], pieces: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        # A loss linear in a parameter has a constant gradient there, which autograd refuses.
        curved = [(g, v) for g, v in zip(gradients, pieces, strict=True) if g.requires_grad]
        if not curved:
            return [torch.zeros_like(p) for p in self._parameters]
        return torch.autograd.grad(
            [g for g, _ in curved],
            self._parameters,
            grad_outputs=[v for _, v in curved],
            retain_graph=self._retain,
            materialize_grads=True,
        )


@dataclass(frozen=True, kw_only=True)
class ExtremeEigenvalues:
    """Both ends of the spectrum of one Hessian.

    Attributes:
        min: Smallest eigenvalue. Nats per parameter^2; may be negative.
        max: Largest eigenvalue. Nats per parameter^2.
        min_converged: Whether the residual of ``min`` is within the tolerance.
        max_converged: Whether the residual of ``max`` is within the tolerance.
        n_parameters: Dimension of the Hessian.
    """

    min: Estimate
    max: Estimate
    min_converged: bool
    max_converged: bool
    n_parameters: int


def hessian_extreme_eigs(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    steps: int,
    seed: int,
    retain: bool = True,
    tolerance: float = 1e-2,
    dense_up_to: int = 500,
    on_step: Callable[[int, int], None] | None = None,
) -> ExtremeEigenvalues:
    r"""Extreme eigenvalues of the Hessian of the training risk in the trained parameters.

    .. math:: H = \nabla^2_\theta \frac1n \sum_i -\ln \pi_\theta(y_i \mid x_i)

    at the mean predictor (masks off), without any penalty, in the coordinates that are trained:
    the factors A and B and the classifier. Small problems are solved densely; larger ones by
    :func:`~lodrop_nn.measure.lanczos.lanczos` from a seeded Gaussian start.

    The interval of ``min`` is :math:`[\theta - r, \theta]` and that of ``max``
    :math:`[\theta, \theta + r]`, with r the residual norm, both widened by the rounding that the
    products show. Guaranteed: the true minimum is not above :math:`\theta`, and *some* eigenvalue
    lies within r of :math:`\theta`, on either side. Not guaranteed: that this eigenvalue is the
    minimum; only then does the lower end hold. Few steps see the small end of a spectrum late.
    Convergence is judged by the *absolute* residual on the scale of the spectrum,
    :math:`r \le \text{tolerance} \cdot \max(|\theta_1|, |\theta_k|)`, because a test relative to an
    eigenvalue near zero never passes.

    Args:
        model: Adapted model; its trained parameters are the coordinates.
        bank: The masks of its adapter; they are off during the measurement.
        batches: All training examples; one retained graph each.
        steps: Lanczos steps, >= 2.
        seed: Seed of the start vector.
        retain: Whether the gradients' graphs are kept (fast) or rebuilt (small memory).
        tolerance: Residual, as a fraction of the spectral norm, that counts as converged.
        dense_up_to: Largest number of parameters for which the whole matrix is built.
        on_step: Called as ``on_step(step, steps)`` after each product.

    Returns:
        Both ends as estimates, with their convergence.

    Raises:
        ValueError: If ``steps`` < 2, nothing is trained, or there is no example.

    Source:
        Products: Pearlmutter (1994), Fast exact multiplication by the Hessian. What the theorem
        reads: Lin et al. (2024), arXiv:2404.09610v1, Proposition 4.2.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"`steps` must be a whole number >= 2, got {steps!r}.")
    parameters = list(trained_parameters(model).values())
    with mean_predictor(model, bank, batches):
        hessian = HessianOfSum(mean_losses(model, batches), parameters, retain=retain)
        if hessian.n_parameters <= dense_up_to:
            return _from_dense(hessian.dense())
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(hessian.n_parameters, dtype=torch.float64, generator=generator)
        ritz = lanczos(hessian.product, start, steps=steps, on_step=on_step)
    return _from_ritz(ritz, hessian.n_parameters, tolerance)


def hessian_min_eig(
    model: PeftModel, bank: MaskBank, batches: Sequence[Batch], *, steps: int, seed: int
) -> Estimate:
    """Smallest eigenvalue alone; see :func:`hessian_extreme_eigs`."""
    return hessian_extreme_eigs(model, bank, batches, steps=steps, seed=seed).min


def hessian_max_eig(
    model: PeftModel, bank: MaskBank, batches: Sequence[Batch], *, steps: int, seed: int
) -> Estimate:
    """Largest eigenvalue alone; see :func:`hessian_extreme_eigs`."""
    return hessian_extreme_eigs(model, bank, batches, steps=steps, seed=seed).max


def _from_dense(matrix: Float64[Tensor, "n n"]) -> ExtremeEigenvalues:
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    rounding = float(torch.linalg.matrix_norm((matrix - matrix.T) / 2, ord=2))
    ends = [
        Estimate(
            value=value,
            low=value - rounding,
            high=value + rounding,
            n_draws=len(values),
            method="dense Hessian of the training risk, masks off",
        )
        for value in (float(values[0]), float(values[-1]))
    ]
    return ExtremeEigenvalues(
        min=ends[0], max=ends[1], min_converged=True, max_converged=True, n_parameters=len(values)
    )


def _from_ritz(ritz: RitzValues, n_parameters: int, tolerance: float) -> ExtremeEigenvalues:
    norm = max(abs(float(ritz.values[0])), abs(float(ritz.values[-1])))

    def end(i: int, below: float, above: float) -> Estimate:
        value = float(ritz.values[i])
        return Estimate(
            value=value,
            low=value - below - ritz.asymmetry,
            high=value + above + ritz.asymmetry,
            n_draws=len(ritz.values),
            method="Lanczos on Hessian-vector products, masks off; interval: residual norm",
        )

    first, last = float(ritz.residuals[0]), float(ritz.residuals[-1])
    return ExtremeEigenvalues(
        min=end(0, first, 0.0),
        max=end(-1, 0.0, last),
        min_converged=first <= tolerance * norm,
        max_converged=last <= tolerance * norm,
        n_parameters=n_parameters,
    )
