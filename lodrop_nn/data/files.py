"""Labelled texts of one's own, from JSON-lines or CSV files."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lodrop_nn.data.classification import TextClassificationData

_Label = int | str


@dataclass(frozen=True)
class _Row:
    where: str
    text: str
    label: _Label
    vote_share: float | None


def load_rows(
    file: str | os.PathLike[str],
    *,
    n_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> TextClassificationData:
    r"""The labelled texts of one file, each text once.

    Args:
        file: ``.jsonl`` (one JSON object per line) or ``.csv`` (with a heading), in UTF-8. Each
            row has a ``text`` and a ``label``, a whole number >= 0 or the name of a class; a
            ``vote_share`` in [0, 1] (of human votes for class 1) in all rows or in none. Other
            fields are passed over.
        n_classes: K >= 2; None takes what the labels say.
        class_names: The K names of the classes in the order of the model's outputs; None takes
            names in alphabetical order. Labels that are numbers stay what they are.

    Returns:
        The rows in the order of the file; of repeated texts the first counts, and ``caveats`` says
        how many were left out.

    Raises:
        ValueError: If the file is missing, empty or of another kind, or a row has no text, no
            label, or a label that is no class; the text names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "rows.csv")
        ...     _ = file.write_text("text,label\nA fine film.,good\nDull.,bad\n")
        ...     rows = load_rows(file)
        >>> rows.texts, rows.labels.tolist(), rows.caveats
        (('A fine film.', 'Dull.'), [1, 0], ('Classes: 0 = bad, 1 = good.',))
    """
    path = Path(file)
    rows = _read(path)
    first: dict[str, _Row] = {}
    for row in rows:
        first.setdefault(row.text, row)
    data = _data(list(first.values()), _classes(rows, n_classes, class_names), path.name)
    if not (left_out := len(rows) - len(first)):
        return data
    other = sum(row.label != first[row.text].label for row in rows)
    caveat = (
        f"{left_out} of the {len(rows)} rows of {path.name} repeat a text and were left out, "
        f"{other} of them with another label."
    )
    return replace(data, caveats=(*data.caveats, caveat))


def load_split(
    folder: str | os.PathLike[str],
    *,
    n_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[TextClassificationData, TextClassificationData]:
    """The training and the held-out rows of a folder, all of them, as they are.

    Args:
        folder: Holds ``train`` and ``test``, each as ``.jsonl`` or ``.csv``; see
            :func:`load_rows`. ``train`` must be the rows that the adapter was trained on, ``test``
            rows that no choice has seen.
        n_classes: K >= 2; None takes what the labels of both say.
        class_names: As for :func:`load_rows`.

    Returns:
        (training rows, held-out rows). Where held-out texts also stand in the training rows, the
        ``caveats`` of both say so.

    Raises:
        ValueError: If a file is missing, or its rows are refused as by :func:`load_rows`.
    """
    path = Path(folder)
    parts = {name: _read(_file_of(path, name)) for name in ("train", "test")}
    classes = _classes([*parts["train"], *parts["test"]], n_classes, class_names)
    train, test = (_data(rows, classes, path.name) for rows in parts.values())
    if (train.vote_shares is None) != (test.vote_shares is None):
        raise ValueError(f"`vote_share` must be in train and test of {path}, or in neither.")
    seen = set(train.texts)
    if not (again := sum(text in seen for text in test.texts)):
        return train, test
    caveats = (
        *train.caveats,
        f"{again} of the {len(test)} held-out texts also stand in the training rows. Bounds from "
        "held-out rows need rows that training has not seen: they hold only if these are chance "
        "repeats among independent rows, not copies.",
    )
    return replace(train, caveats=caveats), replace(test, caveats=caveats)


def _file_of(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{end}" for end in _READERS if (folder / f"{name}{end}").is_file()]
    if len(found) != 1:
        kinds = " or ".join(f"{name}{end}" for end in _READERS)
        held = "both" if found else "neither"
        raise ValueError(f"{folder} must hold {kinds}, got {held}.")
    return found[0]


def _read(path: Path) -> list[_Row]:
    if path.suffix not in _READERS or not path.is_file():
        raise ValueError(f"`file` must be an existing {' or '.join(_READERS)} file, got {path}.")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # no newline is translated
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text: {error}.") from error
    try:
        lines = list(_READERS[path.suffix](text))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    rows = [_row(f"{path}, line {line}", fields) for line, fields in lines]
    if not rows:
        raise ValueError(f"{path} must hold at least one row, got none.")
    with_votes = [row.vote_share is not None for row in rows]
    if any(with_votes) and not all(with_votes):
        where = rows[with_votes.index(False)].where
        raise ValueError(f"{where}: `vote_share` must be in every row or in none.")
    return rows


def _json_lines(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                fields = json.loads(content)
            except ValueError:
                fields = None
            yield line, fields if isinstance(fields, dict) else {"": content}


def _csv_rows(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} must be CSV: {error}.") from error


_READERS: Mapping[str, Callable[[str], Iterator[tuple[int, Mapping[str, Any]]]]] = {
    ".jsonl": _json_lines,
    ".csv": _csv_rows,
}


def _row(where: str, fields: Mapping[str, Any]) -> _Row:
    if set(fields) == {""}:
        raise ValueError(f"{where}: a row must be a JSON object, got {fields['']!r}.")
    if fields.get("text_pair"):
        raise ValueError(f"{where}: `text_pair` must be absent: pairs of texts are not supported.")
    text, label = fields.get("text"), fields.get("label")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: `text` must be a text that is not empty, got {text!r}.")
    if isinstance(label, str):
        label = label.strip()
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise ValueError(
            f"{where}: `label` must be a whole number or the name of a class, got {label!r}."
        )
    share = fields.get("vote_share")
    try:
        votes = None if share is None or share == "" else float(share)
    except (TypeError, ValueError):
        votes = float("nan")
    if votes is not None and not 0.0 <= votes <= 1.0:
        raise ValueError(f"{where}: `vote_share` must be in [0, 1], got {share!r}.")
    return _Row(where, text, label, votes)


@dataclass(frozen=True)
class _Classes:
    count: int
    names: tuple[str, ...] | None  # None: labels are numbers

    def index(self, row: _Row) -> int:
        if self.names is None:
            number = int(row.label)
            if not 0 <= number < self.count:
                raise ValueError(
                    f"{row.where}: `label` must be in [0, {self.count}), got {number}."
                )
            return number
        if str(row.label) not in self.names:
            raise ValueError(
                f"{row.where}: `label` must be one of {self.names}, got {row.label!r}."
            )
        return self.names.index(str(row.label))


def _classes(
    rows: Sequence[_Row], n_classes: int | None, class_names: Sequence[str] | None
) -> _Classes:
    names = tuple(class_names or ())
    if class_names is not None and (len(set(names)) != len(names) or len(names) < 2):
        raise ValueError(f"`class_names` must be two or more distinct names, got {names}.")
    if all(_is_number(row.label) and str(row.label) not in names for row in rows):
        largest = max(int(row.label) for row in rows)
        return _Classes(max(2, largest + 1) if n_classes is None else n_classes, None)
    if class_names is None:
        names = tuple(sorted({str(row.label) for row in rows}))
        if len(names) < 2:
            raise ValueError(f"labels must be of two or more classes, got {names[0]!r} only.")
    if n_classes is not None and len(names) != n_classes:
        raise ValueError(
            f"`class_names` must be the {n_classes} names of the model's outputs in their order, "
            f"got {', '.join(names)}."
        )
    return _Classes(len(names), names)


def _is_number(label: _Label) -> bool:
    return isinstance(label, int) or re.fullmatch(r"-?\d+", label) is not None


def _data(rows: Sequence[_Row], classes: _Classes, name: str) -> TextClassificationData:
    labels = np.array([classes.index(row) for row in rows], dtype=np.int64)
    votes = [row.vote_share for row in rows]
    named = classes.names and ", ".join(f"{k} = {name}" for k, name in enumerate(classes.names))
    return TextClassificationData(
        texts=tuple(row.text for row in rows),
        labels=labels,
        vote_shares=None if votes[0] is None else np.array(votes, dtype=np.float64),
        name=name,
        n_classes=classes.count,
        source=f"the user's own file {name}",
        licence_note="not known",
        caveats=(f"Classes: {named}.",) if named else (),
    )
