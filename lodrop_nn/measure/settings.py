"""What a measurement draws, how long it iterates, and which of its parts it runs."""

import dataclasses
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from lodrop_nn.masks.settings import check_count, check_seed

Part = Literal[
    "predictions", "gradients", "curvature", "dropout-curvature", "stability", "posterior"
]
PARTS: tuple[Part, ...] = get_args(Part)
# Every theorem reads these three; the others may be left out.
CORE: tuple[Part, ...] = ("predictions", "gradients", "curvature")


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How a fine-tuned adapter is measured.

    Attributes:
        n_masks: Members of the ensemble, and mask draws behind whatever is averaged over masks,
            >= 1.
        seed: Seed >= 0 of masks, start vectors, and the examples that are left out.
        n_gradient_masks: Mask draws behind ``dropout_lipschitz``, >= 1.
        smoothing: a in (0, 1) of the smoothed cross-entropy that risks are measured in.
        level: Coverage of the intervals, in (0, 1).
        hessian_steps: Lanczos steps for each spectrum, >= 2.
        ridge: Weight tau > 0 of the squared norm that the adapter was trained with, if it was:
            stabilities are then those of this objective. None measures them at the trained point,
            in the objective that has its minimum there and just enough ridge to be convex.
        n_left_out: Training examples that the Gauss-Newton method leaves out, >= 2; None leaves
            out each.
        n_refits: Examples that are left out by Newton's method and by a true refit, >= 2, or 0 for
            neither.
        n_retrained: Examples that are left out by repeating the whole training run, >= 2, or 0;
            only where the run is known (:mod:`~lodrop_nn.measure.known_run`).
        n_fresh: Held-out rows that serve as fresh points and replacements, >= 2.
        noise_stds: Scales sigma > 0 of the noise of the randomized adapter.
        n_posterior_passes: Passes over the training rows per scale, >= 1.
        parts: What is run, among :data:`PARTS`; those of :data:`CORE` always are.
    """

    n_masks: int = 16
    n_gradient_masks: int = 2
    seed: int = 0
    smoothing: float = 0.05
    level: float = 0.95
    hessian_steps: int = 12
    ridge: float | None = None
    n_left_out: int | None = None
    n_refits: int = 10
    n_retrained: int = 0
    n_fresh: int = 128
    noise_stds: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    n_posterior_passes: int = 1
    parts: tuple[Part, ...] = PARTS

    def __post_init__(self) -> None:
        check_count("n_masks", self.n_masks)
        check_count("n_gradient_masks", self.n_gradient_masks)
        check_count("n_posterior_passes", self.n_posterior_passes)
        check_seed("seed", self.seed)
        for name in ("hessian_steps", "n_left_out", "n_refits", "n_retrained", "n_fresh"):
            value = getattr(self, name)
            if (name, value) in (("n_left_out", None), ("n_refits", 0), ("n_retrained", 0)):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 2:
                raise ValueError(f"`{name}` must be a whole number >= 2, got {value!r}.")
        for name in ("smoothing", "level"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` must be in (0, 1), got {getattr(self, name)!r}.")
        if self.ridge is not None and not 0.0 < _number(self.ridge) < math.inf:
            raise ValueError(f"`ridge` must be None or finite and > 0, got {self.ridge!r}.")
        if not self.noise_stds or not all(0.0 < _number(s) < math.inf for s in self.noise_stds):
            raise ValueError(
                f"`noise_stds` must be one or more finite numbers > 0, got {self.noise_stds!r}."
            )
        if self.n_retrained and "stability" not in self.parts:
            raise ValueError(
                f"`parts` must hold 'stability' for n_retrained = {self.n_retrained}, "
                f"got {tuple(self.parts)}."
            )
        unknown = [part for part in self.parts if part not in PARTS]
        lacking = [part for part in CORE if part not in self.parts]
        if unknown or lacking:
            raise ValueError(
                f"`parts` must be among {PARTS} and hold {CORE}, got {tuple(self.parts)}."
            )

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON-able values (tuples become lists)."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _number(value: object) -> float:
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
