"""What a result is: shapes, standing, vacuity, rows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from lodrop_theory import (
    BoundResult,
    CurvatureInputs,
    StabilityResult,
    TailInputs,
    UniformStabilityInputs,
    curvature_bounds,
    uniform_bound,
)


@given(shapes=mutually_broadcastable_shapes(num_shapes=4, max_dims=2, max_side=3, min_side=1))
def test_results_broadcast_like_a_ufunc(shapes) -> None:
    n, p, c, delta = (
        np.full(s, v) for s, v in zip(shapes.input_shapes, (9, 0.5, 2.0, 0.1), strict=True)
    )
    curvature = CurvatureInputs(
        n_train=n, dropout_rate=p, lipschitz=1, hessian_min_eig=0, penalty=1
    )
    tail = TailInputs(n_train=n, loss_range=c, delta=delta, empirical_risk=0.0)
    for result in curvature_bounds(curvature, tail):
        read = shapes.input_shapes[: 3 if result.statement == "expectation" else 4]
        shape = np.broadcast_shapes(*read)  # a statement in expectation reads no delta
        assert result.shape == np.shape(result.vacuous) == shape
        assert len(result.rows()) == int(np.prod(shape))
        alone = curvature_bounds(
            CurvatureInputs(n_train=9, dropout_rate=0.5, lipschitz=1, hessian_min_eig=0, penalty=1),
            TailInputs(n_train=9, loss_range=2.0, delta=0.1, empirical_risk=0.0),
        )
        same = next(r for r in alone if r.bound == result.bound)
        assert np.all(result.gap == same.gap)


def test_scalars_in_scalars_out() -> None:
    inputs = UniformStabilityInputs(
        n_train=10, loss_range=1, delta=0.1, uniform_stability=0.1, empirical_risk=0.0
    )
    result = uniform_bound(inputs)
    assert isinstance(result.gap, np.float64)
    assert isinstance(result.risk, np.float64)
    assert isinstance(result.vacuous, np.bool_)
    assert isinstance(result.kind, str)
    assert result.shape == ()


def bound(gap: object, **more: object) -> BoundResult:
    return BoundResult(
        bound="b",
        title="t",
        source="s",
        statement="probability",
        predictor="mean",
        gap=np.asarray(gap, dtype=float),
        loss_range=np.asarray(1.0),
        **more,
    )


def test_vacuous_from_the_range_on() -> None:
    assert bound([0.5, 1.0, 2.0]).vacuous.tolist() == [False, True, True]
    with_risk = bound([0.5, 0.5, 0.999], empirical_risk=np.array([0.25, 0.5, 0.5]))
    assert with_risk.vacuous.tolist() == [False, True, True]
    assert bound(0.1, applicable=np.asarray(False)).vacuous


@given(risk=st.floats(0, 1), gap=st.floats(0, 1))
def test_risk_is_rounded_upward(risk: float, gap: float) -> None:
    from fractions import Fraction

    total = bound(gap, empirical_risk=np.asarray(risk)).risk
    assert Fraction(float(total)) >= Fraction(risk) + Fraction(gap)


def test_rows_are_json_and_have_no_infinity() -> None:
    curvature = CurvatureInputs(
        n_train=100, dropout_rate=[0.0, 0.5], lipschitz=1, hessian_min_eig=0, penalty=1
    )
    tail = TailInputs(n_train=100, loss_range=1, delta=0.1, empirical_risk=0.1)
    for result in curvature_bounds(curvature, tail):
        first, second = json.loads(json.dumps(result.rows(), allow_nan=False))
        assert first["gap"] is None
        assert first["kind"] == "not applicable"
        assert first["failed_hypothesis"]
        assert first["remedy"]
        assert 0 < first["repair_dropout_rate"] < 1e-12
        assert second["gap"] == float(result.gap[1])
        assert second["failed_hypothesis"] is second["remedy"] is None
        assert second["repair_dropout_rate"] is None
        assert (first["n_train"], first["dropout_rate"]) == (100, 0.0)
        assert isinstance(first["n_train"], int)
        keys = {"bound", "title", "gap", "risk", "predictor", "kind", "statement", "vacuous"}
        assert keys | {"source", "caveats", "delta", "loss_range", "penalty"} <= set(first)


def test_results_are_frozen() -> None:
    with pytest.raises(AttributeError):
        bound(0.5).gap = 0.1  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        bound([0.5, 0.6]).gap[0] = 0.1


@pytest.mark.parametrize("bound_certified", [False, True])
@pytest.mark.parametrize("stability_certified", [False, True])
def test_a_derived_bound_is_certified_only_with_its_stability(
    bound_certified: bool, stability_certified: bool
) -> None:
    stability = StabilityResult(
        bound="s",
        source="s",
        value=np.array([0.1, np.inf]),
        notion="n",
        applicable=np.array([True, False]),
        failed_hypothesis="it",
        certified=stability_certified,
    )
    derived = bound([0.5, 0.5], certified=bound_certified).restricted_to(stability)
    standing = "certificate" if bound_certified and stability_certified else "plug-in"
    assert derived.kind.tolist() == [standing, "not applicable"]
    assert derived.gap.tolist() == [0.5, np.inf]
    assert [row["failed_hypothesis"] for row in derived.rows()] == [None, "it"]
