"""A sweep on one machine: in this process, or in several."""

import multiprocessing
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from rich.console import Console

from lodrop_nn.sweep.batching import run_unit, units_of
from lodrop_nn.sweep.grid import SweepConfig
from lodrop_nn.sweep.progress import SweepProgress
from lodrop_nn.sweep.status import SweepStatus, status_of
from lodrop_nn.sweep.store import RecordStore
from lodrop_nn.sweep.worker import Events, Execute, Unit, work

RESTARTS = 2  # of workers that were killed, before their runs are left for the next call


def run_sweep(
    sweep: SweepConfig,
    store: RecordStore,
    *,
    workers: int = 1,
    max_replicas: int = 8,
    execute: Execute = run_unit,
    console: Console | None = None,
) -> SweepStatus:
    """Do the runs of a sweep that have no sound record yet.

    Kill it at any time and call it again: finished runs stay, and what was in work is done anew.
    Several calls, on one machine or on many that see the store, share the work.

    Args:
        sweep: The declaration.
        store: Where the records are, and go.
        workers: Processes, >= 1. One works in the calling process; more share its threads, and
            its GPUs where there are some.
        max_replicas: Runs that are trained in one pass, >= 1.
        execute: What does the runs of a unit; with several workers, importable by name.
        console: Where progress is drawn; None draws none.

    Returns:
        Where the sweep stands. Runs that failed are in it; they are tried again by the next call.

    Raises:
        ChildProcessError: If workers are killed more than a few times, and runs are left.
        ValueError: If ``workers`` or ``max_replicas`` is below 1, or several workers are to share a
            store in the memory of one.
    """
    if workers < 1:
        raise ValueError(f"`workers` must be >= 1, got {workers!r}.")
    if workers > 1 and not store.is_shared:
        raise ValueError(f"`store` must be one that all workers see, got {store.url!r}.")
    before = status_of(sweep, store)
    units = units_of(before.left, max_replicas=max_replicas)
    store.declare(sweep)
    store.forget_failures(run.run_id for run in before.left)
    with SweepProgress(before, console) as progress:
        if workers == 1:
            events = Events(
                on_start=progress.start, on_progress=progress.advance, on_end=progress.end
            )
            work(store, units, execute, events=events)
        elif units:
            _Processes(store, units, execute, min(workers, len(units))).join(progress)
    return status_of(sweep, store)


class _Processes:
    """Workers in processes of their own; some of those that are killed are started anew."""

    def __init__(
        self, store: RecordStore, units: Sequence[Unit], execute: Execute, workers: int
    ) -> None:
        self._store, self._units, self._execute = store, list(units), execute
        self._context = multiprocessing.get_context("spawn")  # torch's threads survive no fork
        self._workers = workers
        self._restarts = RESTARTS
        self._exit_codes: list[int | None] = []
        self._processes: dict[int, BaseProcess] = {k: self._start(k) for k in range(workers)}

    def join(self, progress: SweepProgress) -> None:
        """Wait for all workers, and stop them where the wait is interrupted.

        Raises:
            ChildProcessError: If too many of them were killed, and runs are left.
        """
        open_runs = {run.run_id: run for unit in self._units for run in unit}
        try:
            while self._processes:
                wait([each.sentinel for each in self._processes.values()], timeout=1.0)
                self._reap()
                ended = self._store.names() | set(self._store.failures())
                for run_id in ended & set(open_runs):
                    progress.end(open_runs.pop(run_id))
        finally:
            for process in self._processes.values():
                process.terminate()
            for process in self._processes.values():
                process.join()
        if open_runs and any(self._exit_codes):
            raise ChildProcessError(
                f"{len(open_runs)} runs are left, since workers ended with exit codes "
                f"{self._exit_codes}: see above, and run again to continue."
            )

    def _reap(self) -> None:
        for number, process in list(self._processes.items()):
            if process.is_alive():
                continue
            del self._processes[number]
            self._exit_codes.append(process.exitcode)
            if process.exitcode != 0 and self._restarts > 0:
                self._restarts -= 1
                self._processes[number] = self._start(number)

    def _start(self, number: int) -> BaseProcess:
        arguments = (
            self._store.url,
            self._store.leases.seconds,
            self._units,
            self._execute,
            number,
            self._workers,
        )
        process = self._context.Process(target=_work_in_process, args=arguments)
        process.start()
        return process


def _work_in_process(
    url: str,
    lease_seconds: float,
    units: list[Unit],
    execute: Execute,
    number: int,
    workers: int,
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if execute is run_unit:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
        if torch.cuda.is_available():
            torch.cuda.set_device(number % torch.cuda.device_count())
            execute = partial(run_unit, device=torch.device("cuda", torch.cuda.current_device()))
    store = RecordStore(url, lease_seconds=lease_seconds)
    start = number * len(units) // workers
    with suppress(KeyboardInterrupt):  # the parent says what there is to say
        work(store, units, execute, start=start)


def _end_with_parent() -> None:
    """A worker must not go on alone when the process that started it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
