"""The certificate regime: a ridge, a frozen A, logits linear in what is trained."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from lodrop_theory import ridge_bounds, ridge_stability
from lodrop_theory.records import RunRecord
from tests.factories import estimate, exact, full_record, stability_measurement

TAU = 0.05


def linear_record(*, rho: float = 1.5, slope: float = 0.0, **changes: Any) -> RunRecord:
    measured = stability_measurement(
        ridge=TAU,
        center="origin",
        objective_min_eig=replace(exact(2 * TAU), high=1.0),
        gradient_norm=exact(slope),
    )
    bound = replace(exact(rho), low=0.0)
    return full_record(**{"stability": measured, "lipschitz_bound": bound, **changes})


@given(rho=st.floats(0.01, 10), slope=st.floats(0, 1))
def test_the_formula(rho: float, slope: float) -> None:
    record = linear_record(rho=rho, slope=slope)
    found = ridge_stability(record)
    assert found is not None
    expected = 2 * rho**2 / (2 * TAU * record.n_train) + 2 * rho * slope / (2 * TAU)
    assert float(found.value) == pytest.approx(expected, rel=1e-9)


def test_it_is_a_certificate_only_if_the_features_are_vouched_for() -> None:
    record = linear_record()
    kinds = [{str(b.kind) for b in ridge_bounds(record, delta=0.05)}]
    kinds += [{str(b.kind) for b in ridge_bounds(record, delta=0.05, features_bounded=True)}]
    assert kinds[0] == {"plug-in"}
    # Feldman and Vondrak's constants are quoted: never a certificate.
    assert kinds[1] == {"plug-in", "certificate"}
    names = [b.bound for b in ridge_bounds(record, delta=0.05)]
    assert all(name.endswith("/ridge") for name in names)
    assert "uniform-tail/ridge" in names


def test_another_regime_gives_nothing() -> None:
    record = linear_record()
    assert record.stability is not None
    for changes in (
        {"stability": None},
        {"lipschitz_bound": None},
        {"stability": replace(record.stability, center="solution")},
        {"stability": replace(record.stability, ridge=0.0)},
        {"stability": replace(record.stability, objective_min_eig=estimate(0.1, 0.01))},
    ):
        assert ridge_stability(replace(record, **changes)) is None
        assert ridge_bounds(replace(record, **changes), delta=0.05) == []


@pytest.mark.parametrize("seed", range(3))
def test_true_minimizers_move_less(seed: int) -> None:
    """Softmax regression with a ridge, each example replaced by each fresh one."""
    rng = np.random.default_rng(seed)
    n, classes, size = 12, 3, 4
    features = rng.normal(size=(n + 4, size))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = rng.integers(0, classes, n + 4)

    def losses(theta: np.ndarray) -> np.ndarray:
        logits = features @ theta.reshape(size, classes)
        return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(n + 4), labels]

    def solution(rows: list[int]) -> np.ndarray:
        def objective(theta: np.ndarray) -> float:
            return float(losses(theta)[rows].mean() + TAU * theta @ theta)

        return minimize(objective, np.zeros(size * classes), options={"gtol": 1e-9}).x

    whole = losses(solution(list(range(n))))
    moved = [
        np.abs(losses(solution([*(j for j in range(n) if j != i), k])) - whole).max()
        for i in range(0, n, 3)
        for k in range(n, n + 4)
    ]
    record = linear_record(rho=float(np.sqrt(2)), n_train=n)
    found = ridge_stability(record, features_bounded=True)
    assert found is not None
    assert 0 < max(moved) <= float(found.value)
