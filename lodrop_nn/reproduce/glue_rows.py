"""Rows of the eight GLUE tasks, from GLUE's own files, the hub's, or the hub."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lodrop_nn.reproduce.benchmark_rows import (
    BenchmarkDataError,
    BenchmarkRows,
    Row,
    find_file,
    find_folder,
    hub_rows,
    read_table,
)
from lodrop_nn.reproduce.preset import Preset

_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class _Schema:
    """Columns as the hub has them, and as GLUE's own files do where they differ."""

    texts: tuple[str, ...]
    folder: str
    classes: tuple[str, ...] = ("0", "1")  # none: a regression
    own_texts: tuple[str, ...] = ()
    own_label: str = "label"


_SCHEMAS: Mapping[str, _Schema] = {
    "mnli": _Schema(
        ("premise", "hypothesis"),
        "MNLI",
        ("entailment", "neutral", "contradiction"),
        ("sentence1", "sentence2"),
        "gold_label",
    ),
    "sst2": _Schema(("sentence",), "SST-2"),
    "cola": _Schema(("sentence",), "CoLA"),
    "qqp": _Schema(("question1", "question2"), "QQP", own_label="is_duplicate"),
    "qnli": _Schema(("question", "sentence"), "QNLI", _ENTAILMENT),
    "rte": _Schema(("sentence1", "sentence2"), "RTE", _ENTAILMENT),
    "mrpc": _Schema(
        ("sentence1", "sentence2"),
        "MRPC",
        own_texts=("#1 String", "#2 String"),
        own_label="Quality",
    ),
    "stsb": _Schema(("sentence1", "sentence2"), "STS-B", (), own_label="score"),
}
# GLUE's CoLA files have no heading.
_COLA_COLUMNS = ("source", "label", "mark", "sentence")


def n_outputs(task: str) -> int:
    """Width of a task's head: its classes, or 1 for a regression.

    Example:
        >>> [n_outputs(task) for task in ("mnli", "rte", "stsb")]
        [3, 2, 1]
    """
    return len(_SCHEMAS[task].classes) or 1


def evaluation_splits(task: str) -> tuple[str, ...]:
    """The splits whose labels are public; MNLI has two."""
    return ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)


def glue_rows_of_files(preset: Preset, files: Path) -> BenchmarkRows:
    """Rows from ``train`` and ``validation`` (or ``dev``) files of GLUE or of the hub's parquet.

    Args:
        preset: A GLUE task.
        files: Folder that holds a folder of the task, or its files.

    Raises:
        BenchmarkDataError: If a file is missing, or a column or a label is not of the schema.
    """
    schema, dropped = _SCHEMAS[preset.task], 0
    folder = find_folder(files, (preset.task, schema.folder))
    found = {}
    for split in ("train", *evaluation_splits(preset.task)):
        path = find_file(folder, _patterns(split), what=f"the {split} rows of {preset.task}")
        columns = _COLA_COLUMNS if preset.task == "cola" and path.suffix == ".tsv" else None
        if columns is not None and _has_heading(path):
            columns = None
        found[split], lost = _rows(schema, read_table(path, columns), str(path))
        dropped += lost
    return _collected(found, dropped, "files")


def glue_rows_of_hub(preset: Preset) -> BenchmarkRows:
    """The same rows from the hub.

    Raises:
        BenchmarkDataError: If it cannot be had, or a label is hidden.
    """
    schema, dropped, found = _SCHEMAS[preset.task], 0, {}
    for split in ("train", *evaluation_splits(preset.task)):
        found[split], lost = _rows(schema, hub_rows(preset.data, split), preset.data)
        dropped += lost
    return _collected(found, dropped, preset.data)


def _collected(found: dict[str, list[Row]], dropped: int, source: str) -> BenchmarkRows:
    caveats = (f"{dropped} rows that lack a text or a label were left out",) if dropped else ()
    train = found.pop("train")
    return BenchmarkRows(train=train, evaluation=found, source=source, caveats=caveats)


def _patterns(split: str) -> tuple[str, ...]:
    own = split.replace("validation", "dev")
    names = (split, own) if own != split else (split,)
    endings = [".parquet", "-*-of-*.parquet", ".jsonl", ".tsv", ".csv"]
    return tuple(f"{name}{ending}" for name in names for ending in endings)


def _has_heading(path: Path) -> bool:
    with path.open(encoding="utf-8-sig") as file:
        return "sentence" in file.readline().rstrip("\n").split("\t")


def _rows(schema: _Schema, rows: Iterable[Row], where: str) -> tuple[list[Row], int]:
    """Rows under one set of names, and how many were not whole (QQP's own files have some).

    Raises:
        BenchmarkDataError: If there is none.
    """
    whole: list[Row] = []
    dropped = 0
    names: tuple[str, ...] | None = None
    label = "label"
    for number, row in enumerate(rows, start=1):
        if names is None:
            names, label = _columns(schema, row, where)
        texts = [row[name] for name in names]
        if any(text is None for text in (*texts, row[label])):
            dropped += 1
            continue
        second = texts[1] if len(texts) == 2 else None
        value = _label(schema, row[label], f"{where}, row {number}")
        whole.append({"first": texts[0], "second": second, "label": value})
    if not whole:
        raise BenchmarkDataError(f"{where} must hold rows, got none.")
    return whole, dropped


def _columns(schema: _Schema, row: Row, where: str) -> tuple[tuple[str, ...], str]:
    texts = [each for each in (schema.texts, schema.own_texts) if each and set(each) <= set(row)]
    labels = [each for each in ("label", schema.own_label) if each in row]
    if not texts or not labels:
        raise BenchmarkDataError(
            f"{where} must have the columns {', '.join(schema.texts)} and label"
            + (f" (or {', '.join(schema.own_texts)})" if schema.own_texts else "")
            + (f" (or {schema.own_label})" if schema.own_label != "label" else "")
            + f", got {', '.join(map(str, row))}."
        )
    return texts[0], labels[0]


def _label(schema: _Schema, value: object, where: str) -> int | float:
    text = str(value)
    try:
        if not schema.classes:
            return float(text)
        if text in schema.classes:
            return schema.classes.index(text)
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < len(schema.classes):
        accepted = schema.classes or ("a number",)
        raise BenchmarkDataError(
            f"{where}: `label` must be one of {', '.join(accepted)}, or its index, got {value!r}."
        )
    return number
