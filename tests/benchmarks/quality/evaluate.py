"""Logits of the mean predictor and of ensemble members, and their scores."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from lodrop_nn.masks import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.measure.calibration import brier_scores, calibration_error
from tests.benchmarks.quality.adapters import ShortModel
from tests.benchmarks.quality.arms import Arm
from tests.benchmarks.quality.problem import EVALUATION_BATCH, Rows

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
MEMBER_SEED = 0


@torch.no_grad()
def mean_logits(short: ShortModel, bank: MaskBank | None, rows: Rows) -> Float32Array:
    """Logits with masks and dropout off, shape (n, K)."""
    with evaluation_mode(short.model), nullcontext() if bank is None else bank.off():
        return _in_order(short, rows)


@torch.no_grad()
def member_logits(
    short: ShortModel, bank: MaskBank | None, arm: Arm, rows: Rows, n_members: int
) -> Float32Array:
    """Logits of each member, shape (members, n, K).

    A member is a fixed mask, or a pass in training mode whose noise is drawn anew for each row.
    """
    model = short.model
    if arm.ensemble == "masks":
        assert bank is not None
        # Every arm is tested under independent masks, whatever it was trained under.
        law = {} if arm.mask_law == "iid" else {"mask_law": "iid"}
        with evaluation_mode(model), bank.fixed(n_members, MEMBER_SEED, **law):
            return _stack(n_members, lambda k: bank.members(k, k + 1), short, rows)
    with evaluation_mode(model), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(MEMBER_SEED)
        model.train()
        return _stack(n_members, lambda k: nullcontext(), short, rows)


def _stack(
    n_members: int,
    context: Callable[[int], AbstractContextManager[object]],
    short: ShortModel,
    rows: Rows,
) -> Float32Array:
    members = []
    for member in range(n_members):
        with context(member):
            members.append(_in_order(short, rows))
    return np.stack(members)


def _in_order(short: ShortModel, rows: Rows) -> Float32Array:
    made = rows.batches(EVALUATION_BATCH)
    logits = torch.cat([short(batch) for batch in made])
    ordered = torch.empty_like(logits)
    ordered[torch.cat([batch["index"] for batch in made])] = logits
    return ordered.numpy()


def probabilities(logits: NDArray[np.floating]) -> Float64Array:
    """Softmax in float64; members, where there is an axis of them, are averaged."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    exponentials = np.exp(shifted)
    each = exponentials / exponentials.sum(-1, keepdims=True)
    return each.mean(0) if each.ndim == 3 else each


def nll(predicted: Float64Array, labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood in nats."""
    chosen = predicted[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def scores(predicted: Float64Array, labels: NDArray[np.int64]) -> dict[str, float]:
    """NLL, accuracy, expected calibration error (15 bins) and Brier score."""
    return {
        "nll": nll(predicted, labels),
        "accuracy": float((predicted.argmax(-1) == labels).mean()),
        "ece": calibration_error(predicted, labels, n_bins=15),
        "brier": float(brier_scores(predicted, labels).mean()),
    }
