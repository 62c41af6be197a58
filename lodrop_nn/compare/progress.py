"""Progress over a grid of runs, with the time left."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lodrop_nn.config import RunConfig


def training_cost(config: RunConfig) -> float:
    """Forward passes of one example that the fine-tuning costs, up to a common factor."""
    return 1.6 * config.epochs * config.n_train * config.n_masks_train


def measurement_cost(config: RunConfig) -> float:
    """Forward passes of one example that the measurement costs, up to a common factor."""
    members = config.n_masks_test if config.dropout_rate > 0 else 0
    return (1 + 0.6 * members) * (config.n_train + config.n_test) + (
        1.5 * config.hessian_steps + 4
    ) * config.n_train


def timed_bar(console: Console) -> Progress:
    """A bar with a text, the time that has passed and the time that is left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        speed_estimate_period=120.0,
    )


class GridProgress:
    """A bar over all pending runs; its unit is the estimated cost, so that the time left is fair.

    Args:
        pending: The runs still to do.
        console: Where the bar is drawn.
    """

    def __init__(self, pending: Sequence[RunConfig], console: Console) -> None:
        self._bar = timed_bar(console)
        total = sum(training_cost(c) + measurement_cost(c) for c in pending)
        self._task = self._bar.add_task("starting", total=total)
        self._finished = 0.0

    def __enter__(self) -> "GridProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def training(self, config: RunConfig, fraction: float, text: str) -> None:
        """Show that ``fraction`` of the run's fine-tuning is done."""
        self._show(config, training_cost(config) * fraction, text)

    def measuring(self, config: RunConfig, fraction: float, text: str) -> None:
        """Show that ``fraction`` of the run's measurement is done."""
        self._show(config, training_cost(config) + measurement_cost(config) * fraction, text)

    def finish(self, config: RunConfig, text: str) -> None:
        """Count the run as done and print ``text`` above the bar."""
        self._finished += training_cost(config) + measurement_cost(config)
        self._bar.update(self._task, completed=self._finished)
        self._bar.console.print(text, highlight=False)

    def _show(self, config: RunConfig, done: float, text: str) -> None:
        label = f"p={config.dropout_rate:g} seed {config.seed}: {text}"
        self._bar.update(self._task, completed=self._finished + done, description=f"{label:<38}")
