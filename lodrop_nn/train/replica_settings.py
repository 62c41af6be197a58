"""What distinguishes one replica's training from another's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lodrop_nn.masks.settings import check_count, check_seed

Penalized = Literal["update", "factors"]


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    r"""How one replica is trained; its masks are those of its adapter's LoRA Dropout.

    With weights :math:`w_i` and losses :math:`\ell_i` of the examples, a replica minimizes

    .. math:: \frac1n \sum_i w_i\, \ell_i + \lambda\, P, \qquad
              P = \|\Delta W\|_F^2 \ \text{ or } \ \|A\|_F^2 + \|B\|_F^2

    summed over layers. The penalty that the paper reads dropout as is :math:`\lambda\,(2p - p^2)\,
    \|\Delta W\|_F^2`: there, multiply lambda by :math:`2p - p^2`.

    Attributes:
        learning_rate: Peak rate of AdamW, > 0.
        weight_decay: AdamW's decoupled decay, >= 0.
        penalty: lambda >= 0, in nats per parameter^2.
        penalized: ``"update"`` for the update :math:`\Delta W = s B A` of each layer, ``"factors"``
            for A and B.
        max_grad_norm: Norm > 0 that the gradient of this replica is clipped to; None does not clip.
        train_A: Whether the factors A are trained; without, only B (and the head) is (LoRA-FA).
        order_seed: Seed >= 0 of the order of the examples. Replicas that share it see the same
            batches.
        example_weights: w, one number >= 0 for each training example; None weighs all with 1.

    Raises:
        ValueError: If a value is outside its range.

    Source:
        The penalty: Lin et al. (2024), arXiv:2404.09610, Eqs. (9) to (11). Frozen A: Zhang et al.
        (2023), LoRA-FA, arXiv:2308.03303.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    penalty: float = 0.0
    penalized: Penalized = "update"
    max_grad_norm: float | None = None
    train_A: bool = True
    order_seed: int = 0
    example_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_number("learning_rate", self.learning_rate, positive=True)
        _check_number("weight_decay", self.weight_decay)
        _check_number("penalty", self.penalty)
        if self.max_grad_norm is not None:
            _check_number("max_grad_norm", self.max_grad_norm, positive=True)
        if self.penalized not in get_args(Penalized):
            raise ValueError(f"`penalized` must be 'update' or 'factors', got {self.penalized!r}.")
        if not isinstance(self.train_A, bool):
            raise ValueError(f"`train_A` must be True or False, got {self.train_A!r}.")
        check_seed("order_seed", self.order_seed)
        if self.example_weights is not None:
            weights = tuple(map(float, self.example_weights))
            if not weights or not all(0.0 <= weight < math.inf for weight in weights):
                raise ValueError(
                    "`example_weights` must be finite numbers >= 0, one for each training example, "
                    f"got {self.example_weights!r}."
                )
            object.__setattr__(self, "example_weights", weights)


def leave_one_out_weights(n_train: int, left_out: int) -> tuple[float, ...]:
    """Weights under which the mean over n examples is the mean over all but one.

    Args:
        n_train: n >= 2.
        left_out: The example that is left out, in [0, n).

    Returns:
        0 for that example and n / (n - 1) for the others.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> leave_one_out_weights(4, left_out=1)[:2]
        (1.3333333333333333, 0.0)
    """
    check_count("n_train", n_train)
    if n_train < 2 or not 0 <= left_out < n_train:
        raise ValueError(
            "`n_train` must be >= 2 and `left_out` an example in [0, n_train), got "
            f"n_train={n_train!r}, left_out={left_out!r}."
        )
    return tuple(0.0 if row == left_out else n_train / (n_train - 1) for row in range(n_train))


def weight_matrix(settings: Sequence[ReplicaSettings]) -> Float[Tensor, "K n"] | None:
    """The example weights of replicas, one row each; None if all are 1.

    Raises:
        ValueError: If their lengths differ.
    """
    lengths = {len(each.example_weights) for each in settings if each.example_weights is not None}
    if not lengths:
        return None
    if len(lengths) > 1:
        raise ValueError(
            f"`example_weights` must have one length for all replicas, got {sorted(lengths)}."
        )
    ones = (1.0,) * lengths.pop()
    return torch.tensor([each.example_weights or ones for each in settings], dtype=torch.float64)


def _check_number(name: str, value: object, *, positive: bool = False) -> None:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0.0 <= number < math.inf or (positive and number == 0.0):  # the first refuses NaN too
        accepted = "> 0" if positive else ">= 0"
        raise ValueError(f"`{name}` must be a finite number {accepted}, got {value!r}.")
