"""How far a measurement is, and how long each of its stages took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lodrop_nn.measure.settings import PARTS, MeasureSettings


class Stages:
    """Times the stages and reports the fraction of the expected cost that is done.

    Args:
        settings: What is measured.
        n_train: Training rows.
        n_test: Held-out rows.
        masked: Whether p > 0.
        report: Called as ``report(stage, fraction)``, or None.

    Attributes:
        seconds: Wall-clock seconds of the stages that have ended.
    """

    def __init__(
        self,
        settings: MeasureSettings,
        n_train: int,
        n_test: int,
        masked: bool,
        report: Callable[[str, float], None] | None,
    ) -> None:
        # In forward passes of one example, as measured on MiniLM with its upper half adapted.
        members = 1 + 0.36 * settings.n_masks if masked else 1.0
        spectrum = (1.3 + settings.hessian_steps) * n_train
        refits = 12.0 * settings.n_refits * n_train
        costs = {
            "predict train": members * n_train,
            "predict test": members * n_test,
            "gradients": (1.7 + (1.7 * settings.n_gradient_masks if masked else 0.0)) * n_train,
            "curvature": spectrum * (1 + (masked and "dropout-curvature" in settings.parts)),
            "stability": 6.0 * n_train + refits,
            "posterior": 1.0 * len(settings.noise_stds) * settings.n_posterior_passes * n_train,
            "scores": 0.02 * (n_train + n_test),
        }
        left_out = set(PARTS) - set(settings.parts)
        self._costs = {stage: cost for stage, cost in costs.items() if stage not in left_out}
        self._report, self._done = report, 0.0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def run(self, stage: str) -> Iterator[Callable[[int, int], None]]:
        """A stage, to be told its progress as ``progress(step, steps)``."""
        whole = sum(self._costs.values())

        def progress(step: int, steps: int) -> None:
            if self._report is not None:
                done = self._done + self._costs[stage] * min(1.0, step / steps)
                self._report(stage, min(1.0, done / whole))

        progress(0, 1)
        start = time.perf_counter()
        yield progress
        self.seconds[stage] = time.perf_counter() - start
        progress(1, 1)
        self._done += self._costs[stage]
