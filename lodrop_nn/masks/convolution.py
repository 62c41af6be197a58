"""The low-rank update of a convolution under masks."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from lodrop_nn.masks.activations import mask_activations

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def masked_convolution(
    x: Float[Tensor, "..."],
    lora_A: Convolution,
    lora_B: Convolution,
    column_factors: Float[Tensor, "n_masks in_channels"],
    row_factors: Float[Tensor, "n_masks out_channels"],
    scaling: float,
) -> Float[Tensor, "..."]:
    r"""Output of the masked update of a convolution.

    The coordinates are channels: input channel :math:`j` is dropped from all positions of the
    kernel of A, output channel :math:`i` from those of B. With kernels of size 1 this is
    :func:`~lodrop_nn.masks.update.masked_update` at each position. One mask acts on the kernels;
    several act on the activations, since a convolution has one kernel for all rows.

    Args:
        x: Inputs, (rows, in_channels, \*positions), the rows instance after instance; with one
            mask, the dimension of the rows may be missing.
        lora_A: The first convolution.
        lora_B: The second, in groups if the adapted one has groups.
        column_factors: What the input channels are multiplied with, one row per instance: 0 where
            dropped, else 1 or 1 / (1 - p).
        row_factors: The same for the output channels.
        scaling: s, PEFT's scaling of the update.

    Returns:
        The update's contribution to the layer's output.

    Raises:
        ValueError: If there are several masks and the rows cannot be dealt out to them.

    Example:
        >>> import torch
        >>> A, B = nn.Conv1d(2, 1, 3, bias=False), nn.Conv1d(1, 1, 1, bias=False)
        >>> columns, rows = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]])
        >>> bool(masked_convolution(torch.ones(4, 2, 5), A, B, columns, rows, 1.0).any())
        False
    """
    n_masks, n_dims = column_factors.shape[0], lora_A.weight.dim()
    if n_masks == 1:
        positions = (1,) * (n_dims - 2)
        columns = column_factors.reshape(1, -1, *positions)
        rows = row_factors.reshape(-1, 1, *positions) * scaling
        # Factors may be of higher precision than the weights (bf16 cannot hold 1 / 0.7).
        masked_A = (lora_A.weight * columns).to(lora_A.weight.dtype)
        masked_B = (lora_B.weight * rows).to(lora_B.weight.dtype)
        hidden = functional_call(lora_A, {"weight": masked_A}, (x,))
        return functional_call(lora_B, {"weight": masked_B}, (hidden,))
    if x.dim() != n_dims:
        raise ValueError(
            f"`x` must have {n_dims} dimensions, the first for the instances of {n_masks} masks, "
            f"got shape {tuple(x.shape)}."
        )
    channel_dim = 1 - n_dims
    out = lora_B(lora_A(mask_activations(x, column_factors, channel_dim)))
    return mask_activations(out, row_factors * scaling, channel_dim)
