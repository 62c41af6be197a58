"""Products with the Hessian of a sum of losses, on gradients' graphs that are kept."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from lodrop_nn.measure.evaluation import LossPart

Vector = Float64[Tensor, " n_parameters"]
Loss = Callable[[], Tensor]
_Gradients = tuple[Tensor, ...]


class HessianOfSum:
    r"""Products with the Hessian of a sum of losses.

    .. math:: H v = \sum_b \nabla_\theta \langle \nabla_\theta \ell_b(\theta), v \rangle

    With ``retain`` the graph of every gradient is built once and kept, so that a product costs one
    pass through it instead of a forward pass and two backward passes. Memory then grows with the
    number of examples, without it with the largest part. Where the graphs do not fit, they are
    built anew for each product; where one part does not fit, its rows are halved
    (:class:`~lodrop_nn.measure.evaluation.LossPart`).

    Vectors are float64 on the device of the first parameter (on the CPU where that has no
    float64); each part is computed in the dtype of the parameters.

    Args:
        losses: Functions without arguments that return the scalar parts of the sum.
        parameters: Tensors that require gradients; a part need not depend on all of them.
        retain: Whether the graphs of the gradients are kept between products.

    Attributes:
        gradient: Gradient of the sum.
        retained: Whether the graphs are kept.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> hessian = HessianOfSum([lambda: (x**3).sum(), lambda: x[0] * x[1]], [x])
        >>> hessian.product(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
        [6.0, 1.0]
        >>> hessian.gradient.tolist()
        [5.0, 13.0]
    """

    def __init__(
        self, losses: Sequence[Loss], parameters: Sequence[Tensor], *, retain: bool = True
    ) -> None:
        self._losses, self._parameters = list(losses), list(parameters)
        self._sizes = [p.numel() for p in self._parameters]
        self._graphs: list[_Gradients] = []
        self.retained = retain
        self.gradient = self._sum(lambda gradients: gradients, begin=True)

    @property
    def n_parameters(self) -> int:
        """Length of the vectors."""
        return sum(self._sizes)

    @property
    def n_parts(self) -> int:
        """Number of parts of the sum by now."""
        return len(self._losses)

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        device = self._parameters[0].device
        return torch.device("cpu") if device.type == "mps" else device

    def product(self, vector: Vector) -> Vector:
        """H v."""
        pieces = [  # first the dtype: not every device has float64
            piece.reshape(p.shape).to(p.dtype).to(p.device)
            for piece, p in zip(vector.split(self._sizes), self._parameters, strict=True)
        ]
        return self._sum(lambda gradients: self._derivative(gradients, pieces))

    def dense(
        self, on_step: Callable[[int, int], None] | None = None
    ) -> Float64[Tensor, "n_parameters n_parameters"]:
        """The whole matrix, one product per row.

        Args:
            on_step: Called as ``on_step(rows, n_parameters)`` after each product.
        """
        rows = []
        for row in torch.eye(self.n_parameters, dtype=torch.float64, device=self.device):
            rows.append(self.product(row))
            if on_step is not None:
                on_step(len(rows), self.n_parameters)
        return torch.stack(rows)

    def _sum(
        self, derive: Callable[[_Gradients], Sequence[Tensor]], *, begin: bool = False
    ) -> Vector:
        """Sum over the parts of what is derived from their gradients.

        Raises:
            RuntimeError: If memory does not suffice for a single row (or anything else is wrong).
            MemoryError: The same, where the memory was Python's.
        """
        total = torch.zeros(self.n_parameters, dtype=torch.float64, device=self.device)
        done = 0
        while done < len(self._losses):
            try:
                total += self._share(done, derive, begin=begin)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error) or not self._give_way(done):
                    raise
            else:
                done += 1
                continue
            # Outside the `except`, whose traceback holds on to the tensors of the failed pass.
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return total

    def _share(
        self, part: int, derive: Callable[[_Gradients], Sequence[Tensor]], *, begin: bool
    ) -> Vector:
        """What one part adds to a sum; at the beginning its graph is kept."""
        kept = self.retained and part < len(self._graphs)
        gradients = self._graphs[part] if kept else self._gradients(self._losses[part])
        share = self._flat(derive(gradients))
        if begin and self.retained:
            self._graphs.append(gradients)
        return share

    def _give_way(self, part: int) -> bool:
        """Need less memory: drop the graphs, or else halve a part; False if there is no way."""
        if self.retained:
            self.retained = False
            self._graphs.clear()
            return True
        loss = self._losses[part]
        halves = loss.halves() if isinstance(loss, LossPart) else None
        if halves is None:
            return False
        self._losses[part : part + 1] = halves
        return True

    def _gradients(self, loss: Loss) -> _Gradients:
        return torch.autograd.grad(
            loss(), self._parameters, create_graph=True, materialize_grads=True
        )

    def _derivative(self, gradients: _Gradients, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        # A loss linear in a parameter has a constant gradient there, which autograd refuses.
        curved = [(g, v) for g, v in zip(gradients, pieces, strict=True) if g.requires_grad]
        if not curved:
            return [torch.zeros_like(p) for p in self._parameters]
        return torch.autograd.grad(
            [g for g, _ in curved],
            self._parameters,
            grad_outputs=[v for _, v in curved],
            retain_graph=self.retained,
            materialize_grads=True,
        )

    def _flat(self, tensors: Sequence[Tensor]) -> Vector:
        home = self._parameters[0].device
        joined = torch.cat([t.detach().flatten().to(home) for t in tensors])
        return joined.to(self.device).to(torch.float64)


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    text = str(error)
    return known or "DefaultCPUAllocator" in text or "out of memory" in text
