"""The bounds held against exact truth: which hold, in what order, and with how much slack."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from lodrop_theory._checks import check_failure_probability
from lodrop_theory.results import Statement
from lodrop_theory.solvable.contenders import CONTENDERS, Contender
from lodrop_theory.solvable.truth import GroundTruth

# What a sum of floats on the left side may be off by.
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One bound against the truth.

    Attributes:
        contender: Its name in the registry.
        statement: ``probability`` or ``expectation``.
        certified: Whether the theorem is proved with its constants, or only quoted.
        delta: Failure probability; None for a statement in expectation.
        gap: The bound on R - R_hat, averaged over training sets if it reads them. Loss units.
        truth: What it bounds: the exact (1 - delta)-quantile of R - R_hat, or |E[R - R_hat]|.
        violation: Exact probability that R - R_hat exceeds the bound; None in expectation.
    """

    contender: str
    statement: Statement
    certified: bool
    delta: float | None
    gap: float
    truth: float
    violation: float | None

    @property
    def holds(self) -> bool:
        """Whether the truth obeys the bound."""
        if self.delta is None or self.violation is None:
            return self.truth <= self.gap + _ROUNDING
        return self.violation <= self.delta

    @property
    def slack(self) -> float:
        """The bound over the truth, infinite where the truth is not positive.

        At least 1 for a bound that is one number and holds.
        """
        return self.gap / self.truth if self.truth > _ROUNDING else inf


def hold(
    truth: GroundTruth, *, delta: float, contenders: Mapping[str, Contender] = CONTENDERS
) -> list[Verdict]:
    """Hold every bound that a problem has the inputs for against the truth.

    Args:
        truth: The problem.
        delta: Failure probability of each bound, in (0, 1).
        contenders: The bounds, by name.

    Returns:
        One verdict per bound that can enter, in the order of the registry.

    Raises:
        ValueError: If ``delta`` is outside (0, 1).

    Example:
        A constant algorithm and a fair coin tossed twice, with loss 1 on tails: R - R_hat is 1/2
        with probability 1/4, which is allowed at delta = 1/4.

        >>> import numpy as np
        >>> from lodrop_theory.solvable.enumerable import exact_law
        >>> law = exact_law([0.5, 0.5], 2, lambda counts: 0.0 * counts + np.array([0.0, 1.0]))
        >>> entered = {name: CONTENDERS[name] for name in ("l2-stability, exact", "lin2024")}
        >>> for verdict in hold(GroundTruth(law=law), delta=0.25, contenders=entered):
        ...     print(f"{verdict.contender}: {verdict.gap:.3f} >= {verdict.truth:.3f}")
        l2-stability, exact: 0.707 >= 0.000
    """
    failure = float(check_failure_probability("delta", delta))
    verdicts = []
    for name, contender in contenders.items():
        if not contender.can_enter(truth):
            continue
        result = contender.bound(truth, failure)
        spread_out = np.broadcast_to(result.gap, truth.law.chance.shape)
        in_probability = result.statement == "probability"
        verdicts.append(
            Verdict(
                contender=name,
                statement=result.statement,
                certified=result.certified,
                delta=failure if in_probability else None,
                gap=float(truth.law.chance @ spread_out),
                truth=truth.law.quantile(failure) if in_probability else abs(truth.law.mean_gap),
                violation=truth.law.violation(result.gap) if in_probability else None,
            )
        )
    return verdicts
