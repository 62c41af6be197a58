"""Which exact numbers of a solvable problem each bound reads.

A *contender* takes a :class:`~lodrop_theory.solvable.truth.GroundTruth` and a failure probability
and returns a bound on the gap R - R_hat: one number, or one per training set where the bound reads
the sample. A new bound joins by one line in :data:`CONTENDERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lodrop_theory.bounds.bousquet2002 import (
    expectation_bound,
    two_stability_bound,
    uniform_bound,
)
from lodrop_theory.bounds.bousquet2020 import uniform_log_bound
from lodrop_theory.bounds.catoni2007 import catoni_bound, mcallester2013_bound
from lodrop_theory.bounds.clopper1934 import clopper_pearson_bound
from lodrop_theory.bounds.feldman2018 import feldman_vondrak_bound
from lodrop_theory.bounds.hold_out import hold_out_bound, hold_out_kl_bound
from lodrop_theory.bounds.l2_stability import l2_stability_bound
from lodrop_theory.bounds.leave_one_out import l2_leave_one_out_bound, leave_one_out_bound
from lodrop_theory.bounds.lotfi2023 import compression_bound, compression_kl_bound
from lodrop_theory.bounds.maurer2004 import (
    pac_bayes_kl_bound,
    pac_bayes_quadratic_bound,
    pac_bayes_root_bound,
)
from lodrop_theory.bounds.maurer2009 import empirical_bernstein_bound
from lodrop_theory.bounds.xu2017 import information_bound
from lodrop_theory.evaluate import curvature_bounds
from lodrop_theory.inputs import TailInputs
from lodrop_theory.results import BoundResult
from lodrop_theory.solvable import readings
from lodrop_theory.solvable.truth import GroundTruth

Reader = Callable[[GroundTruth, float], Any]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A bound, and how it reads its inputs from the truth.

    Attributes:
        needs: Attributes of :class:`~lodrop_theory.solvable.truth.GroundTruth` that must be given
            (and true).
        bound: Maps a truth and delta to the bound.
    """

    needs: tuple[str, ...]
    bound: Callable[[GroundTruth, float], BoundResult] = field(repr=False)

    def can_enter(self, truth: GroundTruth) -> bool:
        """Whether the truth has what the bound reads."""
        values = (getattr(truth, name) for name in self.needs)
        return all(value is not None and value is not False for value in values)


def _reads(
    reader: Reader, bound: Callable[..., BoundResult], *needs: str, **setting: Any
) -> Contender:
    """A bound on what a reader returns; the inputs are exact, so the result is certified."""
    return Contender(
        needs=needs,
        bound=lambda truth, delta: bound(reader(truth, delta), certified=True, **setting),
    )


def _from_curvature(name: str) -> Contender:
    def bound(truth: GroundTruth, delta: float) -> BoundResult:
        assert truth.curvature is not None
        tail = TailInputs(**truth.tail(delta))
        results = curvature_bounds(truth.curvature, tail, certified=True)
        return next(result for result in results if result.bound == name)

    return Contender(needs=("curvature",), bound=bound)


def _hold_out_kl(truth: GroundTruth, delta: float) -> BoundResult:
    inputs, low = readings.held_out(truth, delta), truth.interval[0]
    return hold_out_kl_bound(inputs, predictor="gibbs", loss_min=low, certified=True)


def _feldman_vondrak(truth: GroundTruth, delta: float) -> BoundResult:
    # Quoted, its constants unproved here: never certified, and held against the truth all the same.
    return feldman_vondrak_bound(readings.uniform(truth, delta))


_GIBBS: dict[str, Any] = {"predictor": "gibbs"}

CONTENDERS: Mapping[str, Contender] = {
    # the paper, and what its curvature proves when the argument is repaired
    "lin2024": _from_curvature("lin2024"),
    "two-stability, curvature": _from_curvature("two-stability"),
    "uniform-tail, curvature": _from_curvature("uniform-tail"),
    "l2-stability, curvature": _from_curvature("l2-stability"),
    "expectation, curvature": _from_curvature("expectation"),
    # the same theorems, and others, with the exact stabilities
    "two-stability, exact": _reads(readings.two_stabilities, two_stability_bound, "exact"),
    "uniform-tail, exact": _reads(readings.uniform, uniform_bound, "exact"),
    "uniform-log, exact": _reads(readings.uniform, uniform_log_bound, "exact"),
    "l2-stability, exact": _reads(readings.mean_square, l2_stability_bound, "exact"),
    "feldman-vondrak, exact": Contender(needs=("exact",), bound=_feldman_vondrak),
    "expectation, exact": _reads(readings.uniform, expectation_bound, "exact"),
    "leave-one-out, exact": _reads(readings.left_out_mean, leave_one_out_bound, "exact"),
    "l2-leave-one-out, exact": _reads(readings.left_out_square, l2_leave_one_out_bound, "exact"),
    # how much of the sample the solution can tell
    "information": _reads(readings.information, information_bound, "exact"),
    "compression": _reads(readings.code, compression_bound, "exact", self_delimiting=True),
    "compression-kl": _reads(readings.code, compression_kl_bound, "exact", self_delimiting=True),
    # randomized predictors: no convexity, no stability
    "pac-bayes-kl": _reads(readings.posterior, pac_bayes_kl_bound, "kl_nats"),
    "pac-bayes-quadratic": _reads(readings.posterior, pac_bayes_quadratic_bound, "kl_nats"),
    "pac-bayes-root": _reads(readings.posterior, pac_bayes_root_bound, "kl_nats"),
    "catoni": _reads(readings.posterior, catoni_bound, "kl_nats", inverse_temperature=1.0),
    "mcallester2013": _reads(
        readings.posterior, mcallester2013_bound, "kl_nats", inverse_temperature=1.0
    ),
    # what needs nothing of the training
    "hold-out": _reads(readings.held_out, hold_out_bound, "held_out", **_GIBBS),
    "hold-out-kl": Contender(needs=("held_out",), bound=_hold_out_kl),
    "empirical-bernstein": _reads(
        readings.held_out_scatter, empirical_bernstein_bound, "held_out", **_GIBBS
    ),
    "clopper-pearson": _reads(
        readings.held_out_errors, clopper_pearson_bound, "held_out", "zero_one", **_GIBBS
    ),
}
