"""The committed comparison: where its records lie and how they are summarized."""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from lodrop_nn.report.summary import RateSummary, summarize
from lodrop_theory import read_record
from lodrop_theory.records import write_bytes_atomically

HERE = Path(__file__).parent
RECORDS = HERE / "records" / "movie-reviews"
OUT = HERE / "out"
BENCHMARKS = HERE.parent / "tests" / "benchmarks" / "records"
DELTA = 0.05


def summaries(folder: Path = RECORDS) -> list[RateSummary]:
    """The comparison on movie reviews, summarized per dropout rate."""
    return summarize([read_record(path) for path in sorted(folder.glob("*.json"))], delta=DELTA)


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write rows as CSV, atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_bytes_atomically(path, text.getvalue().encode("utf-8"))


def write_points(path: Path, points: Sequence[Any]) -> None:
    """Write points of one dataclass as CSV, a column per field, atomically."""
    head = tuple(field.name for field in fields(points[0]))
    write_csv(path, [head, *(astuple(point) for point in points)])
