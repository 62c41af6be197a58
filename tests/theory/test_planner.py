"""The planner against the bound and 60-digit arithmetic; elasticities against differences."""

import inspect
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mpmath import mp, mpf

from lodrop_theory import CurvatureInputs, TailInputs, lin2024_bound
from lodrop_theory.planner import elasticities, solve
from tests.theory.strategies import magnitudes

NAMES = tuple(n for n in inspect.signature(solve).parameters if n != "target_gap")
LESS_IS_SAFER = {"lipschitz", "loss_range"}
LAST_RATE = float(np.nextafter(1.0, 0.0))


@st.composite
def problems(draw, wide: bool = False):
    """Numbers of Theorem 4.4; ``wide`` reaches the ends that the issue names."""
    scale = 12 if wide else 3
    return {
        "n_train": draw(st.integers(1, 10**15 if wide else 10**6)),
        "dropout_rate": draw(st.floats(0.0, LAST_RATE) if wide else st.floats(0.01, 0.95)),
        "lipschitz": draw(st.one_of(st.just(0.0), magnitudes(-scale, scale))),
        "hessian_min_eig": draw(st.one_of(st.just(0.0), st.floats(-3, 3), magnitudes(-scale, 3))),
        "penalty": draw(st.one_of(st.just(0.0), magnitudes(-scale, scale))),
        "loss_range": draw(magnitudes(-scale, scale)),
        "delta": draw(magnitudes(-300 if wide else -6, -0.01)),
    }


def gap_at(numbers) -> float:
    names = ("n_train", "dropout_rate", "lipschitz", "hessian_min_eig", "penalty")
    curvature = CurvatureInputs(**{n: numbers[n] for n in names})
    tail = TailInputs(**{n: numbers[n] for n in ("n_train", "loss_range", "delta")})
    return float(lin2024_bound(curvature, tail).gap)


def exact_gap(numbers) -> mpf:
    """Theorem 4.4 in the working precision; infinite where mu <= 0."""
    x = {name: mpf(value) for name, value in numbers.items()}
    s = 2 * x["dropout_rate"] - x["dropout_rate"] ** 2
    mu = x["hessian_min_eig"] + 2 * x["penalty"] * s
    if mu <= 0:
        return mp.inf
    c = x["loss_range"]
    stability = 24 * c * x["lipschitz"] ** 2 / mu
    return mp.sqrt((c**2 + stability) / (2 * x["n_train"] * x["delta"]))


def plan(numbers, unknown, target):
    return solve(target_gap=target, **{n: v for n, v in numbers.items() if n != unknown})


@pytest.mark.parametrize("unknown", NAMES)
@given(numbers=problems(), share=st.floats(0.3, 3))
def test_the_answer_reaches_the_target_and_nothing_less_does(unknown, numbers, share) -> None:
    start = gap_at(numbers)
    target = share * (start if np.isfinite(start) else numbers["loss_range"])
    found = plan(numbers, unknown, target)
    if not found.feasible:
        assert np.isnan(found.value)
        assert isinstance(found.reason, str)
        # nothing in reach: not at a spread of values of the unknown
        for trial in spread_of(unknown):
            assert gap_at({**numbers, unknown: trial}) > target * (1 - 1e-9)
        assert found.best_reachable >= target * (1 - 1e-9)
        return
    assert found.reason is None
    answer = float(found.value)
    assert gap_at({**numbers, unknown: answer}) <= target
    assert found.best_reachable <= target
    worse = worse_than(unknown, answer, numbers)
    if worse is not None:
        with mp.workdps(60):
            assert exact_gap({**numbers, unknown: worse}) > mpf(target) * (1 - mpf(10) ** -9)


def spread_of(unknown):
    if unknown == "dropout_rate":
        return [0.0, 0.1, 0.5, 0.9, LAST_RATE]
    if unknown == "delta":
        return [1e-9, 0.1, 0.5, 0.9, LAST_RATE]
    if unknown == "n_train":
        return [1, 10**3, 10**9, 10**15]
    return [1e-9, 1e-3, 1.0, 1e3, 1e9]


def worse_than(unknown, answer, numbers):
    """A value on the wrong side of the answer by a visible step, or None at the end."""
    if unknown == "n_train":
        return answer - 1 if answer > 1 else None
    if unknown == "hessian_min_eig":
        s = numbers["dropout_rate"] * (2 - numbers["dropout_rate"])
        mu = answer + 2 * numbers["penalty"] * s
        return answer - 1e-6 * mu - 1e-12 * abs(answer) - 1e-290
    if answer < 1e-280:  # the end of the domain, or an open infimum at 0
        return None
    if unknown in LESS_IS_SAFER:
        return answer * (1 + 1e-6) if answer < 1e300 else None
    return answer * (1 - 1e-6)


@pytest.mark.parametrize("unknown", NAMES)
@given(numbers=problems())
def test_round_trip_through_the_bound(unknown, numbers) -> None:
    """The target that a value gives is reached by that value, so by one no dearer."""
    target = gap_at(numbers)
    assume(np.isfinite(target) and target > 0)
    found = plan(numbers, unknown, target)
    assert found.feasible
    given_value, answer = numbers[unknown], float(found.value)
    slack = 1e-6 * abs(given_value) + 1e-300  # a subnormal number has fewer digits
    if unknown == "hessian_min_eig":
        slack += 1e-6 * numbers["penalty"]
    if unknown in {"dropout_rate", "penalty"}:
        # cancellation against the eigenvalue
        slack += 1e-6 * (1 + abs(numbers["hessian_min_eig"])) / (1e-3 + numbers["penalty"])
    if numbers["lipschitz"] > 0.01 and numbers["loss_range"] < 10:  # else the floor hides it
        if unknown in LESS_IS_SAFER:
            assert answer >= given_value - slack
        else:
            assert answer <= given_value + slack


@given(numbers=problems(wide=True), unknown=st.sampled_from(NAMES), target=magnitudes(-150, 150))
def test_extreme_questions_have_an_answer_or_a_reason(numbers, unknown, target) -> None:
    found = plan(numbers, unknown, target)
    assert not np.isnan(found.best_reachable)
    if found.feasible:
        assert gap_at({**numbers, unknown: float(found.value)}) <= target
        assert found.reason is None
    else:
        assert np.isnan(found.value)
        assert len(str(found.reason)) > 20
        assert "nan" not in str(found.reason)


@given(numbers=problems())
def test_target_gap_as_the_unknown_is_the_bound(numbers) -> None:
    found = solve(**numbers)
    gap = gap_at(numbers)
    assert found.unknown == "target_gap"
    assert bool(found.feasible) == np.isfinite(gap)
    assert found.best_reachable == gap
    if found.feasible:
        assert found.value == gap


def test_arrays_broadcast_and_each_element_has_its_own_reason() -> None:
    base = {"lipschitz": 1, "penalty": 1, "loss_range": 1, "delta": 0.05, "n_train": 2490}
    found = solve(target_gap=[[0.4], [0.05]], hessian_min_eig=[0.0, -3.0], **base)
    assert found.shape == (2, 2)
    assert found.feasible.tolist() == [[True, False], [False, False]]
    reasons = found.reason
    assert reasons[0, 0] is None
    assert "`penalty` must exceed 1.5" in reasons[0, 1]
    assert "not above the floor" in reasons[1, 0]
    one = solve(target_gap=0.4, hessian_min_eig=0.0, **base)
    assert found.value[0, 0] == one.value
    assert one.value == pytest.approx(0.1687, abs=1e-4)  # 1 - sqrt(1 - 12 / 38.84)


REASONS = [
    ("dropout_rate", {"hessian_min_eig": -4.0}, 0.5, "`penalty` must exceed 2"),
    ("dropout_rate", {}, 0.05, "`n_train` must be at least 52000"),
    ("dropout_rate", {}, 0.2, "the gap is 0.228493 at best: `n_train` must be at least 3250"),
    ("penalty", {"dropout_rate": 0.0}, 0.5, "raise it above 0"),
    ("penalty", {"dropout_rate": 0.0, "hessian_min_eig": 1.0}, 0.2, "the penalty has no effect"),
    ("penalty", {}, 0.05, "even with an unlimited `penalty`"),
    ("n_train", {"hessian_min_eig": -1.0, "dropout_rate": 0.1}, 0.5, "raise `dropout_rate` to"),
    ("n_train", {"hessian_min_eig": -3.0}, 0.5, "`penalty` must exceed 1.5"),
    ("delta", {"n_train": 10}, 0.01, "no failure probability below 1"),
    ("lipschitz", {}, 0.05, "even with a `lipschitz` of 0"),
    ("hessian_min_eig", {}, 0.05, "even with an unlimited `hessian_min_eig`"),
]


@pytest.mark.parametrize(("unknown", "changes", "target", "words"), REASONS)
def test_reasons_name_the_input_that_limits(unknown, changes, target, words) -> None:
    numbers = {
        "n_train": 2490,
        "dropout_rate": 0.5,
        "lipschitz": 1.0,
        "hessian_min_eig": 0.0,
        "penalty": 1.0,
        "loss_range": 1.0,
        "delta": 0.05,
        **changes,
    }
    found = plan(numbers, unknown, target)
    assert not found.feasible
    assert words in found.reason


@given(numbers=problems(), share=st.floats(0.1, 0.9))
def test_the_remedy_of_an_infeasible_rate_is_enough(numbers, share) -> None:
    """Following the reason (more examples, a rate near 1) reaches the target."""
    best = gap_at({**numbers, "dropout_rate": LAST_RATE})
    assume(np.isfinite(best) and best > 0)
    target = share * best
    found = plan(numbers, "dropout_rate", target)
    assert not found.feasible
    words = str(found.reason).split("`n_train` must be at least ")
    assume(len(words) == 2)
    enough = float(words[1].split(",")[0])
    assert (
        gap_at({**numbers, "n_train": np.ceil(enough * (1 + 1e-9)), "dropout_rate": LAST_RATE})
        <= target
    )
    assert (
        gap_at(
            {
                **numbers,
                "n_train": max(np.floor(enough * (1 - 1e-9)) - 1, 1),
                "dropout_rate": LAST_RATE,
            }
        )
        > target
    )


@pytest.mark.parametrize("more", [{}, {"n_train": 10, "delta": 0.1}])
def test_exactly_one_argument_is_unknown(more) -> None:
    numbers = {"lipschitz": 1, "hessian_min_eig": 0, "penalty": 1, "loss_range": 1}
    complete = {"target_gap": 0.1, "dropout_rate": 0.5} if more else {}
    with pytest.raises(TypeError, match="exactly one of `target_gap`"):
        solve(**numbers, **more, **complete)


@pytest.mark.parametrize(
    ("name", "bad"), [("target_gap", 0.0), ("delta", 1.0), ("dropout_rate", 1.0), ("lipschitz", -1)]
)
def test_arguments_outside_their_range_are_refused(name, bad) -> None:
    numbers = {"target_gap": 0.1, "dropout_rate": 0.5, "lipschitz": 1, "hessian_min_eig": 0}
    numbers |= {"penalty": 1, "loss_range": 1, "delta": 0.1, name: bad}
    with pytest.raises(ValueError, match=f"`{name}` must"):
        solve(**numbers)


@given(numbers=problems())
def test_elasticities_are_logarithmic_derivatives(numbers) -> None:
    s = numbers["dropout_rate"] * (2 - numbers["dropout_rate"])
    mu = numbers["hessian_min_eig"] + 2 * numbers["penalty"] * s
    assume(mu > 1e-6 * (1 + numbers["penalty"]))
    names = ("n_train", "dropout_rate", "lipschitz", "hessian_min_eig", "penalty")
    found = elasticities(
        CurvatureInputs(**{n: numbers[n] for n in names}),
        TailInputs(**{n: numbers[n] for n in ("n_train", "loss_range", "delta")}),
    )
    assert found.applicable
    with mp.workdps(60):
        for name in NAMES:
            x = mpf(numbers[name])
            if x == 0:
                expected = mpf(0)
            else:
                h = mpf(10) ** -15
                ends = [exact_gap({**numbers, name: x * (1 + e)}) for e in (-h, h)]
                expected = mp.log(ends[1] / ends[0]) / (2 * h)
            scale = 1 + abs(expected) + abs(mpf(numbers["hessian_min_eig"])) / mpf(mu)
            assert abs(mpf(float(getattr(found, name))) - expected) < 1e-9 * scale


def test_elasticities_have_no_value_without_a_gap() -> None:
    curvature = CurvatureInputs(
        n_train=10, dropout_rate=[0.0, 0.5], lipschitz=1, hessian_min_eig=0, penalty=1
    )
    found = elasticities(curvature, TailInputs(n_train=10, loss_range=1, delta=0.1))
    assert found.applicable.tolist() == [False, True]
    for each in fields(found):
        value = getattr(found, each.name)
        assert value.shape == (2,)
        if each.name != "applicable":
            assert np.isnan(value).tolist() == [True, False]
    with pytest.raises(ValueError, match="`n_train` must be the same"):
        elasticities(curvature, TailInputs(n_train=11, loss_range=1, delta=0.1))
