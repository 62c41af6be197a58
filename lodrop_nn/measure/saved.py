"""From the folder of an adapter and labelled rows to everything that a measurement needs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lodrop_nn.adapter.loading import load_classifier
from lodrop_nn.compare.run import TEST_ROWS, TRAIN_ROWS
from lodrop_nn.config import RunConfig
from lodrop_nn.data import DATA_SETS, batches, load_data, tokenize
from lodrop_nn.data.examples import Batch, Examples
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.environment import environment
from lodrop_nn.measure.known_run import check_enough, initial_parameters, with_retraining
from lodrop_nn.measure.run import measure
from lodrop_nn.measure.saved_config import config_of, content_of
from lodrop_nn.measure.saved_rows import Rows, divided, of_run
from lodrop_nn.measure.settings import MeasureSettings
from lodrop_nn.run_file import read_run
from lodrop_theory.records import RunRecord, content_hash

PROTOCOL = 1  # raise when the meaning of a measurement changes: old records then no longer match


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An adapter and its rows, ready to be measured.

    Attributes:
        run_id: Twelve hexadecimal digits of the content of weights, rows and settings.
        config: What is measured and how, JSON-able.
        notes: What a reader must know of the rows.
        model: The adapted classifier, on its device.
        bank: Its masks.
        train: Batches of the training rows.
        test: Batches of the held-out rows.
        vote_shares: Human vote shares of the held-out rows, where there are some.
        settings: What the measurement draws.
        run: The run that trained the adapter, where it is known.
        examples: Training and held-out rows as token ids.
    """

    run_id: str
    config: Mapping[str, Any]
    notes: tuple[str, ...]
    model: PeftModel
    bank: MaskBank
    train: Sequence[Batch]
    test: Sequence[Batch]
    vote_shares: NDArray | None
    settings: MeasureSettings
    run: RunConfig | None
    examples: tuple[Examples, Examples]

    def measure(self, on_stage: Callable[[str, float], None] | None = None) -> RunRecord:
        """The record of the measurement; nothing is written.

        Args:
            on_stage: Called as ``on_stage(stage, fraction)`` with the fraction of the whole that
                is done.
        """
        device = next(self.model.parameters()).device
        record = measure(
            self.model,
            self.bank,
            self.train,
            self.test,
            self.settings,
            config=self.config,
            run_id=self.run_id,
            environment=environment(device),
            n_masks_train=self.bank.settings.n_masks,
            vote_shares=self.vote_shares,
            initial=self._initial(),
            on_stage=on_stage,
        )
        if self.run is not None and self.settings.n_retrained:
            record = self._retrained(self.run, record, on_stage)
        return replace(record, notes=(*self.notes, *record.notes))

    def _initial(self) -> dict[str, Tensor] | None:
        if self.run is None or "posterior" not in self.settings.parts:
            return None
        initial = initial_parameters(self.run, self.model.config.num_labels)
        return {
            name: initial[name].to(parameter.device)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def _retrained(
        self, run: RunConfig, record: RunRecord, on_stage: Callable[[str, float], None] | None
    ) -> RunRecord:
        def progress(step: int, steps: int) -> None:
            if on_stage is not None:
                on_stage("retraining", step / steps)

        begin = time.perf_counter()
        record = with_retraining(
            record,
            run,
            *self.examples,
            self.model.config.num_labels,
            n_retrained=self.settings.n_retrained,
            n_fresh=self.settings.n_fresh,
            seed=self.settings.seed,
            level=self.settings.level,
            on_step=progress,
        )
        seconds = {**record.seconds, "retraining": time.perf_counter() - begin}
        return replace(record, seconds=seconds)


def prepare(
    folder: Path,
    rows: Rows,
    settings: MeasureSettings,
    *,
    base: str | None = None,
    dropout_rate: float | None = None,
    train_A: bool | None = None,
) -> Prepared:
    """Load an adapter and its rows, and name the measurement by the content of both.

    Args:
        folder: An adapter that :func:`~lodrop_nn.adapter.loading.load_classifier` takes.
        rows: Its training and held-out rows.
        settings: What the measurement draws.
        base: The base model; None finds it by the run or by the adapter's config.
        dropout_rate: p in [0, 1) instead of the adapter's own.
        train_A: Whether the factors A count among the trained parameters; None takes what the run
            says, or True.

    Raises:
        AdapterFileError: If the adapter's files are refused.
        ValueError: If the base or the rows are, or contradict the run that trained the adapter, or
            the masks have several rates.
    """
    run = read_run(folder)
    if settings.n_retrained and run is None:
        raise ValueError(
            f"`n_retrained` must be 0 for {folder}, got {settings.n_retrained}: which run trained "
            "it is known only of adapters that `lodrop compare --save-adapters` kept."
        )
    rows = of_run(rows, run, folder)
    base = run.model if base is None and run is not None else base
    named = None if rows.data not in DATA_SETS else load_data(str(rows.data))
    model, tokenizer, bank = load_classifier(
        folder,
        base=base,
        n_classes=None if named is None else named.n_classes,
        dropout_rate=dropout_rate,
        train_A=(run is None or run.train_A) if train_A is None else train_A,
        seed=settings.seed,
    )
    _check_one_rate(bank)
    train, test = divided(rows, named, model)
    check_enough(
        settings.n_retrained, len(train.labels), len(test.labels)
    )  # the retrainings come last
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed = None if Path(str(rows.data)).is_dir() else rows.seed or 0
    config = config_of(folder, base, train, test, bank, settings, model, split_seed=seed, run=run)
    length = _max_length(tokenizer, model)
    examples = [tokenize(part, tokenizer, max_length=length) for part in (train, test)]
    return Prepared(
        run_id=content_hash({"protocol": PROTOCOL, **content_of(config)})[:12],
        config=config,
        notes=train.caveats,
        model=model.to(device),
        bank=bank,
        train=batches(examples[0], TRAIN_ROWS, order="length", device=device),
        test=batches(examples[1], TEST_ROWS, order="length", device=device),
        vote_shares=test.vote_shares,
        settings=settings,
        run=run,
        examples=(examples[0], examples[1]),
    )


def _check_one_rate(bank: MaskBank) -> None:
    settings = bank.settings
    if isinstance(settings.dropout_rate, tuple) or settings.rate_pattern:
        raise ValueError(
            "`dropout_rate` must be one number for all layers, their inputs and outputs: a record "
            f"has one p. The adapter has {settings.dropout_rate}, by layer "
            f"{dict(settings.rate_pattern)}."
        )


def _max_length(tokenizer: PreTrainedTokenizerBase, model: PeftModel) -> int:
    limits = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
    return min(512, *(limit for limit in limits if limit))
