"""Table 1: risks, scores, measured quantities, bounds and paired differences per dropout rate.

Reads   paper_figures/records/movie-reviews/*.json
Writes  paper_figures/out/tab01_comparison-<n>.csv, one file per table
Run     python -m paper_figures.tab01_comparison     (CPU, seconds)
"""

from pathlib import Path

from lodrop_nn.report.tables import Table, all_tables
from paper_figures._comparison import OUT, RECORDS, summaries, write_csv

NAME = Path(__file__).stem


def rows(table: Table) -> list[tuple[str, ...]]:
    """One table with a head, as the CSV holds it; line breaks become spaces."""
    return [tuple(c.replace("\n", " ") for c in row) for row in (table.columns, *table.rows)]


def main(records: Path = RECORDS, out: Path = OUT) -> None:
    """Write each table."""
    for number, table in enumerate(all_tables(summaries(records)), start=1):
        write_csv(out / f"{NAME}-{number}.csv", rows(table))


if __name__ == "__main__":
    main()
