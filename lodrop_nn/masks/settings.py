"""What defines the masks of an adapter."""

from dataclasses import dataclass
from numbers import Real
from typing import get_args

from lodrop_nn.config import MaskScope


def check_count(name: str, value: object) -> None:
    """Refuse what is not a whole number >= 1.

    Raises:
        ValueError: Naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}.")


def check_seed(name: str, value: object) -> None:
    """Refuse what is not a whole number >= 0.

    Raises:
        ValueError: Naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"`{name}` must be a whole number >= 0, got {value!r}.")


@dataclass(frozen=True)
class MaskSettings:
    r"""The law of the masks of one adapter.

    A mask m of an input or output coordinate is 1 with probability 1 - p. With ``rescale`` it is
    divided by 1 - p (inverted scaling), so that the mean of the masked update is the stored
    update; without (the paper's form) that mean is :attr:`mean_factor` = (1 - p)^2 times it.

    Attributes:
        dropout_rate: p in [0, 1), the probability that a coordinate is dropped.
        n_masks: N >= 1, masks per training pass.
        mask_scope: ``"batch"``, or ``"example"`` for a mask per example; N is then 1.
        rescale: Whether kept coordinates are divided by 1 - p.
        seed: Seed >= 0 of the training masks, or None.

    Raises:
        ValueError: If a value is outside its range.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eqs. (2) and (7), which do not rescale.

    Example:
        >>> paper = MaskSettings(0.5, rescale=False)
        >>> paper.mean_factor, paper.active_factor
        (0.25, 1.0)
        >>> inverted = MaskSettings(0.5)
        >>> inverted.mean_factor, inverted.active_factor
        (1.0, 4.0)
    """

    dropout_rate: float
    n_masks: int = 1
    mask_scope: MaskScope = "batch"
    rescale: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        rate = self.dropout_rate
        # The comparison is false for NaN.
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0.0 <= rate < 1.0:
            raise ValueError(f"`dropout_rate` must be in [0, 1), got {rate!r}.")
        object.__setattr__(self, "dropout_rate", float(rate))
        check_count("n_masks", self.n_masks)
        if self.mask_scope not in get_args(MaskScope):
            raise ValueError(f"`mask_scope` must be 'batch' or 'example', got {self.mask_scope!r}.")
        if self.mask_scope == "example" and self.n_masks != 1:
            raise ValueError(
                "`n_masks` must be 1 when `mask_scope` is 'example' (each example already has a "
                f"mask of its own), got {self.n_masks!r}."
            )
        if not isinstance(self.rescale, bool):
            raise ValueError(f"`rescale` must be True or False, got {self.rescale!r}.")
        if self.seed is not None:
            check_seed("seed", self.seed)

    @property
    def mean_factor(self) -> float:
        """Mean of the masked update over the stored update: 1, or (1 - p)^2 without rescaling."""
        return 1.0 if self.rescale else (1.0 - self.dropout_rate) ** 2

    @property
    def active_factor(self) -> float:
        """Factor of the update under 0/1 masks: 1 / (1 - p)^2, or 1 without rescaling."""
        return (1.0 - self.dropout_rate) ** -2 if self.rescale else 1.0
