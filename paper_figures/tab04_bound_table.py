"""Table 4: every source of a stability against every form of a bound, on one measured run.

Reads   paper_figures/records/measured/*.json, the one at p = 0.5
Writes  paper_figures/out/tab04_bound_table.{csv,md}
Run     python -m paper_figures.tab04_bound_table     (CPU, seconds)
"""

import re
from pathlib import Path

from lodrop_theory import RunRecord, StabilityTable, bound_table
from lodrop_theory.records import write_bytes_atomically
from lodrop_theory.stability_table import LEGEND
from paper_figures._comparison import DELTA, OUT, write_csv
from paper_figures._measured import RECORDS, read

NAME = Path(__file__).stem
RATE = 0.5
HEAD = ("source", "title", "form", "value", "kind", "reason")
GAP = "measured gap"


def record(records: Path = RECORDS) -> RunRecord:
    """The run at p = 0.5."""
    (found,) = (run for run in read(records) if run.dropout_rate == RATE)
    return found


def compute(records: Path = RECORDS) -> StabilityTable:
    """The table of that run."""
    return bound_table(record(records), delta=DELTA)


def rows(table: StabilityTable) -> list[tuple[object, ...]]:
    """One row per cell, then the measured gap with its interval; no number where there is none."""
    gap = table.gap
    found = [tuple("" if row[k] is None else row[k] for k in HEAD) for row in table.rows()]
    ends = (("", gap.value), (", lower end", gap.low), (", upper end", gap.high))
    return [
        *found,
        *((GAP, gap.method, f"gap{end}", value, gap.provenance, "") for end, value in ends),
    ]


def as_markdown(table: StabilityTable) -> str:
    """The table as text, what its marks mean, and why cells have no number."""
    head, body = table.texts()
    gap = table.gap
    lines = [
        f"p = {RATE:g}, δ = {table.delta:g}; measured gap {gap.value:.3f} "
        f"[{gap.lower:.3f}, {gap.upper:.3f}] nats",
        "",
        *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)),
        "",
        f"{_escaped(LEGEND)}.",
        "",
        *(f"- {_escaped(note)}" for note in table.notes()),
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Markdown's own marks, where they stand for themselves."""
    return re.sub(r"([_*<>|~])", r"\\\1", text)


def main(records: Path = RECORDS, out: Path = OUT) -> None:
    """Write both forms."""
    table = compute(records)
    write_csv(out / f"{NAME}.csv", [HEAD, *rows(table)])
    write_bytes_atomically(out / f"{NAME}.md", as_markdown(table).encode("utf-8"))


if __name__ == "__main__":
    main()
