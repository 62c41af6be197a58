"""Orthogonal masks: every pair of an output and an input of a layer is kept equally often."""

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lodrop_nn.masks.balanced import Uniform, check_rates, spread
from lodrop_nn.masks.orthogonal_arrays import Block, blocks
from lodrop_nn.masks.settings import check_count


def orthogonal_masks(
    n_masks: int,
    rates: Float[Tensor, " n_coordinates"],
    sides: Int[Tensor, " n_coordinates"] | Bool[Tensor, " n_coordinates"],
    layers: Int[Tensor, " n_coordinates"],
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "n_masks n_coordinates"]:
    r"""Masks that each have the i.i.d. law and whose average update of a layer is exact.

    The N members of one layer are the rows of orthogonal arrays of strength 2 (see
    :func:`~lodrop_nn.masks.orthogonal_arrays.blocks`), in an order of the layer's own. Column
    masks use some columns of an array, row masks the others. Each coordinate picks a random column
    of its side and draws *one balanced mask over its s levels*; in each member it is what that
    mask says of the level that the array shows. Members beyond the arrays are drawn balanced.

    *Each member has the i.i.d. law, always.* Fix the arrays, the picked columns and the orders.
    What a member says of a coordinate is then one entry of that coordinate's own balanced mask,
    kept with probability 1 - p whatever the level, and masks of different coordinates are
    independent. So all coordinates of a member are independent, also those that share a column.

    *Pairs, where the arrays fill all N members.* p s is whole, so coordinate j of the column masks
    is kept at exactly (1 - p_j) s of its levels, coordinate i of the row masks at (1 - p_i) t. Two
    columns show each of the s t pairs of levels equally often, so both are kept in exactly

    .. math:: \sum_{n=1}^{N} m_{B,i}^n \, m_{A,j}^n = (1 - p_i)(1 - p_j) N

    members: the average of a layer's masked updates is its mean. That takes N a multiple of s t;
    at equal p, of 4 for p = 1/2, of 9 for 1/3, of 16 for 1/4, of 100 for 0.1. With R members left
    over, only these R leave noise, of a layer's mean update (R / N)^2 times that of R balanced
    masks. Where no array fits, and in a layer that drops on one side only, the masks are balanced.

    *What is not exact.* Layers are independent of each other: a permutation per layer keeps each
    exact and each member's law, and hinders that members which agree in one layer agree in the
    next. A layer whose inputs depend on masks below it averages different inputs. And products
    of two coordinates of *one* side, which a nonlinear network feels, average worse than under
    i.i.d. masks: to 1 / d of their variance instead of 1 / N, where the columns of the side
    span d dimensions, about (N - 1) / 2 (the two sides share N - 1).

    Args:
        n_masks: N >= 1.
        rates: p in [0, 1) of each coordinate; within 1e-7 of a multiple of 1 / s it is taken for
            it.
        sides: 0 or False for a coordinate of column masks (an input), 1 or True for one of row
            masks (an output).
        layers: Index >= 0 of the layer of each coordinate. Rates may differ between layers and
            sides; where they differ within a side, s must suit them all.
        generator: A CPU generator; None draws from torch's default one.

    Returns:
        True where a coordinate is kept, on the CPU. Unlike i.i.d. masks, the first masks of a
        larger draw are not those of a smaller one.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        Two inputs and an output at p = 1/2: each pair is kept in one of four members.

        >>> half, sides = torch.full((3,), 0.5), torch.tensor([0, 0, 1])
        >>> masks = orthogonal_masks(4, half, sides, torch.zeros(3, dtype=torch.int64)).long()
        >>> (masks[:, :2] * masks[:, 2:]).sum(0).tolist()
        [1, 1]
    """
    check_count("n_masks", n_masks)
    check_rates(rates)
    for name, values in (("sides", sides), ("layers", layers)):
        if values.shape != rates.shape or values.is_floating_point():
            raise ValueError(
                f"`{name}` must hold a whole number for each of the {len(rates)} rates, "
                f"got shape {tuple(values.shape)} of {values.dtype}."
            )
    if len(rates) and (bool(((sides != 0) & (sides != 1)).any()) or int(layers.min()) < 0):
        raise ValueError(
            "`sides` must be 0 or 1 and `layers` >= 0, "
            f"got {sides.unique().tolist()!r} and a smallest layer of {int(layers.min())}."
        )
    # As for i.i.d. masks: neither a surrounding `torch.inference_mode()` nor a default device
    # reaches masks that training will read later.
    with torch.inference_mode(False), torch.device("cpu"):
        uniform = partial(torch.rand, generator=generator)
        return _orthogonal(n_masks, rates, sides.long(), layers.long(), uniform)


def _orthogonal(
    n_masks: int, rates: Tensor, sides: Tensor, layers: Tensor, uniform: Uniform
) -> Tensor:
    """:func:`orthogonal_masks` as a function of uniform numbers."""
    masks = torch.zeros((len(rates), n_masks), dtype=torch.uint8)
    plans, plan_of_layer = _plans(n_masks, rates, sides, layers)
    rows = uniform(len(plan_of_layer), n_masks).argsort(1)  # of the arrays, by layer and member
    plan = plan_of_layer[layers]
    for i, of_layer in enumerate(plans):
        for side in range(2):
            at = torch.nonzero((plan == i) & (sides == side))[:, 0]
            masks[at] = _side(of_layer, side, rows, rates[at], layers[at], uniform)
    return masks.T.contiguous().bool()


def _plans(
    n_masks: int, rates: Tensor, sides: Tensor, layers: Tensor
) -> tuple[list[tuple[Block, ...]], Tensor]:
    """The different ways in which layers fill their rows, and which of them each layer takes."""
    # Coordinates of one layer, side and rate mostly lie together: one of each run tells.
    changes = torch.ones(len(rates), dtype=torch.bool)
    changes[1:] = (rates.diff() != 0) | (sides.diff() != 0) | (layers.diff() != 0)
    rates_of: dict[int, tuple[set[float], set[float]]] = {}
    for layer, side, rate in zip(
        *(values[changes].tolist() for values in (layers, sides, rates.double())), strict=True
    ):
        rates_of.setdefault(layer, (set(), set()))[side].add(rate)
    plans: dict[tuple[tuple[float, ...], ...], int] = {}
    plan_of_layer = torch.zeros(max(rates_of, default=-1) + 1, dtype=torch.int64)
    for layer, pair in rates_of.items():
        key = tuple(tuple(sorted(of_side)) for of_side in pair)
        plan_of_layer[layer] = plans.setdefault(key, len(plans))
    return [blocks(n_masks, *key) for key in plans], plan_of_layer


def _side(
    of_layer: tuple[Block, ...],
    side: int,
    rows: Tensor,
    rates: Tensor,
    layers: Tensor,
    uniform: Uniform,
) -> Tensor:
    """Masks of the coordinates of one side as 0 and 1, shape (coordinates, members)."""
    n_layers, n_masks = rows.shape
    if not of_layer:
        return spread(n_masks, rates, uniform).T.to(torch.uint8)
    masks = torch.zeros((len(rates), n_masks), dtype=torch.uint8)
    start = 0
    for block in of_layer:
        levels = block.levels[side]
        columns = (uniform(len(rates)) * levels.shape[1]).long()
        row = rows - start
        shown = levels.T[:, row.clamp(0, block.n_rows - 1)]
        shown = shown.where((row >= 0) & (row < block.n_rows), -1).flatten(0, 1)
        kept = spread(block.n_levels[side], rates, uniform)
        masks |= _read(kept, shown, columns * n_layers + layers)
        start += block.n_rows
    if start < n_masks:  # the rest: members are levels of their own
        masks |= _read(spread(n_masks - start, rates, uniform), rows - start, layers)
    return masks


def _read(kept: Tensor, shown: Tensor, line: Tensor) -> Tensor:
    """Entries of the columns of ``kept`` at the levels in their lines of ``shown``.

    A level that is not a row of ``kept`` reads 0. Seven levels at a time are the bits of a byte
    whose highest bit is 0: that moves an eighth of what indices of 64 bits would.
    """
    entries = torch.zeros((len(line), shown.shape[1]), dtype=torch.uint8)
    for first in range(0, len(kept), 7):
        byte = torch.zeros(len(line), dtype=torch.uint8)
        for bit, level in enumerate(kept[first : first + 7]):
            byte |= level.to(torch.uint8) << bit
        shift = shown - first
        shift = shift.where((shift >= 0) & (shift < 7), 7).to(torch.uint8)
        entries |= (byte[:, None] >> shift[line]) & 1
    return entries
