"""The command `lodrop measure`: everything that the theorems read, of an adapter in a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lodrop_nn._extras import require
from lodrop_nn.cli import Delta, Out, check_delta, one_line_errors
from lodrop_nn.run_file import read_run

if TYPE_CHECKING:
    from lodrop_nn.measure.saved import Prepared
    from lodrop_nn.measure.settings import MeasureSettings
    from lodrop_theory.records import RunRecord

_SKIPPABLE = ("dropout-curvature", "stability", "posterior")


@one_line_errors
def measure(
    adapter: Annotated[Path, typer.Argument(help="Folder of a PEFT LoRA adapter (safetensors).")],
    data: Annotated[
        str | None,
        typer.Option(
            help="A data set (movie-reviews, trec, ...), a folder with train and test "
            "(.jsonl or .csv: text, label), or one such file. An adapter that `lodrop compare` "
            "saved knows its own."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model: minilm-l6 or a folder. Default: what the adapter names."),
    ] = None,
    n_train: Annotated[
        int | None,
        typer.Option(min=2, help="Training rows, where --data has to be split. Default: 256."),
    ] = None,
    n_test: Annotated[
        int | None,
        typer.Option(min=2, help="Held-out rows, where --data has to be split. Default: 512."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the split and of all draws. Default: 0.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Names of the labels in the order of the outputs: negative,positive."),
    ] = None,
    dropout_rate: Annotated[
        float | None,
        typer.Option(help="p in [0, 1) of the masks. Default: the adapter's, else 0."),
    ] = None,
    coordinates: Annotated[
        str | None,
        typer.Option(help="Trained coordinates: all, or B (A held fixed). Default: all."),
    ] = None,
    ridge: Annotated[
        float | None,
        typer.Option(help="Weight of the squared norm that the adapter was trained with."),
    ] = None,
    n_masks: Annotated[int, typer.Option(min=1, help="Members of the ensemble.")] = 16,
    refits: Annotated[
        int, typer.Option(min=0, help="True refits without one example, to check stabilities.")
    ] = 10,
    retrain: Annotated[
        int,
        typer.Option(
            min=0,
            help="Repetitions of the whole training without one example, where the adapter says "
            "how it was trained.",
        ),
    ] = 0,
    skip: Annotated[
        str, typer.Option(help=f"Parts to leave out, of {', '.join(_SKIPPABLE)}.")
    ] = "",
    out: Out = Path("runs/measure"),
    delta: Delta = 0.05,
) -> None:
    """Measure a fine-tuned LoRA classifier: risks, curvature, stabilities, and what they certify.

    The record goes to OUT/records. The same adapter, rows and settings are not measured twice.
    """
    require("nn")
    from lodrop_nn.measure.saved import prepare
    from lodrop_nn.measure.saved_rows import Rows

    check_delta(delta)
    console = Console()
    run = read_run(adapter.expanduser())
    draws = seed if seed is not None else 0 if run is None else run.seed
    settings = _settings(draws, n_masks, ridge, refits, retrain, _skipped(skip))
    names = None if classes is None else tuple(name.strip() for name in classes.split(","))
    try:
        with console.status("loading the adapter and its rows"):
            prepared = prepare(
                adapter.expanduser(),
                Rows(data=data, n_train=n_train, n_test=n_test, seed=seed, class_names=names),
                settings,
                base=base,
                dropout_rate=dropout_rate,
                train_A=_train_A(coordinates),
            )
        record = _record(prepared, out / "records" / f"{prepared.run_id}.json", console)
    except KeyboardInterrupt:
        console.print("\nInterrupted: nothing was kept. The same command starts again.")
        raise typer.Exit(130) from None
    _report(record, out, delta, console)


def _record(prepared: "Prepared", path: Path, console: Console) -> "RunRecord":
    """The record at ``path``; measured and written if it is not there."""
    from lodrop_nn.compare.progress import timed_bar
    from lodrop_theory.records import RecordError, read_record, write_record

    if path.exists():
        record = read_record(path)
        if record.run_id != prepared.run_id:
            raise RecordError(
                f"{path} must be the record of {prepared.run_id}, got {record.run_id}."
            )
        console.print("Already measured: this is the record of the same weights, rows, settings.")
        return record
    with timed_bar(console) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(stage: str, fraction: float) -> None:
            bar.update(task, completed=fraction, description=f"{stage:<24}")

        record = prepared.measure(show)
        bar.update(task, completed=1.0, description=f"{'done':<24}")
    write_record(record, path)
    return record


def _report(record: "RunRecord", out: Path, delta: float, console: Console) -> None:
    from lodrop_nn.report.measurement import show_measurement

    show_measurement(record, delta, console)
    path = out / "records" / f"{record.run_id}.json"
    console.print(f"record {path}", highlight=False, soft_wrap=True)
    console.print(f"print it again: lodrop report {path}", highlight=False, soft_wrap=True)


def _settings(
    seed: int,
    n_masks: int,
    ridge: float | None,
    refits: int,
    retrain: int,
    skipped: frozenset[str],
) -> "MeasureSettings":
    from lodrop_nn.measure.settings import PARTS, MeasureSettings

    return MeasureSettings(
        seed=seed,
        n_masks=n_masks,
        ridge=ridge,
        n_refits=refits,
        n_retrained=retrain,
        parts=tuple(part for part in PARTS if part not in skipped),
    )


def _skipped(text: str) -> frozenset[str]:
    parts = frozenset(part.strip() for part in text.split(",") if part.strip())
    if not parts <= set(_SKIPPABLE):
        raise ValueError(f"`skip` must be among {', '.join(_SKIPPABLE)}, got {text!r}.")
    return parts


def _train_A(coordinates: str | None) -> bool | None:
    if coordinates not in ("all", "B", None):
        raise ValueError(f"`coordinates` must be 'all' or 'B', got {coordinates!r}.")
    return None if coordinates is None else coordinates == "all"
