"""The zero fraction of the masked update, counted on drawn masks."""

import numpy as np
import torch

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.intervals import mean_estimate
from lodrop_theory.records import Estimate


def update_sparsity(bank: MaskBank, *, n_draws: int, seed: int, level: float = 0.95) -> Estimate:
    r"""Fraction of the entries of the masked update that the masks set to zero.

    .. math:: 1 - \frac{\sum_l \|m_A^l\|_0 \|m_B^l\|_0}{\sum_l d^l_{\text{in}} d^l_{\text{out}}},
              \qquad \text{expectation } 2p - p^2

    over the adapted layers l: an entry survives where both its row and its column do. Counted on
    the masks that the layers are given, so that a layer left out, or masks that do not follow
    their law, show.

    Args:
        bank: The masks of an adapter.
        n_draws: Mask draws, >= 1.
        seed: Seed >= 0 of the draws.
        level: Coverage of the interval over draws, in (0, 1).

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: If an argument is outside its range or the bank serves no layer.

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, section 4.

    Example:
        >>> from lodrop_nn.masks import MaskSettings
        >>> bank = MaskBank(MaskSettings(0.5))
        >>> _ = bank.register("layer", in_features=300, out_features=200)
        >>> abs(update_sparsity(bank, n_draws=64, seed=0).value - 0.75) < 0.01
        True
    """
    if not bank.layers:
        raise ValueError("`bank` must serve at least one layer, got none.")
    masks = bank.draw(n_draws, seed)
    kept = torch.zeros(n_draws, dtype=torch.float64)
    for layer in bank.layers:
        column_masks, row_masks = layer.split(masks)
        kept += column_masks.sum(1, dtype=torch.float64) * row_masks.sum(1, dtype=torch.float64)
    entries = sum(layer.in_features * layer.out_features for layer in bank.layers)
    draws = 1 - np.asarray(kept) / entries
    return mean_estimate(draws, level, "zero fraction of the masked update, counted on drawn masks")
