"""The same sweep on a Ray cluster of two nodes, one of which is killed."""

import importlib.util
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from lodrop_nn.sweep.engine_local import run_sweep
from lodrop_nn.sweep.engine_ray import run_sweep_on_ray
from lodrop_nn.sweep.store import RecordStore
from tests.nn.sweep_runs import SWEEP, noted_runs, pretend

IDS = [run.run_id for run in SWEEP.runs()]
has_ray = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not has_ray, reason="ray is not installed")


@pytest.mark.skipif(has_ray, reason="ray is installed")
def test_without_ray_the_error_says_what_to_install(tmp_path: Path):
    with pytest.raises(ImportError, match=r"pip install 'lodrop\[distributed\]'"):
        run_sweep_on_ray(SWEEP, RecordStore(str(tmp_path)))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch):
    """Two nodes of one core each, on this machine; the driver is on a third without cores."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("SWEEP_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield made, nodes
    ray.shutdown()
    made.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_node_that_dies_loses_no_run(cluster, tmp_path: Path):
    made, nodes = cluster
    store = RecordStore(str(tmp_path / "store"), lease_seconds=20.0)
    at_death: list[set[str]] = []

    def kill_one():
        while len(store.names()) < 3:
            time.sleep(0.05)
        made.remove_node(nodes[1], allow_graceful=False)
        at_death.append(store.names())

    killer = threading.Thread(target=kill_one)
    killer.start()
    status = run_sweep_on_ray(SWEEP, store, num_cpus=0.5, max_replicas=1, execute=slowly)
    killer.join()
    assert 3 <= len(at_death[0]) < len(IDS)
    assert not status.left
    assert store.names() == set(IDS)
    begun = Counter(noted_runs("begin"))
    assert set(begun) == set(IDS)
    # Two runs at most were in work on the node: two tasks share its core.
    assert sum(begun.values()) <= len(IDS) + 2
    assert all(begun[run_id] == 1 for run_id in at_death[0])
    # The local engine finds nothing left to do.
    assert not run_sweep(SWEEP, store, execute=pretend).left
    assert Counter(noted_runs("begin")) == begun


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="`store` must be one that all nodes see"):
        run_sweep_on_ray(SWEEP, RecordStore("memory://"))
    with pytest.raises(ValueError, match="`num_cpus` must be > 0"):
        run_sweep_on_ray(SWEEP, RecordStore(str(tmp_path)), num_cpus=0.0)


def slowly(runs, *, on_progress=None):
    """As `pretend`; the nodes were started with the log in their environment."""
    os.environ["SWEEP_SECONDS"] = "0.7"
    return pretend(runs, on_progress=on_progress)
