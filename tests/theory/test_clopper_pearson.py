"""Binomial limits against exact sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy import stats

from lodrop_theory.clopper_pearson import clopper_pearson_lower, clopper_pearson_upper
from lodrop_theory.kl_inverse import binary_kl_inverse
from tests.theory.strategies import magnitudes


def at_most(k: int, n: int, p: mpf) -> mpf:
    """P(X <= k), summed downward from k until the terms vanish."""
    term = mp.exp(
        mp.loggamma(n + 1)
        - mp.loggamma(k + 1)
        - mp.loggamma(n - k + 1)
        + k * mp.log(p)
        + (n - k) * mp.log1p(-p)
    )
    total, odds = mpf(0), (1 - p) / p
    for j in range(k, -1, -1):
        total += term
        if term < total * mpf(10) ** -40:
            break
        term *= mpf(j) / (n - j + 1) * odds
    return total


@st.composite
def trials(draw, most):
    n = draw(st.integers(1, most))
    few = st.integers(0, min(n, 300))
    k = draw(st.one_of(few, few.map(lambda x: n - x)))
    return k, n


deltas = st.one_of(st.floats(1e-6, 0.9), magnitudes(-99, -1), magnitudes(-300, -1))


@given(trial=st.one_of(trials(50), trials(10**6), trials(10**15)), delta=deltas)
def test_limits_are_rounded_outward(trial, delta) -> None:
    k, n = trial
    with mp.workdps(400):
        upper = mpf(float(clopper_pearson_upper(k, n, delta)))
        if upper < 1 and k <= 300:
            tail = at_most(k, n, upper)
            assert tail <= mpf(delta)
            if delta > 1e-100 and upper < 0.999:
                assert tail >= mpf(delta) * (1 - mpf(10) ** -5)
        lower = mpf(float(clopper_pearson_lower(k, n, delta)))
        if lower > 0 and n - k <= 300:  # P(X >= k) by counting failures
            assert at_most(n - k, n, 1 - lower) <= mpf(delta)


def test_where_scipy_underflows() -> None:
    # betainc is 0 at these limits, whose tails are 1e-255 and 1e-290
    for k, n, delta in [(24071, 24102, 2.0665e-255), (8176, 8201, 2.9637e-290)]:
        with mp.workdps(400):
            lower = mpf(float(clopper_pearson_lower(k, n, delta)))
            assert at_most(n - k, n, 1 - lower) <= mpf(delta)


@given(trial=trials(2000), delta=st.floats(1e-10, 0.5))
def test_against_the_beta_quantile(trial, delta) -> None:
    k, n = trial
    if k < n:
        upper = stats.beta.isf(delta, k + 1, n - k)
        assert float(clopper_pearson_upper(k, n, delta)) == pytest.approx(upper, rel=1e-8)
    if k > 0:
        lower = stats.beta.ppf(delta, k, n - k + 1)
        assert float(clopper_pearson_lower(k, n, delta)) == pytest.approx(lower, rel=1e-8)


@given(trial=trials(10**15), delta=deltas)
def test_ends_order_and_chernoff(trial, delta) -> None:
    k, n = trial
    upper, lower = clopper_pearson_upper(k, n, delta), clopper_pearson_lower(k, n, delta)
    assert 0 <= lower <= 1
    assert 0 <= upper <= 1
    assert (k == n) == (upper == 1) or upper > 1 - 1e-15
    assert k > 0 or lower == 0
    share = min(k / n * (1 + 1e-15), 1)
    assert upper <= binary_kl_inverse(share, -np.log(delta) / n * (1 + 1e-12)) * (1 + 1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 20])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.5])
def test_coverage_is_exact(n: int, delta: float) -> None:
    limits = clopper_pearson_upper(np.arange(n + 1), n, delta)
    for p in [*np.linspace(0, 1, 201), *np.nextafter(limits, 2)[:-1]]:
        missed = stats.binom.pmf(np.flatnonzero(limits < p), n, p).sum()
        assert missed <= delta * (1 + 1e-9)
    # just above a limit the miss probability is delta: no smaller limit has coverage
    p = float(np.nextafter(limits[0], 2))
    assert stats.binom.pmf(0, n, p) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize("k", [-1, 1.5, 11])
def test_counts_are_checked(k) -> None:
    with pytest.raises(ValueError, match="`n_errors` must be a whole number"):
        clopper_pearson_upper(k, 10, 0.1)
