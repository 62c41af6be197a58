"""A sweep on a Ray cluster: the units of the local engine, as remote tasks."""

from typing import Any

from rich.console import Console

from lodrop_nn._extras import require
from lodrop_nn.sweep.batching import run_unit, units_of
from lodrop_nn.sweep.grid import SweepConfig
from lodrop_nn.sweep.progress import SweepProgress
from lodrop_nn.sweep.status import SweepStatus, status_of
from lodrop_nn.sweep.store import RecordStore
from lodrop_nn.sweep.worker import Execute, Unit, work


def run_sweep_on_ray(
    sweep: SweepConfig,
    store: RecordStore,
    *,
    address: str | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    max_retries: int = 3,
    max_replicas: int = 8,
    execute: Execute = run_unit,
    console: Console | None = None,
) -> SweepStatus:
    """Do the runs of a sweep that have no sound record yet, as tasks of a Ray cluster.

    The store keeps the books, not the cluster: a task that Ray starts again on another node finds
    the records of the first attempt, waits until the lease of what was in work there has ended,
    and does the rest.

    Args:
        sweep: The declaration.
        store: Where the records are, and go; every node must see it.
        address: Of the cluster; None takes the one that this process is connected to, or starts one
            on this machine and stops it in the end.
        num_cpus: Cores that a task occupies, > 0; fractions share one.
        num_gpus: GPUs that a task occupies, >= 0; fractions share one.
        max_retries: Times that a task is started again when its node or process dies, >= 0.
        max_replicas: Runs that are trained in one pass, >= 1.
        execute: What does the runs of a unit.
        console: Where progress is drawn; None draws none.

    Returns:
        Where the sweep stands. Runs that failed are in it; they are tried again by the next call.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If an argument is outside its range, or the store is in this process's memory.
    """
    require("distributed")
    import ray

    if not store.is_shared:
        raise ValueError(f"`store` must be one that all nodes see, got {store.url!r}.")
    if not num_cpus > 0 or not num_gpus >= 0 or max_retries < 0:
        raise ValueError(
            "`num_cpus` must be > 0, `num_gpus` and `max_retries` >= 0, got "
            f"{num_cpus!r}, {num_gpus!r} and {max_retries!r}."
        )
    before = status_of(sweep, store)
    units = units_of(before.left, max_replicas=max_replicas)
    store.declare(sweep)
    store.forget_failures(run.run_id for run in before.left)
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    try:
        remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=max_retries)(_unit)
        tasks = {
            remote.remote(store.url, store.leases.seconds, unit, execute): unit for unit in units
        }
        with SweepProgress(before, console) as progress:
            _gather(ray, tasks, store, progress)
    finally:
        if is_ours:
            ray.shutdown()
    return status_of(sweep, store)


def _gather(ray: Any, tasks: dict[Any, Unit], store: RecordStore, progress: SweepProgress) -> None:
    """Wait for all tasks; what one of them dies of is noted for its runs."""
    waiting = list(tasks)
    try:
        while waiting:
            ended, waiting = ray.wait(waiting, num_returns=1, timeout=1.0)
            for task in ended:
                try:
                    ray.get(task)
                except ray.exceptions.RayError as error:
                    for run in tasks[task]:
                        if not store.is_done(run.run_id):
                            store.note_failure(run.run_id, error)
                for run in tasks[task]:
                    progress.end(run)
    except BaseException:
        for task in waiting:
            ray.cancel(task, force=True)
        raise


def _unit(url: str, lease_seconds: float, unit: Unit, execute: Execute) -> None:
    """Do one unit, in a process of the cluster."""
    work(RecordStore(url, lease_seconds=lease_seconds), [unit], execute)
