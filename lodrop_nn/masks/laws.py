"""Laws that masks are drawn from, and the streams of random numbers behind them."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lodrop_nn.config import MaskLaw
from lodrop_nn.masks.balanced import balanced_masks
from lodrop_nn.masks.draw import Coordinates
from lodrop_nn.masks.orthogonal import orthogonal_masks


def seeded_generator(seed: int, *key: int) -> torch.Generator:
    """A CPU generator whose stream is a function of a seed and a key.

    Streams of different keys are unrelated, also for neighboring seeds: torch's CPU generator
    reads only the low 32 bits of its seed, so sums such as ``seed + step`` would make the streams
    of different runs overlap. NumPy's ``SeedSequence`` mixes all of them first.

    Args:
        seed: Whole number >= 0.
        key: Whole numbers >= 0 that name the stream, for example (purpose, step).

    Returns:
        A new generator; the global random state is neither read nor changed.

    Example:
        >>> first = torch.rand(2, generator=seeded_generator(0, 1, 2))
        >>> torch.equal(first, torch.rand(2, generator=seeded_generator(0, 1, 2)))
        True
        >>> torch.equal(first, torch.rand(2, generator=seeded_generator(0, 2, 1)))
        False
    """
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint32)
    return torch.Generator(device="cpu").manual_seed(int(state[0]))


def iid_masks(
    n_masks: int, rates: Float[Tensor, "n_coordinates"], generator: torch.Generator | None = None
) -> Bool[Tensor, "n_masks n_coordinates"]:
    """Independent masks whose coordinates are kept with probability 1 - p, independently.

    Args:
        n_masks: Number of masks (rows), >= 1.
        rates: p in [0, 1) of each coordinate, the probability that it is dropped.
        generator: A CPU generator; None draws from torch's default generator, as
            ``torch.nn.Dropout`` does.

    Returns:
        True where a coordinate is kept, on the CPU: the same stream gives the same masks for
        every device the model may live on.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eq. (2): Bernoulli masks of the input and the output
        coordinates of a layer.

    Example:
        >>> bool(iid_masks(2, torch.zeros(3)).all())
        True
        >>> masks = iid_masks(1, torch.full((100_000,), 0.3), seeded_generator(0))
        >>> abs(float(masks.double().mean()) - 0.7) < 0.01
        True
    """
    # Outside inference mode and with the device spelled out, so that neither a surrounding
    # `torch.inference_mode()` nor a default device reaches masks that training will read later.
    with torch.inference_mode(False):
        uniform = torch.rand(n_masks, len(rates), generator=generator, device="cpu")
        return uniform >= rates.to(uniform.dtype)


def draw_masks(
    law: MaskLaw,
    n_masks: int,
    coordinates: Coordinates,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "n_masks n_coordinates"]:
    """Masks that belong together, those of one training pass or of one ensemble.

    Each mask alone has independent coordinates that are dropped at their rates, under every law.

    Args:
        law: How the masks depend on each other.
        n_masks: Number of masks, >= 1.
        coordinates: What they mask.
        generator: A CPU generator; None draws from torch's default generator.

    Returns:
        True where a coordinate is kept, on the CPU.
    """
    if law == "balanced":
        return balanced_masks(n_masks, coordinates.rates, generator)
    if law == "orthogonal":
        return orthogonal_masks(
            n_masks, coordinates.rates, coordinates.is_row, coordinates.layers, generator
        )
    return iid_masks(n_masks, coordinates.rates, generator)
