"""The training objective of LoRA Dropout for classifiers."""

from collections.abc import Mapping
from contextlib import nullcontext

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lodrop_nn.predict.late_tiling import FrozenPrefix
from lodrop_nn.train.tiling import tile_batch

_MODEL_INPUTS = ("input_ids", "attention_mask", "labels")


def mean_cross_entropy(logits: Float[Tensor, "rows K"], labels: Tensor) -> Float[Tensor, ""]:
    """Mean cross-entropy over the rows, in nats; computed in fp32 even under autocast.

    Example:
        >>> import torch
        >>> round(float(mean_cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 1]))), 6)
        0.693147
    """
    return cross_entropy(logits.float(), labels)


def masked_risk(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    n_masks: int,
    prefix: FrozenPrefix | None = None,
) -> Float[Tensor, ""]:
    r"""Training loss of one batch, averaged over freshly drawn masks.

    .. math::
        \frac{1}{N b} \sum_{j=1}^{N} \sum_{i=1}^{b}
        \ell\bigl(f(x_i;\, \theta \odot m_j),\, y_i\bigr)

    One forward pass over the batch tiled N times, one mask per copy. Its gradient is the mean of
    the N gradients that N passes would give, which
    :func:`~lodrop_nn.train.micro_steps.backward_over_masks` accumulates at the memory of one.

    Args:
        model: Adapter in training mode whose mask bank draws ``n_masks`` instances per pass.
        batch: ``input_ids`` and ``attention_mask`` (b, tokens), ``labels`` (b,); other entries
            are ignored.
        n_masks: N >= 1.
        prefix: What lies below the adapter, to be computed once for all copies; with f its share
            of a forward pass F, a step costs about [f + 2 N (1 - f)] F instead of N (2 - f) F. A
            base with dropout of its own would share its noise among the copies.

    Returns:
        The loss in nats, differentiable.

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, equation 7, which averages the same way.
    """
    inputs = {name: batch[name] for name in _MODEL_INPUTS}
    if n_masks > 1:
        inputs = dict(tile_batch(inputs, n_masks))
    labels = inputs.pop("labels")
    with nullcontext() if prefix is None else prefix.shared(n_masks, keep=False):
        return mean_cross_entropy(model(**inputs).logits, labels)
