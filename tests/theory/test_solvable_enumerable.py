"""Exact laws over all training sets: against a naive double loop, and against identities."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory.solvable import (
    exact_law,
    held_out_law,
    memorizer,
    multinomial_probability,
    multiset_index,
    multisets,
    sampled_law,
)
from tests.theory.enumerable import world

sizes = st.tuples(st.integers(1, 5), st.integers(0, 6))
seeds = st.integers(0, 2**32 - 1)


class Table:
    """An algorithm without any structure: a random loss at each atom for each multiset."""

    def __init__(self, n_atoms: int, seed: int) -> None:
        self.n_atoms, self.seed = n_atoms, seed

    def one(self, counts: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([self.seed, *counts]).uniform(-1, 2, self.n_atoms)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return np.array([self.one(tuple(int(c) for c in row)) for row in counts])


@st.composite
def populations(draw: st.DrawFn) -> np.ndarray:
    weights = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    return np.array(weights) / sum(weights)


@given(sizes=sizes)
def test_multisets_are_all_there_and_know_their_place(sizes) -> None:
    n_atoms, size = sizes
    rows = multisets(n_atoms, size)
    assert len(np.unique(rows, axis=0)) == len(rows) == comb(size + n_atoms - 1, n_atoms - 1)
    assert (rows >= 0).all()
    assert (rows.sum(axis=1) == size).all()
    np.testing.assert_array_equal(multiset_index(rows), np.arange(len(rows)))
    if n_atoms > 1:
        both = np.stack([rows, rows[::-1]], axis=1)  # any leading shape
        np.testing.assert_array_equal(multiset_index(both)[:, 1], np.arange(len(rows))[::-1])


@given(probabilities=populations(), size=st.integers(1, 6))
def test_multinomial_probabilities_are_those_of_ordered_samples(probabilities, size) -> None:
    rows = multisets(len(probabilities), size)
    chance = multinomial_probability(rows, probabilities)
    assert chance.sum() == pytest.approx(1, abs=1e-13)
    places = np.indices((len(probabilities),) * size).reshape(size, -1).T
    expected = np.zeros(len(rows))
    counted = (places[:, :, None] == np.arange(len(probabilities))).sum(axis=1)
    np.add.at(expected, multiset_index(counted), np.prod(probabilities[places], axis=1))
    np.testing.assert_allclose(chance, expected, rtol=1e-12)


@given(probabilities=populations(), n=st.integers(1, 5), seed=seeds)
def test_agrees_with_the_double_loop(probabilities, n, seed) -> None:
    learn = Table(len(probabilities), seed)
    law, naive = exact_law(probabilities, n, learn), world(probabilities, n, learn.one)
    got = law.stabilities
    np.testing.assert_allclose(law.chance, naive.weight, rtol=1e-12)
    np.testing.assert_allclose(law.generalization_gap, naive.gap, atol=1e-13)
    pairs = [
        (law.loss_range, naive.loss_range),
        (law.loss_variance, naive.variance),
        (law.second_moment, naive.second_moment),
        (got.hypothesis_stability, naive.hypothesis),
        (got.pointwise_stability, naive.pointwise),
        (got.uniform_removal, naive.uniform_remove),
        (got.uniform_stability, naive.uniform_replace),
        (got.replace_one_in, naive.replace_in),
        (got.replace_one_out, naive.replace_out),
        (got.signed_replacement, naive.signed),
        (law.violation(0.1), naive.violation(0.1)),
    ]
    np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=1e-11, atol=1e-13)


@given(probabilities=populations(), n=st.integers(2, 6), seed=seeds)
def test_exact_identities(probabilities, n, seed) -> None:
    learn = Table(len(probabilities), seed)
    law, smaller = exact_law(probabilities, n, learn), exact_law(probabilities, n - 1, learn)
    # replacing an example and looking at it is what generalization is
    assert law.mean_gap == pytest.approx(law.stabilities.signed_replacement, abs=1e-12)
    # leave-one-out is unbiased for training on one example less
    assert law.chance @ law.leave_one_out_risk == pytest.approx(
        smaller.chance @ smaller.population_risk, abs=1e-12
    )


@given(probabilities=populations(), n=st.integers(1, 5), seed=seeds, delta=st.floats(0.001, 0.999))
def test_quantile_is_the_smallest_bound_that_holds(probabilities, n, seed, delta) -> None:
    law = exact_law(probabilities, n, Table(len(probabilities), seed))
    quantile = law.quantile(delta)
    assert law.violation(quantile) <= delta
    smaller = law.generalization_gap[law.generalization_gap < quantile]
    if len(smaller):
        assert law.violation(smaller.max()) > delta


@given(probabilities=populations(), n=st.integers(1, 5), m=st.integers(1, 6), seed=seeds)
def test_a_held_out_set_is_a_training_set_that_nobody_reads(probabilities, n, m, seed) -> None:
    law = exact_law(probabilities, n, Table(len(probabilities), seed))
    tested = held_out_law(law, 0, m)
    assert tested.stabilities.uniform_stability == tested.stabilities.uniform_removal == 0
    assert tested.mean_gap == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(tested.population_risk, law.population_risk[0])
    assert tested.second_moment == pytest.approx(tested.loss_variance / m, abs=1e-12)


def test_draws_agree_with_the_enumeration() -> None:
    probabilities, learn = np.array([0.2, 0.3, 0.5]), Table(3, 7)
    law = exact_law(probabilities, 4, learn)
    drawn = sampled_law(probabilities, 4, learn, n_draws=4000, generator=np.random.default_rng(0))
    for number in (0.0, 0.2):
        chance = law.violation(number)
        assert 0.05 < chance < 0.95
        assert abs(drawn.violation(number) - chance) < 5 * np.sqrt(chance * (1 - chance) / 4000)


@pytest.mark.parametrize("n", [2, 4])
def test_the_memorizer_has_no_pointwise_stability_and_the_largest_gap(n: int) -> None:
    law = exact_law(np.full(8, 1 / 8), n, memorizer)
    assert law.stabilities.pointwise_stability == 0
    assert law.stabilities.hypothesis_stability > 0.5
    assert (law.empirical_risk == 0).all()
    assert law.second_moment > 1 / (2 * n)


def test_refuses_what_is_no_population() -> None:
    with pytest.raises(ValueError, match="`probabilities` must be a vector of sum 1"):
        exact_law([0.5, 0.6], 2, memorizer)
    with pytest.raises(ValueError, match="`probabilities` must be finite and > 0"):
        exact_law([1.0, 0.0], 2, memorizer)
    with pytest.raises(ValueError, match="at most 2000000 multisets"):
        exact_law(np.full(8, 1 / 8), 100, memorizer)
