"""Rows of a benchmark, from local files of its own schema or from the hub."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


class BenchmarkDataError(ValueError):
    """The rows of a benchmark are not there, or not in its schema."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkRows:
    """The rows of one task.

    Attributes:
        train: Training rows.
        evaluation: Evaluation rows by the name of their split.
        examples: Solved rows that prompts may show; empty but for MMLU.
        source: Where they are from: 'files', or the data set on the hub.
        caveats: What was left out.
    """

    train: Sequence[Row]
    evaluation: Mapping[str, Sequence[Row]]
    examples: Sequence[Row] = ()
    source: str = "files"
    caveats: tuple[str, ...] = ()

    def first(self, n_rows: int | None) -> "BenchmarkRows":
        """The same with at most so many rows in each split; None keeps all."""
        if n_rows is None:
            return self
        note = f"only the first {n_rows} rows of each split"
        return replace(
            self,
            train=self.train[:n_rows],
            evaluation={name: rows[:n_rows] for name, rows in self.evaluation.items()},
            caveats=(*self.caveats, note),
        )

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that equal rows share, whatever file they came in."""
        content = hashlib.sha256()
        for rows in (self.train, *self.evaluation.values(), self.examples):
            for row in rows:
                content.update(json.dumps(row, sort_keys=True).encode())
            content.update(b"\n")
        return content.hexdigest()[:16]


def find_folder(files: Path, names: Sequence[str]) -> Path:
    """The folder of a benchmark: one of ``names``, in any case, or ``files`` itself.

    Raises:
        BenchmarkDataError: If ``files`` is no folder.
    """
    if not files.is_dir():
        raise BenchmarkDataError(f"`files` must be a folder, got {str(files)!r}.")
    wanted = {name.lower() for name in names}
    for folder in sorted(files.iterdir()):
        if folder.is_dir() and folder.name.lower() in wanted:
            return folder
    return files


def find_file(folder: Path, names: Sequence[str], *, what: str) -> Path:
    """The first file of a folder that matches one of several patterns.

    Args:
        folder: Where to look.
        names: Patterns, in the order of preference.
        what: What is looked for, for the error's text.

    Raises:
        BenchmarkDataError: If there is none.
    """
    for name in names:
        if found := sorted(folder.glob(name)):
            return found[0]
    raise BenchmarkDataError(
        f"{folder} must hold {what} as one of {', '.join(names)}; with the package `datasets` and "
        "a hub at hand (or its cache), leave `--files` out to load it from there."
    )


def read_table(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a table, one dictionary each.

    Args:
        path: ``.parquet``, ``.jsonl``, ``.json`` (a list), ``.csv`` (quoted) or ``.tsv`` and
            ``.txt`` (tabs, quotes are text, as GLUE's own files have it).
        columns: Names of the columns where the file has no heading; else the heading has them.

    Raises:
        BenchmarkDataError: If the file is of another kind.
        ImportError: If a parquet file needs a package that is not installed.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
    elif path.suffix == ".json":
        yield from json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix in (".csv", ".tsv", ".txt"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from csv.DictReader(file, fieldnames=columns)
            else:
                yield from csv.DictReader(
                    file, fieldnames=columns, delimiter="\t", quoting=csv.QUOTE_NONE
                )
    else:
        raise BenchmarkDataError(
            f"{path} must be a .parquet, .jsonl, .json, .csv, .tsv or .txt file."
        )


def _parquet(path: Path) -> list[dict[str, Any]]:
    if find_spec("pyarrow") is None:
        raise ImportError(f"{path} needs pyarrow: pip install pyarrow", name="pyarrow")
    from pyarrow import parquet  # type: ignore[import-untyped]

    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def hub_rows(data: str, split: str) -> list[Row]:
    """One split of a data set on the hub, or in its cache.

    Args:
        data: Its name, and the configuration after a colon.
        split: The split.

    Raises:
        BenchmarkDataError: If it cannot be had; the text names the other way.
    """
    name, _, configuration = data.partition(":")
    ways = (
        f"{data!r} must come from the hub (pip install datasets; online, or with its cache), or "
        "from local files of the benchmark's own schema: `--files FOLDER`"
    )
    if find_spec("datasets") is None:
        raise BenchmarkDataError(f"{ways}. The package `datasets` is not installed.")
    from datasets import load_dataset

    try:
        return list(load_dataset(name, configuration or None, split=split))
    except Exception as error:  # of several networking packages
        reason = str(error).strip().splitlines()
        raise BenchmarkDataError(
            f"{ways}. The hub said: {reason[0] if reason else type(error).__name__}"
        ) from error
