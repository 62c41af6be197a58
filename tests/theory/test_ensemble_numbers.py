"""Jensen gaps and finite-N laws, against enumeration."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lodrop_theory import (
    finite_n_excess,
    jensen_gap,
    log_loss_curvature,
    mean_over_subsets,
    n_masks_for_tolerance,
    smoothed_cross_entropy,
)

pools = arrays(np.float64, st.tuples(st.integers(2, 6), st.just(3)), elements=st.floats(-5, 5))
probabilities = arrays(np.float64, (4, 5), elements=st.floats(0.01, 1))


@given(pool=pools)
def test_more_members_never_hurt_a_convex_loss(pool) -> None:
    for loss in (lambda z: z**2, np.exp, lambda z: np.logaddexp.reduce(z) - z[0]):
        means = [mean_over_subsets(loss, pool, size) for size in range(1, len(pool) + 1)]
        assert np.all(np.diff(means, axis=0) <= 1e-9 * (1 + np.abs(means[:-1])))


@given(pool=pools)
def test_finite_pool_formula_of_the_squared_loss(pool) -> None:
    m = len(pool)
    for size in range(1, m + 1):
        shrunk = pool.var(axis=0) / size * (m - size) / (m - 1)
        np.testing.assert_allclose(
            mean_over_subsets(lambda z: z**2, pool, size), pool.mean(0) ** 2 + shrunk, atol=1e-9
        )


@given(members=probabilities)
def test_jensen_gap_of_averaged_probabilities_is_not_negative(members) -> None:
    rows = np.stack([members, 1 - members], axis=-1)
    labels = np.zeros(5, dtype=int)
    each = smoothed_cross_entropy(rows, labels, 0.1)
    together = smoothed_cross_entropy(rows.mean(0), labels, 0.1)
    assert np.all(jensen_gap(each, together) >= -1e-12)


@given(values=st.lists(st.floats(-3, 3), min_size=2, max_size=3), n=st.integers(1, 4))
def test_finite_n_excess_is_exact_for_the_squared_loss(values, n) -> None:
    # N independent draws from a uniform law on `values`, all of them enumerated
    outputs = np.array([np.mean(draw) for draw in product(values, repeat=n)])
    excess = np.mean(outputs**2) - np.mean(values) ** 2
    trace = 2 * np.var(values)  # l'' = 2
    assert float(finite_n_excess(trace, n)) == pytest.approx(excess, abs=1e-9)


def test_finite_n_excess_of_the_log_loss_is_right_to_leading_order() -> None:
    values = np.array([0.4, 0.5, 0.6])
    n = 6
    draws = np.array([np.mean(d) for d in product(values, repeat=n)])
    excess = np.mean(-np.log(draws)) + np.log(values.mean())
    predicted = finite_n_excess(np.var(values) / values.mean() ** 2, n)
    assert float(predicted) == pytest.approx(excess, rel=0.05)


@given(trace=st.floats(0, 100), tolerance=st.floats(1e-3, 10))
def test_n_masks_is_the_smallest_that_is_enough(trace, tolerance) -> None:
    n = float(n_masks_for_tolerance(trace, tolerance))
    assert n >= 1
    assert n == int(n)
    assert finite_n_excess(trace, n) <= tolerance * (1 + 1e-12)
    if n > 1:
        assert finite_n_excess(trace, n - 1) > tolerance * (1 - 1e-12)


@given(members=probabilities, factor=st.floats(0.1, 1))
def test_log_loss_curvature_is_free_of_scale(members, factor) -> None:
    curvature = log_loss_curvature(members)
    assert np.all(curvature >= 0)
    np.testing.assert_allclose(log_loss_curvature(factor * members), curvature, atol=1e-12)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="`member_losses` must have shape"):
        jensen_gap(np.ones((3, 2)), np.ones(3))
    with pytest.raises(ValueError, match="at least two members"):
        log_loss_curvature([[0.5]])
    with pytest.raises(ValueError, match="`size` must be a whole number"):
        mean_over_subsets(np.square, [1.0, 2.0], 3)
    with pytest.raises(ValueError, match="at most 100000 subsets"):
        mean_over_subsets(np.square, np.zeros(40), 20)
