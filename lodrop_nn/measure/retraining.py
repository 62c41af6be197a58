"""Stability of a whole training run: trained again without single examples, all else equal."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from lodrop_nn.config import RunConfig
from lodrop_nn.data.examples import Examples, batches
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.measure.stability.changes import Changes
from lodrop_nn.measure.stability.summary import stability_estimates
from lodrop_nn.train.prefix_cache import PrefixCache
from lodrop_nn.train.replica_adapters import add_replicas
from lodrop_nn.train.replica_settings import ReplicaSettings
from lodrop_nn.train.replica_training import train_replicas
from lodrop_theory.losses import smoothed_cross_entropy
from lodrop_theory.records import StabilityEstimates

Float64Array = NDArray[np.float64]
_ROWS = 32  # per pass of an evaluation


@dataclass(frozen=True, kw_only=True, eq=False)
class LossChanges:
    """Losses of the run and of those with one example left out or replaced.

    Attributes:
        removed: Losses at the example left out: of the run, of the run without it, and of the run
            with another in its place. Shape (3, m).
        fresh: The same at fresh rows, shape (3, m, n_fresh).
    """

    removed: Float64Array
    fresh: Float64Array

    def estimates(self, level: float, method: str) -> StabilityEstimates:
        """The stabilities, with intervals over the m examples for the training set at hand."""
        changes = Changes(
            loss=self.removed[0],
            removed=self.removed[1] - self.removed[0],
            removed_fresh=self.fresh[1] - self.fresh[0],
            replaced=self.removed[2] - self.removed[0],
            replaced_fresh=self.fresh[2] - self.fresh[0],
        )
        return stability_estimates(changes, level, f"{method}; one training set")


def retraining_stability(
    model: PeftModel,
    bank: MaskBank,
    train: Examples,
    fresh: Examples,
    config: RunConfig,
    *,
    left_out: Sequence[int],
    level: float = 0.95,
    on_step: Callable[[int, int], None] | None = None,
) -> tuple[StabilityEstimates, LossChanges]:
    r"""Stabilities of the training run itself, by true retraining.

    For m examples i, the run of ``config`` is repeated without example i and with a fresh row in
    its place, from the same initial adapter, in the same batches and under the same masks: 2m + 1
    runs, as replicas in one pass. What moves the loss is then the example and not the luck of the
    draw. In every run the m replacements stand among the rows with weight 0, so that batches agree:
    they are those of n + m rows.

    The loss is the smoothed cross-entropy of the mean predictor (masks off). The stabilities are
    those of one training set and one seed, where the theorems want the mean over training sets.

    Args:
        model: Untrained adapter from :func:`~lodrop_nn.train.finetune.build_adapter`; it comes
            back as it was.
        bank: Its masks.
        train: Training rows.
        fresh: Rows that are not among them, more than m: the first m are the replacements, the
            loss is compared at the others.
        config: The run.
        left_out: The m >= 2 training examples, distinct.
        level: Coverage of the intervals over the m examples, in (0, 1).
        on_step: Called as ``on_step(steps_done, steps)``.

    Returns:
        The stabilities and the losses behind them.

    Raises:
        ValueError: If the rows do not suffice, or an example is named twice or does not exist.
        FloatingPointError: If a run diverges.

    Source:
        Notions: Bousquet and Elisseeff (2002), JMLR 2, definitions 3 and 4.
    """
    m = len(left_out)
    if m < 2 or len(set(left_out)) < m or not all(0 <= i < len(train) for i in left_out):
        raise ValueError(
            f"`left_out` must be two or more distinct examples in [0, {len(train)}), "
            f"got {tuple(left_out)}."
        )
    if len(fresh) <= m:
        raise ValueError(f"`fresh` must have more than {m} rows, got {len(fresh)}.")
    replacements, others = _divided(fresh, m)
    rows = _joined(train, replacements)
    plans = _plans(config, len(train), left_out)
    with evaluation_mode(model), _replicas(model, bank, plans):
        prefix: PrefixCache | None = None
        with contextlib.suppress(ValueError):  # nothing frozen lies below the adapter
            prefix = PrefixCache(model, rows)
        results = train_replicas(
            model,
            plans,
            rows,
            epochs=config.epochs,
            batch_size=config.batch_size,
            precision=config.precision,
            prefix=prefix,
            on_step=None if on_step is None else lambda step, steps, _: on_step(step, steps),
        )
        for name, result in results.items():
            if result.diverged_at is not None:
                raise FloatingPointError(
                    f"The training loss must be finite, got another at step {result.diverged_at} "
                    f"of {name}; lower `learning_rate`, {config.learning_rate!r} now."
                )
        at_removed = _losses(model, plans, _taken(train, left_out), config.smoothing)
        at_fresh = _losses(model, plans, others, config.smoothing)
    changes = LossChanges(
        removed=np.stack(
            [at_removed[0], at_removed[1 : m + 1].diagonal(), at_removed[m + 1 :].diagonal()]
        ),
        fresh=np.stack(
            [np.broadcast_to(at_fresh[0], (m, len(others))), *at_fresh[1:].reshape(2, m, -1)]
        ),
    )
    return changes.estimates(level, f"trained again {2 * m} times from the same start"), changes


def _plans(config: RunConfig, n_train: int, left_out: Sequence[int]) -> dict[str, ReplicaSettings]:
    m = len(left_out)
    plan = ReplicaSettings(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        order_seed=config.seed,
    )
    whole = np.concatenate([np.ones(n_train), np.zeros(m)])
    plans = {"whole": whole}
    for i in left_out:
        plans[f"without-{i}"] = np.where(np.arange(n_train + m) == i, 0.0, whole)
    for place, i in enumerate(left_out):
        plans[f"replaced-{i}"] = plans[f"without-{i}"].copy()
        plans[f"replaced-{i}"][n_train + place] = 1.0
    # The objective averages over all n + m rows of the batches.
    return {
        name: replace(plan, example_weights=tuple(weights * ((n_train + m) / weights.sum())))
        for name, weights in plans.items()
    }


@contextlib.contextmanager
def _replicas(model: PeftModel, bank: MaskBank, names: Mapping[str, object]) -> Iterator[None]:
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    active = model.active_adapter
    own = set(model.peft_config)
    try:
        with torch.random.fork_rng(devices=[]):  # PEFT draws factors, which are overwritten
            add_replicas(model, dict.fromkeys(names, bank.settings))
        yield
    finally:
        model.set_adapter(active)
        for name in set(model.peft_config) - own:
            model.delete_adapter(name)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def _losses(
    model: PeftModel, names: Mapping[str, object], rows: Examples, smoothing: float
) -> Float64Array:
    """Losses of the replicas, shape (K, n)."""
    device = next(model.parameters()).device
    losses = np.empty((len(names), len(rows)))
    for k, name in enumerate(names):
        model.set_adapter(name)
        for batch in batches(rows, _ROWS, order="length", device=device):
            with torch.no_grad():
                logits = model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                ).logits
            probabilities = logits.to("cpu", torch.float64).softmax(-1).numpy()
            found = smoothed_cross_entropy(probabilities, batch["labels"].cpu().numpy(), smoothing)
            losses[k, batch["index"].cpu().numpy()] = found
    return losses


def _divided(rows: Examples, m: int) -> tuple[Examples, Examples]:
    return _taken(rows, range(m)), _taken(rows, range(m, len(rows)))


def _taken(rows: Examples, places: Sequence[int]) -> Examples:
    return replace(
        rows,
        input_ids=tuple(rows.input_ids[place] for place in places),
        labels=tuple(rows.labels[place] for place in places),
    )


def _joined(rows: Examples, more: Examples) -> Examples:
    return replace(
        rows, input_ids=rows.input_ids + more.input_ids, labels=rows.labels + more.labels
    )
