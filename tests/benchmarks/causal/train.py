"""One adapter per seed: stored states below it, every arm from the same start."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR
from transformers import PreTrainedModel

from lodrop_nn import PrefixCache, attach_lora_dropout, detach_lora_dropout
from lodrop_nn.data import Batch, batches
from lodrop_nn.masks.laws import seeded_generator
from tests.benchmarks.causal.evaluate import outputs, predicted_only
from tests.benchmarks.causal.problem import IGNORED, Rows

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
RANK, LORA_ALPHA = 8, 16.0
INITIALIZATION, ORDER = 2, 3  # the streams of lodrop_nn.train.finetune


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How adapters are trained and tested.

    Attributes:
        n_train: Training rows.
        n_test: Held-out rows.
        n_blocks: Upper blocks that are adapted.
        epochs: Passes over the training rows.
        traced: Epochs after which the held-out rows are scored with masks off.
        batch_size: Rows per step.
        learning_rate: Of AdamW, falling linearly to 0.
        n_masks: Members of the ensemble.
    """

    n_train: int
    n_test: int
    n_blocks: int
    epochs: int
    traced: tuple[int, ...]
    batch_size: int
    learning_rate: float
    n_masks: int


@dataclass(kw_only=True)
class Finished:
    """What a run leaves behind.

    Attributes:
        outputs: By rows, and by rows and epoch where that is not the last ("test.2"), what
            :func:`~tests.benchmarks.causal.evaluate.outputs` returns.
        weights: The trained parameters at the end.
        epoch_losses: Mean loss of the batches of each epoch, masks on. Nats per token.
        seconds: Processor seconds of training, of the trace and of the scores at the end.
        n_steps: Optimizer steps.
    """

    outputs: dict[str, dict[str, NDArray[np.floating]]] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    epoch_losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    n_steps: int = 0


class Problem:
    """An adapter at its start, the rows of one seed, and what lies below the adapter for them.

    Args:
        base: The causal model; it is adapted in place.
        rows: Training and held-out rows, under "train" and "test".
        setting: How to train.
        seed: Seed of the initialization, the order of rows and the training masks.
    """

    def __init__(
        self, base: PreTrainedModel, rows: Mapping[str, Rows], setting: Setting, seed: int
    ) -> None:
        self.rows, self.setting, self.seed = rows, setting, seed
        self.model = _adapter(base, setting.n_blocks, seed)
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._start = {n: p.detach().clone() for n, p in self.trained.items()}
        start = time.process_time()
        self.stored = {name: PrefixCache(self.model, each.examples) for name, each in rows.items()}
        self.prefix_seconds = time.process_time() - start

    def run(self, dropout_rate: float, on_epoch: Callable[[int], None] | None = None) -> Finished:
        """Train from the start under a dropout rate, and score."""
        finished = Finished()
        with self._arm(dropout_rate):
            self._train(finished, on_epoch or (lambda epoch: None))
            finished.weights = {n: p.detach().clone() for n, p in self.trained.items()}
            self._score(finished, self.setting.n_masks if dropout_rate else 1)
        return finished

    def untrained(self) -> Finished:
        """Scores of the model before fine-tuning."""
        finished = Finished()
        with self._arm(0.0):
            self._score(finished, 1)
        return finished

    @contextmanager
    def _arm(self, dropout_rate: float) -> Iterator[None]:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self._start[name])
        attach_lora_dropout(
            self.model, dropout_rate, mask_scope="example", mask_law="balanced", seed=self.seed
        )
        try:
            yield
        finally:
            detach_lora_dropout(self.model)

    def _train(self, finished: Finished, on_epoch: Callable[[int], None]) -> None:
        setting, rows = self.setting, self.rows["train"]
        n_steps = setting.epochs * math.ceil(len(rows.examples) / setting.batch_size)
        optimizer = AdamW(self.trained.values(), lr=setting.learning_rate, weight_decay=0.0)
        schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=n_steps)
        shuffle = seeded_generator(self.seed, ORDER)
        for epoch in range(1, setting.epochs + 1):
            losses = []
            self.model.train()
            with _timed(finished.seconds, "train"):
                for batch in batches(
                    rows.examples, setting.batch_size, order="length", generator=shuffle
                ):
                    risk = self._risk(batch)
                    optimizer.zero_grad(set_to_none=True)
                    risk.backward()
                    optimizer.step()
                    schedule.step()
                    losses.append(risk.item())
            self.model.eval()
            finished.n_steps += len(losses)
            finished.epoch_losses.append(sum(losses) / len(losses))
            if not math.isfinite(finished.epoch_losses[-1]):
                raise FloatingPointError(f"the loss must be finite, got {losses[-1]}.")
            if epoch in setting.traced and epoch < setting.epochs:
                with _timed(finished.seconds, "trace"):
                    finished.outputs[f"test.{epoch}"] = outputs(
                        self.model, self.rows["test"], self.stored["test"], 0
                    )
            on_epoch(epoch)
        self.model.zero_grad(set_to_none=True)

    def _risk(self, batch: Batch) -> Tensor:
        """Mean loss of the predicted tokens of a batch, in nats."""
        targets = self.rows["train"].targets(batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with self.stored["train"].replay(batch), predicted_only(self.model, targets):
            logits = self.model(**inputs, use_cache=False).logits
        return cross_entropy(logits, targets[targets != IGNORED])

    def _score(self, finished: Finished, n_masks: int) -> None:
        with _timed(finished.seconds, "scores"):
            for name, rows in self.rows.items():
                found = outputs(self.model, rows, self.stored[name], n_masks if n_masks > 1 else 0)
                if n_masks == 1:  # without dropout every member is the mean
                    for part in ("tokens", "words"):
                        found[f"members.{part}"] = found[f"mean.{part}"][None]
                finished.outputs[name] = found


def _adapter(base: PreTrainedModel, n_blocks: int, seed: int) -> PeftModel:
    depth = base.config.num_hidden_layers
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=RANK,
        lora_alpha=LORA_ALPHA,
        target_modules=list(TARGETS),
        layers_to_transform=list(range(depth - n_blocks, depth)),
        lora_dropout=0.0,
    )
    start = seeded_generator(seed, INITIALIZATION)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        torch.default_generator.manual_seed(start.initial_seed())
        return get_peft_model(base, config).eval()


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    start = time.process_time()
    yield
    seconds[what] = seconds.get(what, 0.0) + time.process_time() - start
