"""Predictions of the randomized adapter with a draw per row, pass after pass."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from lodrop_nn.certify.rows import RowDraws
from lodrop_nn.data.examples import Examples, batches
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.measure.evaluation import model_inputs
from lodrop_nn.train.prefix_cache import PrefixCache

Float64Array = NDArray[np.float64]
SAMPLE_STREAM, HELD_OUT_STREAM = 8, 9  # keys of random streams, after those of .train
_ROWS_PER_PASS = 32


def drawn_probabilities(
    model: PeftModel,
    bank: MaskBank,
    examples: Examples,
    cache: PrefixCache,
    noise_std: Mapping[str, float | Tensor],
    *,
    n_passes: int,
    seed: int,
    stream: int,
    on_step: Callable[[int, int], None] | None = None,
) -> Float64Array:
    """Probabilities of each row under ``n_passes`` draws of its own.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        examples: The rows.
        cache: Their hidden states below the adapter.
        noise_std: Scale of the noise of each trained parameter.
        n_passes: Draws per row, >= 1; all draws are independent.
        seed: Seed >= 0.
        stream: Which random stream of it: the draws for different rows must not be the same.
        on_step: Called with the passes done and all of them.

    Returns:
        Shape (n_passes, n, K), float64, in the order of the rows.
    """
    device, passes = next(model.parameters()).device, []
    groups = batches(examples, _ROWS_PER_PASS, order="length", device=device)
    rows = torch.cat([batch["index"] for batch in groups]).cpu()
    with torch.no_grad(), evaluation_mode(model), bank.off():
        for number in range(n_passes):
            draws = RowDraws(model, bank, noise_std, seeded_generator(seed, stream, number))
            logits = []
            for batch in groups:
                with draws.pass_over(len(batch["labels"])), cache.replay(batch):
                    logits.append(model(**model_inputs(model, batch)).logits)
            passes.append(_in_order(logits, rows))
            if on_step is not None:
                on_step(number + 1, n_passes)
    return np.stack(passes)


def mean_probabilities(
    model: PeftModel, bank: MaskBank, examples: Examples, cache: PrefixCache
) -> Float64Array:
    """Probabilities of each row with neither masks nor noise, (n, K)."""
    device = next(model.parameters()).device
    groups = batches(examples, _ROWS_PER_PASS, order="length", device=device)
    rows, logits = torch.cat([batch["index"] for batch in groups]).cpu(), []
    with torch.no_grad(), evaluation_mode(model), bank.off():
        for batch in groups:
            with cache.replay(batch):
                logits.append(model(**model_inputs(model, batch)).logits)
    return _in_order(logits, rows)


def _in_order(logits: list[Tensor], rows: Tensor) -> Float64Array:
    """Softmax of the logits, each row where the data set has it."""
    probabilities = torch.cat(logits).to("cpu", torch.float64).softmax(-1)
    return np.asarray(probabilities[torch.argsort(rows)].numpy())
