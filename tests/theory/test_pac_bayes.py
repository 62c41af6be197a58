"""PAC-Bayes: oracles, the order of the relatives, masks by enumeration, exact coverage."""

from dataclasses import replace
from itertools import product
from math import factorial, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy import stats

from lodrop_theory.bounds.catoni2007 import catoni_bound, mcallester2013_bound
from lodrop_theory.bounds.gaussian_masks import masked_factors_kl, masked_update_kl
from lodrop_theory.bounds.maurer2004 import (
    pac_bayes_kl_bound,
    pac_bayes_quadratic_bound,
    pac_bayes_root_bound,
)
from lodrop_theory.inputs import PacBayesInputs
from lodrop_theory.kl_inverse import binary_kl_inverse
from tests.theory.enumerable import multisets
from tests.theory.strategies import counts, magnitudes

RELATIVES = (pac_bayes_kl_bound, pac_bayes_quadratic_bound, pac_bayes_root_bound)


@st.composite
def inputs(draw, unit=False):
    c, low = (1.0, 0.0) if unit else (draw(magnitudes(-3, 3)), draw(st.floats(-2, 2)))
    return PacBayesInputs(
        n_train=draw(counts),
        loss_range=c,
        delta=draw(st.one_of(st.floats(1e-9, 0.9), magnitudes(-300, -1))),
        empirical_risk=low + c * draw(st.floats(0, 1)),
        kl_nats=draw(st.one_of(st.just(0.0), magnitudes(-6, 6))),
        loss_min=low,
    )


def exact_budget(x):
    n, delta, kl = mpf(float(x.n_train)), mpf(float(x.delta)), mpf(float(x.kl_nats))
    return (kl + mp.log(2 * mp.sqrt(n) / delta)) / n


@given(x=inputs(unit=True))
def test_oracles(x) -> None:
    with mp.workdps(50):
        b, r = exact_budget(x), mpf(float(x.empirical_risk))
        p = mpf(float(pac_bayes_kl_bound(x).risk))
        if p < 1 and 0 < r < 1:
            assert r * mp.log(r / p) + (1 - r) * mp.log((1 - r) / (1 - p)) >= b
        quadratic = (mp.sqrt(r + b / 2) + mp.sqrt(b / 2)) ** 2
        root = r + mp.sqrt(b / 2)
        for bound, exact in ((RELATIVES[1], quadratic), (RELATIVES[2], root)):
            assert exact <= mpf(float(bound(x).risk)) <= exact * (1 + mpf(2) ** -44)


@given(x=inputs())
def test_the_inverse_is_below_its_relatives(x) -> None:
    kl, quadratic, root = (f(x) for f in RELATIVES)
    size = 1e-12 * (abs(float(x.loss_min)) + float(x.loss_range))
    assert kl.gap <= min(quadratic.gap, root.gap) * (1 + 1e-12) + size
    assert kl.risk <= float(x.loss_min + x.loss_range) + size
    assert {r.event for r in (kl, quadratic, root)} == {kl.event}
    assert kl.predictor == "gibbs"


@given(x=inputs(unit=True))
def test_quadratic_form_is_the_best_lambda_bound(x) -> None:
    # Thiemann et al. (2017): R_hat / (1 - l/2) + (n B) / (n l (1 - l/2)), at its closed-form best l
    b = float((x.kl_nats + np.log(2 * np.sqrt(x.n_train) / x.delta)) / x.n_train)
    r = float(x.empirical_risk)
    best = 2 / (np.sqrt(2 * r / b + 1) + 1)
    lam = r / (1 - best / 2) + b / (best * (1 - best / 2))
    assert float(pac_bayes_quadratic_bound(x).risk) == pytest.approx(lam, rel=1e-9)


@given(x=inputs(unit=True), a=magnitudes(-3, 0.29))
def test_catoni_oracle_and_order(x, a: float) -> None:
    catoni = catoni_bound(x, inverse_temperature=a)
    linear = mcallester2013_bound(x, inverse_temperature=a)
    with mp.workdps(50):
        k = (mpf(float(x.kl_nats)) - mp.log(mpf(float(x.delta)))) / mpf(float(x.n_train))
        r, t = mpf(float(x.empirical_risk)), mpf(a)
        exact = (1 - mp.exp(-t * r - k)) / (1 - mp.exp(-t))
        assert exact <= mpf(float(catoni.risk)) <= exact * (1 + mpf(2) ** -42)
        lam = 1 / t
        exact = (r + lam * k) / (1 - 1 / (2 * lam))  # as printed by McAllester
        assert exact <= mpf(float(linear.risk)) <= exact * (1 + mpf(2) ** -42)
    assert catoni.risk <= linear.risk
    assert linear.free_parameters == ("inverse_temperature",)
    # the best temperature, chosen in hindsight, is the kl inverse without 2 sqrt(n)
    assert float(catoni.risk) >= float(binary_kl_inverse(x.empirical_risk, float(k))) * (1 - 1e-9)


def test_catoni_reaches_the_kl_inverse_at_the_best_temperature() -> None:
    x = PacBayesInputs(n_train=1000, loss_range=1, delta=0.05, empirical_risk=0.1, kl_nats=5)
    grid = np.geomspace(0.01, 3, 4000)
    best = float(catoni_bound(x, inverse_temperature=grid).risk.min())
    inverse = float(binary_kl_inverse(0.1, (5 - np.log(0.05)) / 1000))
    assert inverse <= best <= inverse * (1 + 1e-6)


def test_maurers_constant_covers_small_samples() -> None:
    for n in [*range(1, 60), 200, 1000]:
        k = np.arange(n + 1)
        # E exp(n kl) over Binomial(n, p) does not depend on p: the powers of p cancel
        total = np.exp(stats.binom.logpmf(k, n, np.clip(k / n, 1e-300, 1 - 1e-16))).sum()
        assert total <= 2 * np.sqrt(n) * (1 + 1e-9)
        if n == 1:
            assert total == pytest.approx(2)


@given(x=inputs(unit=True), factor=st.integers(2, 1000))
def test_what_pays(x, factor: int) -> None:
    base = pac_bayes_kl_bound(x).risk
    grid = pac_bayes_kl_bound(replace(x, n_priors=factor)).risk
    smaller = pac_bayes_kl_bound(replace(x, delta=x.delta / factor)).risk
    assert base <= grid * (1 + 1e-12)
    assert float(grid) == pytest.approx(float(smaller), rel=1e-9)  # ln G is delta / G
    half = float(x.delta) / 2
    if half > 0:
        draws = pac_bayes_kl_bound(replace(x, n_draws=factor, delta_draws=half))
        risk = min(float(binary_kl_inverse(x.empirical_risk, -np.log(half) / factor)), 1.0)
        by_hand = pac_bayes_kl_bound(replace(x, delta=half, empirical_risk=risk)).risk
        assert float(draws.risk) == pytest.approx(float(by_hand), rel=1e-9)
        assert base <= draws.risk * (1 + 1e-12)
        assert draws.delta == x.delta


@given(x=inputs(unit=True), more=st.floats(1, 10), length=magnitudes(-3, 3))
def test_laws(x, more: float, length: float) -> None:
    for bound in RELATIVES:
        risk = float(bound(x).risk)
        assert risk >= float(x.empirical_risk)
        assert risk <= float(bound(replace(x, kl_nats=x.kl_nats * more)).risk) * (1 + 1e-12)
        scaled = replace(x, loss_range=length, empirical_risk=length * x.empirical_risk)
        assert float(bound(scaled).risk) == pytest.approx(length * risk, rel=1e-9)


@given(
    rate=st.floats(0, 0.95),
    seed=st.integers(0, 2**31),
    rescale=st.booleans(),
    sigma=magnitudes(-2, 1),
)
@settings(max_examples=20)
def test_divergence_of_masked_factors_by_enumeration(rate, seed, rescale, sigma) -> None:
    rng = np.random.default_rng(seed)
    a, a0, b = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), rng.normal(size=(3, 2))
    q, total = 1 - rate, 0.0
    scale = 1 / q if rescale else 1.0
    for bits in product([0, 1], repeat=6):
        columns, rows = np.array(bits[:3]), np.array(bits[3:])
        chance = q ** sum(bits) * rate ** (6 - sum(bits))
        kept = ((scale * (a - a0)) ** 2 * columns).sum() + ((scale * b) ** 2 * rows[:, None]).sum()
        total += chance * kept / (2 * sigma**2)
    distance = ((a - a0) ** 2).sum() + (b**2).sum()
    value = float(masked_factors_kl(distance, rate, sigma, rescale=rescale))
    assert value == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("update", [0.3, 2.0])
def test_divergence_of_the_masked_update_covers_the_mixture(rate, rescale, update) -> None:
    q, x = 1 - rate, np.linspace(-30, 30, 200_001)
    center = update / q**2 if rescale else update
    prior = stats.norm.pdf(x)
    mixture = q**2 * stats.norm.pdf(x, center) + (1 - q**2) * prior
    inside = mixture > 1e-300
    kl = np.trapezoid(mixture[inside] * np.log(mixture[inside] / prior[inside]), x[inside])
    bound = float(masked_update_kl(update**2, rate, 1.0, rescale=rescale))
    assert kl <= bound * (1 + 1e-9)
    if rate == 0:
        assert kl == pytest.approx(bound, rel=1e-6)


@given(norm=magnitudes(-3, 3), rate=st.floats(0.01, 0.9), sigma=magnitudes(-2, 2))
def test_dropout_helps_without_scaling_and_hurts_with_it(norm, rate, sigma) -> None:
    for kl in (masked_factors_kl, masked_update_kl):
        plain = kl(norm, 0.0, sigma, rescale=False)
        assert kl(norm, rate, sigma, rescale=False) < plain < kl(norm, rate, sigma, rescale=True)


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 12),
    delta=st.floats(0.02, 0.9),
    binary=st.booleans(),
    a=st.floats(0.1, 1.9),
)
@settings(max_examples=40)
def test_exact_coverage_for_all_posteriors_at_once(seed, n, delta, binary, a) -> None:
    rng = np.random.default_rng(seed)
    chances, prior = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(6))
    table = rng.uniform(0, 1, (6, 3))
    table = np.round(table) if binary else table
    failed = {"kl": 0.0, "catoni": 0.0}
    for sample in multisets(3, n):
        share = np.array(sample) / n
        weight = factorial(n) / prod(map(factorial, sample)) * np.prod(chances ** np.array(sample))
        train, true = table @ share, table @ chances
        posteriors = [np.eye(6)[i] for i in range(6)]
        posteriors += [prior * np.exp(-t * train) for t in (0.0, 1.0, 5.0, 30.0)]
        posteriors = np.array([w / w.sum() for w in posteriors])
        ratio = np.where(posteriors > 0, posteriors / prior, 1.0)
        x = PacBayesInputs(
            n_train=n,
            loss_range=1,
            delta=delta,
            empirical_risk=np.clip(posteriors @ train, 0, 1),
            kl_nats=np.maximum((posteriors * np.log(ratio)).sum(1), 0),
        )
        risk = posteriors @ true
        if np.any(pac_bayes_kl_bound(x).risk < risk - 1e-12):
            failed["kl"] += weight
        if np.any(catoni_bound(x, inverse_temperature=a).risk < risk - 1e-12):
            failed["catoni"] += weight
    assert max(failed.values()) <= delta


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"empirical_risk": 1.2}, "`empirical_risk` must be in"),
        ({"n_draws": 10}, "`n_draws` and `delta_draws` must be given together"),
        ({"n_draws": 10, "delta_draws": 0.1}, "`delta_draws` must be smaller than `delta`"),
        ({"kl_nats": -1.0}, "`kl_nats` must be"),
    ],
)
def test_bad_input_is_refused_by_name(change, match) -> None:
    good = {"n_train": 10, "loss_range": 1, "delta": 0.1, "empirical_risk": 0.5, "kl_nats": 1.0}
    with pytest.raises(ValueError, match=match):
        PacBayesInputs(**{**good, **change})


@pytest.mark.parametrize("a", [0.0, 2.0, -1.0])
def test_temperatures_outside_their_range_are_refused(a) -> None:
    x = PacBayesInputs(n_train=10, loss_range=1, delta=0.1, empirical_risk=0.5, kl_nats=1)
    with pytest.raises(ValueError, match="`inverse_temperature` must be"):
        mcallester2013_bound(x, inverse_temperature=a)
