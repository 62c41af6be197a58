"""Every theorem as an assertion on worlds in which its left side is an exact finite sum."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory import (
    CurvatureInputs,
    L2StabilityInputs,
    TailInputs,
    TwoStabilityInputs,
    UniformStabilityInputs,
    curvature_bounds,
    expectation_bound,
    l2_stability_bound,
    lin2024_stability,
    remove_one_stability,
    replace_one_stability,
    two_stability_bound,
    uniform_bound,
    update_sparsity,
)
from tests.theory.enumerable import masked_squared_loss, multisets, squared_loss, world

SMALL = 1 + 1e-9  # the enumeration itself is a sum of floats


def measured_bounds(here, n, delta):
    """The bounds that read stabilities, from the exact stabilities of a world."""
    shared = {"n_train": n, "loss_range": max(here.loss_range, 1e-9), "delta": delta}
    uniform = UniformStabilityInputs(uniform_stability=here.uniform_replace * SMALL, **shared)
    return {
        "two": two_stability_bound(
            TwoStabilityInputs(
                hypothesis_stability=here.hypothesis, pointwise_stability=here.pointwise, **shared
            )
        ),
        "l2": l2_stability_bound(
            L2StabilityInputs(
                replace_one_out=here.replace_out,
                replace_one_in=here.replace_in,
                loss_variance=min(here.variance, shared["loss_range"] ** 2 / 4),
                **shared,
            )
        ),
        "uniform": uniform_bound(uniform),
        "expectation": expectation_bound(uniform),
    }


def assert_all_hold(here, n, delta, bounds) -> None:
    for name in ("two", "l2"):  # second-moment bounds: stronger than coverage
        assert here.second_moment <= delta * float(bounds[name].gap) ** 2 * SMALL
    for name in ("two", "l2", "uniform"):
        assert here.violation(float(bounds[name].gap) * SMALL) <= delta
    assert abs(here.weight @ here.gap) <= float(bounds["expectation"].gap) + 1e-12


@st.composite
def populations(draw, most=4):
    weights = draw(st.lists(st.integers(1, 9), min_size=2, max_size=most))
    return np.array(weights) / sum(weights)


@given(
    probabilities=populations(most=3),
    n=st.integers(1, 5),
    delta=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**32 - 1),
    binary=st.booleans(),
)
def test_any_symmetric_algorithm(probabilities, n, delta, seed, binary) -> None:
    # An algorithm is a table: training set -> loss at each atom. No structure at all.
    rng = np.random.default_rng(seed)
    tables = {}

    def learn(counts):
        if counts not in tables:
            loss = rng.uniform(0, 1, len(probabilities))
            tables[counts] = np.round(loss) if binary else loss
        return tables[counts]

    here = world(probabilities, n, learn)
    assert here.weight.sum() == pytest.approx(1)
    assert here.weight @ here.gap == pytest.approx(here.signed, abs=1e-12)
    assert_all_hold(here, n, delta, measured_bounds(here, n, delta))


@given(
    probabilities=populations(most=3),
    n=st.integers(2, 5),
    delta=st.floats(0.02, 0.5),
    rate=st.floats(0.01, 0.9),
    penalty=st.sampled_from([0.05, 0.3, 1.0]),
    masked=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_strongly_convex_learning(probabilities, n, delta, rate, penalty, masked, seed) -> None:
    # The setting of Theorem 4.4 in the coordinates of a full-rank update, all inputs exact.
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (len(probabilities), 2))
    answers = rng.choice([-1.0, 1.0], len(probabilities))
    kappa = penalty * float(update_sparsity(rate))
    problem = (
        masked_squared_loss(points, answers, rate, kappa)
        if masked
        else squared_loss(points, answers, kappa)
    )
    here = world(probabilities, n, lambda c: problem.loss(problem.minimizer(c)))
    samples = [c for size in (n - 1, n) for c in multisets(len(probabilities), size)]
    curvature = CurvatureInputs(
        n_train=n,
        dropout_rate=rate,
        # affine gradients: on the hull of all minimizers the norm is largest at one of them
        lipschitz=max(problem.gradient_norms(problem.minimizer(c)).max() for c in samples) * SMALL,
        hessian_min_eig=min(problem.smallest_eigenvalue(c) for c in samples) - 1e-12,
        penalty=penalty,
    )
    removed, replaced = remove_one_stability(curvature), replace_one_stability(curvature)
    assert here.uniform_remove <= removed.value * SMALL
    assert here.uniform_replace <= replaced.value * SMALL
    assert here.pointwise <= lin2024_stability(curvature).value * SMALL

    halved = 0.0  # the other normalization: the remaining losses still divided by n
    for counts in multisets(len(probabilities), n):
        for out in np.flatnonzero(counts):
            fewer = np.array(counts) - np.eye(len(counts), dtype=int)[out]
            moved = problem.loss(problem.minimizer(tuple(fewer), divide_by=n))
            change = np.abs(moved - problem.loss(problem.minimizer(counts))).max()
            halved = max(halved, float(change))
            reach = problem.gradient_norms(problem.minimizer(tuple(fewer), divide_by=n)).max()
            curvature_n = CurvatureInputs(
                n_train=n,
                dropout_rate=rate,
                lipschitz=max(float(curvature.lipschitz), reach),
                hessian_min_eig=curvature.hessian_min_eig,
                penalty=penalty,
            )
            assert change <= SMALL * float(
                remove_one_stability(curvature_n, fixed_normalization=True).value
            )

    measured = measured_bounds(here, n, delta)
    assert_all_hold(here, n, delta, measured)
    tail = TailInputs(n_train=n, loss_range=here.loss_range, delta=delta)
    paper, two, uniform, expectation, square = curvature_bounds(curvature, tail, certified=True)
    assert paper.kind == square.kind == "certificate"
    for result in (paper, two, square):
        assert here.second_moment <= delta * float(result.gap) ** 2 * SMALL
    assert here.violation(float(uniform.gap)) <= delta
    assert abs(here.weight @ here.gap) <= float(expectation.gap)
    # sandwich: from exact stabilities <= from the curvature's stabilities
    assert measured["two"].gap <= two.gap * SMALL
    assert measured["l2"].gap <= square.gap * SMALL
    assert measured["uniform"].gap <= uniform.gap * SMALL


@pytest.mark.parametrize("n", [2, 4])
def test_memorizer_breaks_the_printed_lemma_and_not_the_repaired_one(n: int) -> None:
    """Negative control: Lemma 4.3 from pointwise stability alone is false.

    For even sizes the label is known on the sample and wrong elsewhere; for odd sizes all is right.
    """
    k, delta = 8, 0.5

    def learn(counts):
        unseen = np.array(counts) == 0
        return unseen.astype(float) if sum(counts) % 2 == 0 else np.zeros(k)

    here = world(np.full(k, 1 / k), n, learn)
    assert here.pointwise == 0
    assert here.loss_range == 1
    printed = np.sqrt((1 + 12 * n * here.pointwise) / (2 * n * delta))
    if n == 4:
        assert here.violation(printed * 0.999) > delta
    assert here.second_moment > 1 / (2 * n)  # what the printed proof bounds it by
    assert_all_hold(here, n, delta, measured_bounds(here, n, delta))


def test_the_exact_numbers_are_worth_having() -> None:
    """The mean-square bound from exact stabilities is far below the paper's formula."""
    rng = np.random.default_rng(0)
    points, answers = rng.uniform(-1, 1, (3, 2)), rng.choice([-1.0, 1.0], 3)
    problem = masked_squared_loss(points, answers, 0.3, 0.0)
    here = world(np.array([0.2, 0.3, 0.5]), 12, lambda c: problem.loss(problem.minimizer(c)))
    measured = measured_bounds(here, 12, 0.1)
    printed = np.sqrt(
        (here.loss_range**2 + 12 * here.loss_range * 12 * here.pointwise) / (2 * 12 * 0.1)
    )
    assert here.violation(float(measured["l2"].gap)) <= 0.1
    assert measured["l2"].gap < printed
