"""Training K replicas together: a plain loop."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LinearLR

from lodrop_nn.config import Precision
from lodrop_nn.data.examples import Batch, Examples, batches
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.masks.settings import check_count
from lodrop_nn.train.finetune import ORDER
from lodrop_nn.train.prefix_cache import PrefixCache
from lodrop_nn.train.replica_batches import stack_batches
from lodrop_nn.train.replica_settings import ReplicaSettings
from lodrop_nn.train.replicas import Replicas
from lodrop_nn.train.tiling import tile_batch


@dataclass(frozen=True, kw_only=True)
class ReplicaResult:
    """What the training of one replica did.

    Attributes:
        epoch_objectives: Mean over the rows of each epoch of what the replica minimized, while the
            weights moved and with the masks on; with its penalty. Nats.
        n_steps: Optimizer steps; those on batches of zero weight are not among them.
        diverged_at: The first step, counted from 1, whose objective was not finite, or None. The
            other replicas are not affected.
    """

    epoch_objectives: tuple[float, ...]
    n_steps: int
    diverged_at: int | None


def train_replicas(
    model: PeftModel,
    settings: Mapping[str, ReplicaSettings],
    examples: Examples,
    *,
    epochs: int,
    batch_size: int,
    precision: Precision = "fp32",
    prefix: PrefixCache | None = None,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
) -> dict[str, ReplicaResult]:
    """Train K adapters of a classifier in place, as K runs of ``fine_tune`` would.

    AdamW at rates that fall linearly to 0, over batches of rows of like length. A replica takes no
    step on a batch whose rows all have weight 0 in it. Leaves the model in evaluation mode, with
    the first replica as its active adapter.

    Args:
        model: Classifier with the K adapters; see :class:`~lodrop_nn.train.replicas.Replicas`.
        settings: How each is trained, by the name of its adapter.
        examples: Training rows, the same for all; ``example_weights`` leave some out.
        epochs: Passes over them, >= 1.
        batch_size: Rows per replica and step, >= 1.
        precision: Arithmetic of the passes.
        prefix: States below the adapters for the same ``examples``; None computes them in each
            pass.
        on_step: Called after each step with the steps done, the steps in all and the objectives.

    Returns:
        What the training did, by the name of the adapter.

    Raises:
        ValueError: If an argument is outside its range, ``example_weights`` or ``prefix`` are not
            as many as the examples, or the adapters cannot run side by side.
    """
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    replicas = Replicas(model, settings)
    _check_lengths(settings, prefix, len(examples))
    optimizer = replicas.optimizer()
    n_steps = epochs * math.ceil(len(examples) / batch_size)
    schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=n_steps)
    device = replicas.parameters(replicas.names[0])[0].device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    record = _Record(replicas.names)
    step = 0
    model.train()
    try:
        for epoch in _epochs(settings, examples, epochs, batch_size, device):
            for batch, is_padding in epoch:
                with autocast:
                    objectives, weights = _objectives(replicas, batch, is_padding, prefix)
                optimizer.zero_grad(set_to_none=True)
                objectives.sum().backward()
                # A run of its own on a batch without weight would not step.
                idle = (weights == 0).all(-1).expand(len(replicas.names)).tolist()
                for name in (n for n, skip in zip(replicas.names, idle, strict=True) if skip):
                    for parameter in replicas.parameters(name):
                        parameter.grad = None
                if any(each.max_grad_norm is not None for each in settings.values()):
                    replicas.clip_gradients()
                optimizer.step()
                schedule.step()
                step += 1
                losses = objectives.detach().tolist()
                record.note(step, losses, (~is_padding).sum(-1).tolist(), idle)
                if on_step is not None:
                    on_step(step, n_steps, dict(zip(replicas.names, losses, strict=True)))
            record.end_epoch()
    finally:
        model.eval()
        optimizer.zero_grad(set_to_none=True)
    return record.results()


def _objectives(
    replicas: Replicas, batch: Batch, is_padding: Bool[Tensor, "K b"], prefix: PrefixCache | None
) -> tuple[Float[Tensor, "K"], Float[Tensor, "K b"]]:
    """Objectives of the replicas on their slices, and the weights of the rows."""
    n_replicas, n_masks = len(replicas.names), replicas.n_masks
    if n_masks > 1:  # N instances of its rows within each slice
        batch = {
            name: value.unflatten(0, (n_replicas, -1)).repeat_interleave(n_masks, 0).flatten(0, 1)
            for name, value in batch.items()
        }
        is_padding = is_padding.repeat(1, n_masks)
    start = nullcontext() if prefix is None else prefix.replay(batch)
    with replicas.active(), start:
        logits = replicas.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    losses = cross_entropy(logits.float(), batch["labels"], reduction="none")
    index = batch["index"].unflatten(0, (n_replicas, -1))
    objectives = replicas.objective(losses.unflatten(0, (n_replicas, -1)), index, is_padding)
    return objectives, replicas.row_weights(index, is_padding)


def _epochs(
    settings: Mapping[str, ReplicaSettings],
    examples: Examples,
    epochs: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[list[tuple[Batch, Bool[Tensor, "K b"]]]]:
    """The batches of each epoch: one tiled for all replicas, or those of each side by side."""
    seeds = [each.order_seed for each in settings.values()]
    streams = {seed: seeded_generator(seed, ORDER) for seed in seeds}
    for _ in range(epochs):
        of_seed = {
            seed: batches(examples, batch_size, order="length", generator=stream, device=device)
            for seed, stream in streams.items()
        }
        if len(streams) == 1:
            yield [
                (
                    tile_batch(batch, len(seeds)),
                    torch.zeros(len(seeds), len(batch["labels"])).bool(),
                )
                for batch in of_seed[seeds[0]]
            ]
        else:
            steps = zip(*(of_seed[seed] for seed in seeds), strict=True)
            yield [stack_batches(parts, examples.pad_token_id) for parts in steps]


def _check_lengths(
    settings: Mapping[str, ReplicaSettings], prefix: PrefixCache | None, n_train: int
) -> None:
    for name, each in settings.items():
        if each.example_weights is not None and len(each.example_weights) != n_train:
            raise ValueError(
                f"`example_weights` must be as many as `examples`, {n_train}, "
                f"got {len(each.example_weights)} for replica {name!r}."
            )
    if prefix is not None and len(prefix) != n_train:
        raise ValueError(
            f"`prefix` must hold the states of `examples`, {n_train} rows, got {len(prefix)}."
        )


class _Record:
    """Objectives of the replicas as they come."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._sums, self._rows = [0.0] * len(names), [0] * len(names)
        self._epochs: list[list[float]] = [[] for _ in names]
        self._n_steps = [0] * len(names)
        self._diverged: list[int | None] = [None] * len(names)

    def note(self, step: int, objectives: list[float], rows: list[int], idle: list[bool]) -> None:
        for k, objective in enumerate(objectives):
            self._sums[k] += objective * rows[k]
            self._rows[k] += rows[k]
            self._n_steps[k] += not idle[k]
            if not math.isfinite(objective) and self._diverged[k] is None:
                self._diverged[k] = step

    def end_epoch(self) -> None:
        for k in range(len(self._names)):
            self._epochs[k].append(self._sums[k] / self._rows[k])
            self._sums[k], self._rows[k] = 0.0, 0

    def results(self) -> dict[str, ReplicaResult]:
        return {
            name: ReplicaResult(
                epoch_objectives=tuple(self._epochs[k]),
                n_steps=self._n_steps[k],
                diverged_at=self._diverged[k],
            )
            for k, name in enumerate(self._names)
        }
