"""One worker of a sweep: any number of them, on any machines, share a store."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from lodrop_nn.sweep.grid import SweepRun
from lodrop_nn.sweep.store import RecordStore

Unit = tuple[SweepRun, ...]


class Execute(Protocol):
    """Does the runs of a unit; :func:`lodrop_nn.sweep.batching.run_unit` is one."""

    def __call__(
        self, runs: Sequence[SweepRun], *, on_progress: Callable[[float], None] | None = None
    ) -> list[dict[str, Any]]:
        """The contents of their records, in their order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Events:
    """What a worker reports.

    Attributes:
        on_start: Called with the runs that are begun.
        on_progress: Called with the same runs and the fraction of their training that is done.
        on_end: Called with each run that has its record, or has failed.
    """

    on_start: Callable[[Unit], None] = field(default=lambda runs: None)
    on_progress: Callable[[Unit, float], None] = field(default=lambda runs, fraction: None)
    on_end: Callable[[SweepRun], None] = field(default=lambda run: None)


def work(
    store: RecordStore,
    units: Sequence[Unit],
    execute: Execute,
    *,
    start: int = 0,
    events: Events | None = None,
) -> None:
    """Work on some units until all their runs have a record or have failed.

    Runs that others hold are left to them; in the end they are waited for, and taken over where
    their leases end. Runs that failed are not tried again.

    Args:
        store: Records and leases.
        units: Runs, in groups that are trained in one pass.
        execute: Does them.
        start: The unit to begin with; workers that begin at different ones meet less.
        events: What to report.
    """
    events = events or Events()
    turn = start % max(len(units), 1)
    rounds = [*units[turn:], *units[:turn]]
    finished: set[str] = set()
    n_runs = sum(map(len, units))
    while len(finished) < n_runs:
        done = [_do(store, unit, execute, events, finished) for unit in rounds]
        if not any(done) and len(finished) < n_runs:
            time.sleep(min(1.0, store.leases.seconds / 10))


def _do(
    store: RecordStore, unit: Unit, execute: Execute, events: Events, finished: set[str]
) -> bool:
    """Do what is left of one unit; whether there was anything that could be done."""
    left = [run for run in unit if run.run_id not in finished and _is_open(store, run, finished)]
    leases = {run: lease for run in left if (lease := store.leases.take(run.run_id)) is not None}
    with store.leases.renewing(list(leases.values())):
        # Somebody may have finished it between the look and the lease.
        runs = tuple(run for run in leases if _is_open(store, run, finished))
        for run in runs:
            store.set_aside(run.run_id)
        if runs:
            events.on_start(runs)
            _execute(store, runs, execute, events)
            finished.update(run.run_id for run in runs)
    return bool(runs)


def _is_open(store: RecordStore, run: SweepRun, finished: set[str]) -> bool:
    """Whether a run has neither a record nor failed; a record is read in full once only."""
    if run.run_id in finished:
        return False
    if store.has_failed(run.run_id) or store.is_done(run.run_id):
        finished.add(run.run_id)
        return False
    return True


def _execute(store: RecordStore, runs: Unit, execute: Execute, events: Events) -> None:
    report = partial(events.on_progress, runs)
    try:
        contents = execute(runs, on_progress=report)
    except Exception as error:
        if len(runs) > 1:  # one of them must not take the others with it
            for run in runs:
                _execute(store, (run,), execute, events)
            return
        store.note_failure(runs[0].run_id, error)
        events.on_end(runs[0])
        return
    for run, content in zip(runs, contents, strict=True):
        store.write(run.run_id, content)
        events.on_end(run)
