"""The training loop of lodrop_nn.train.finetune on cached states, with scores on the way."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR

from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.train.tiling import tile_batch
from tests.benchmarks.quality import adalora, adapters
from tests.benchmarks.quality.adapters import ShortModel
from tests.benchmarks.quality.arms import Arm
from tests.benchmarks.quality.evaluate import mean_logits, member_logits
from tests.benchmarks.quality.problem import Problem

EPOCHS, BATCH, LEARNING_RATE = 12, 16, 1e-3
MEAN_CHECKPOINTS, MEMBER_CHECKPOINTS = 6, 3  # evenly over the epochs
MEMBERS, MEMBERS_AT_END = 8, 16
_ORDER = 3  # the stream of lodrop_nn.train.finetune


@dataclass(kw_only=True)
class Finished:
    """What a run leaves behind.

    Attributes:
        logits: By set, predictor and epoch, for example "test.mean.12" and "test.members.12".
        weights: The trained parameters at the end.
        epoch_losses: Mean loss of each epoch, masks on, penalty left out. Nats.
        train_seconds: Processor seconds of the steps.
        evaluation_seconds: Processor seconds of the scores.
        rows_trained: Rows that went forward and backward, copies under masks counted.
        update_square: ||s B A||_F^2 at the end.
    """

    logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    epoch_losses: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    rows_trained: int = 0
    update_square: float = 0.0


def run(problem: Problem, arm: Arm, *, decay: float = 0.0, epochs: int = EPOCHS) -> Finished:
    """Train an arm on a problem and keep its logits.

    Args:
        problem: The split.
        arm: How to train.
        decay: Weight of a penalty on the squared update. Nats per parameter^2.
        epochs: Passes over the training rows.

    Raises:
        FloatingPointError: If the loss stops being finite.
    """
    seed = adapters.run_seed(problem, arm)
    torch.manual_seed(seed)  # PEFT's dropout and MonteCLoRA draw from the default generator
    n_steps = epochs * math.ceil(len(problem.train.examples) / BATCH)
    model, bank = adapters.build(problem, arm, n_steps)
    short, finished = ShortModel(model), Finished()
    trained = adapters.trained(model)
    rate = LEARNING_RATE if arm.learning_rate is None else arm.learning_rate
    optimizer = AdamW(trained.values(), lr=rate, weight_decay=0.0)
    schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=n_steps)
    shuffle = seeded_generator(seed, _ORDER)

    def step(batch: dict[str, Tensor], number: int) -> float:
        if arm.n_masks > 1:
            batch = tile_batch(batch, arm.n_masks)
        risk = cross_entropy(short(batch), batch["labels"])
        objective = risk
        if decay:
            objective = objective + decay * adapters.update_square(model)
        if arm.monteclora:
            objective = objective + model.base_model._get_monteclora_loss()
        if arm.adalora:
            objective = objective + adalora.orthogonality(model)
        optimizer.zero_grad(set_to_none=True)
        objective.backward()
        optimizer.step()
        if arm.adalora:
            model.base_model.update_and_allocate(number)
        schedule.step()
        finished.rows_trained += len(batch["labels"])
        if not math.isfinite(risk.item()):
            raise FloatingPointError(f"the loss of {arm.name} must be finite, got {risk.item()}.")
        return risk.item()

    with short.shortened(problem.blocks):
        for epoch in range(1, epochs + 1):
            model.train()
            start, total = time.process_time(), 0.0
            made = problem.train.batches(BATCH, shuffle)
            for number, batch in enumerate(made, (epoch - 1) * len(made) + 1):
                total += step(batch, number) * len(batch["labels"])
            finished.epoch_losses.append(total / len(problem.train.examples))
            finished.train_seconds += time.process_time() - start
            model.eval()
            start = time.process_time()
            _evaluate(
                problem,
                arm,
                epoch,
                epochs,
                lambda rows: mean_logits(short, bank, rows),
                lambda rows, n: member_logits(short, bank, arm, rows, n),
                finished.logits,
            )
            finished.evaluation_seconds += time.process_time() - start
    finished.weights = {name: p.detach().clone() for name, p in trained.items()}
    square = adalora.update_square if arm.adalora else adapters.update_square
    finished.update_square = square(model).item()
    return finished


def _evaluate(
    problem: Problem,
    arm: Arm,
    epoch: int,
    last: int,
    mean: Callable[..., NDArray[np.float32]],
    members: Callable[..., NDArray[np.float32]],
    logits: dict[str, NDArray[np.float32]],
) -> None:
    sets = {"validation": problem.validation, "test": problem.test}
    if epoch == last:
        sets["train"] = problem.train
    for name, rows in sets.items():
        if _is_due(epoch, last, 1 if arm.adalora else MEAN_CHECKPOINTS):
            logits[f"{name}.mean.{epoch}"] = mean(rows)
        if arm.ensemble and _is_due(epoch, last, 1 if arm.adalora else MEMBER_CHECKPOINTS):
            n_members = MEMBERS_AT_END if epoch == last and name == "test" else MEMBERS
            logits[f"{name}.members.{epoch}"] = members(rows, n_members)


def _is_due(epoch: int, last: int, checkpoints: int) -> bool:
    return epoch % max(last // checkpoints, 1) == 0 or epoch == last
