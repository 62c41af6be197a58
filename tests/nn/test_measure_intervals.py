"""Intervals: exact cases, laws and simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from lodrop_nn.measure.intervals import fraction_estimate, mean_estimate, variance_estimate

levels = st.floats(0.5, 0.999)
# On a grid, so that 1 - x is exact.
sixty_fourths = st.integers(0, 64).map(lambda k: k / 64)
fractions = hnp.arrays(np.float64, st.integers(2, 40), elements=sixty_fourths)


@given(
    draws=hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(-1e3, 1e3)), level=levels
)
def test_students_interval_is_scipys(draws: np.ndarray, level: float) -> None:
    estimate = mean_estimate(draws, level, "test")

    error = stats.sem(draws)
    if error > 1e-9:
        low, high = stats.t.interval(level, len(draws) - 1, loc=draws.mean(), scale=error)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert estimate.lower <= estimate.value <= estimate.upper
    assert estimate.n_draws == len(draws)


def test_one_draw_claims_no_interval() -> None:
    estimate = mean_estimate(np.array([2.5]), 0.95, "test")

    assert (estimate.value, estimate.low, estimate.level) == (2.5, None, None)


@given(draws=fractions, level=levels)
def test_a_fraction_stays_in_the_unit_interval(draws: np.ndarray, level: float) -> None:
    estimate = fraction_estimate(draws, level, "test")

    assert 0 <= estimate.lower <= estimate.value <= estimate.upper <= 1
    assert estimate.upper > estimate.lower


@given(draws=fractions, level=levels)
def test_failures_mirror_successes(draws: np.ndarray, level: float) -> None:
    successes = fraction_estimate(draws, level, "test")
    failures = fraction_estimate(1 - draws, level, "test")

    assert failures.lower == pytest.approx(1 - successes.upper, abs=1e-9)


@given(k=st.integers(0, 30), n=st.integers(1, 30), level=levels)
def test_zeros_and_ones_get_the_exact_interval(k: int, n: int, level: float) -> None:
    k = min(k, n)
    draws = np.array([1.0] * k + [0.0] * (n - k))

    estimate = fraction_estimate(draws, level, "test")

    tail = (1 - level) / 2  # the ends are quantiles of Beta laws
    low = stats.beta.ppf(tail, k, n - k + 1) if k else 0.0
    high = stats.beta.isf(tail, k + 1, n - k) if k < n else 1.0
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-9)
    assert "Clopper-Pearson" in estimate.method


@pytest.mark.parametrize("n", [5, 40])
def test_wilson_is_scipys_at_whole_counts(n: int) -> None:
    # Two draws of one half are not zeros and ones, yet count like one success and one failure.
    draws = np.array([0.5, 0.5] + [1.0] * (n - 3) + [0.0])
    reference = stats.binomtest(n - 2, n).proportion_ci(0.9, "wilson")

    estimate = fraction_estimate(draws, 0.9, "test")

    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high))
    assert "Wilson" in estimate.method


def test_students_interval_covers_a_normal_mean() -> None:
    stream = np.random.default_rng(0)
    samples = stream.normal(3.0, 2.0, size=(2000, 6))

    covered = [
        estimate.lower <= 3.0 <= estimate.upper
        for estimate in (mean_estimate(row, 0.9, "test") for row in samples)
    ]

    assert abs(np.mean(covered) - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 2000)


def test_the_exact_interval_never_covers_too_little() -> None:
    n, level = 25, 0.9
    counts = np.arange(n + 1)
    estimates = [fraction_estimate((counts[1:] <= k) * 1.0, level, "test") for k in counts]
    low, high = (np.array([getattr(e, end) for e in estimates]) for end in ("low", "high"))

    for share in np.linspace(0.001, 0.999, 199):  # the coverage itself, not a simulation of it
        covered = (low <= share) & (share <= high)
        assert stats.binom.pmf(counts[covered], n, share).sum() >= level


@pytest.mark.parametrize("interval", [mean_estimate, fraction_estimate])
def test_refusals(interval) -> None:
    with pytest.raises(ValueError, match="`level` must be in"):
        interval(np.ones(3), 1.0, "test")
    with pytest.raises(ValueError, match="`draws` must have shape"):
        interval(np.ones(0), 0.9, "test")
    with pytest.raises(ValueError, match="`draws` must be in"):
        fraction_estimate(np.array([0.5, 1.5]), 0.9, "test")


@given(
    draws=hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(-1e3, 1e3)), level=levels
)
def test_the_variance_is_numpys(draws: np.ndarray, level: float) -> None:
    estimate = variance_estimate(draws, level, "test")

    assert estimate.value == pytest.approx(np.var(draws, ddof=1), rel=1e-9, abs=1e-9)
    assert 0 <= estimate.lower <= estimate.value <= estimate.upper


def test_the_interval_of_a_variance_covers_it() -> None:
    stream = np.random.default_rng(0)
    samples = stream.uniform(0.0, math.sqrt(12), size=(1000, 100))  # variance 1

    covered = [
        estimate.lower <= 1.0 <= estimate.upper
        for estimate in (variance_estimate(row, 0.9, "test") for row in samples)
    ]

    assert abs(np.mean(covered) - 0.9) < 0.02 + 4 * math.sqrt(0.9 * 0.1 / 1000)


def test_one_draw_has_no_variance() -> None:
    assert variance_estimate(np.array([2.5]), 0.9, "test") is None


@pytest.mark.parametrize("interval", [mean_estimate, fraction_estimate, variance_estimate])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_draw_that_is_not_finite_is_named(interval, bad: float) -> None:
    with pytest.raises(ValueError, match=r"`draws` must be finite, got .* as draw 2"):
        interval(np.array([0.0, 1.0, bad, bad]), 0.9, "test")
