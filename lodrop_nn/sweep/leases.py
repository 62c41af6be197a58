"""Who is doing which run: leases that a killed worker cannot keep.

A claim is a small file ``<run_id>.<generation>``. It is created exclusively, says until when it is
good, and is renewed while its worker lives. A claim is void when its time is over, or at once when
it was made on this machine by a process that is gone. Whoever takes a void claim over creates the
next generation, which only one can.

A claim is void by the reader's clock: machines that share a store must agree on the time to well
within the lease.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from lodrop_theory.records import content_hash, write_bytes_atomically


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A run that this process may do.

    Attributes:
        run_id: The run.
        path: Of the claim.
        owner: Names this lease.
    """

    run_id: str
    path: str
    owner: str


class Leases:
    """Claims on runs, in a folder of any fsspec file system.

    Args:
        fs: The file system. Exclusive creation and listings that show what was written are its
            part: local files, memory and object stores with conditional writes have both. Where
            they are missing, two workers may do the same run; its record is still one file.
        folder: Where the claims lie.
        seconds: How long a claim is good without renewal, > 0.
        clock: Seconds since the epoch.

    Raises:
        ValueError: If ``seconds`` is outside its range.
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        folder: str,
        *,
        seconds: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0.0 < seconds < float("inf"):
            raise ValueError(f"`seconds` must be finite and > 0, got {seconds!r}.")
        self._fs, self._folder, self.seconds, self._clock = fs, folder, seconds, clock

    def take(self, run_id: str) -> Lease | None:
        """Claim a run; None if somebody has it.

        The record must be looked for once more after this: the run may have been finished, and its
        claim given back, since it was looked for before.
        """
        claims = self._claims(run_id)
        if any(self._is_good(*claim) for claim in claims.values()):
            return None
        number = max((_generation(path) for path in claims), default=-1) + 1
        lease = Lease(
            run_id=run_id, path=f"{self._folder}/{run_id}.{number}", owner=uuid.uuid4().hex
        )
        try:
            _create(self._fs, lease.path, self._content(lease))
        except FileExistsError:
            return None
        # A worker that saw other claims than we did may have created another generation.
        others = {path: c for path, c in self._claims(run_id).items() if path != lease.path}
        if any(self._is_good(*claim) for claim in others.values()):
            self.release(lease)
            return None
        for path in others:
            self._remove(path)
        return lease

    def is_taken(self, run_id: str) -> bool:
        """Whether somebody is doing a run."""
        return any(self._is_good(*claim) for claim in self._claims(run_id).values())

    def renew(self, lease: Lease) -> bool:
        """Make a claim good for another span; False if it was taken over."""
        content = self._read(lease.path)[0]
        if content is None or content.get("owner") != lease.owner:
            return False
        _overwrite(self._fs, lease.path, self._content(lease))
        return True

    def release(self, lease: Lease) -> None:
        """Give a run back, done or not."""
        content = self._read(lease.path)[0]
        if content is not None and content.get("owner") == lease.owner:
            self._remove(lease.path)

    @contextmanager
    def renewing(self, leases: Sequence[Lease]) -> Iterator[None]:
        """Renew leases from a thread inside the context, and release them at its end.

        Yields:
            Nothing.
        """
        ended = threading.Event()

        def renew() -> None:
            held = list(leases)
            while held and not ended.wait(self.seconds / 4):
                with suppress(Exception):  # a store out of reach may be back before the end
                    held = [lease for lease in held if self.renew(lease)]

        thread = threading.Thread(target=renew, name="lodrop-leases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            for lease in leases:
                self.release(lease)

    def _content(self, lease: Lease) -> bytes:
        content = {"owner": lease.owner, "expires": self._clock() + self.seconds, **this_process()}
        return json.dumps(content).encode()

    def _claims(self, run_id: str) -> dict[str, tuple[dict[str, Any] | None, float]]:
        """Claims on a run: what they say (None if it cannot be read) and when they were written."""
        self._fs.invalidate_cache(self._folder)
        try:
            listed = self._fs.ls(self._folder, detail=False)
        except FileNotFoundError:
            return {}
        paths = [str(path) for path in listed if Path(path).name.startswith(f"{run_id}.")]
        read = {path: self._read(path) for path in paths if _generation(path) >= 0}
        return {path: claim for path, claim in read.items() if claim != (None, 0.0)}

    def _read(self, path: str) -> tuple[dict[str, Any] | None, float]:
        """What a claim says and when it was last written; (None, 0) if there is none."""
        try:
            text, written = self._fs.cat_file(path), self._fs.modified(path).timestamp()
        except FileNotFoundError:
            return None, 0.0
        try:
            content = json.loads(text)
        except ValueError:  # of somebody who is just writing it, or was killed then
            return None, written
        return (content if isinstance(content, dict) else None), written

    def _is_good(self, content: Mapping[str, Any] | None, written: float) -> bool:
        if content is None:
            return written + self.seconds > self._clock()
        return content["expires"] > self._clock() and not is_gone(content)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(path)


def this_process() -> dict[str, Any]:
    """What tells this process from any other, without names."""
    return {"machine": _machine(), "pid": os.getpid(), "started": _start_of(os.getpid())}


def is_gone(process: Mapping[str, Any]) -> bool:
    """Whether a process of this machine has ended; False for those of other machines.

    Args:
        process: What :func:`this_process` returned there.
    """
    if process["machine"] != _machine():
        return False
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return bool(_start_of(process["pid"]) != process["started"])


def _machine() -> str:
    """A hash that processes share exactly if their process ids mean the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        place = f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        place = f"{socket.gethostname()} {uuid.getnode()}"
    return content_hash({"machine": place})[:12]


def _start_of(pid: int) -> str | None:
    """When a process began, in ticks; 'ended' for one that only waits to be reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    after_name = status.rpartition(")")[2].split()
    return "ended" if after_name[0] in "ZX" else after_name[19]


def _generation(path: str) -> int:
    text = path.rpartition(".")[2]
    return int(text) if text.isdecimal() else -1


def _create(fs: AbstractFileSystem, path: str, content: bytes) -> None:
    """Create a file, or raise FileExistsError."""
    if isinstance(fs, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)
    else:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(path, content, mode="create")


def _overwrite(fs: AbstractFileSystem, path: str, content: bytes) -> None:
    if isinstance(fs, LocalFileSystem):
        write_bytes_atomically(path, content)
    else:
        fs.pipe_file(path, content)
