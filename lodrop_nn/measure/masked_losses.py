"""The training risk under masks that are drawn once and then held fixed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.layout import InstanceLayoutError
from lodrop_nn.measure.evaluation import Batch, FixedMasks, LossPart, count_rows


@contextmanager
def masked_losses(
    model: PeftModel, bank: MaskBank, batches: Sequence[Batch], *, n_masks: int, seed: int
) -> Iterator[tuple[list[LossPart], str]]:
    r"""Parts of the mean cross-entropy of all examples under drawn masks. Nats.

    .. math:: \frac1n \sum_i \ell_i(\theta \odot m_i)
              \qquad\text{or}\qquad \frac1{nN} \sum_i \sum_{j=1}^N \ell_i(\theta \odot m_j)

    Either is an unbiased estimate of the mean of the risk over masks, and so are its derivatives;
    the first, a mask for each example, costs what the risk without masks does.

    Args:
        model: Adapted classifier in evaluation mode.
        bank: The masks of its adapter.
        batches: All examples; example i in their order sees member i of the seeded ensemble.
        n_masks: 0 for a mask of its own for each example, or, in a model with a layer that serves
            one mask per pass, for each batch; N >= 1 for the mean over N masks that all share.
        seed: Seed >= 0 of the masks.

    Yields:
        The parts, to be called inside of the context, and what they are in words.

    Raises:
        ValueError: If there is no example, or an argument is outside its range.
    """
    if isinstance(n_masks, bool) or not isinstance(n_masks, int) or n_masks < 0:
        raise ValueError(f"`n_masks` must be a whole number >= 0, got {n_masks!r}.")
    n_rows = count_rows(batches)
    sizes = [len(batch["labels"]) for batch in batches]
    if n_masks > 0:
        shares = [(b, j, j + 1) for b in range(len(batches)) for j in range(n_masks)]
        count, words = n_masks, f"mean over {n_masks} masks"
    elif _tells_rows_apart(model, bank, batches):
        starts = [sum(sizes[:b]) for b in range(len(batches))]
        shares = [(b, starts[b], starts[b] + size) for b, size in enumerate(sizes) if size]
        count, words = n_rows, "one mask per example"
    else:
        shares = [(b, b, b + 1) for b in range(len(batches))]
        count, words = len(batches), "one mask per batch"
    with bank.fixed(count, seed):
        parts = [
            LossPart(model, batches[b], n_rows * max(n_masks, 1), FixedMasks(bank, start, stop))
            for b, start, stop in shares
        ]
        yield parts, words


def _tells_rows_apart(model: PeftModel, bank: MaskBank, batches: Sequence[Batch]) -> bool:
    """Whether each row of a pass can have a mask of its own."""
    if bank.one_mask_per_pass:
        return False
    batch = max(batches, key=lambda batch: len(batch["labels"]))
    two = {name: tensor[:2] for name, tensor in batch.items()}
    n_rows = len(two["labels"])
    try:
        with bank.fixed(n_rows, 0), torch.no_grad():
            LossPart(model, two, n_rows, FixedMasks(bank, 0, n_rows))()
    except InstanceLayoutError:
        return False
    return True
