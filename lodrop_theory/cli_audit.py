"""The command ``lodrop audit``: what a record's bounds rest on, side by side, and how loose."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lodrop_theory.assumptions import AssumptionTable
from lodrop_theory.assumptions import audit as audit_record
from lodrop_theory.records import read_record
from lodrop_theory.slack import Looseness, looseness
from lodrop_theory.stability_table import LEGEND, StabilityTable, bound_table

_STYLES = {"holds": "green", "violated": "red", "plug-in": "yellow", "unchecked": "dim"}


def audit(
    record: Annotated[Path, typer.Argument(help="A record, one JSON file.", show_default=False)],
    delta: Annotated[float, typer.Option(help="Failure probability, in (0, 1).")],
    remedies: Annotated[
        bool, typer.Option("--remedies", help="Say what would repair or decide each hypothesis.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Which hypotheses a run meets, every bound by its source, and how loose the theorem is.

    holds: proved, or exact by construction. violated: contradicted by the measured numbers.
    plug-in: a measured number speaks to it and proves nothing. unchecked: nothing in the record
    can speak to it.
    """
    try:
        run = read_record(record)
        hypotheses = audit_record(run)
        table = bound_table(run, delta=delta)
        slack = looseness(run, delta=delta)
    except (OSError, ValueError) as error:
        typer.echo(f"lodrop audit: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        content = {
            "run_id": run.run_id,
            "delta": delta,
            "hypotheses": hypotheses.rows(),
            "bounds": table.rows(),
            "looseness": slack.rows(),
        }
        typer.echo(json.dumps(content, indent=1, allow_nan=False))
        return
    console = Console(highlight=False, markup=False)
    counts: Counter[str] = Counter(each.status for each in hypotheses)
    console.print(
        f"Run {run.run_id}, p = {run.dropout_rate:g}, {run.n_train} training rows: of "
        f"{len(hypotheses)} hypotheses {', '.join(f'{counts[s]} {s}' for s in _STYLES)}",
        style="bold",
    )
    console.print(_hypotheses(hypotheses, remedies))
    console.print()
    _show(console, table, slack)


def _show(console: Console, table: StabilityTable, slack: Looseness) -> None:
    console.print(
        f"Bounds on the gap of the mean predictor, at delta = {table.delta:g}", style="bold"
    )
    console.print(_bounds(table))
    for line in (LEGEND, *table.notes()):
        console.print(line, style="dim")
    console.print()
    console.print("From Theorem 4.4 to the measured gap", style="bold")
    console.print(_slack(slack))
    console.print(slack.summary())


def _hypotheses(hypotheses: AssumptionTable, remedies: bool) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("hypothesis", ratio=2)
    shown.add_column("status", no_wrap=True)
    shown.add_column("what the run shows", ratio=5)
    for each in hypotheses:
        remedy = f"\n-> {each.remedy}" if remedies and each.remedy is not None else ""
        shown.add_row(
            each.name, each.status, f"{each.evidence}{remedy}", style=_STYLES[each.status]
        )
    return shown


def _bounds(table: StabilityTable) -> Table:
    heads, rows = table.texts()
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column(heads[0], no_wrap=True)
    for head in heads[1:]:
        shown.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown


def _slack(slack: Looseness) -> Table:
    heads, rows = slack.texts()
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for i, head in enumerate(heads):
        last = i == len(heads) - 1
        justify = "right" if i in (1, 2) else "left"
        shown.add_column(head, justify=justify, no_wrap=not last)  # type: ignore[arg-type]
    for row in rows:
        shown.add_row(*row)
    return shown


__all__ = ["audit"]
