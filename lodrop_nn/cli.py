"""Commands that `lodrop` finds when this package is installed: compare, report."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.console import Console

from lodrop_nn._extras import require
from lodrop_nn.config import MaskScope, RunConfig

Delta = Annotated[float, typer.Option(help="Failure probability of each bound, in (0, 1).")]
Out = Annotated[Path, typer.Option(help="Folder of the records and the report.")]


P = ParamSpec("P")


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """What the user can mend ends in one line and exit code 2; the rest is a defect of ours."""

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:  # a RuntimeError to Python
            raise
        except (ValueError, ImportError, OSError, RuntimeError, FloatingPointError) as error:
            if isinstance(error, RuntimeError) and type(error) is RuntimeError:
                raise
            typer.echo(f"lodrop {command.__name__}: {error}", err=True)
            raise typer.Exit(2) from error

    return guarded


def _rates(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"`dropout-rates` must be numbers in [0, 1) separated by commas, got {text!r}."
        ) from None


def _layers(text: str) -> tuple[int, ...] | None:
    if text == "all":
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"`adapted-layers` must be 'all' or whole numbers separated by commas, got {text!r}."
        ) from None


@one_line_errors
def compare(
    dropout_rates: Annotated[
        str, typer.Option(help="Dropout rates p in [0, 1), separated by commas.")
    ] = "0,.1,.3,.5",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 .. SEEDS-1, each on its split.")] = 1,
    out: Out = Path("runs/compare"),
    delta: Delta = 0.05,
    model: Annotated[str, typer.Option(help="Base model: a known name or a folder.")] = "minilm-l6",
    n_train: Annotated[int, typer.Option(min=2, help="Training examples.")] = RunConfig.n_train,
    n_test: Annotated[int, typer.Option(min=2, help="Held-out examples.")] = RunConfig.n_test,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = RunConfig.epochs,
    learning_rate: Annotated[
        float, typer.Option(help="Peak rate of AdamW.")
    ] = RunConfig.learning_rate,
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank r.")] = RunConfig.rank,
    target_modules: Annotated[
        str, typer.Option(help="Suffixes of the adapted modules, separated by commas.")
    ] = ",".join(RunConfig.target_modules),
    adapted_layers: Annotated[
        str, typer.Option(help="Indices of the adapted blocks, separated by commas, or 'all'.")
    ] = ",".join(map(str, RunConfig.adapted_layers or ())),
    n_masks_train: Annotated[
        int, typer.Option(min=1, help="Mask draws averaged per training step.")
    ] = RunConfig.n_masks_train,
    n_masks_test: Annotated[
        int, typer.Option(min=1, help="Members of the test-time ensemble.")
    ] = RunConfig.n_masks_test,
    mask_scope: Annotated[
        str, typer.Option(help="One mask per 'batch' or per 'example'.")
    ] = RunConfig.mask_scope,
    precision: Annotated[
        str,
        typer.Option(help="Of the training steps: fp32, bf16, or auto (bf16 where it is native)."),
    ] = RunConfig.precision,
    save_adapters: Annotated[
        bool, typer.Option("--save-adapters", help="Keep each adapter in OUT/adapters/<run>.")
    ] = False,
) -> None:
    """Fine-tune with LoRA Dropout at several rates; hold the measured gap against the bounds.

    Each finished run is kept as one JSON record: interrupt at any time, run the same command
    again, and it continues. Ends with tables, a figure (PNG, PDF) and a page (HTML).
    """
    require("nn")
    from lodrop_nn.compare.run import compare_runs
    from lodrop_nn.train.finetune import native_precision

    scope: MaskScope = "example" if mask_scope == "example" else "batch"
    if mask_scope not in ("batch", "example"):
        raise ValueError(f"`mask-scope` must be 'batch' or 'example', got {mask_scope!r}.")
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"`precision` must be 'auto', 'fp32' or 'bf16', got {precision!r}.")
    check_delta(delta)
    chosen = native_precision() if precision == "auto" else precision
    configs = [
        RunConfig(
            dropout_rate=rate,
            seed=seed,
            model=model,
            n_train=n_train,
            n_test=n_test,
            epochs=epochs,
            learning_rate=learning_rate,
            rank=rank,
            target_modules=tuple(target_modules.split(",")),
            adapted_layers=_layers(adapted_layers),
            n_masks_train=n_masks_train,
            n_masks_test=n_masks_test,
            mask_scope=scope,
            precision="bf16" if chosen == "bf16" else "fp32",
        )
        for seed in range(seeds)
        for rate in _rates(dropout_rates)
    ]
    console = Console()
    try:
        compare_runs(configs, out, console=console, save_adapters=save_adapters)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. Finished runs are kept in {out}; run again to continue.")
        raise typer.Exit(130) from None
    _report([out / "records" / f"{config.run_id}.json" for config in configs], out, delta, console)
    if save_adapters:
        console.print(f"adapters {out / 'adapters'}; measure one in full:")
        console.print(f"  lodrop measure {out / 'adapters' / configs[-1].run_id}")


@one_line_errors
def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a comparison, or the record (.json) of one run.")
    ] = Path("runs/compare"),
    delta: Delta = 0.05,
) -> None:
    """Print the tables and redraw the report of finished runs; needs no torch."""
    from lodrop_nn.language_record import is_language_record, read_language_record
    from lodrop_theory import read_record

    check_delta(delta)
    if folder.is_file() and is_language_record(folder):
        from lodrop_nn.report.language import show_language

        show_language(read_language_record(folder), delta, Console())
        return
    paths = [folder] if folder.is_file() else sorted((folder / "records").glob("*.json"))
    records = {path: read_record(path) for path in paths}
    # A measured adapter is no run of a comparison: there is nothing to compare it with.
    alone = [r for p, r in records.items() if p == folder or "adapter_sha256" in r.config]
    if alone:
        from lodrop_nn.report.measurement import show_measurement

        for record in alone:
            show_measurement(record, delta, Console())
        return
    require("figures")
    if not paths:
        raise ValueError(f"`folder` must hold records (records/*.json), got {str(folder)!r}.")
    _report(paths, folder, delta, Console())


def check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"`delta` must be in (0, 1), got {delta!r}.")


def _report(paths: list[Path], folder: Path, delta: float, console: Console) -> None:
    from lodrop_nn.report.summary import summarize
    from lodrop_nn.report.tables import all_tables
    from lodrop_nn.report.terminal import show
    from lodrop_nn.report.write import write_report
    from lodrop_theory import read_record

    summaries = summarize([read_record(path) for path in paths], delta=delta)
    show(all_tables(summaries), console)
    files = write_report(summaries, folder, delta=delta)
    console.print(f"figure  {files.png}\n        {files.pdf}\npage    {files.html}")
    console.print(f"records {folder / 'records'} ({len(paths)} runs)")
