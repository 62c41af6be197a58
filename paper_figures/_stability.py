"""The committed runs of the stability sweep: by dropout rate and seed."""

from pathlib import Path

from lodrop_theory import RunRecord, read_record
from paper_figures._comparison import HERE

RECORDS = HERE / "records" / "stability"


def read(records: Path = RECORDS) -> list[RunRecord]:
    """The records, by dropout rate and seed."""
    found = [read_record(path) for path in records.glob("*.json")]
    return sorted(found, key=lambda run: (run.dropout_rate, run.config["seed"]))


def rates(runs: list[RunRecord]) -> list[float]:
    """Their dropout rates, ascending."""
    return sorted({run.dropout_rate for run in runs})
