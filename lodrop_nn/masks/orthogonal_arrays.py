"""Orthogonal arrays of strength 2, in blocks that fill N rows.

In an orthogonal array any two columns show each pair of their levels equally often. The columns
are dealt out to two *sides*, the column masks (of A) and the row masks (of B) of a layer.
"""

from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from lodrop_nn.masks.balanced import RESOLUTION

Table = NDArray[np.int64]
# Fields of prime-power order q^m: q, and the coefficients of x^m, lowest first, of a root x.
_EXTENSIONS = {4: (2, (1, 1)), 8: (2, (1, 1, 0)), 9: (3, (2, 0))}


class Block(NamedTuple):
    """An orthogonal array whose columns are dealt out to two sides.

    Attributes:
        levels: For each side the array (n_rows, n_columns) of its levels.
        n_levels: For each side the number s of levels, 0 to s - 1.
    """

    levels: tuple[Int[Tensor, "n_rows n_columns"], Int[Tensor, "n_rows n_other_columns"]]
    n_levels: tuple[int, int]

    @property
    def n_rows(self) -> int:
        """Rows of the array."""
        return len(self.levels[0])


@lru_cache(maxsize=128)
def blocks(
    n_rows: int, column_rates: tuple[float, ...], row_rates: tuple[float, ...]
) -> tuple[Block, ...]:
    """The blocks, at most N rows together, in which all rates are whole numbers of levels.

    Among the numbers of levels at which p s is whole for all rates of a side, those are taken that
    leave the fewest rows over, and among these the ones under which two coordinates of one side
    are least alike.

    Args:
        n_rows: N >= 1.
        column_rates: Rates on the side of the column masks, in [0, 1).
        row_rates: Rates on the side of the row masks.

    Returns:
        The blocks, largest first. None where a side drops nothing (balanced masks are then exact
        already) or where no array fits: for equal p = k / s in lowest terms it takes s^2 rows.

    Example:
        >>> [block.n_rows for block in blocks(12, (0.5,), (0.5,))]
        [8, 4]
        >>> [block.n_levels for block in blocks(8, (0.5,), (0.25,))]
        [(2, 4)]
        >>> blocks(8, (0.25,), (0.25,))
        ()
    """
    if not any(column_rates) or not any(row_rates):
        return ()
    pairs = [
        (s, t)
        for s in _whole_levels(n_rows, column_rates)
        for t in _whole_levels(n_rows // s, row_rates)
    ]
    if not pairs:
        return ()
    s, t = min(pairs, key=lambda pair: _left_over(n_rows, *pair))
    if _is_field(s) and s == t:
        return tuple(rao_hamming(s, size) for size in _sizes(n_rows, s, t))
    return tuple(table(s, t) for _ in _sizes(n_rows, s, t))


def _whole_levels(most: int, rates: tuple[float, ...]) -> list[int]:
    return [
        s
        for s in range(2, most + 1)
        if all(abs(p * s - round(p * s)) <= RESOLUTION * s for p in rates)
    ]


def _sizes(n_rows: int, s: int, t: int) -> list[int]:
    """Rows of the blocks, greedily."""
    if s != t or not _is_field(s):
        return [s * t] * (n_rows // (s * t))
    sizes, size = [], s * s
    while size * s <= n_rows:
        size *= s
    while size >= s * s:
        sizes += [size] * (n_rows // size)
        n_rows, size = n_rows % size, size // s
    return sizes


def _left_over(n_rows: int, s: int, t: int) -> tuple[float, float]:
    """How much the average over N members leaves of a product of two entries.

    First of opposite sides (the rest of the rows alone leaves something), then of one side, summed
    over both: 1 / d of a block whose columns span d dimensions beside the constants.
    """
    sizes = _sizes(n_rows, s, t)
    rest = n_rows - sum(sizes)
    across = (rest / n_rows) ** 2 / max(rest - 1, 1)
    within = 2 * across
    for size in sizes:
        n_columns = (size - 1) // (s - 1) if s == t and _is_field(s) else 2
        dimensions = (n_columns // 2 * (s - 1), (n_columns - n_columns // 2) * (t - 1))
        within += (size / n_rows) ** 2 * sum(1 / d for d in dimensions)
    return across, within


def table(s: int, t: int) -> Block:
    """The s x t table: a column of s levels crossed with one of t levels.

    Args:
        s: Levels of the column masks, >= 1.
        t: Levels of the row masks, >= 1.

    Example:
        >>> [levels.flatten().tolist() for levels in table(2, 3).levels]
        [[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    """
    first = torch.arange(s, device="cpu").repeat_interleave(t)
    return Block((first[:, None], torch.arange(t, device="cpu").repeat(s)[:, None]), (s, t))


@cache
def rao_hamming(s: int, n_rows: int) -> Block:
    r"""The array of all linear forms, up to factors, on the vectors over the field of s elements.

    Row x of :math:`GF(s)^n` shows in column c the level :math:`\langle c, x \rangle`. There are
    :math:`(s^n - 1) / (s - 1)` columns; two of them are linearly independent forms, which take
    each pair of values equally often. For s = 2 it is Sylvester's Hadamard matrix without its
    first column, for n = 2 Bose's array of s + 1 columns.

    Args:
        s: A prime, or 4, 8 or 9.
        n_rows: s^n, n >= 2.

    Returns:
        The first half of the columns (rounded down) for the column masks, the others for the row
        masks.

    Source:
        Rao (1947), J. R. Stat. Soc. Suppl. 9; Hedayat, Sloane and Stufken (1999), *Orthogonal
        Arrays*, Theorem 3.20.

    Example:
        >>> [tuple(levels.shape) for levels in rao_hamming(4, 16).levels]
        [(16, 2), (16, 3)]
    """
    n = round(np.log(n_rows) / np.log(s))
    add, multiply = _field(s)
    rows = np.array(list(product(range(s), repeat=n)))
    # One form of each line: the first coefficient that is not 0 is 1.
    forms = np.array([c for c in rows.tolist() if next(filter(None, c), 0) == 1])
    array = np.zeros((len(rows), len(forms)), dtype=np.int64)
    for i in range(n):
        array = add[array, multiply[rows[:, i, None], forms[:, i]]]
    half = len(forms) // 2
    levels = torch.from_numpy(array)
    return Block((levels[:, :half].contiguous(), levels[:, half:].contiguous()), (s, s))


def _is_field(s: int) -> bool:
    return s in _EXTENSIONS or (s > 1 and all(s % d for d in range(2, int(s**0.5) + 1)))


def _field(s: int) -> tuple[Table, Table]:
    """Addition and multiplication tables of GF(s); an element's digits are its coefficients."""
    q, root = _EXTENSIONS.get(s, (s, (0,)))
    m = len(root)
    digits = np.arange(s)[:, None] // q ** np.arange(m) % q
    # Multiplication by x: x^i to x^(i + 1), and x^(m - 1) to the root's equation.
    by_x = np.concatenate([np.eye(m, dtype=np.int64)[1:], [root]])
    powers = np.stack([np.linalg.matrix_power(by_x, i) for i in range(m)])
    by_element = np.einsum("ai,ijk->ajk", digits, powers)
    place = q ** np.arange(m)
    sums = (digits[:, None] + digits) % q @ place
    products = np.einsum("bj,ajk->abk", digits, by_element) % q @ place
    return sums, products
