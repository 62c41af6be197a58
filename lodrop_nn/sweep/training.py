"""What a run of a sweep does: fine-tune, with scores on the way, or the full measurement."""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from lodrop_nn.compare.run import TEST_ROWS, TRAIN_ROWS
from lodrop_nn.compare.run import run as run_and_measure
from lodrop_nn.config import RunConfig
from lodrop_nn.data import Batch, batches, load_base_model, load_data, split, tokenize
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.environment import environment
from lodrop_nn.measure.predictions import predict_all
from lodrop_nn.measure.risk import predictor_measurement
from lodrop_nn.measure.settings import CORE, Part
from lodrop_nn.sweep.grid import SweepRun, method_of
from lodrop_nn.sweep.scores import EpochScores, ScoreRecord
from lodrop_nn.train.finetune import build_adapter, fine_tune
from lodrop_nn.train.prefix_cache import PrefixCache
from lodrop_theory.records import PREDICTORS

Progress = Callable[[float], None]
_STABILITY: tuple[Part, ...] = (*CORE, "dropout-curvature", "stability")


class Material:
    """The rows and the model that a run, or runs trained together, begin with.

    Args:
        config: What to load; runs that are trained together agree in it.
        device: Where to train; None takes the GPU where there is one.
    """

    def __init__(self, config: RunConfig, device: torch.device | str | None = None) -> None:
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(chosen)
        data = load_data(config.data)
        train_rows, test_rows = split(data, config.n_train, config.n_test, config.seed)
        self.base, tokenizer = load_base_model(config.model, data.n_classes, config.seed)
        self.caveats = data.caveats
        self.train, self.test = tokenize(train_rows, tokenizer), tokenize(test_rows, tokenizer)
        self.train_prefix: PrefixCache | None = None
        self.test_prefix: PrefixCache | None = None
        self.stored_seconds = 0.0

    def store_prefixes(self, model: PeftModel) -> None:
        """Compute what lies below the adapters once for all rows, where the model allows it."""
        start = time.perf_counter()
        with suppress(ValueError):  # nothing lies below, or it does not stay as it is
            self.train_prefix = PrefixCache(model, self.train)
            self.test_prefix = PrefixCache(model, self.test)
        self.stored_seconds = time.perf_counter() - start

    def scored(self) -> list[tuple[list[Batch], PrefixCache | None]]:
        """Training and held-out rows, in the batches in which they are scored."""
        parts = (
            (self.train, TRAIN_ROWS, self.train_prefix),
            (self.test, TEST_ROWS, self.test_prefix),
        )
        return [
            (batches(examples, size, order="length", device=self.device), prefix)
            for examples, size, prefix in parts
        ]


class Scorer:
    """Scores one adapter whenever its steps have come to the end of a due epoch.

    Args:
        run: The run.
        material: Its rows.
        model: The model; while it scores, the run's adapter is the active one.
        bank: The masks of the run's adapter.
        trained: The parameters that the run trains.

    Attributes:
        scores: Those so far.
        seconds: What they took.
        diverged_after: Steps done when a weight was found not to be finite, or None.
    """

    def __init__(
        self,
        run: SweepRun,
        material: Material,
        model: PeftModel,
        bank: MaskBank,
        trained: Sequence[nn.Parameter],
    ) -> None:
        self._run, self._material, self._model, self._bank = run, material, model, bank
        self._trained = trained
        self._steps = math.ceil(run.config.n_train / run.config.batch_size)
        self.scores: list[EpochScores] = []
        self.seconds = 0.0
        self.diverged_after: int | None = None

    @property
    def n_parameters(self) -> int:
        """Trained parameters."""
        return sum(parameter.numel() for parameter in self._trained)

    def is_due(self, step: int) -> bool:
        """Whether an epoch that is to be scored ends with this step."""
        epoch, rest = divmod(step, self._steps)
        is_last = epoch == self._run.config.epochs
        return rest == 0 and (epoch % self._run.evaluate_every == 0 or is_last)

    def score(self, step: int) -> None:
        """Score the adapter as it is now, unless its weights are not finite any more."""
        if not all(bool(parameter.isfinite().all()) for parameter in self._trained):
            self.diverged_after = step
            return
        start, config = time.perf_counter(), self._run.config
        epoch = step // self._steps
        n_masks = config.n_masks_test if epoch == config.epochs else self._run.n_masks_along
        on_train, on_test = (
            predict_all(
                self._model, self._bank, rows, n_masks=n_masks, seed=config.seed, stored=prefix
            )
            for rows, prefix in self._material.scored()
        )
        predictors = {
            name: predictor_measurement(on_train, on_test, name, config.smoothing)
            for name in PREDICTORS
        }
        self.scores.append(EpochScores(epoch=epoch, n_masks=n_masks, predictors=predictors))
        self.seconds += time.perf_counter() - start


class _Diverged(Exception):
    """Ends the training of a run whose weights are not finite."""


def run_one(
    run: SweepRun, *, device: torch.device | str | None = None, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Fine-tune and score, or measure, one run.

    Args:
        run: The run.
        device: Where; None takes the GPU where there is one. A full measurement always does that.
        on_progress: Called with the fraction of the fine-tuning that is done.

    Returns:
        The content of its record.

    Raises:
        FloatingPointError: If a run with a full measurement diverges; one with scores is recorded.
    """
    report = on_progress or (lambda fraction: None)
    if run.measure != "scores":
        record = run_and_measure(
            run.config,
            parts=CORE if run.measure == "full" else _STABILITY,
            run_id=run.run_id,
            on_training=lambda fraction, text: report(fraction),
        )
        return dict(json.loads(json.dumps(asdict(record), allow_nan=False)))
    material = Material(run.config, device)
    model, bank = build_adapter(run.config, material.base)
    model.to(material.device)
    material.store_prefixes(model)
    scorer = Scorer(run, material, model, bank, [p for p in model.parameters() if p.requires_grad])
    losses: tuple[float, ...] = ()
    diverged_after, done = None, 0

    def on_step(step: int, n_steps: int, loss: float) -> None:
        nonlocal done
        done = step
        report(step / n_steps)
        if scorer.is_due(step):
            scorer.score(step)
            if scorer.diverged_after is not None:
                raise _Diverged

    start = time.perf_counter()
    try:
        losses = fine_tune(
            model, bank, material.train, run.config, stored=material.train_prefix, on_step=on_step
        ).epoch_losses
    except (FloatingPointError, _Diverged):
        diverged_after = done
    return score_record(
        run,
        material,
        scorer,
        losses=losses,
        diverged_after=diverged_after,
        train_seconds=time.perf_counter() - start - scorer.seconds,
    )


def score_record(
    run: SweepRun,
    material: Material,
    scorer: Scorer,
    *,
    losses: Sequence[float],
    diverged_after: int | None,
    train_seconds: float,
    n_together: int = 1,
) -> dict[str, Any]:
    """The content of the record of a run that has ended; its arguments are the record's fields."""
    return ScoreRecord(
        run_id=run.run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=run.config.as_json(),
        method=method_of(run.config),
        environment=environment(material.device),
        n_parameters=scorer.n_parameters,
        epoch_losses=tuple(losses),
        scores=tuple(scorer.scores),
        diverged_after=diverged_after,
        seconds={
            "train": train_seconds,
            "scores": scorer.seconds,
            "stored_states": material.stored_seconds / n_together,
        },
        n_together=n_together,
        notes=material.caveats,
    ).as_json()
