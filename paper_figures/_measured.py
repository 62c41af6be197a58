"""The committed full measurements, one per dropout rate: where they lie, and their order."""

from pathlib import Path

from lodrop_theory import RunRecord, read_record
from paper_figures._comparison import HERE

RECORDS = HERE / "records" / "measured"


def read(records: Path = RECORDS) -> list[RunRecord]:
    """The records by dropout rate.

    Args:
        records: Their folder.

    Raises:
        ValueError: If two of them share a dropout rate.
    """
    found = sorted((read_record(path) for path in records.glob("*.json")), key=_rate)
    rates = [_rate(record) for record in found]
    if len(set(rates)) < len(rates):
        raise ValueError(f"`records` must hold one record per dropout rate, got rates {rates}.")
    return found


def _rate(record: RunRecord) -> float:
    return record.dropout_rate
