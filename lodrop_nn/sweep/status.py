"""Where a sweep stands: what is done, what is left and what it is expected to take."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from lodrop_nn.compare.progress import measurement_cost, training_cost
from lodrop_nn.sweep.grid import SweepConfig, SweepRun, method_of
from lodrop_nn.sweep.store import RecordStore
from lodrop_theory.records import RecordError


def cost_of(run: SweepRun) -> float:
    """Forward passes of one example that a run costs, up to a common factor."""
    config, n_rows = run.config, run.config.n_train + run.config.n_test
    if run.measure != "scores":
        # Curvature under masks, and Gauss-Newton products: by one run, as long as the fine-tuning.
        more = 25 * config.n_train if run.measure == "stability" else 0
        return training_cost(config) + measurement_cost(config) + more
    along = (config.epochs - 1) // run.evaluate_every
    members = (along * run.n_masks_along + config.n_masks_test) * (config.dropout_rate > 0)
    return training_cost(config) + (along + 1 + 0.6 * members) * n_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepStatus:
    """Where a sweep stands.

    Attributes:
        runs: All its runs.
        records: Those with a sound record, by their names.
        failures: The errors of those that failed, by their names.
        damaged: Names of files in the way that cannot be trusted; their runs are done anew.
        in_work: Names of runs that some worker holds now.
    """

    runs: Sequence[SweepRun]
    records: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, str]
    damaged: Sequence[str]
    in_work: Sequence[str]

    @property
    def left(self) -> list[SweepRun]:
        """Runs without a sound record."""
        return [run for run in self.runs if run.run_id not in self.records]

    @property
    def expected_seconds(self) -> float | None:
        """Processor seconds that the runs left are expected to take, by those that are done.

        None before the first is done. A mean over what was measured, on whatever machine; runs that
        are trained together cost less than their sum.
        """
        done = [run for run in self.runs if run.run_id in self.records]
        spent = sum(sum(self.records[run.run_id]["seconds"].values()) for run in done)
        costs = sum(map(cost_of, done))
        return spent / costs * sum(map(cost_of, self.left)) if costs else None

    def lines(self) -> list[str]:
        """The numbers, and why runs failed."""
        found = [
            f"{len(self.runs)} runs: {len(self.records)} done, {len(self.left)} to do "
            f"({len(self.in_work)} in work, {len(self.failures)} failed)"
        ]
        if self.left:
            seconds = self.expected_seconds
            cost = "unknown until a run is done" if seconds is None else f"{seconds / 60:.1f} min"
            found.append(f"expected for one worker: {cost}")
        if self.damaged:
            found.append(f"records that cannot be trusted: {', '.join(self.damaged)}")
        errors = Counter(self.failures.values())
        found += [f"failed, {count} runs: {error}" for error, count in errors.most_common()]
        return found

    def table(self) -> Table:
        """One row per configuration, seeds together: the scores at the end of training."""
        groups: dict[tuple[str, ...], list[SweepRun]] = {}
        names = self._varying()
        for run in self.runs:
            key = tuple(_text(run, name) for name in names)
            groups.setdefault(key, []).append(run)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in (*names, "done", "test NLL", "accuracy", "ECE", "gap"):
            table.add_column(name, justify="right", no_wrap=True)
        for key, runs in groups.items():
            records = [self.records[r.run_id] for r in runs if r.run_id in self.records]
            scores = [each for record in records if (each := final_scores(record)) is not None]
            means = [
                f"{np.mean([score[name]['value'] for score in scores]):.3f}" if scores else "-"
                for name in ("test_nll", "test_accuracy", "calibration_error", "generalization_gap")
            ]
            table.add_row(*key, f"{len(records)}/{len(runs)}", *means)
        return table

    def _varying(self) -> list[str]:
        names = ["method", *(name for name in vars(self.runs[0].config) if name != "seed")]
        return [n for n in names if len({_text(run, n) for run in self.runs}) > 1] or ["method"]


def status_of(sweep: SweepConfig, store: RecordStore) -> SweepStatus:
    """Look up where a sweep stands; every record is read and checked."""
    runs, records, damaged, in_work = sweep.runs(), {}, [], []
    present, failures = store.names(), store.failures()
    for run in runs:
        if run.run_id in present:
            try:
                records[run.run_id] = store.read(run.run_id)
                continue
            except RecordError:
                damaged.append(f"{run.run_id}.json")
            except FileNotFoundError:  # set aside since it was listed
                pass
        if store.leases.is_taken(run.run_id):
            in_work.append(run.run_id)
    known = {run.run_id for run in runs} - set(records)
    return SweepStatus(
        runs=runs,
        records=records,
        failures={run_id: text for run_id, text in failures.items() if run_id in known},
        damaged=damaged,
        in_work=in_work,
    )


def final_scores(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Scores of the ensemble at the end; None for a run that diverged."""
    if "predictors" in record:
        return dict(record["predictors"]["ensemble"])
    if record["diverged_after"] is not None:
        return None
    return dict(record["scores"][-1]["predictors"]["ensemble"])


def _text(run: SweepRun, name: str) -> str:
    if name == "method":
        return method_of(run.config)
    value = getattr(run.config, name)
    return f"{value:g}" if isinstance(value, float) else str(value)
