"""The moment bound for uniform stability: its tools, its theorem, its constants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from lodrop_theory.bounds.bousquet2002 import uniform_bound
from lodrop_theory.bounds.bousquet2020 import _moment, uniform_log_bound
from lodrop_theory.bounds.feldman2018 import feldman_vondrak_bound
from lodrop_theory.inputs import UniformStabilityInputs
from tests.theory.enumerable import world
from tests.theory.strategies import counts, deltas, magnitudes, scales, stabilities


@given(seed=st.integers(0, 2**31), k=st.floats(2, 12))
def test_rios_inequality_exactly(seed: int, k: float) -> None:
    # Y has 4 values; given each, X has 3 values of conditional mean 0
    rng = np.random.default_rng(seed)
    chance = rng.dirichlet(np.ones(4))
    inner = rng.dirichlet(np.ones(3), 4)
    y, x = rng.normal(size=4), rng.normal(size=(4, 3)) * 10 ** rng.uniform(-2, 2)
    x = x - (inner * x).sum(1, keepdims=True)
    weight = chance[:, None] * inner

    def norm(values):
        return (weight * np.abs(values) ** k).sum() ** (1 / k)

    left = norm(y[:, None] + x) ** 2
    right = norm(y[:, None] + 0 * x) ** 2 + (k - 1) * norm(x) ** 2
    assert left <= right * (1 + 1e-12)


@given(m=st.integers(1, 40), p=st.floats(0.01, 0.99), k=st.floats(2, 30))
def test_moments_of_a_sub_gaussian_sum(m: int, p: float, k: float) -> None:
    from scipy import stats

    j = np.arange(m + 1)
    exact = (stats.binom.pmf(j, m, p) * np.abs(j - m * p) ** k).sum() ** (1 / k)
    assert exact <= 2 ** (1 / k) * (np.sqrt(m) / 2) * np.sqrt(k / np.e) * (1 + 1e-9)


def exact_bound(n, c, delta, g, k):
    levels = mp.ceil(mp.log(n, 2) - mpf(10) ** -30) if n > 1 else mpf(0)
    inner = g * levels * mp.sqrt(k * (k - 1) / mp.e) + (c / 2) * mp.sqrt(k / (mp.e * n))
    return 2 * g + (2 / delta) ** (1 / k) * inner


@given(n=counts, c=scales, delta=deltas, g=stabilities)
def test_oracle_at_the_moment_that_is_used(n, c, delta, g) -> None:
    x = UniformStabilityInputs(n_train=n, loss_range=c, delta=delta, uniform_stability=g)
    value = mpf(float(uniform_log_bound(x).gap))
    levels = float(np.ceil(np.log2(n))) + (2 ** np.ceil(np.log2(n)) < n)
    log = np.log(2.0) - np.log(delta)
    k = mpf(float(_moment(np.asarray(log), np.asarray(g * levels), c / (2 * np.sqrt(float(n))))))
    with mp.workdps(60):
        assert k >= 2
        exact = exact_bound(*(mpf(float(v)) for v in (n, c, delta, g)), k)
        assert exact <= value <= exact * (1 + mpf(2) ** -44)


@given(
    n=st.integers(1, 10**9),
    delta=st.floats(1e-12, 0.5),
    g=st.one_of(st.just(0.0), magnitudes(-9, 0)),
)
def test_the_moment_is_nearly_the_best_and_beats_the_printed_constants(n, delta, g) -> None:
    x = UniformStabilityInputs(n_train=n, loss_range=1, delta=delta, uniform_stability=g)
    value = float(uniform_log_bound(x).gap)
    k = np.geomspace(2, 400, 4000)
    levels = np.ceil(np.log2(n))
    ours = np.sqrt(k * (k - 1) / np.e) * g * levels + 0.5 * np.sqrt(k / np.e / n)
    best = 2 * g + ((2 / delta) ** (1 / k) * ours).min()
    assert best * (1 - 1e-5) <= value <= best * 1.01
    theirs = 24 * np.sqrt(2) * g * k * levels + 4 * np.sqrt(k / n)
    assert value <= 2 * g + (delta ** (-1 / k) * theirs).min()


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 14),
    smooth=st.sampled_from([0.0, 0.05, 0.5]),
    k=st.sampled_from([2.0, 3.0, 5.0, 8.0]),
    delta=st.floats(0.01, 0.9),
)
@settings(max_examples=40)
def test_moments_and_coverage_on_algorithms_without_structure(seed, n, smooth, k, delta) -> None:
    rng = np.random.default_rng(seed)
    p, tables = rng.uniform(0.1, 0.9), {}
    base = np.array([0.0, 1 - smooth])

    def learn(sample):
        if sample not in tables:
            tables[sample] = base + smooth * rng.uniform(0, 1, 2)
        return tables[sample]

    here = world(np.array([p, 1 - p]), n, learn)
    g, levels = here.uniform_replace, np.ceil(np.log2(n))
    norm = float(here.weight @ np.abs(here.gap) ** k) ** (1 / k)
    inner = g * levels * np.sqrt(k * (k - 1) / np.e) + 0.5 * np.sqrt(k / np.e / n)
    assert norm <= (2 * g + 2 ** (1 / k) * inner) * (1 + 1e-9)
    x = UniformStabilityInputs(n_train=n, loss_range=1, delta=delta, uniform_stability=g)
    assert here.violation(float(uniform_log_bound(x).gap)) <= delta


def test_crossover_with_the_bounded_difference_tail() -> None:
    def gaps(n, delta, kappa):
        x = UniformStabilityInputs(
            n_train=n, loss_range=1, delta=delta, uniform_stability=2 * kappa / n
        )
        return [round(float(f(x).gap), 3) for f in (uniform_bound, uniform_log_bound)]

    assert gaps(100, 0.05, 1) == [0.632, 0.923]
    assert gaps(1000, 0.05, 1) == [0.196, 0.158]
    assert gaps(10**5, 0.05, 100) == [1.554, 0.182]
    assert gaps(10**5, 1e-6, 100) == [3.335, 0.798]


@given(n=counts, c=scales, delta=deltas, g=stabilities)
def test_feldman_vondrak_is_quoted_and_never_a_certificate(n, c, delta, g) -> None:
    x = UniformStabilityInputs(n_train=n, loss_range=c, delta=delta, uniform_stability=g)
    result = feldman_vondrak_bound(x)
    assert result.kind == "plug-in"
    assert any("never a certificate" in c for c in result.caveats)
    with mp.workdps(50):
        n, c, delta, g = (mpf(float(v)) for v in (n, c, delta, g))
        exact = 8 * mp.sqrt(c * (2 * g + c / n) * mp.log(8 / delta))
        assert exact <= mpf(float(result.gap)) <= exact * (1 + mpf(2) ** -46)
    with pytest.raises(TypeError):
        feldman_vondrak_bound(x, certified=True)  # type: ignore[call-arg]
