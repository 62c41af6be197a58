"""What a stability measurement perturbs, on which objective, and how exactly."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

from lodrop_nn.masks.settings import check_count, check_seed
from lodrop_theory.records import StabilityMethod

Center = Literal["origin", "solution"]
# All but "retrain", which repeats the run: `lodrop_nn.measure.retraining`.
METHODS: tuple[StabilityMethod, ...] = ("gauss-newton", "influence", "newton", "refit")


@dataclass(frozen=True, kw_only=True)
class StabilitySettings:
    """How stability is measured.

    Attributes:
        center: What the ridge pulls to: ``"origin"`` for a model that was trained with this ridge
            to a stationary point, ``"solution"`` for any other; see
            :func:`~lodrop_nn.measure.stability.measure.stability`.
        ridge: tau > 0 of the objective, nats per parameter^2; None takes one from the curvature and
            raises it where it does not suffice (``center="solution"`` only).
        methods: What is computed. ``"refit"`` needs ``"newton"``, where its refits start.
        smoothing: a in (0, 1) of the smoothed cross-entropy in which changes are measured.
        n_left_out: Examples that ``"gauss-newton"`` and ``"influence"`` leave out, >= 2; None
            leaves out each.
        n_newton: Examples that ``"newton"`` leaves out above ``dense_up_to`` parameters, >= 2.
            Below it leaves out all of ``n_left_out``.
        n_refits: Examples that ``"refit"`` leaves out, >= 2.
        n_fresh: Held-out rows that are drawn for fresh points and replacements, >= 2.
        fresh_per_example: Fresh points at which each left-out example is felt, >= 1.
        seed: Seed >= 0 of what is drawn.
        level: Coverage of the intervals, in (0, 1).
        dense_up_to: Largest number of parameters for which the Hessian is built.
        max_bytes: Memory that the Jacobian of the logits may take.
        hessian_steps: Lanczos steps for the extreme eigenvalues, where they are not given, >= 2.
        newton_products: Most products with the Hessian of the training risk for all Newton steps
            together, >= 1; below ``dense_up_to`` there are none.
        newton_tolerance: Residual at which a Newton step is solved, relative to the gradient in
            the norm of the inverse Gauss-Newton Hessian, in (0, 1).
        refit_steps: Most gradients that one refit may take, >= 1.
        refit_tolerance: The same ratio for the gradient at which a refit has converged, in the
            norm of its preconditioner.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        >>> StabilitySettings(ridge=1e-2, center="origin").n_refits
        10
    """

    center: Center = "solution"
    ridge: float | None = None
    methods: tuple[StabilityMethod, ...] = METHODS
    smoothing: float = 0.05
    n_left_out: int | None = None
    n_newton: int = 10
    n_refits: int = 10
    n_fresh: int = 128
    fresh_per_example: int = 3
    seed: int = 0
    level: float = 0.95
    dense_up_to: int = 2500
    max_bytes: int = 2**30
    hessian_steps: int = 12
    newton_products: int = 40
    newton_tolerance: float = 1e-2
    refit_steps: int = 10
    refit_tolerance: float = 1e-2

    @property
    def n_exact(self) -> int:
        """Examples that ``"newton"`` leaves out where each of its products costs a pass."""
        return max(self.n_newton, self.n_refits if "refit" in self.methods else 0)

    def __post_init__(self) -> None:
        if self.center not in get_args(Center):
            raise ValueError(f"`center` must be 'origin' or 'solution', got {self.center!r}.")
        self._check_ridge()
        if not self.methods or not set(self.methods) <= set(METHODS):
            raise ValueError(f"`methods` must be some of {METHODS}, got {self.methods!r}.")
        if "refit" in self.methods and "newton" not in self.methods:
            raise ValueError(f"`methods` must have 'newton' beside 'refit', got {self.methods!r}.")
        for name in ("n_left_out", "n_newton", "n_refits", "n_fresh", "hessian_steps"):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)
                if value < 2:
                    raise ValueError(f"`{name}` must be >= 2, got {value!r}.")
        for name in ("fresh_per_example", "dense_up_to", "newton_products", "refit_steps"):
            check_count(name, getattr(self, name))
        check_count("max_bytes", self.max_bytes)
        check_seed("seed", self.seed)
        for name in ("smoothing", "level", "newton_tolerance", "refit_tolerance"):
            value = getattr(self, name)
            real = isinstance(value, Real) and not isinstance(value, bool)
            if not real or not 0.0 < value < 1.0:
                raise ValueError(f"`{name}` must be a number in (0, 1), got {value!r}.")

    def _check_ridge(self) -> None:
        tau = self.ridge
        if tau is None:
            if self.center == "origin":
                raise ValueError(
                    "`ridge` must be the tau > 0 that the model was trained with where `center` is "
                    "'origin', got None."
                )
            return
        real = isinstance(tau, Real) and not isinstance(tau, bool)
        if not real or not 0.0 < tau < math.inf:
            raise ValueError(
                f"`ridge` must be a finite number > 0 or None, got {tau!r}: without a ridge there "
                "are flat directions, and no unique minimizer."
            )
