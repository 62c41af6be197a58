"""Tables for a terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lodrop_nn.report.tables import Table


def show(tables: Sequence[Table], console: Console) -> None:
    """Print the tables on ``console``, each with its notes beneath."""
    for table in tables:
        drawn = RichTable(
            title=Text(table.title, style="bold"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1),
        )
        for head in table.columns:
            # A column without a head names its rows.
            drawn.add_column(Text(head), justify="right" if head else "left", no_wrap=True)
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        # Never drop a digit: a narrow terminal wraps lines, it does not cut cells.
        whole = console.measure(drawn, options=console.options.update(max_width=1000)).maximum
        Console(
            file=console.file,
            width=max(whole, console.width),
            force_terminal=console.is_terminal,
            no_color=console.no_color,
        ).print(drawn)
        for note in table.notes:
            console.print(Text(f"  {note}", style="dim"))
        console.print()
