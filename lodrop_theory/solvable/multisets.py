r"""Multisets of atoms: all of them, the place of each, and its probability.

Multisets are rows of counts in lexicographic order, so that the place of a row has a closed form
and its neighbours are found by arithmetic: with :math:`r_j` examples left at position j (of K), the
rows with the same beginning and a smaller count there number

.. math:: \binom{r_j + K - j}{K - j} - \binom{r_j - c_j + K - j}{K - j},

and the place is the sum over :math:`j < K`.
"""

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from lodrop_theory._checks import Float64Array

Counts = NDArray[np.int64]

_MOST_MULTISETS = 2_000_000


def multisets(n_atoms: int, size: int) -> Counts:
    """All multisets of a size, one row of counts each, in lexicographic order.

    Args:
        n_atoms: K >= 1.
        size: n >= 0.

    Returns:
        Shape (binomial(n + K - 1, K - 1), K); every row sums to ``size``.

    Raises:
        ValueError: If there are more than two million of them.

    Example:
        >>> multisets(2, 2).tolist()
        [[0, 2], [1, 1], [2, 0]]
    """
    many = comb(size + n_atoms - 1, n_atoms - 1)
    if many > _MOST_MULTISETS:
        raise ValueError(
            f"`n_atoms` and `size` must give at most {_MOST_MULTISETS} multisets, "
            f"got {n_atoms} and {size}, which give {many}."
        )
    # Stars and bars: the counts are the gaps between K - 1 bars on n + K - 1 places.
    bars = np.array(list(combinations(range(size + n_atoms - 1), n_atoms - 1)), dtype=np.int64)
    bars = bars.reshape(many, n_atoms - 1)
    return np.asarray(np.diff(bars, axis=1, prepend=-1, append=size + n_atoms - 1) - 1)


def multiset_index(counts: Counts) -> NDArray[np.int64]:
    """The place of each row of counts in :func:`multisets`; all rows have one sum.

    Args:
        counts: Shape (..., K).

    Returns:
        Shape (...).

    Example:
        >>> multiset_index(np.array([[1, 1], [0, 2]])).tolist()
        [1, 0]
    """
    n_atoms, size = counts.shape[-1], int(counts.reshape(-1, counts.shape[-1])[0].sum())
    below = np.array(
        [[comb(left + j, j) for j in range(n_atoms - 1, 0, -1)] for left in range(size + 1)],
        dtype=np.int64,
    ).reshape(size + 1, n_atoms - 1)
    after = size - np.cumsum(counts, axis=-1)[..., :-1]
    position = np.arange(n_atoms - 1)
    return np.asarray(
        (below[after + counts[..., :-1], position] - below[after, position]).sum(axis=-1)
    )


def multinomial_probability(counts: Counts, probabilities: Float64Array) -> Float64Array:
    """Probability of each multiset when its examples are drawn independently, shape (m,)."""
    size = int(counts[0].sum())
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])
    logs = log_factorial[size] - log_factorial[counts].sum(axis=1) + counts @ np.log(probabilities)
    return np.asarray(np.exp(logs))
