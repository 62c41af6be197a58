"""Leave-one-out bounds: their second-moment theorems as exact sums, and their constants."""

from math import factorial, prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from lodrop_theory.bounds.leave_one_out import l2_leave_one_out_bound, leave_one_out_bound
from lodrop_theory.inputs import L2LeaveOneOutInputs, LeaveOneOutInputs
from tests.theory.enumerable import multisets
from tests.theory.strategies import counts, deltas, scales, stabilities


def fewer(sample, atom):
    return (*sample[:atom], sample[atom] - 1, *sample[atom + 1 :])


def leave_one_out_world(chances, n, learn):
    """R - R_loo of every training set, its weight, and the two stabilities."""
    gap, weight, first, square = [], [], 0.0, 0.0
    for sample in multisets(len(chances), n):
        chance = factorial(n) / prod(map(factorial, sample)) * np.prod(chances ** np.array(sample))
        loss, left_out = learn(sample), 0.0
        for atom in np.flatnonzero(sample):
            share, without = sample[atom] / n, learn(fewer(sample, atom))
            left_out += share * without[atom]
            first += chance * share * chances @ np.abs(loss - without)
            square += chance * share * chances @ (loss - without) ** 2
        gap.append(chances @ loss - left_out)
        weight.append(chance)
    return np.array(gap), np.array(weight), float(first), float(np.sqrt(square))


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 7),
    atoms=st.integers(2, 3),
    delta=st.floats(0.02, 0.9),
    roughness=st.sampled_from([0.0, 0.1, 1.0]),
    binary=st.booleans(),
)
@settings(max_examples=60)
def test_both_theorems_on_algorithms_without_structure(
    seed, n, atoms, delta, roughness, binary
) -> None:
    rng = np.random.default_rng(seed)
    chances, base, tables = rng.dirichlet(np.ones(atoms)), rng.uniform(0, 1, atoms), {}

    def learn(sample):
        if sample not in tables:
            loss = (1 - roughness) * base + roughness * rng.uniform(0, 1, atoms)
            tables[sample] = np.round(loss) if binary else loss
        return tables[sample]

    gap, weight, b1, d = leave_one_out_world(chances, n, learn)
    shared = {"n_train": n, "loss_range": 1, "delta": delta, "leave_one_out_risk": 0.0}
    first = leave_one_out_bound(LeaveOneOutInputs(hypothesis_stability=b1, **shared))
    square = l2_leave_one_out_bound(L2LeaveOneOutInputs(remove_one_out=d, **shared))
    for result in (first, square):
        assert weight @ gap**2 <= delta * float(result.gap) ** 2 * (1 + 1e-9)
        assert weight[gap > float(result.gap) * (1 + 1e-9)].sum() <= delta


def test_the_leading_constant_cannot_be_smaller() -> None:
    # A constant algorithm and a fair coin: E(R - R_loo)^2 is exactly C^2 / (4 n).
    gap, weight, b1, d = leave_one_out_world(
        np.array([0.5, 0.5]), 6, lambda _: np.array([0.0, 1.0])
    )
    assert b1 == d == 0
    np.testing.assert_allclose(weight @ gap**2, 1 / 24)


@given(n=counts, c=scales, delta=deltas, b=stabilities)
def test_oracles_and_printed_constant(n, c, delta, b) -> None:
    shared = {"n_train": n, "loss_range": c, "delta": delta, "leave_one_out_risk": 0.0}
    first = leave_one_out_bound(LeaveOneOutInputs(hypothesis_stability=b, **shared)).gap
    square = l2_leave_one_out_bound(L2LeaveOneOutInputs(remove_one_out=b, **shared)).gap
    with mp.workdps(50):
        n, c, delta, b = (mpf(float(x)) for x in (n, c, delta, b))
        exact = mp.sqrt((c**2 + 12 * c * n * b) / (4 * n * delta))
        printed = mp.sqrt((c**2 + 6 * c * n * b) / (2 * n * delta))
        assert exact <= mpf(float(first)) <= exact * (1 + mpf(2) ** -46)
        assert mpf(float(first)) <= printed * (1 + mpf(2) ** -46)
        exact = (mp.sqrt(c**2 / (4 * n) + 2 * b**2) + b) / mp.sqrt(delta)
        assert exact <= mpf(float(square)) <= exact * (1 + mpf(2) ** -46)


def test_risk_and_gap_are_counted_from_what_is_given() -> None:
    x = LeaveOneOutInputs(
        n_train=100,
        loss_range=1,
        delta=0.25,
        leave_one_out_risk=0.3,
        hypothesis_stability=0,
        empirical_risk=0.1,
    )
    result = leave_one_out_bound(x)
    np.testing.assert_allclose([float(result.risk), float(result.gap)], [0.4, 0.3])
    assert not result.caveats
