"""Balanced masks: each coordinate is dropped in its share of the members."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lodrop_nn.masks.settings import check_count

# Rates may be float32: one this close to a multiple of 1 / N is meant to be it.
RESOLUTION = 1e-7

Uniform = Callable[..., Tensor]  # sizes -> independent uniform numbers in [0, 1)


def balanced_masks(
    n_masks: int,
    rates: Float[Tensor, " n_coordinates"],
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "n_masks n_coordinates"]:
    r"""Masks that each drop coordinates independently and together drop each one equally often.

    A coordinate of rate p is dropped in :math:`\lfloor pN \rfloor` or :math:`\lceil pN \rceil` of
    the N masks, the latter with probability pN - floor(pN), at uniformly random places,
    independently of the other coordinates.

    *Each mask has the i.i.d. law*: a coordinate that is dropped K times is dropped in a given mask
    with probability K / N, and E K = pN. *The masks depend on each other*: for whole pN, two of
    them have covariance -p (1 - p) / (N - 1) in a coordinate, and the average over the masks is
    exactly 1 - p. What is left of the noise of a layer's mean update is the product of column and
    row noise; :func:`lodrop_theory.mask_variance.balanced_masks_average` says how much.

    Args:
        n_masks: N >= 1.
        rates: p in [0, 1) of each coordinate. A rate within 1e-7 of a multiple of 1 / N is taken
            for it (0.3 of 10 masks is 3, although no binary number is 0.3).
        generator: A CPU generator; None draws from torch's default one.

    Returns:
        True where a coordinate is kept, on the CPU. Unlike i.i.d. masks, the first masks of a
        larger draw are not those of a smaller one.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> masks = balanced_masks(10, torch.tensor([0.0, 0.3, 0.5]))
        >>> masks.sum(0).tolist()
        [10, 7, 5]
    """
    check_count("n_masks", n_masks)
    check_rates(rates)
    # As for i.i.d. masks: neither a surrounding `torch.inference_mode()` nor a default device
    # reaches masks that training will read later.
    with torch.inference_mode(False), torch.device("cpu"):
        return spread(n_masks, rates, partial(torch.rand, generator=generator))


def check_rates(rates: Tensor) -> None:
    """Refuse what is not a vector of rates.

    Raises:
        ValueError: If it is not, or if a rate is outside [0, 1).
    """
    if rates.dim() != 1 or not rates.is_floating_point():
        raise ValueError(
            "`rates` must be a vector of floating-point numbers, "
            f"got shape {tuple(rates.shape)} of {rates.dtype}."
        )
    inside = (rates >= 0) & (rates < 1)  # false for NaN
    if not bool(inside.all()):
        raise ValueError(f"`rates` must be in [0, 1), got {rates[~inside][0].item()!r}.")


def spread(n_masks: int, rates: Tensor, uniform: Uniform) -> Tensor:
    """:func:`balanced_masks` as a function of uniform numbers."""
    share = rates.double() * n_masks
    nearest = share.round()
    share = torch.where((share - nearest).abs() <= RESOLUTION * n_masks, nearest, share)
    left = share.floor()
    left += uniform(len(rates)) < share - left
    left = left.float()
    chances = uniform(n_masks, len(rates))
    kept = torch.empty(chances.shape, dtype=torch.bool)
    # Selection sampling (Knuth 3.4.2, Algorithm S): with K drops left for M masks, the next mask
    # drops with probability K / M. That is 1 at K = M and 0 at K = 0, so all K are placed.
    for i in range(n_masks):
        torch.ge(chances[i], left / (n_masks - i), out=kept[i])
        left.add_(kept[i]).sub_(1)
    return kept
