"""A callback that turns a training under ``transformers.Trainer`` into a measured one."""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from peft import PeftModel
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lodrop_nn.compare.progress import timed_bar
from lodrop_nn.language_record import LanguageRecord
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.masks.settings import check_count
from lodrop_nn.measure.settings import CORE, MeasureSettings
from lodrop_nn.train.measured_config import training_config
from lodrop_nn.train.measured_files import save_trained, write_measured
from lodrop_nn.train.measured_rows import (
    MeasuredPair,
    MeasuredRows,
    Task,
    measured_rows,
    task_of,
)
from lodrop_nn.train.measured_setup import (
    check_rows,
    check_trainer,
    held_out_rows,
    notes_of,
    why_no_record,
)
from lodrop_nn.train.measured_state import masks_of, measuring
from lodrop_nn.train.measured_training import (
    OnStage,
    classifier_record,
    language_record,
    logged_numbers,
)
from lodrop_theory.records import RunRecord

if TYPE_CHECKING:
    from transformers import Trainer

Every = Literal["epoch", "evaluate"]


class MeasurementError(RuntimeError):
    """A measurement that failed after its training had ended; the trained weights are intact."""


class MeasureCallback(TrainerCallback):
    """Logs the generalization gap while a trainer trains, and writes a record at the end.

    For LoRA adapters of classifiers and of language models (``Trainer``, TRL's ``SFTTrainer``),
    with LoRA Dropout or without. Training is what it would be without the callback, bit by bit.

    During training the log of the trainer (and so its progress bar, TensorBoard and the like) gets
    ``train_risk``, ``test_risk`` and ``gap``, with LoRA Dropout also ``ensemble_gap`` and so on, on
    fixed random rows. At the end the adapter is saved to ``folder/adapter``; then it is measured,
    the record goes to ``folder/records``, and a text with all that it says to ``folder/reports``.
    Of a classifier the record is that of :func:`~lodrop_nn.measure.run.measure`, of a language
    model a :class:`~lodrop_nn.language_record.LanguageRecord`. Only the main process measures.

    Risks are smoothed cross-entropies in nats, of language models means over the tokens of a row.

    Args:
        trainer: The trainer that the callback is added to.
        folder: Where records, reports and the adapter go; made if absent.
        settings: What the measurement draws and which parts it runs; None runs the core.
            ``MeasureSettings()`` runs all, stabilities and PAC-Bayes bounds too.
        every: When numbers are logged: at the end of each ``"epoch"``, at each ``"evaluate"``, or
            never (None).
        logged_rows: At most so many training and held-out rows are behind logged numbers.
        measured_rows: At most so many are behind the record. Where that leaves out training rows,
            what is measured on them is marked as a plug-in value.
        test_dataset: Held-out rows that no choice has seen, prepared as the trainer's own; None
            takes its ``eval_dataset``. Without any, or if those choose the model (early stopping,
            the best checkpoint), a warning says so and there is no record.

    Attributes:
        record: The record, after training; None where there is none.
        record_path: Its file.
        report_path: The text beside it.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        ::

            from lodrop_nn import MeasureCallback
            trainer.add_callback(MeasureCallback(trainer, "runs/mine"))
            trainer.train()
    """

    def __init__(
        self,
        trainer: "Trainer",
        folder: str | os.PathLike[str],
        *,
        settings: MeasureSettings | None = None,
        every: Every | None = "epoch",
        logged_rows: tuple[int, int] = (256, 512),
        measured_rows: tuple[int, int] = (2048, 2048),
        test_dataset: Any = None,
    ) -> None:
        if every is not None and every not in get_args(Every):
            raise ValueError(f"`every` must be None or one of {get_args(Every)}, got {every!r}.")
        for name, pair in (("logged_rows", logged_rows), ("measured_rows", measured_rows)):
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(f"`{name}` must be a pair (training, held-out), got {pair!r}.")
            for count in pair:
                check_count(name, count)
        self.trainer, self.folder = trainer, Path(folder)
        self.settings = MeasureSettings(parts=CORE) if settings is None else settings
        self.every: Every | None = every
        self.logged_rows, self.measured_rows = logged_rows, measured_rows
        self.test_dataset = test_dataset
        self.record: RunRecord | LanguageRecord | None = None
        self.record_path: Path | None = None
        self.report_path: Path | None = None
        self._task: Task = "classifier"
        self._logged: MeasuredPair | None = None  # None outside of a training
        self._measured: MeasuredPair | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: "DataLoader[Any] | None" = None,
        **kwargs: Any,
    ) -> None:
        """Check model and rows before the first step, and take the rows.

        Raises:
            TypeError: If the model is no PeftModel, or the rows are a stream.
            ValueError: If model or rows cannot be measured: the text says why.
            NotImplementedError: If the model's weights are sharded.
        """
        self.record = self.record_path = self.report_path = None
        self._logged = self._measured = None
        check_trainer(self.trainer)  # on every process: all stop, or none
        if not state.is_world_process_zero:
            return
        assert train_dataloader is not None
        with self._masks():  # plain LoRA of a kind that cannot be masked is refused here
            self._task = task_of(self._model, train_dataloader)
        reason = why_no_record(self.trainer, self._task, self.test_dataset)
        if reason is not None:
            warnings.warn(
                f"`MeasureCallback` will write no record: {reason}.", UserWarning, stacklevel=2
            )
        rows = held_out_rows(self.trainer, self.test_dataset)
        test_dataloader = None if rows is None else self.trainer.get_test_dataloader(rows)
        if self.every is not None:
            self._logged = self._rows(train_dataloader, test_dataloader, self.logged_rows)
        if reason is None:
            self._measured = self._rows(train_dataloader, test_dataloader, self.measured_rows)
            check_rows(self._measured, self.settings, self._task)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log, if that is to happen at each epoch."""
        if self.every == "epoch":
            self._log(control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log, if that is to happen at each evaluation during training."""
        if self.every == "evaluate":
            self._log(control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the adapter, measure it, and write record and report.

        Raises:
            MeasurementError: If that fails.
        """
        rows, self._logged, self._measured = self._measured, None, None
        if rows is None:
            return
        place, saved = self.folder / "adapter", "not saved"
        try:
            is_masked = check_trainer(self.trainer) is not None
            with self._masks() as bank:
                save_trained(self._model, place, is_masked=is_masked)
                saved = f"saved in {place}"
                with measuring(self._model), self._progress() as on_stage:
                    self.record = self._record(bank, rows, place, on_stage)
            self.record_path, self.report_path = write_measured(self.record, self.folder)
        except Exception as error:
            raise MeasurementError(
                f"the training has ended and its weights are intact (in `trainer.model`, {saved}), "
                f"but measuring them failed: {type(error).__name__}: {error}"
            ) from error

    @property
    def _model(self) -> PeftModel:
        model: Any = self.trainer.model
        return model

    def _masks(self) -> AbstractContextManager[MaskBank]:
        bank = check_trainer(self.trainer)
        return masks_of(self._model, bank, self.settings.seed)

    def _rows(
        self,
        train: "DataLoader[Any]",
        test: "DataLoader[Any] | None",
        at_most: tuple[int, int],
    ) -> MeasuredPair:
        def drawn(loader: "DataLoader[Any]", count: int) -> MeasuredRows:
            return measured_rows(
                loader,
                task=self._task,
                at_most=count,
                batch_size=self.trainer.args.eval_batch_size,
                seed=self.settings.seed,
            )

        return MeasuredPair(
            train=drawn(train, at_most[0]), test=None if test is None else drawn(test, at_most[1])
        )

    def _log(self, control: TrainerControl) -> None:
        """Give the trainer the numbers of now to log; a failure is a warning, training goes on."""
        if self._logged is None:
            return
        should_log = control.should_log
        try:
            with self._masks() as bank, measuring(self._model):
                numbers = logged_numbers(self._model, bank, self._logged, self._task, self.settings)
        except Exception as error:
            warnings.warn(
                f"`MeasureCallback` could not measure at step {self.trainer.state.global_step}, "
                f"training goes on: {type(error).__name__}: {error}",
                UserWarning,
                stacklevel=2,
            )
            return
        # In evaluation mode, in which TRL does not mix in and clear what it collects in training.
        with evaluation_mode(self._model):
            self.trainer.log(numbers)
        control.should_log = should_log  # logging takes the wish to log back

    @contextmanager
    def _progress(self) -> Iterator[OnStage | None]:
        if self.trainer.args.disable_tqdm:
            yield None
            return
        with timed_bar(Console(stderr=True)) as bar:
            task = bar.add_task("measuring", total=1.0)
            yield lambda stage, fraction: bar.update(
                task, completed=fraction, description=f"measuring: {stage:<16}"
            )

    def _record(
        self, bank: MaskBank, rows: MeasuredPair, place: Path, on_stage: OnStage | None
    ) -> RunRecord | LanguageRecord:
        config = training_config(self.trainer, bank, rows, self.settings, place)
        notes = notes_of(self.trainer, rows, self._task)
        make = classifier_record if self._task == "classifier" else language_record
        return make(self._model, bank, rows, self.settings, config, notes=notes, on_stage=on_stage)
