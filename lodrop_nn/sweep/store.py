"""The records of a sweep, on any path that fsspec knows."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from lodrop_nn.sweep.grid import SweepConfig
from lodrop_nn.sweep.leases import Leases
from lodrop_theory.records import RecordError, content_hash, write_bytes_atomically


class RecordStore:
    """One JSON file per finished run, ``<run_id>.json``, with its digest.

    A file appears whole or not at all. Beside the records lie ``claims`` (who does which run),
    ``failures`` (runs that ended in an error), ``damaged`` (records whose digest did not match) and
    ``sweeps`` (the declarations).

    Args:
        path: A folder: a local path or any URL of fsspec ('memory://...', 's3://...' with s3fs).
        lease_seconds: How long a run stays claimed by a worker that has gone silent, > 0.

    Attributes:
        url: The path with its protocol, absolute; it names the same folder in every process.
        leases: Claims on runs.

    Example:
        >>> store = RecordStore("memory://example")
        >>> store.write("0123456789ab", {"value": 1})
        >>> store.read("0123456789ab")
        {'value': 1}
    """

    def __init__(self, path: str, *, lease_seconds: float = 60.0) -> None:
        fs, root = url_to_fs(str(path))
        self._fs: AbstractFileSystem = fs
        self._root: str = root.rstrip("/")
        self.url = str(fs.unstrip_protocol(self._root))
        self.leases = Leases(fs, f"{self._root}/claims", seconds=lease_seconds)

    @property
    def is_shared(self) -> bool:
        """Whether other processes see it."""
        return not isinstance(self._fs, MemoryFileSystem)

    def names(self) -> set[str]:
        """Runs that have a file, sound or not."""
        return {path.stem for path in self._listed("") if path.suffix == ".json"}

    def read(self, run_id: str) -> dict[str, Any]:
        """A record, without its digest.

        Raises:
            FileNotFoundError: If there is none.
            RecordError: If the file is truncated, was edited or is another run's.
        """
        path = self._path(run_id)
        try:
            content = json.loads(self._fs.cat_file(path))
        except ValueError as error:
            raise RecordError(f"{path} must be a complete JSON record, got {error}.") from error
        if not isinstance(content, dict) or content.pop("digest", None) != content_hash(content):
            raise RecordError(f"{path} was edited after it was written: its `digest` is wrong.")
        if content.get("run_id", run_id) != run_id:
            raise RecordError(f"{path} must be the record of run {run_id}, got another's.")
        return content

    def is_done(self, run_id: str) -> bool:
        """Whether a run has a sound record; one that is damaged is still to do."""
        try:
            self.read(run_id)
        except (FileNotFoundError, RecordError):
            return False
        return True

    def set_aside(self, run_id: str) -> None:
        """Move a record that cannot be trusted to ``damaged``; for who holds the run's lease."""
        if run_id in self.names():
            target = f"{self._root}/damaged/{run_id}-{uuid.uuid4().hex[:8]}.json"
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.mv(self._path(run_id), target)

    def write(self, run_id: str, content: Mapping[str, Any]) -> None:
        """Keep a record, with its digest; it appears whole, or not at all.

        Args:
            run_id: The run.
            content: JSON-able; numbers are finite.
        """
        record = json.loads(json.dumps(content, allow_nan=False))
        record["digest"] = content_hash(record)
        self._write(self._path(run_id), record)

    def declare(self, sweep: SweepConfig) -> None:
        """Keep the declaration beside the records."""
        content = {**sweep.as_json(), "run_ids": [run.run_id for run in sweep.runs()]}
        self._write(f"{self._root}/sweeps/{sweep.sweep_id}.json", content)

    def note_failure(self, run_id: str, error: BaseException) -> None:
        """Note that a run ended in an error."""
        content = {"run_id": run_id, "error": f"{type(error).__name__}: {error}"}
        self._write(f"{self._root}/failures/{run_id}.json", content)

    def has_failed(self, run_id: str) -> bool:
        """Whether a run ended in an error."""
        return bool(self._fs.exists(f"{self._root}/failures/{run_id}.json"))

    def failures(self) -> dict[str, str]:
        """Runs that ended in an error, with its text."""
        texts = {path.stem: self._fs.cat_file(str(path)) for path in self._listed("failures")}
        return {run_id: str(json.loads(text)["error"]) for run_id, text in texts.items()}

    def forget_failures(self, run_ids: Iterable[str]) -> None:
        """Let runs be tried again."""
        noted = {path.stem: str(path) for path in self._listed("failures")}
        for run_id in set(run_ids) & set(noted):
            self._fs.rm_file(noted[run_id])

    def damaged(self) -> list[str]:
        """Names of the files that were set aside."""
        return sorted(path.name for path in self._listed("damaged"))

    def _path(self, run_id: str) -> str:
        return f"{self._root}/{run_id}.json"

    def _listed(self, folder: str) -> Sequence[Path]:
        place = f"{self._root}/{folder}".rstrip("/")
        self._fs.invalidate_cache(place)
        try:
            listed = self._fs.ls(place, detail=False)
        except FileNotFoundError:
            return []
        paths = [Path(path) for path in listed]
        return [path for path in paths if path.suffix == ".json" and path.name[0] != "."]

    def _write(self, path: str, content: Mapping[str, Any]) -> None:
        data = (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
        if isinstance(self._fs, LocalFileSystem):
            write_bytes_atomically(path, data)
            return
        # One request puts an object whole; elsewhere the move makes it appear whole.
        folder, _, name = path.rpartition("/")
        hidden = f"{folder}/.{name}.{uuid.uuid4().hex}"
        self._fs.makedirs(folder, exist_ok=True)
        self._fs.pipe_file(hidden, data)
        self._fs.mv(hidden, path)
