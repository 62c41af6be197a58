"""A head that reads the mean of the last hidden states, less a center fixed beforehand.

Sentence encoders such as MiniLM are trained to be read by that mean, not at their first token, and
a center takes off what all sentences have in common: noise on the head then acts on what tells them
apart. The center must not depend on the sample of the certificate: it is the mean of rows that
belong to neither that sample nor the held-out rows. Their labels are not read.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lodrop_nn.data.examples import Examples, batches
from lodrop_nn.masks.contexts import evaluation_mode


class MeanPooler(nn.Module):
    """Stands for the pooler of a BERT-like encoder: mean over the tokens that are not padding.

    Args:
        encoder: The encoder that it is put into; its calls tell which tokens are padding.
        width: Features of a hidden state.

    Attributes:
        center: What is taken off, shape (width,); 0 at first.
    """

    center: Tensor

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        weight = next(encoder.parameters())
        self.register_buffer("center", torch.zeros(width, dtype=weight.dtype, device=weight.device))
        self._present: Tensor | None = None
        encoder.register_forward_pre_hook(self._note_padding, with_kwargs=True)

    def _note_padding(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        present = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        self._present = present if isinstance(present, Tensor) else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mean of the hidden states of each row, less the center."""
        if self._present is None:
            return hidden_states.mean(1) - self.center
        present = self._present[..., None].to(hidden_states.dtype)
        return (hidden_states * present).sum(1) / present.sum(1) - self.center


def pool_by_mean(base: PreTrainedModel) -> MeanPooler:
    """Let a BERT-like classifier read the mean of its last hidden states, in place.

    Args:
        base: A sequence classifier whose encoder has a ``pooler``, before it is adapted.

    Returns:
        The pooler, not centered yet.

    Raises:
        ValueError: If the encoder has no pooler.
    """
    encoder = getattr(base, base.base_model_prefix, None)
    if encoder is None or not isinstance(getattr(encoder, "pooler", None), nn.Module):
        raise ValueError(
            "`pooling` 'mean' needs a classifier whose encoder has a pooler, as BERT's, got "
            f"{type(base).__name__}: use 'model'."
        )
    encoder.pooler = MeanPooler(encoder, base.config.hidden_size)
    return encoder.pooler


def center_on(base: PreTrainedModel, reference: Examples, *, batch_size: int = 32) -> None:
    """Center the pooler of :func:`pool_by_mean` on the mean of some rows.

    Args:
        base: The classifier, before it is adapted.
        reference: The rows, at least one, none of the sample.
        batch_size: Rows per pass, >= 1.

    Raises:
        ValueError: If there is no row.
    """
    if not len(reference):
        raise ValueError("`reference` must have at least one row, got none.")
    encoder = getattr(base, base.base_model_prefix)
    pooler: MeanPooler = encoder.pooler
    pooler.center.zero_()
    total = torch.zeros(pooler.center.shape, dtype=torch.float64)
    with torch.no_grad(), evaluation_mode(base):
        for batch in batches(reference, batch_size, order="length", device=pooler.center.device):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            total += encoder(**inputs).pooler_output.sum(0).to("cpu", torch.float64)
    pooler.center.copy_(total / len(reference))
