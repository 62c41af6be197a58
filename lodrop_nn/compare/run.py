"""Run configurations that have no record yet; keep each record as soon as its run is finished."""

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from lodrop_nn.adapter.saving import save_adapter
from lodrop_nn.compare.progress import GridProgress
from lodrop_nn.config import RunConfig
from lodrop_nn.data import batches, load_base_model, load_data, split, tokenize
from lodrop_nn.measure.environment import environment
from lodrop_nn.measure.run import measure
from lodrop_nn.measure.settings import CORE, MeasureSettings, Part
from lodrop_nn.run_file import read_run, write_run
from lodrop_nn.train.finetune import build_adapter, fine_tune
from lodrop_theory.records import RecordError, RunRecord, read_record, write_record

# Rows per pass. The training rows go through the Hessian too, the others only through the ensemble,
# which multiplies them by its members: larger batches then fall out of the cache.
TRAIN_ROWS, TEST_ROWS = 16, 8


def run(
    config: RunConfig,
    *,
    parts: tuple[Part, ...] = CORE,
    run_id: str | None = None,
    on_training: Callable[[float, str], None] | None = None,
    on_measuring: Callable[[float, str], None] | None = None,
    save_to: Path | None = None,
) -> RunRecord:
    """Fine-tune and measure one configuration, on the GPU where there is one.

    Args:
        config: The run.
        parts: What is measured, see :class:`~lodrop_nn.measure.settings.MeasureSettings`.
        run_id: Name of the record; None takes the configuration's.
        on_training: Called with the fraction of the fine-tuning that is done and a text.
        on_measuring: Called with the fraction of the measurement that is done and a text.
        save_to: Folder for the adapter and the configuration that trained it; None keeps neither.

    Returns:
        The record; it is not written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(config.data)
    train_rows, test_rows = split(data, config.n_train, config.n_test, config.seed)
    base, tokenizer = load_base_model(config.model, data.n_classes, config.seed)
    train, test = tokenize(train_rows, tokenizer), tokenize(test_rows, tokenizer)
    model, bank = build_adapter(config, base)
    model.to(device)

    def on_step(step: int, n_steps: int, loss: float) -> None:
        if on_training is not None:
            on_training(step / n_steps, f"step {step}/{n_steps}, loss {loss:.3f}")

    def on_stage(stage: str, fraction: float) -> None:
        if on_measuring is not None:
            on_measuring(fraction, stage)

    tuned = fine_tune(model, bank, train, config, on_step=on_step)
    if save_to is not None:
        save_adapter(model, save_to)
        write_run(save_to, config)
    record = measure(
        model,
        bank,
        batches(train, TRAIN_ROWS, order="length", device=device),
        batches(test, TEST_ROWS, order="length", device=device),
        MeasureSettings(
            n_masks=config.n_masks_test,
            seed=config.seed,
            smoothing=config.smoothing,
            hessian_steps=config.hessian_steps,
            n_refits=0,  # stabilities, where `parts` has them, by the Gauss-Newton method alone
            parts=parts,
        ),
        config=config.as_json(),
        run_id=run_id or config.run_id,
        environment=environment(device),
        n_masks_train=config.n_masks_train,
        fine_tune_seconds=tuned.seconds,
        vote_shares=test_rows.vote_shares,
        on_stage=on_stage,
    )
    return replace(record, notes=(*record.notes, *data.caveats))


def record_path(config: RunConfig, folder: Path) -> Path:
    """Where the record of a configuration lies in a comparison's folder."""
    return folder / "records" / f"{config.run_id}.json"


def finished(config: RunConfig, folder: Path) -> RunRecord | None:
    """The record of a configuration, or None if the run is still to do.

    Raises:
        RecordError: If there is a file, but it cannot be trusted.
    """
    path = record_path(config, folder)
    if not path.exists():
        return None
    record = read_record(path)
    if record.run_id != config.run_id:
        raise RecordError(f"{path} must be the record of run {config.run_id}, got {record.run_id}.")
    return record


def adapter_path(config: RunConfig, folder: Path) -> Path:
    """Where the adapter of a configuration lies in a comparison's folder, if it was kept."""
    return folder / "adapters" / config.run_id


def compare_runs(
    configs: Sequence[RunConfig], folder: Path, *, console: Console, save_adapters: bool = False
) -> list[RunRecord]:
    """Records of all configurations; runs what is missing, one record file per finished run.

    Interrupt it at any time: the runs that were finished stay, and the next call continues.

    Args:
        configs: The grid.
        folder: Records go to ``folder/records/<run_id>.json``.
        console: Where progress is drawn.
        save_adapters: Whether each adapter goes to ``folder/adapters/<run_id>``. A run whose
            record is there and whose adapter is not is run again, and its record stays.

    Raises:
        RecordError: If a file in the way of a record cannot be trusted.
    """
    kept = {config for config in configs if finished(config, folder) is not None}
    pending = [config for config in configs if not _is_done(config, kept, folder, save_adapters)]
    if len(pending) < len(configs):
        console.print(f"{len(configs) - len(pending)} of {len(configs)} runs were already done.")
    if pending:
        with GridProgress(pending, console) as progress:
            for config in pending:
                done = run(
                    config,
                    on_training=partial(progress.training, config),
                    on_measuring=partial(progress.measuring, config),
                    save_to=adapter_path(config, folder) if save_adapters else None,
                )
                if config not in kept:
                    write_record(done, record_path(config, folder))
                progress.finish(config, _line(done))
    return [read_record(record_path(config, folder)) for config in configs]


def _is_done(config: RunConfig, kept: Set[RunConfig], folder: Path, save_adapters: bool) -> bool:
    run = read_run(adapter_path(config, folder)) if save_adapters else config
    return config in kept and run == config


def _line(record: RunRecord) -> str:
    scores = record.predictors["ensemble"]
    return (
        f"p={record.dropout_rate:<4g} seed {record.config['seed']}  "
        f"gap {record.predictors['mean'].generalization_gap.value:.3f} (mean) "
        f"{scores.generalization_gap.value:.3f} (ensemble)  "
        f"test accuracy {scores.test_accuracy.value:.3f}  "
        f"{sum(record.seconds.values()):.0f} s"
    )
