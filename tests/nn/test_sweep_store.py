"""The store: whole records or none, and one worker per run."""

import json
import os
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from lodrop_nn.sweep.leases import Leases, _start_of, is_gone, this_process
from lodrop_nn.sweep.store import RecordStore
from lodrop_theory import RecordError, read_record
from tests.factories import run_record

RUN = "0123456789ab"


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path: Path) -> RecordStore:
    """A fresh store on each kind of file system that is at hand."""
    if request.param == "memory":
        return RecordStore(f"memory://{uuid.uuid4().hex}/records")
    return RecordStore(tmp_path.as_uri() + "/records")


class Clock:
    """Seconds that pass when a test says so."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


def leases_of(store: RecordStore, clock: Clock, seconds: float = 10.0) -> Leases:
    return Leases(store._fs, f"{store._root}/claims", seconds=seconds, clock=clock)


def test_a_record_comes_back_as_it_was(store: RecordStore):
    assert not store.is_done(RUN)
    store.write(RUN, {"run_id": RUN, "values": [1.5, None]})
    assert store.is_done(RUN)
    assert store.names() == {RUN}
    again = RecordStore(store.url)
    assert again.read(RUN) == {"run_id": RUN, "values": [1.5, None]}
    assert again.url == store.url


def test_a_full_record_is_one_that_read_record_knows(tmp_path: Path):
    record, store = run_record(0.3, 0), RecordStore(str(tmp_path))
    store.write(record.run_id, asdict(record))
    assert read_record(tmp_path / f"{record.run_id}.json") == record


@pytest.mark.parametrize("damage", ["truncated", "edited", "another run's", "not an object"])
def test_a_damaged_record_is_not_done_and_is_kept_aside(store: RecordStore, damage: str):
    store.write(RUN, {"run_id": RUN, "value": 1})
    path = f"{store._root}/{RUN}.json"
    text = store._fs.cat_file(path).decode()
    if damage == "truncated":
        text = text[: len(text) // 2]
    elif damage == "edited":
        text = text.replace('"value": 1', '"value": 2')
    elif damage == "another run's":
        store.write("f" * 12, {"run_id": "f" * 12})
        text = store._fs.cat_file(f"{store._root}/{'f' * 12}.json").decode()
    else:
        text = "[]"
    store._fs.pipe_file(path, text.encode())
    assert not store.is_done(RUN)
    with pytest.raises(RecordError, match=RUN):
        store.read(RUN)
    store.set_aside(RUN)
    assert RUN not in store.names()
    assert [name[:12] for name in store.damaged()] == [RUN]
    store.set_aside(RUN)  # nothing is left to set aside
    assert len(store.damaged()) == 1


def test_numbers_that_json_does_not_know_are_refused(store: RecordStore):
    with pytest.raises(ValueError, match="JSON"):
        store.write(RUN, {"value": float("nan")})
    assert not store.names()


def test_failures_are_kept_until_they_are_forgotten(store: RecordStore):
    store.note_failure(RUN, ValueError("why"))
    assert store.has_failed(RUN)
    assert store.failures() == {RUN: "ValueError: why"}
    assert not store.names()
    store.forget_failures([RUN, "f" * 12])
    assert store.failures() == {}


def test_a_store_in_memory_is_not_shared(tmp_path: Path):
    assert not RecordStore("memory://anything").is_shared
    assert RecordStore(str(tmp_path)).is_shared


# -- leases ----------------------------------------------------------------------------------


def test_a_run_is_held_by_one(store: RecordStore):
    one, other = (leases_of(store, clock) for clock in (Clock(), Clock()))
    lease = one.take(RUN)
    assert lease is not None
    assert other.take(RUN) is None
    assert other.is_taken(RUN)
    assert other.take("f" * 12) is not None
    one.release(lease)
    assert not other.is_taken(RUN)
    assert other.take(RUN) is not None


def test_a_lease_that_was_not_renewed_is_taken_over_once(store: RecordStore):
    clock = Clock()
    leases = leases_of(store, clock)
    first = leases.take(RUN)
    assert first is not None
    clock.now += 9
    assert leases.renew(first)
    clock.now += 9
    assert leases.take(RUN) is None
    clock.now += 2
    second = leases.take(RUN)
    assert second is not None
    assert leases.take(RUN) is None
    assert not leases.renew(first)
    leases.release(first)  # not its own any more
    assert leases.is_taken(RUN)
    assert leases.renew(second)


def test_a_claim_that_nobody_finished_writing_ends_too(tmp_path: Path):
    store, clock = RecordStore(str(tmp_path)), Clock()
    leases = leases_of(store, clock)
    path = tmp_path / "claims" / f"{RUN}.0"
    path.parent.mkdir()
    path.touch()
    os.utime(path, (clock.now, clock.now))
    assert leases.take(RUN) is None
    clock.now += 11
    assert leases.take(RUN) is not None


def test_two_generations_of_claims_leave_at_most_one_holder(store: RecordStore):
    """A worker that saw an old claim creates another generation than one that saw none."""
    leases = leases_of(store, Clock())
    lease = leases.take(RUN)
    assert lease is not None
    late = f"{store._root}/claims/{RUN}.5"
    content = {"owner": "late", "expires": Clock.now + 10, **this_process()}
    store._fs.pipe_file(late, json.dumps(content).encode())
    assert leases.take(RUN) is None
    leases.release(lease)
    assert leases.take(RUN) is None


def test_of_many_at_once_one_gets_the_run(tmp_path: Path):
    stores = [RecordStore(str(tmp_path)) for _ in range(8)]
    for attempt in range(10):
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(store.leases.take, f"{attempt:012d}") for store in stores]
        taken = [each.result() for each in asked]
        assert sum(lease is not None for lease in taken) == 1


def test_the_claim_of_a_process_that_is_gone_is_void_at_once(tmp_path: Path):
    code = (
        "import sys; from lodrop_nn.sweep.store import RecordStore; "
        f"assert RecordStore(sys.argv[1]).leases.take('{RUN}') is not None"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    store = RecordStore(str(tmp_path))
    assert list((tmp_path / "claims").iterdir())
    assert not store.leases.is_taken(RUN)
    assert store.leases.take(RUN) is not None


def test_a_process_is_told_from_others():
    here = this_process()
    assert not is_gone(here)
    assert not is_gone({**here, "machine": "another", "pid": 2**22 + 1})
    assert is_gone({**here, "pid": 2**22 + 1})
    if here["started"] is not None:  # where the system tells it
        assert is_gone({**here, "started": "long ago"})  # its number is used again


@pytest.mark.skipif(this_process()["started"] is None, reason="the system does not tell")
def test_a_process_that_waits_to_be_reaped_is_gone():
    process = subprocess.Popen(["sleep", "60"])
    other = {**this_process(), "pid": process.pid, "started": _start_of(process.pid)}
    assert not is_gone(other)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(other)
    process.wait()


def test_renewing_keeps_leases_and_gives_them_back(tmp_path: Path):
    store = RecordStore(str(tmp_path), lease_seconds=0.4)
    lease = store.leases.take(RUN)
    assert lease is not None
    with store.leases.renewing([lease]):
        for _ in range(4):
            time.sleep(0.2)
            assert RecordStore(str(tmp_path), lease_seconds=0.4).leases.take(RUN) is None
    assert not store.leases.is_taken(RUN)
    assert not list((tmp_path / "claims").iterdir())


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_lease_has_a_length(seconds: float, tmp_path: Path):
    with pytest.raises(ValueError, match="`seconds`"):
        RecordStore(str(tmp_path), lease_seconds=seconds)
