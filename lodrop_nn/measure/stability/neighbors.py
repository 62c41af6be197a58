r"""Training sets next to the given one, and what the objective looks like on them.

Near the solution :math:`\hat\theta` the objective on S is

.. math:: F(\hat\theta + \delta) = \hat R(\hat\theta + \delta) - \langle \bar g, \delta \rangle
          + \tau \|\delta\|^2, \qquad \bar g = \nabla \hat R(\hat\theta),

up to a constant, wherever the ridge is centered: a quadratic with another center differs by a
linear term, and the linear term is what makes :math:`\hat\theta` stationary. On a neighbor of S the
risk is another one; the rest stays.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lodrop_nn.masks.laws import seeded_generator

DRAW = 11  # key of the random stream of a measurement


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """S without an example, or with another one in its place.

    Attributes:
        n_train: n.
        left_out: The example, in [0, n).
        replaced_by: The row that takes its place; None leaves n - 1 examples.
    """

    n_train: int
    left_out: int
    replaced_by: int | None = None

    @property
    def weight(self) -> float:
        """Weight of each example in the mean: 1/(n - 1) or 1/n."""
        return 1.0 / (self.n_train - (self.replaced_by is None))

    @property
    def changes(self) -> dict[int, float]:
        """What the rows gain on a mean in which each training row has :attr:`weight`."""
        gains = {self.left_out: -self.weight}
        if self.replaced_by is not None:
            gains[self.replaced_by] = self.weight
        return gains


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """Which examples are perturbed and where it is felt; rows n, n + 1, ... are fresh.

    Attributes:
        n_train: n.
        left_out: Examples, in random order, shape (m,).
        replaced_by: A fresh row for each, shape (m,).
        felt_at: Other fresh rows for each, all different, shape (m, f).
    """

    n_train: int
    left_out: Int[Tensor, " m"]
    replaced_by: Int[Tensor, " m"]
    felt_at: Int[Tensor, "m f"]

    def removed(self, count: int) -> list[Neighbor]:
        """The first neighbors with one example less."""
        return [Neighbor(n_train=self.n_train, left_out=i) for i in self.left_out[:count].tolist()]

    def replaced(self, count: int) -> list[Neighbor]:
        """The first neighbors with another example."""
        pairs = zip(self.left_out[:count].tolist(), self.replaced_by[:count].tolist(), strict=True)
        return [Neighbor(n_train=self.n_train, left_out=i, replaced_by=z) for i, z in pairs]

    def rows(self, count: int) -> list[int]:
        """The rows that the first neighbors lose or gain."""
        return sorted({*self.left_out[:count].tolist(), *self.replaced_by[:count].tolist()})


def draw_neighbors(
    n_train: int, n_left_out: int, n_fresh: int, fresh_per_example: int, seed: int
) -> Draw:
    """Examples, replacements and fresh points by one seed.

    The fresh rows are dealt out like cards, so that each is used about equally often.
    """
    stream = seeded_generator(seed, DRAW)
    hand = min(fresh_per_example, n_fresh - 1) + 1
    left_out = torch.randperm(n_train, generator=stream)[:n_left_out]
    hands = []
    deck: list[int] = []
    for _ in range(n_left_out):
        if len(deck) < hand:
            deck = torch.randperm(n_fresh, generator=stream).tolist()
        hands.append([deck.pop() for _ in range(hand)])
    dealt = torch.tensor(hands) + n_train
    return Draw(n_train=n_train, left_out=left_out, replaced_by=dealt[:, 0], felt_at=dealt[:, 1:])
