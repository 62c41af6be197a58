"""The ``lodrop`` command: ``bound``, ``audit``, and what other packages add to it.

A package adds a command through the entry point group ``lodrop.commands``: the name of the entry is
the command, its value a function with Typer annotations.
"""

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from lodrop_theory import __version__
from lodrop_theory.cli_audit import audit
from lodrop_theory.evaluate import curvature_bounds
from lodrop_theory.inputs import CurvatureInputs, TailInputs

GROUP = "lodrop.commands"
_NARROWEST = 100  # columns; a pipe has no width of its own

app = typer.Typer(
    name="lodrop",
    help="Know, before and after fine-tuning, how far a LoRA adapter can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lodrop {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def _refuse(command: str, why: object) -> NoReturn:
    typer.echo(f"lodrop {command}: {why}", err=True)
    raise typer.Exit(2)


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"`{flag}` must be a number, or numbers separated by commas, got {text!r}."
        ) from None


def _points(flags: dict[str, str]) -> list[dict[str, float]]:
    # One mapping per element: lists of one length run together, single numbers are repeated.
    values = {name: _numbers(f"--{name.replace('_', '-')}", text) for name, text in flags.items()}
    lengths = {name: len(v) for name, v in values.items() if len(v) > 1}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"--{n.replace('_', '-')} has {k}" for n, k in lengths.items())
        raise ValueError(f"lists must have one length: {listed}.")
    length = max(lengths.values(), default=1)
    return [{n: v[at % len(v)] for n, v in values.items()} for at in range(length)]


def _rows(points: list[dict[str, float]], certified: bool) -> list[dict[str, Any]]:
    """Rows of all bounds, bound by bound; each element alone, so that its remedy is its own."""
    columns = []
    for point in points:
        shared = point["n_train"]
        curvature = CurvatureInputs(
            n_train=shared,
            **{k: point[k] for k in ("dropout_rate", "lipschitz", "hessian_min_eig", "penalty")},
        )
        tail = TailInputs(
            n_train=shared,
            loss_range=point["loss_range"],
            delta=point["delta"],
            empirical_risk=point.get("empirical_risk"),
        )
        results = curvature_bounds(curvature, tail, certified=certified)
        columns.append([row for result in results for row in result.rows()])
    return [row for same_bound in zip(*columns, strict=True) for row in same_bound]


def _number(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.4g}"


def _table(rows: list[dict[str, Any]]) -> Table:
    with_risk = any(row["risk"] is not None for row in rows)
    varying = [
        name
        for name in ("n_train", "lipschitz", "hessian_min_eig", "penalty", "loss_range")
        if len({row[name] for row in rows}) > 1
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("bound", no_wrap=True)
    for name in ("p", *varying, "gap", *(["risk"] if with_risk else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("kind", "vacuous", "predictor", "statement"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        risk = "-" if row["statement"] == "expectation" else _number(row["risk"], "inf")
        table.add_row(
            row["bound"],
            _number(row["dropout_rate"], "-"),
            *(_number(row[name], "-") for name in varying),
            _number(row["gap"], "inf"),
            *([risk] if with_risk else []),
            row["kind"],
            "yes" if row["vacuous"] else "no",
            row["predictor"],
            row["statement"],
        )
    return table


def _reasons(rows: list[dict[str, Any]]) -> list[str]:
    """Why the rows that are not applicable are not, each reason once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["failed_hypothesis"] is not None:
            rates = reasons.setdefault((row["failed_hypothesis"], row["remedy"]), [])
            if (rate := f"{row['dropout_rate']:.4g}") not in rates:
                rates.append(rate)
    return [
        f"not applicable at p = {', '.join(rates)}: it needs {failed}; {remedy}."
        for (failed, remedy), rates in reasons.items()
    ]


@app.command()
def bound(
    n_train: Annotated[str, typer.Option(help="Training examples, >= 1.")],
    dropout_rate: Annotated[str, typer.Option(help="p in [0, 1); for example 0,.1,.3")],
    lipschitz: Annotated[
        str, typer.Option(help="Lipschitz constant of the loss of one example, >= 0.")
    ],
    hessian_min_eig: Annotated[
        str, typer.Option(help="Smallest Hessian eigenvalue of the training risk.")
    ],
    penalty: Annotated[str, typer.Option(help="Weight lambda of the penalty, >= 0.")],
    loss_range: Annotated[str, typer.Option(help="Length of the interval of the loss, > 0.")],
    delta: Annotated[str, typer.Option(help="Failure probability, in (0, 1).")],
    empirical_risk: Annotated[
        str | None, typer.Option(help="Training risk, to get risks and not only gaps.")
    ] = None,
    certified: Annotated[
        bool, typer.Option("--certified", help="You vouch for the hypotheses and the numbers.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Generalization bounds of LoRA Dropout, from numbers.

    Every numeric option takes one number or a list separated by commas; lists have one length
    and run together.
    """
    flags = {
        "n_train": n_train,
        "dropout_rate": dropout_rate,
        "lipschitz": lipschitz,
        "hessian_min_eig": hessian_min_eig,
        "penalty": penalty,
        "loss_range": loss_range,
        "delta": delta,
    }
    if empirical_risk is not None:
        flags["empirical_risk"] = empirical_risk
    try:
        rows = _rows(_points(flags), certified)
    except (ValueError, TypeError) as error:
        _refuse("bound", error)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, allow_nan=False))
        return
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, _NARROWEST)
    console.print(_table(rows))
    for line in _reasons(rows):
        console.print()
        console.print(line)
    if not certified:
        console.print()
        console.print(
            "plug-in: nobody vouches for the hypotheses of the theorems. "
            "--certified says that you do; --json lists the sources."
        )


app.command()(audit)


def _unavailable(entry: EntryPoint, error: Exception) -> Callable[[], None]:
    """A stand-in, so that one broken package does not take the other commands with it."""

    def command() -> None:
        _refuse(entry.name, f"not available: {error}")

    command.__doc__ = "Not available here; run it to see why."
    return command


def add_commands(to: typer.Typer) -> None:
    """Register the commands that installed packages offer."""
    for entry in entry_points(group=GROUP):
        try:
            command = entry.load()
        except Exception as error:  # whatever a foreign module raises on import
            command = _unavailable(entry, error)
        to.command(entry.name)(command)


def main() -> None:
    """Entry point of the ``lodrop`` script."""
    add_commands(app)
    app(prog_name="lodrop")


if __name__ == "__main__":
    main()
