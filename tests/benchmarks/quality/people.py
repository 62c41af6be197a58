r"""Predicted probabilities against the votes of people.

A sentence has m ratings that are not 0, of which k are positive: the share k / m is a noisy
observation of the fraction v of all people who would call it positive. Predictions are compared
to shares; the floors say what the noise of the votes alone would give a predictor that knows v.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from lodrop_nn.data.rated import SentenceVotes
from lodrop_nn.measure.calibration import bin_of, vote_distances
from tests.benchmarks.quality.evaluate import Float64Array
from tests.benchmarks.quality.reliability import N_BINS

HALVINGS, HALVING_SEED = 200, 0
Counts = NDArray[np.int64]


def counts(votes: Mapping[str, SentenceVotes], texts: Sequence[str]) -> tuple[Counts, Counts]:
    """Positive and nonzero ratings of each text."""
    each = [votes[text] for text in texts]
    positive = np.array([vote.positive for vote in each])
    return positive, positive + np.array([vote.negative for vote in each])


def vote_measures(predicted: Float64Array, positive: Counts, voted: Counts) -> dict[str, float]:
    """How far the probabilities of two classes are from the shares of the votes.

    ``vote_ece`` is the error in bins of the probability of class 1, whose mean is compared to the
    mean share; ``vote_ece_calibrated`` what the spread of the shares about the probabilities in
    each bin would give if all true gaps were 0.
    """
    share, q = positive / voted, predicted[:, 1]
    tiny = np.finfo(np.float64).tiny
    logs = np.log(np.maximum(predicted, tiny))
    place = bin_of(q, N_BINS)
    gaps = [(share - q)[place == b] for b in np.unique(place)]
    noise = [np.sqrt(len(g)) * g.std(ddof=1) for g in gaps if len(g) > 1]
    return {
        "vote_distance": float(vote_distances(predicted, share).mean()),
        "vote_brier": float(2 * np.square(q - share).mean()),
        "vote_cross_entropy": -float((share * logs[:, 1] + (1 - share) * logs[:, 0]).mean()),
        "vote_ece": float(sum(abs(g.sum()) for g in gaps) / len(q)),
        "vote_ece_calibrated": float(np.sqrt(2 / np.pi) * sum(noise) / len(q)),
    }


def vote_floors(positive: Counts, voted: Counts, prior: tuple[float, float]) -> dict[str, float]:
    r"""Values of the same measures for a predictor that knows v, by the noise of the votes alone.

    That of the Brier score is :math:`2 \hat v (1 - \hat v) / (m - 1)`, unbiased whatever v is. The
    others are means over the posterior of v under a beta prior. ``binomial_distance`` needs no
    prior and is too low: the mean of :math:`|k / m - \hat v|` for k of the binomial law at the
    observed share, 0 where all agree.

    Args:
        positive: k, shape (n,).
        voted: m >= 2, shape (n,).
        prior: Parameters of the beta law, see :func:`fit_prior`.

    Raises:
        ValueError: If a sentence has fewer than two votes.
    """
    if (voted < 2).any():
        raise ValueError(f"`voted` must be >= 2, got {voted.min()}.")
    share = positive / voted
    a, b = prior[0] + positive, prior[1] + voted - positive
    entropy = special.digamma(a + b + 1) - (
        a * special.digamma(a + 1) + b * special.digamma(b + 1)
    ) / (a + b)
    return {
        "vote_distance": float(_mean_distance(a, b, share).mean()),
        "vote_brier": float(2 * (share * (1 - share) / (voted - 1)).mean()),
        "vote_cross_entropy": float(entropy.mean()),
        "binomial_distance": float(
            np.mean([_spread(*row) for row in zip(voted, share, strict=True)])
        ),
    }


def _mean_distance(a: Float64Array, b: Float64Array, point: Float64Array) -> Float64Array:
    """E|V - point| of a beta law: E(V - point) + 2 E max(point - V, 0)."""
    mean = a / (a + b)
    below = point * special.betainc(a, b, point) - mean * special.betainc(a + 1, b, point)
    return np.asarray(mean - point + 2 * below)


def _spread(m: int, share: float) -> float:
    votes = np.arange(m + 1)
    return float(stats.binom.pmf(votes, m, share) @ np.abs(votes / m - share))


def fit_prior(positive: Counts, voted: Counts) -> tuple[float, float]:
    """Parameters of the beta law of v under which the counts are likeliest."""

    def risk(logs: Float64Array) -> float:
        a, b = np.exp(logs)
        terms = special.betaln(a + positive, b + voted - positive) - special.betaln(a, b)
        return -float(terms.mean())

    a, b = np.exp(optimize.minimize(risk, np.zeros(2), method="Nelder-Mead").x)
    return float(a), float(b)


def disagreement(share: Float64Array) -> Float64Array:
    """Share of the smaller side, in [0, 1/2]; entropy and variance of a vote rank alike."""
    return np.minimum(share, 1 - share)


def rank_correlation(one: Float64Array, other: Float64Array) -> float:
    """Spearman's coefficient."""
    return float(stats.spearmanr(one, other).statistic)


def uncertainty_measures(
    members: Float64Array, positive: Counts, voted: Counts
) -> dict[str, float]:
    """Rank correlations of a predictor's uncertainties with the disagreement of people.

    ``rank_gain`` is that of the mutual information less that of the entropy.

    Args:
        members: Probabilities, shape (members, n, 2). With one member there is no mutual
            information.
        positive: k, shape (n,).
        voted: m, shape (n,).
    """
    people = disagreement(positive / voted)
    found = {
        f"rank_{name}": rank_correlation(values, people)
        for name, values in uncertainties(members).items()
    }
    if "rank_mutual_information" in found:
        found["rank_gain"] = found["rank_mutual_information"] - found["rank_entropy"]
    return found


def uncertainties(members: Float64Array) -> dict[str, Float64Array]:
    """Entropy of the mean prediction; of several members also their mean entropy and the rest."""
    entropy = special.entr(members.mean(0)).sum(-1)
    if len(members) == 1:
        return {"entropy": entropy}
    expected = special.entr(members).sum(-1).mean(0)
    return {
        "entropy": entropy,
        "expected_entropy": expected,
        "mutual_information": np.maximum(entropy - expected, 0.0),
    }


def rank_ceiling(positive: Counts, voted: Counts) -> dict[str, float]:
    """How well votes rank disagreement themselves, from random halves of each sentence's votes.

    ``halves`` is the mean rank correlation between the halves, ``reliability`` that between two
    whole panels by the formula of Spearman and Brown, ``ceiling`` its root: what uncertainties
    that rank as the true disagreement would reach, if ranks behaved as scores do.
    """
    rng = np.random.default_rng(HALVING_SEED)
    known = voted >= 2
    k, m = positive[known], voted[known]
    halves = []
    for _ in range(HALVINGS):
        first = rng.hypergeometric(k, m - k, m // 2)
        one, other = first / (m // 2), (k - first) / (m - m // 2)
        halves.append(rank_correlation(disagreement(one), disagreement(other)))
    mean = float(np.mean(halves))
    reliability = 2 * mean / (1 + mean)
    return {"halves": mean, "reliability": reliability, "ceiling": reliability**0.5}
