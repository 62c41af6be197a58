"""Masks on activations, for layers whose factors cannot be masked one instance at a time."""

from jaxtyping import Float
from torch import Tensor

from lodrop_nn.masks.update import check_instances


def mask_activations(
    x: Float[Tensor, "..."],
    factors: Float[Tensor, "n_masks n_channels"],
    channel_dim: int = -1,
) -> Float[Tensor, "..."]:
    r"""Activations whose channels are multiplied with the factors of their instance.

    Masking the columns of A is masking its input, and masking the rows of B its output:
    :math:`(A \, \mathrm{diag}(m)) x = A (m \odot x)`. Here the mask of every row is spelled out,
    which costs memory but asks nothing of the layer in between.

    Args:
        x: Activations. With several masks, the leading dimension holds their instances, one after
            the other.
        factors: 0 where a channel is dropped, else 1 or 1 / (1 - p); one row per instance.
        channel_dim: Dimension of the channels, counted from the end: < 0.

    Returns:
        The masked activations, in the dtype of ``x``.

    Raises:
        ValueError: If the leading dimension of ``x`` is not a multiple of ``n_masks``.

    Example:
        >>> import torch
        >>> factors = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
        >>> mask_activations(torch.ones(2, 2), factors).tolist()
        [[0.0, 1.0], [2.0, 0.0]]
    """
    n_masks, n_channels = factors.shape
    shape = [1] * x.dim()
    shape[channel_dim] = n_channels
    if n_masks > 1:
        check_instances(x, n_masks)
        shape[0] = x.shape[0]
        factors = factors.repeat_interleave(x.shape[0] // n_masks, dim=0)
    return (x * factors.reshape(shape)).to(x.dtype)
