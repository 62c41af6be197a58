"""Progress over a sweep, with the time left."""

from types import TracebackType

from rich.console import Console

from lodrop_nn.compare.progress import timed_bar
from lodrop_nn.sweep.grid import SweepRun, method_of
from lodrop_nn.sweep.status import SweepStatus, cost_of


class SweepProgress:
    """A bar over the runs left; its unit is their estimated cost, so that the time left is fair.

    Args:
        status: Where the sweep stands at the start.
        console: Where the bar is drawn; None draws none.
    """

    def __init__(self, status: SweepStatus, console: Console | None) -> None:
        self._bar = timed_bar(console or Console(quiet=True))
        self._n_done, self._n_runs = len(status.records), len(status.runs)
        self._finished = 0.0
        total = sum(map(cost_of, status.left))
        self._task = self._bar.add_task(self._label(""), total=total)

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def start(self, runs: tuple[SweepRun, ...]) -> None:
        """Show which runs are begun."""
        config = runs[0].config
        text = f"{method_of(config)} p={config.dropout_rate:g} seed {config.seed}"
        more = f" and {len(runs) - 1} with it" if len(runs) > 1 else ""
        self._bar.update(self._task, description=self._label(text + more))

    def advance(self, runs: tuple[SweepRun, ...], fraction: float) -> None:
        """Show that ``fraction`` of the training of these runs is done."""
        done = fraction * sum(map(cost_of, runs))
        self._bar.update(self._task, completed=self._finished + done)

    def end(self, run: SweepRun) -> None:
        """Count a run as done or failed."""
        self._finished += cost_of(run)
        self._n_done += 1
        self._bar.update(self._task, completed=self._finished, description=self._label(""))

    def _label(self, text: str) -> str:
        return f"{self._n_done}/{self._n_runs} {text:<44}"
