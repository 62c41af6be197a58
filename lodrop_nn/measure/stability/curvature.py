"""Products with the Hessians of the risk and of single rows at the solution."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from lodrop_nn.measure.evaluation import model_inputs, trained_parameters
from lodrop_nn.measure.hessian_products import HessianOfSum
from lodrop_nn.measure.stability.neighbors import Neighbor
from lodrop_nn.measure.stability.rows import Rows

Vector = Float64[Tensor, " n_parameters"]


class ExactHessians:
    """Exact Hessians in the trained parameters; the caller sets evaluation mode and masks.

    Vectors are float64 on the CPU, wherever the model is.

    Args:
        model: Adapted classifier.
        rows: Its rows.
        dense: Whether the Hessian of the training risk is built.

    Attributes:
        matrix: That Hessian, symmetrized, or None.
        n_products: Products with it so far.
    """

    def __init__(self, model: PeftModel, rows: Rows, *, dense: bool) -> None:
        self._model, self._rows = model, rows
        self._parameters = list(trained_parameters(model).values())
        n = rows.n_train
        groups = rows.by_length(range(n))
        self._risk = HessianOfSum([self._loss(group, n) for group in groups], self._parameters)
        self._single: dict[int, HessianOfSum] = {}
        self.n_products = 0
        self.matrix: Float64[Tensor, "n_parameters n_parameters"] | None = None
        if dense:
            matrix = self._risk.dense().cpu()
            self.matrix = (matrix + matrix.T) / 2

    @property
    def mean_gradient(self) -> Vector:
        """Gradient of the training risk."""
        return self._risk.gradient.cpu()

    def risk_product(self, vector: Vector) -> Vector:
        """Product with the Hessian of the training risk."""
        if self.matrix is not None:
            return self.matrix @ vector
        self.n_products += 1
        return self._risk.product(vector).cpu()

    def change_product(self, neighbor: Neighbor, vector: Vector) -> Vector:
        r"""What the rows that change add to it on a neighbor: :math:`\sum_j \Delta_j H_j v`."""
        total = torch.zeros_like(vector)
        for row, gain in neighbor.changes.items():
            if row not in self._single:
                self._single[row] = HessianOfSum([self._loss([row], 1)], self._parameters)
            total += gain * self._single[row].product(vector).cpu()
        return total

    def _loss(self, group: Sequence[int], n: int) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            batch = self._rows.batch(group)
            with self._rows.replayed(batch):
                logits = self._model(**model_inputs(self._model, batch)).logits
            labels = batch["labels"].to(logits.device)
            return cross_entropy(logits, labels, reduction="sum") / n

        return loss
