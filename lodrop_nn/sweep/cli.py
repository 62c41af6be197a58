"""The command `lodrop sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lodrop_nn._extras import require
from lodrop_nn.cli import one_line_errors

if TYPE_CHECKING:
    from lodrop_nn.sweep.status import SweepStatus

_NARROWEST = 100  # columns; a pipe has no width of its own


@one_line_errors
def sweep(
    grid: Annotated[Path, typer.Argument(help="The declared grid: a TOML or JSON file.")],
    store: Annotated[str, typer.Option(help="Folder of the records: a path or an fsspec URL.")],
    engine: Annotated[str, typer.Option(help="Where it runs: 'local' or 'ray'.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes of the local engine.")] = 1,
    max_replicas: Annotated[
        int, typer.Option(min=1, help="Runs trained in one pass; 1 trains each by itself.")
    ] = 8,
    lease_seconds: Annotated[
        float, typer.Option(help="How long a run stays with a worker that has gone silent.")
    ] = 60.0,
    ray_address: Annotated[
        str | None, typer.Option(help="Of the cluster; without, one is started here.")
    ] = None,
    num_cpus: Annotated[float, typer.Option(help="Cores per Ray task; may be a fraction.")] = 1.0,
    num_gpus: Annotated[float, typer.Option(help="GPUs per Ray task; may be a fraction.")] = 0.0,
    max_retries: Annotated[
        int, typer.Option(min=0, help="Times that Ray starts a task again when its node dies.")
    ] = 3,
    table: Annotated[
        Path | None, typer.Option(help="CSV file for the scores, once all runs are done.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is to do.")
    ] = False,
) -> None:
    """Do the runs of a declared grid; each finished run is one JSON record in the store.

    Interrupt or kill it at any time and run the same command again: it continues. Several such
    commands that see one store share the work. Exit code 1 means that runs are left.
    """
    require("nn")
    from lodrop_nn.data import DATA_SETS
    from lodrop_nn.sweep.engine_local import run_sweep
    from lodrop_nn.sweep.engine_ray import run_sweep_on_ray
    from lodrop_nn.sweep.grid import SweepConfig
    from lodrop_nn.sweep.status import status_of
    from lodrop_nn.sweep.store import RecordStore

    if engine not in ("local", "ray"):
        raise ValueError(f"`engine` must be 'local' or 'ray', got {engine!r}.")
    declared = SweepConfig.from_file(grid)
    for name in {run.config.data for run in declared.runs()} - set(DATA_SETS):
        raise ValueError(f"`data` must be one of {sorted(DATA_SETS)}, got {name!r}.")
    if table is not None and declared.measure != "scores":
        raise ValueError(
            f"`table` must be left out unless `measure` is 'scores', got {declared.measure!r}."
        )
    records = RecordStore(store, lease_seconds=lease_seconds)
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, _NARROWEST)
    before = status_of(declared, records)
    for line in before.lines():
        console.print(line)
    if dry_run:
        _write_table(before, table, console)
        return
    try:
        if engine == "ray":
            after = run_sweep_on_ray(
                declared,
                records,
                address=ray_address,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                max_retries=max_retries,
                max_replicas=max_replicas,
                console=console,
            )
        else:
            after = run_sweep(
                declared, records, workers=workers, max_replicas=max_replicas, console=console
            )
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. Finished runs are kept in {store}; run again to continue.")
        raise typer.Exit(130) from None
    console.print(after.table())
    for line in after.lines():
        console.print(line)
    _write_table(after, table, console)
    if after.left:
        raise typer.Exit(1)


def _write_table(status: "SweepStatus", path: Path | None, console: Console) -> None:
    """Write the scores of a finished sweep; a part of it must not take the place of a whole."""
    if path is None:
        return
    if status.left:
        console.print(f"{path} is not written: {len(status.left)} runs are left.")
        return
    from lodrop_nn.sweep.scores import ScoreRecord
    from lodrop_nn.sweep.table import score_table
    from lodrop_theory.records import write_bytes_atomically

    records = [
        ScoreRecord.from_json(status.records[run.run_id])
        for run in status.runs
        if run.run_id in status.records
    ]
    text = score_table(records).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_bytes_atomically(path, text.encode("utf-8"))
