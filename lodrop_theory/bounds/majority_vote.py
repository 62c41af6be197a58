"""From the error rate of a Gibbs predictor to that of the majority vote over its draws."""

from dataclasses import replace

import numpy as np

from lodrop_theory._numerics import round_up
from lodrop_theory.results import BoundResult


def majority_vote_bound(gibbs: BoundResult) -> BoundResult:
    r"""Bound on the error rate of the majority vote: twice that of the Gibbs predictor.

    .. math:: P(\text{vote wrong}) \le 2 R_{\mathrm{Gibbs}}

    Where the vote is wrong, at least half of the voters are: Markov's inequality for the share of
    wrong voters. (With more than two classes too: the true class, had it more than half, would
    win.) For convex losses :func:`~lodrop_theory.bounds.lin2024.ensemble_bound` has no factor 2.

    Args:
        gibbs: A bound on the 0-1 risk of the predictor ``gibbs``, with its empirical risk.

    Returns:
        The bound for the ensemble that answers by majority vote over the law of the draws; the gap
        is counted from the empirical risk of the Gibbs predictor.

    Raises:
        ValueError: If ``gibbs`` is about another predictor or has no empirical risk.

    Source:
        Langford and Shawe-Taylor (2002), NeurIPS.

    Example:
        >>> from lodrop_theory.bounds.clopper1934 import clopper_pearson_bound
        >>> from lodrop_theory.inputs import BinaryHoldOutInputs
        >>> inputs = BinaryHoldOutInputs(n_test=100, n_errors=0, delta=0.05)
        >>> vote = majority_vote_bound(clopper_pearson_bound(inputs, predictor="gibbs"))
        >>> round(float(vote.risk), 6)
        0.059026
    """
    if gibbs.predictor != "gibbs" or gibbs.risk is None or gibbs.empirical_risk is None:
        raise ValueError(
            "`gibbs` must be a bound for 'gibbs' with an empirical risk, "
            f"got one for {gibbs.predictor!r}."
        )
    start, risk = np.asarray(gibbs.empirical_risk), np.asarray(gibbs.risk)
    return replace(
        gibbs,
        bound=f"{gibbs.bound}+vote",
        title=f"{gibbs.title}, carried to the majority vote",
        source=f"{gibbs.source}; Langford and Shawe-Taylor 2002",
        predictor="ensemble",
        gap=np.where(gibbs.applicable, round_up(2.0 * risk - start, 2.0 * risk + start), np.inf),
        hypotheses=(
            *gibbs.hypotheses,
            "the loss is 0-1 and the ensemble answers by majority vote over the law of the draws",
        ),
        caveats=(*gibbs.caveats, "the gap is counted from the risk of the Gibbs predictor"),
        event=None,
    )


__all__ = ["majority_vote_bound"]
