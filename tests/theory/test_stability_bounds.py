"""The bounds that read stabilities, and the hold-out bound: law, oracle, sandwich."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf

from lodrop_theory import (
    HoldOutInputs,
    L2StabilityInputs,
    TwoStabilityInputs,
    UniformStabilityInputs,
    expectation_bound,
    hold_out_bound,
    l2_stability_bound,
    two_stability_bound,
    uniform_bound,
)
from tests.theory.strategies import counts, deltas, magnitudes, scales, stabilities

ULPS = mpf(2) ** -46


@st.composite
def common(draw):
    return {"n_train": draw(counts), "loss_range": draw(scales), "delta": draw(deltas)}


def numbers(inputs):
    """The fields as 60-digit numbers, in the order in which the class lists them."""
    values = (getattr(inputs, f.name) for f in fields(inputs))
    return [None if v is None else mpf(float(v)) for v in values]


def assert_rounded_outward(result, exact) -> None:
    assert exact <= mpf(float(result.gap)) <= exact * (1 + ULPS)


@given(shared=common(), b1=stabilities, b2=stabilities)
def test_two_stability_oracle_and_sandwich(shared, b1, b2) -> None:
    inputs = TwoStabilityInputs(hypothesis_stability=b1, pointwise_stability=b2, **shared)
    result = two_stability_bound(inputs)
    with mp.workdps(60):
        n, c, delta, _, b1, b2 = numbers(inputs)
        second_moment = c**2 / (2 * n) + c * (3 * b1 + 2 * b2)
        assert_rounded_outward(result, mp.sqrt(second_moment / delta))
        # no tighter than Chebyshev for a constant algorithm; no looser than the corrected theorem
        corrected = mp.sqrt((c**2 + 6 * c * n * (b1 + b2)) / (2 * n * delta))
        assert c / mp.sqrt(2 * n * delta) <= mpf(float(result.gap)) <= corrected * (1 + ULPS)


@given(shared=common(), g=stabilities)
def test_uniform_oracle_and_textbook_form(shared, g) -> None:
    inputs = UniformStabilityInputs(uniform_stability=g, **shared)
    result = uniform_bound(inputs)
    with mp.workdps(60):
        n, c, delta, _, g = numbers(inputs)
        root = mp.sqrt(mp.log(1 / delta) / (2 * n))
        assert_rounded_outward(result, g + (2 * n * g + c) * root)
        b = g / 2  # the remove-one stability of Bousquet and Elisseeff's Theorem 12
        assert_rounded_outward(result, 2 * b + (4 * n * b + c) * root)


@given(
    shared=common(), out=stabilities, within=stabilities, share=st.floats(0, 1), full=st.booleans()
)
def test_l2_oracle(shared, out, within, share, full) -> None:
    variance = None if full else share * shared["loss_range"] ** 2 / 4
    inputs = L2StabilityInputs(
        replace_one_out=out, replace_one_in=within, loss_variance=variance, **shared
    )
    result = l2_stability_bound(inputs)
    with mp.workdps(60):
        n, c, delta, _, out, within, variance = numbers(inputs)
        variance = c**2 / 4 if variance is None else variance
        norm = mp.sqrt(variance / n + out**2 / 2) + out / mp.sqrt(2) + within
        exact = norm / mp.sqrt(delta)
        assert exact <= mpf(float(result.gap)) <= exact * (1 + ULPS) + mpf(10) ** -150


@given(shared=common(), g=stabilities)
def test_expectation_is_the_stability_itself(shared, g) -> None:
    inputs = UniformStabilityInputs(uniform_stability=g, empirical_risk=0.5, **shared)
    result = expectation_bound(inputs)
    assert result.gap == g
    assert (result.statement, result.delta, result.risk) == ("expectation", None, None)
    assert result.gap <= uniform_bound(inputs).gap


@given(
    n=counts,
    c=scales,
    delta=deltas,
    share=st.floats(0, 1),
    start=st.one_of(st.none(), st.floats(0, 1)),
)
def test_hold_out_oracle(n, c, delta, share, start) -> None:
    inputs = HoldOutInputs(
        n_test=n,
        loss_range=c,
        delta=delta,
        held_out_risk=share * c,
        empirical_risk=None if start is None else start * c,
    )
    result = hold_out_bound(inputs, predictor="mean")
    with mp.workdps(60):
        n, c, delta, risk, _ = numbers(inputs)
        exact = risk + c * mp.sqrt(mp.log(1 / delta) / (2 * n))
        assert exact <= mpf(float(result.risk)) <= exact + ULPS * (exact + 2 * c)


@given(shared=common(), small=stabilities, other=stabilities, factor=st.floats(1, 1e6))
def test_less_stable_is_never_tighter(shared, small, other, factor) -> None:
    large = small * factor
    two = TwoStabilityInputs(hypothesis_stability=small, pointwise_stability=other, **shared)
    assert (
        two_stability_bound(two).gap
        <= two_stability_bound(replace(two, hypothesis_stability=large)).gap
    )
    uniform = UniformStabilityInputs(uniform_stability=small, **shared)
    assert (
        uniform_bound(uniform).gap <= uniform_bound(replace(uniform, uniform_stability=large)).gap
    )
    square = L2StabilityInputs(replace_one_out=small, replace_one_in=other, **shared)
    assert (
        l2_stability_bound(square).gap
        <= l2_stability_bound(replace(square, replace_one_out=large)).gap
    )


@given(
    n=st.integers(10, 10**6),
    delta=st.floats(0.01, 0.5),
    kappa=magnitudes(-3, 2),
    scale=magnitudes(-5, 5),
)
def test_bounds_scale_with_the_loss(n, delta, kappa, scale) -> None:
    def gaps(c):
        shared = {"n_train": n, "loss_range": c, "delta": delta}
        g = kappa * c / n
        return np.array(
            [
                two_stability_bound(
                    TwoStabilityInputs(hypothesis_stability=g, pointwise_stability=g, **shared)
                ).gap,
                uniform_bound(UniformStabilityInputs(uniform_stability=g, **shared)).gap,
                l2_stability_bound(
                    L2StabilityInputs(replace_one_out=g, replace_one_in=g, **shared)
                ).gap,
            ]
        )

    np.testing.assert_allclose(gaps(scale), scale * gaps(1.0), rtol=1e-12)


def test_crossover_of_the_tails() -> None:
    # C = 1, replace-one stability 2/n (kappa = 1), n = 1000: the numbers of the design notes
    def gaps(delta, n):
        shared = {"n_train": n, "loss_range": 1.0, "delta": delta}
        tail = uniform_bound(UniformStabilityInputs(uniform_stability=2 / n, **shared)).gap
        square = l2_stability_bound(
            L2StabilityInputs(replace_one_out=2 / n, replace_one_in=2 / n, **shared)
        ).gap
        return round(float(tail), 3), round(float(square), 3)

    assert gaps(0.05, 1000) == (0.196, 0.086)
    assert gaps(1e-6, 10**5)[0] == 0.042  # the exponential tail wins where delta is small
    assert gaps(1e-6, 10**5)[1] > 1


@pytest.mark.parametrize("bound", [two_stability_bound, uniform_bound, l2_stability_bound])
def test_predictor_and_standing_are_the_callers(bound) -> None:
    shared = {"n_train": 100, "loss_range": 1.0, "delta": 0.1, "empirical_risk": 0.25}
    inputs = {
        two_stability_bound: TwoStabilityInputs(
            hypothesis_stability=0, pointwise_stability=0, **shared
        ),
        uniform_bound: UniformStabilityInputs(uniform_stability=0, **shared),
        l2_stability_bound: L2StabilityInputs(replace_one_out=0, replace_one_in=0, **shared),
    }[bound]
    plain = bound(inputs)
    assert (plain.predictor, plain.kind) == ("mean", "plug-in")
    vouched = bound(inputs, predictor="gibbs", certified=True)
    assert (vouched.predictor, vouched.kind) == ("gibbs", "certificate")
    assert 0.25 + vouched.gap <= vouched.risk <= (0.25 + vouched.gap) * (1 + 1e-14)
