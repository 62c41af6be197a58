"""Ensembles of masks: joint laws by enumeration, gains by identity and bracket, and coverage."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mpmath import mp, mpf

from lodrop_theory import jensen_gap, masked_update_covariance
from lodrop_theory.ensemble_gain import (
    curvature_gain_bracket,
    log_gain_bracket,
    log_loss_ambiguity,
    logit_ambiguity,
)
from lodrop_theory.gain_confidence import gain_lower_bound
from lodrop_theory.mask_variance import (
    balanced_masks_average,
    crossed_masks_average,
    ensemble_covariance,
    iid_masks_average,
    variance_ratio,
)
from tests.theory.strategies import deltas

# ---- laws of one coordinate over N members: [(probability, kept in member 1..N)]


def iid_law(rate, n):
    for bits in product((0, 1), repeat=n):
        yield (1 - rate) ** sum(bits) * rate ** (n - sum(bits)), np.array(bits, dtype=float)


def balanced_law(rate, n):
    kept = (1 - rate) * n
    low = int(np.floor(kept + 1e-9))
    fraction = max(kept - low, 0.0)
    for count, chance in ((low, 1 - fraction), (low + 1, fraction)):
        if chance < 1e-9:
            continue
        places = list(combinations(range(n), count))
        for chosen in places:
            mask = np.zeros(n)
            mask[list(chosen)] = 1.0
            yield chance / len(places), mask


def crossed(law, n_columns, n_rows):
    """Laws of a column and of a row coordinate over the table of members."""
    columns = [(c, np.repeat(m, n_rows)) for c, m in law(n_columns)]
    rows = [(c, np.tile(m, n_columns)) for c, m in law(n_rows)]
    return columns, rows


def enumerate_mean(column_law, row_law, weight, x, value):
    """Mean and covariance of the ensemble mean over every joint draw; also of member 1 alone."""
    first, second, member, member2 = 0.0, 0.0, 0.0, 0.0
    for columns in product(column_law, repeat=weight.shape[1]):
        chance_c = np.prod([c for c, _ in columns])
        a = value * np.stack([m for _, m in columns], axis=1)  # (N, d)
        for rows in product(row_law, repeat=weight.shape[0]):
            chance = chance_c * np.prod([c for c, _ in rows])
            b = value * np.stack([m for _, m in rows], axis=1)
            each = b * ((a * x) @ weight.T)
            z = each.mean(axis=0)
            first, second = first + chance * z, second + chance * np.outer(z, z)
            member, member2 = (
                member + chance * each[0],
                member2 + chance * np.outer(each[0], each[0]),
            )
    return second - np.outer(first, first), member2 - np.outer(member, member), first


@st.composite
def layers(draw):
    n_out, n_in = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(size=(n_out, n_in)), rng.normal(size=n_in)


RATES = st.one_of(st.sampled_from([1 / 3, 0.5, 2 / 3]), st.floats(0.0, 0.9))


@pytest.mark.parametrize(
    ("law", "average"), [(iid_law, iid_masks_average), (balanced_law, balanced_masks_average)]
)
@given(layer=layers(), rate=RATES, n=st.integers(1, 3), rescale=st.booleans())
def test_ensemble_covariance_equals_the_enumeration(law, average, layer, rate, n, rescale) -> None:
    weight, x = layer
    value = 1 / (1 - rate) if rescale else 1.0
    joint = list(law(rate, n))
    assert sum(c for c, _ in joint) == pytest.approx(1)
    exact, member, mean = enumerate_mean(joint, joint, weight, x, value)
    found = average(rate, n, rescale=rescale)
    scale = 1e-9 * (1 + np.abs(member).max())
    np.testing.assert_allclose(ensemble_covariance(found, weight, x), exact, atol=scale)
    # every member keeps the i.i.d. law, so its covariance is the known one
    one = masked_update_covariance(rate, weight, x, rescale=rescale)
    np.testing.assert_allclose(member, one, atol=scale)
    np.testing.assert_allclose(mean, found.mean**2 * (weight @ x), atol=scale)


@given(
    layer=layers(),
    rate=st.sampled_from([0.5, 1 / 3, 0.2]),
    sizes=st.sampled_from([(2, 2), (2, 1), (1, 2), (3, 2)]),
)
def test_crossed_masks_equal_the_enumeration(layer, rate, sizes) -> None:
    weight, x = layer
    columns, rows = crossed(lambda n: balanced_law(rate, n), *sizes)
    exact, member, _ = enumerate_mean(columns, rows, weight, x, 1 / (1 - rate))
    found = crossed_masks_average(rate, *sizes, rescale=True)
    scale = 1e-9 * (1 + np.abs(member).max())
    np.testing.assert_allclose(ensemble_covariance(found, weight, x), exact, atol=scale)
    one = masked_update_covariance(rate, weight, x, rescale=True)
    np.testing.assert_allclose(member, one, atol=scale)


@pytest.mark.parametrize(("rate", "n_columns", "n_rows"), [(0.5, 2, 2), (1 / 3, 3, 3), (0.5, 2, 4)])
def test_crossed_masks_make_the_mean_update_exact(rate, n_columns, n_rows) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(5, 7)), rng.normal(size=(4, 7))
    law = crossed_masks_average(rate, n_columns, n_rows, rescale=True)
    assert np.abs(ensemble_covariance(law, weight, x)).max() < 1e-25

    # the same, by drawing: every draw of the permutations gives the plain update
    def masks(n_coordinates, n):
        keep = np.arange(n) < round((1 - rate) * n)
        return np.stack([rng.permutation(keep) for _ in range(n_coordinates)], 1) / (1 - rate)

    a, b = masks(7, n_columns), masks(5, n_rows)
    members = [b[w] * ((a[u] * x) @ weight.T) for u in range(n_columns) for w in range(n_rows)]
    np.testing.assert_allclose(np.mean(members, axis=0), x @ weight.T, rtol=1e-12)


def test_four_crossed_members_at_one_half_are_an_orthogonal_array() -> None:
    columns, rows = crossed(lambda n: balanced_law(0.5, n), 2, 2)
    for (_, a), (_, b) in product(columns, rows):
        assert sorted(zip(a, b, strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@given(layer=layers(), rate=st.floats(0.05, 0.9), n=st.integers(2, 64))
def test_balanced_ratio_has_the_closed_form(layer, rate, n) -> None:
    weight, x = layer
    kept = round((1 - rate) * n)
    assume(0 < kept < n)
    p = 1 - kept / n
    balanced, iid = (f(p, n, rescale=True) for f in (balanced_masks_average, iid_masks_average))
    t, u = float((weight**2 @ x**2).sum()), float(((weight @ x) ** 2).sum())
    odds = p / (1 - p)
    closed = n / (n - 1) * odds * t / ((1 + odds) * t + u)
    found = variance_ratio(balanced, iid, weight, x)
    assert found == pytest.approx(closed, rel=1e-9)
    trace = np.trace(ensemble_covariance(iid, weight, x))
    assert np.trace(ensemble_covariance(balanced, weight, x)) == pytest.approx(
        found * trace, rel=1e-9
    )


@given(layer=layers(), rate=st.floats(0.0, 0.9), n=st.integers(1, 50), rescale=st.booleans())
@example(layer=(np.ones((1, 1)), np.ones(1)), rate=1e-10, n=17, rescale=False)
@example(layer=(np.ones((1, 1)), np.ones(1)), rate=1e-10, n=1, rescale=False)
def test_balanced_masks_are_never_worse_in_the_linear_part(layer, rate, n, rescale) -> None:
    iid, balanced = (
        f(rate, n, rescale=rescale) for f in (iid_masks_average, balanced_masks_average)
    )
    assert balanced.columns <= iid.columns * (1 + 1e-12)
    if n == 1:
        for a, b in zip(iid, balanced, strict=True):
            assert float(a) == pytest.approx(float(b), abs=1e-12)


def test_n_broadcasts_and_no_update_has_no_ratio() -> None:
    law = balanced_masks_average([0.25, 0.5], [[4], [8]], rescale=True)
    assert [np.shape(v) for v in law] == [(2, 2)] * 4
    iid = iid_masks_average(0.5, 4, rescale=True)
    assert np.isnan(variance_ratio(iid, iid, np.zeros((2, 2)), np.ones(2)))
    with pytest.raises(ValueError, match="`n_masks` must be a whole number"):
        balanced_masks_average(0.5, 2.5, rescale=True)
    with pytest.raises(ValueError, match="`delta_weight` must have shape"):
        ensemble_covariance(iid, np.ones((2, 3)), np.ones(2))


# ---- gains

pools = arrays(np.float64, st.tuples(st.integers(1, 6)), elements=st.floats(1e-12, 1))
logits = arrays(np.float64, st.tuples(st.integers(1, 5), st.just(3)), elements=st.floats(-20, 20))


def exact_gain(pool) -> mpf:
    values = [mpf(float(v)) for v in pool]
    mean = sum(values) / len(values)
    return mp.log(mean) - sum(mp.log(v) for v in values) / len(values)


@given(pool=pools)
def test_log_loss_ambiguity_is_the_jensen_gap(pool) -> None:
    with mp.workdps(60):
        exact = exact_gain(pool)
        assert abs(mpf(float(log_loss_ambiguity(pool))) - exact) <= 1e-12 * exact + mpf(10) ** -25
    assert log_loss_ambiguity(pool) == pytest.approx(
        float(jensen_gap(-np.log(pool), -np.log(pool.mean()))), abs=1e-12
    )


@given(centre=st.floats(0.1, 0.9), size=st.floats(1e-9, 1e-5))
def test_small_gains_do_not_cancel(centre, size) -> None:
    pool = np.array([centre - size * centre, centre + size * centre])
    with mp.workdps(60):
        exact = exact_gain(pool)
        assert abs(mpf(float(log_loss_ambiguity(pool))) / exact - 1) < 1e-6


@given(z=logits, label=st.integers(0, 2))
def test_logit_ambiguity_is_the_jensen_gap_whatever_the_label(z, label) -> None:
    def loss(out):
        return np.logaddexp.reduce(out, axis=-1) - out[..., label]

    gap = loss(z).mean() - loss(z.mean(axis=0))
    assert logit_ambiguity(z) >= 0
    assert float(logit_ambiguity(z)) == pytest.approx(float(gap), abs=1e-11)
    low, high = curvature_gain_bracket(float(z.var(axis=0).sum()), 0.0, 0.5)
    assert low == 0
    assert logit_ambiguity(z) <= high * (1 + 1e-12) + 1e-13


@given(pool=pools)
def test_liao_berg_bracket_holds_exactly(pool) -> None:
    low, high = log_gain_bracket(pool)
    with mp.workdps(60):
        exact = max(exact_gain(pool), mpf(0))  # the last of the 60 digits may be negative
        assert 0 <= mpf(float(low)) <= exact <= mpf(float(high))


@given(pool=arrays(np.float64, (5,), elements=st.floats(0.3, 0.6)))
def test_liao_berg_is_sharper_than_the_plain_curvature(pool) -> None:
    assume(pool.std() > 1e-3)
    low, high = log_gain_bracket(pool)
    plain = curvature_gain_bracket(pool.var(), pool.max() ** -2, pool.min() ** -2)
    assert plain[0] * (1 - 1e-9) <= low <= high <= plain[1] * (1 + 1e-9)


@given(pool=arrays(np.float64, (4, 2), elements=st.floats(-5, 5)))
def test_half_squared_loss_gains_half_the_variance(pool) -> None:
    low, high = curvature_gain_bracket(pool.var(axis=0).sum(), 1.0, 1.0)
    gap = jensen_gap(0.5 * (pool**2).sum(1), 0.5 * (pool.mean(0) ** 2).sum())
    assert low - 1e-12 <= gap <= high + 1e-12


def test_equal_members_gain_nothing() -> None:
    for value in (0.1, 1 / 3, 1.0):
        low, high = log_gain_bracket(np.full(7, value))
        assert low == 0
        assert high < 1e-25
    assert log_loss_ambiguity([[0.25, 0.5]]).tolist() == [0, 0]


# ---- confidence


@given(
    gains=arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)),
    delta=deltas,
    scale=st.floats(1e-3, 1e3),
)
def test_lower_bound_is_in_range_scales_and_is_below_the_weighted_mean(gains, delta, scale) -> None:
    bound = gain_lower_bound(gains, loss_range=1.0, delta=delta)
    assert 0 <= bound <= gains.max()
    scaled = gain_lower_bound(scale * gains, loss_range=scale, delta=delta)
    assert scaled == pytest.approx(scale * bound, rel=1e-6, abs=1e-9 * scale)


def exact_lower_bound(gains, delta) -> mpf:
    """The formula of the docstring, step by step."""
    budget, n = -mp.log(mpf(delta)), len(gains)
    x = [mpf(float(g)) for g in gains]
    guess, variance, total, seen, spread = mpf("0.5"), mpf("0.25"), mpf(0), mpf("0.5"), mpf("0.25")
    weights = mpf(0)
    for i, value in enumerate(x, start=1):
        w = min(mp.sqrt(2 * budget / (n * variance)), mpf("0.5"))
        total += w * value - (-mp.log(1 - w) - w) * (value - guess) ** 2
        weights += w
        seen += value
        guess = seen / (i + 1)
        spread += (value - guess) ** 2
        variance = spread / (i + 1)
    return max((total - budget) / weights, mpf(0))


@given(
    gains=arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)),
    delta=st.floats(0.01, 0.9),
)
def test_lower_bound_is_the_formula_rounded_downward(gains, delta) -> None:
    with mp.workdps(50):
        exact = exact_lower_bound(gains, delta)
        assert abs(mpf(gain_lower_bound(gains, loss_range=1, delta=delta)) - exact) < 1e-12


@pytest.mark.parametrize("delta", [0.05, 0.3])
@pytest.mark.parametrize("high", [1.0, 0.1])
def test_coverage_of_the_lower_bound(delta, high) -> None:
    """Two-point gains, the worst case for a given mean; the miss rate is within its interval."""
    rng = np.random.default_rng(0)
    chance, trials = 0.1, 2000
    draws = high * (rng.random((trials, 60)) < chance)
    missed = sum(
        gain_lower_bound(row, loss_range=1.0, delta=delta) > chance * high for row in draws
    )
    # three standard errors above delta would be a violation
    assert missed / trials <= delta + 3 * np.sqrt(delta * (1 - delta) / trials)


def test_the_variance_is_what_counts() -> None:
    rng = np.random.default_rng(0)
    gains = 0.05 + 0.01 * rng.random(2000)
    paired = gain_lower_bound(gains, loss_range=3.66, delta=0.05)
    hoeffding = gains.mean() - 3.66 * np.sqrt(np.log(20) / (2 * 2000))
    assert hoeffding < 0 < 0.04 < paired < gains.mean()


@pytest.mark.parametrize("bad", [[-0.1], [1.5], [float("nan")], [[0.1]], []])
def test_gains_outside_their_range_are_refused(bad) -> None:
    with pytest.raises(ValueError, match="`gains` must"):
        gain_lower_bound(bad, loss_range=1.0, delta=0.1)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`member_probabilities` must be in \(0, 1\]"):
        log_gain_bracket([0.5, 1.5])
    with pytest.raises(ValueError, match="`member_logits` must be finite"):
        logit_ambiguity([[np.inf, 0.0]])
    with pytest.raises(ValueError, match="`curvature_low` must be <="):
        curvature_gain_bracket(1.0, 2.0, 1.0)
