"""Labelled texts, and how they are divided into training and held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class TextClassificationData:
    """Texts with one label each, distinct rows.

    Attributes:
        texts: One per row.
        labels: Shape (n,), whole numbers in [0, n_classes).
        vote_shares: Shape (n,), the fraction of human raters on the side of class 1, in [0, 1];
            None where nobody voted. A soft label: it says how far people agree.
        name: What the data set is called in a :class:`~lodrop_nn.config.RunConfig`.
        n_classes: K, >= 2.
        source: Who made it and where it is from.
        licence_note: What is known about its licence.
        caveats: What a reader of a risk on these rows must know.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    vote_shares: NDArray[np.float64] | None
    name: str
    n_classes: int
    source: str
    licence_note: str
    caveats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.texts)
        if self.labels.shape != (n,) or self.labels.dtype != np.int64:
            raise ValueError(
                f"`labels` must be int64 of shape ({n},), "
                f"got {self.labels.dtype} of shape {self.labels.shape}."
            )
        if n and (self.labels.min() < 0 or self.labels.max() >= self.n_classes):
            raise ValueError(
                f"`labels` must be in [0, {self.n_classes}), "
                f"got {self.labels.min()}..{self.labels.max()}."
            )
        if self.vote_shares is not None:
            inside = (self.vote_shares >= 0) & (self.vote_shares <= 1)  # False for NaN
            if self.vote_shares.shape != (n,) or not inside.all():
                raise ValueError(f"`vote_shares` must be {n} numbers in [0, 1].")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.texts)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> "TextClassificationData":
        """The same data set with these rows only, in this order."""
        chosen = np.asarray(rows, dtype=np.int64)
        votes = None if self.vote_shares is None else self.vote_shares[chosen]
        texts = tuple(self.texts[row] for row in chosen)
        return replace(self, texts=texts, labels=self.labels[chosen], vote_shares=votes)


def split(
    data: TextClassificationData, n_train: int, n_test: int, seed: int
) -> tuple[TextClassificationData, TextClassificationData]:
    """Disjoint training and held-out rows, drawn uniformly without replacement.

    The held-out rows depend on ``n_test`` and ``seed`` only, and a smaller training set is the
    beginning of a larger one: curves over ``n_train`` compare like with like.

    Args:
        data: Rows to draw from.
        n_train: Training rows, >= 1.
        n_test: Held-out rows, >= 1.
        seed: Seed of the draw, >= 0.

    Returns:
        (training rows, held-out rows).

    Raises:
        ValueError: If a size is below 1 or the data has too few rows.

    Example:
        >>> import numpy as np
        >>> data = TextClassificationData(
        ...     texts=tuple("abcdef"), labels=np.array([0, 1] * 3), vote_shares=None,
        ...     name="letters", n_classes=2, source="here", licence_note="none")
        >>> train, test = split(data, n_train=4, n_test=2, seed=0)
        >>> sorted(train.texts + test.texts)
        ['a', 'b', 'c', 'd', 'e', 'f']
    """
    for name, size in (("n_train", n_train), ("n_test", n_test)):
        if size < 1:
            raise ValueError(f"`{name}` must be >= 1, got {size!r}.")
    if n_train + n_test > len(data):
        raise ValueError(
            f"`n_train` + `n_test` must be <= {len(data)}, the distinct rows of {data.name!r}, "
            f"got {n_train} + {n_test}."
        )
    order = np.random.default_rng(seed).permutation(len(data))
    return data.take(order[n_test : n_test + n_train]), data.take(order[:n_test])
