"""`lodrop reproduce`: the paper's experiments, planned, priced, and run when the user says so."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lodrop_nn._extras import require
from lodrop_nn.cli import one_line_errors
from lodrop_nn.reproduce.cost import (
    Workload,
    count_lines,
    duration,
    flops_lines,
    measured_lines,
    measured_seconds,
    padded_tokens,
)
from lodrop_nn.reproduce.plan import METHODS, Method, check_method, schedule
from lodrop_nn.reproduce.preset import Preset
from lodrop_nn.reproduce.presets import PRESETS, TABLES
from lodrop_nn.reproduce.published import NOT_AVAILABLE, SOURCE

if TYPE_CHECKING:
    from lodrop_nn.reproduce.grid import LoadedTask

_METHODS_OF = {"table3": ("lora", "lora+dropout")}  # the two of the paper's table


@one_line_errors
def reproduce(
    table: Annotated[str, typer.Argument(help="table1 (GLUE), table2 (SQuAD) or table3 (MMLU).")],
    task: Annotated[str, typer.Option(help="Tasks of it, by commas, or 'all'.")] = "all",
    methods: Annotated[
        str, typer.Option(help=f"Some of {', '.join(METHODS)}, by commas; else the paper's.")
    ] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds 0 .. SEEDS-1.")] = None,
    files: Annotated[
        Path | None, typer.Option(help="Folder with the benchmark's own files; else the hub.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model: on the hub, or a folder.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("runs/reproduce"),
    rank: Annotated[int | None, typer.Option(min=1, help="LoRA rank, AdaLoRA's last.")] = None,
    dropout_rate: Annotated[float | None, typer.Option(help="p in [0, 1).")] = None,
    n_masks_train: Annotated[int | None, typer.Option(min=1, help="Masks per step.")] = None,
    n_masks_test: Annotated[int | None, typer.Option(min=1, help="Ensemble members.")] = None,
    rescale: Annotated[
        bool | None, typer.Option(help="Divide kept coordinates by 1 - p; the paper does not.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of all methods.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows per step.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of training steps: fp32, bf16.")] = None,
    select: Annotated[
        str | None, typer.Option(help="'last' epoch, or the 'best' on the evaluation rows.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Solved MMLU examples, 0 to 5.")] = None,
    device_batch: Annotated[
        int | None, typer.Option(min=1, help="Rows at once; divides the batch.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop runs early.")] = None,
    n_rows: Annotated[int | None, typer.Option(min=1, help="Rows of each split.")] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Time a few steps here before asking.")
    ] = False,
    tflops: Annotated[
        float | None, typer.Option(help="Speed that your hardware reaches, 10^12 per second.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start without asking.")] = False,
) -> None:
    """Run the paper's experiments: prints protocol, runs, steps and cost, then asks.

    Each finished run is kept as one JSON record: interrupt at any time, run the same command
    again, and it continues.
    """
    require("nn")
    if table not in TABLES:
        raise ValueError(f"`table` must be one of {', '.join(TABLES)}, got {table!r}.")
    rates = ("learning_rate", "full_learning_rate", "bitfit_learning_rate")
    given: dict[str, Any] = {
        "seeds": seeds, "model": model, "rank": rank, "dropout_rate": dropout_rate,
        "n_masks_train": n_masks_train, "n_masks_test": n_masks_test, "rescale": rescale,
        "epochs": epochs, "batch_size": batch_size, "precision": precision, "select": select,
        "shots": shots, **dict.fromkeys(rates, learning_rate),
    }  # fmt: skip
    settings = {name: value for name, value in given.items() if value is not None}
    presets = [PRESETS[name].with_settings(**settings) for name in _tasks(table, task)]
    named = methods.split(",") if methods else _METHODS_OF.get(table, METHODS)
    chosen = [check_method(name) for name in named]
    console = Console()
    _run(presets, chosen, console, files=files, out=out, device_batch=device_batch,
         max_steps=max_steps, n_rows=n_rows, estimate=estimate, tflops=tflops, yes=yes)  # fmt: skip


def _tasks(table: str, task: str) -> tuple[str, ...]:
    if task == "all":
        return TABLES[table]
    names = tuple(task.split(","))
    if not set(names) <= set(TABLES[table]):
        raise ValueError(f"`task` must be some of {', '.join(TABLES[table])}, got {task!r}.")
    return names


def _run(
    presets: list[Preset],
    methods: list[Method],
    console: Console,
    *,
    files: Path | None,
    out: Path,
    device_batch: int | None,
    max_steps: int | None,
    n_rows: int | None,
    estimate: bool,
    tflops: float | None,
    yes: bool,
) -> None:
    from lodrop_nn.reproduce.grid import load_task, run_all, runs_of
    from lodrop_nn.reproduce.models import count_matrix_weights
    from lodrop_nn.reproduce.tables import protocol_table, published_table, results_table

    table, sources = protocol_table(presets)
    console.print(table)
    _show(console, "\n".join(sources) + "\n")
    if "model" in presets[0].sources:  # the user's own: its size is not the declared one
        presets = [replace(each, n_matrix_weights=count_matrix_weights(each)) for each in presets]
    # Without files a plan asks nothing of a network: it can be made anywhere.
    loaded = {}
    if files is not None or estimate:
        loaded = {each.task: load_task(each, files, n_rows) for each in presets}
    seconds = 0.0
    for each in presets:
        for method in methods:
            seconds += _price(
                each, method, loaded.get(each.task), console, out=out, max_steps=max_steps,
                estimate=estimate, tflops=tflops, device_batch=device_batch,
            )  # fmt: skip
    if seconds:
        console.print(f"In all: {duration(seconds)}.")
    elif not estimate and tflops is None:
        console.print("No time is given: --estimate measures it here, --tflops X computes it.")
    if not yes and not _agreed():
        raise typer.Exit(1)
    for each in presets:
        task = loaded.get(each.task) or load_task(each, files, n_rows)
        runs = runs_of(task, methods, max_steps)
        try:
            records = run_all(task, runs, out, console=console, device_batch=device_batch)
        except KeyboardInterrupt:
            console.print(f"\nInterrupted. Finished runs are kept in {out}; run again to continue.")
            raise typer.Exit(130) from None
        _show(console, f"{each.task}: measured, in percent, mean (sd) over seeds")
        console.print(results_table(records))
        if (quoted := published_table(each.task)) is not None:
            _show(console, f"{each.task}: published, quoted and not measured here: {SOURCE}")
            console.print(quoted)
    _show(console, NOT_AVAILABLE)


def _show(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _agreed() -> bool:
    try:
        return typer.confirm("Start?")
    except typer.Abort:  # no one is there to answer
        return False


def _price(
    preset: Preset,
    method: Method,
    task: "LoadedTask | None",
    console: Console,
    *,
    out: Path,
    max_steps: int | None,
    estimate: bool,
    tflops: float | None,
    device_batch: int | None,
) -> float:
    """Print what a task costs by a method; its seconds, or 0 where no unit cost is known."""
    from lodrop_nn.reproduce.grid import runs_of
    from lodrop_nn.reproduce.run import finished

    n_runs, n_train, n_eval = preset.seeds, preset.n_train, preset.n_eval
    train_tokens = eval_tokens = float(preset.max_length)
    if task is not None:
        runs = runs_of(task, [method], max_steps)
        n_runs = sum(finished(each, out) is None for each in runs)
        lengths = [len(each["input_ids"]) for each in task.features.train]
        n_train, train_tokens = len(lengths), padded_tokens(lengths, preset.batch_size)
        lengths = sorted(
            len(each["input_ids"]) for split in task.features.splits for each in split.features
        )
        n_eval, eval_tokens = len(lengths), padded_tokens(lengths, 32)
    work = Workload(
        preset=preset,
        method=method,
        schedule=schedule(preset, n_train, max_steps),
        n_runs=n_runs,
        n_eval=n_eval,
        train_tokens=train_tokens,
        eval_tokens=eval_tokens,
        is_counted=task is not None,
    )
    lines = [*count_lines(work), *flops_lines(work, tflops)]
    seconds = 0.0 if tflops is None else work.flops / (tflops * 1e12)
    if estimate and task is not None and n_runs:
        from lodrop_nn.reproduce.timing import measure_unit_cost

        unit = measure_unit_cost(preset, method, task.features, device_batch=device_batch)
        lines += measured_lines(work, unit)
        seconds = measured_seconds(work, unit)
    _show(console, "\n".join(lines))
    return seconds
