"""Progress of a certificate over its stages, with the time left."""

from types import TracebackType

from rich.console import Console

from lodrop_nn.certify.config import CertifyConfig
from lodrop_nn.compare.progress import timed_bar


def stage_costs(config: CertifyConfig) -> dict[str, float]:
    """Row passes of each stage, up to a common factor."""
    # The whole model against its upper blocks, and a step against a pass: ratios on MiniLM-L6.
    whole, step = 6.0 / config.n_blocks, 2.5
    return {
        "prior": whole * config.n_reference * (1 + 1.5 * config.prior_epochs),
        "features": whole * (config.n_train + config.n_test),
        "training": step * config.epochs * config.n_train,
        "training risk": float(config.n_passes * config.n_train),
        "held-out risk": float(config.n_members * config.n_test),
    }


class StageProgress:
    """A bar over all stages; its unit is the estimated cost, so that the time left is fair.

    Args:
        config: The certificate.
        console: Where the bar is drawn.
    """

    def __init__(self, config: CertifyConfig, console: Console) -> None:
        self._costs = stage_costs(config)
        self._done = dict.fromkeys(self._costs, 0.0)
        self._bar = timed_bar(console)
        self._task = self._bar.add_task("starting", total=sum(self._costs.values()))

    def __enter__(self) -> "StageProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, stage: str, fraction: float, text: str) -> None:
        """Show that ``fraction`` of a stage is done."""
        for name in self._costs:
            if name == stage:
                break
            if name != "features":  # their two halves are computed when first needed
                self._done[name] = 1.0
        if stage in ("training", "training risk", "held-out risk"):
            self._done["features"] = max(
                self._done["features"], 1.0 if stage == "held-out risk" else 2 / 3
            )
        self._done[stage] = max(self._done[stage], fraction)
        completed = sum(self._costs[name] * part for name, part in self._done.items())
        self._bar.update(self._task, completed=completed, description=f"{stage}: {text}"[:44])
