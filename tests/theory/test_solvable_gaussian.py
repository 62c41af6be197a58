"""Gaussian regression: closed forms against quadrature, rank-one updates against refits."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory import L2StabilityInputs, l2_stability_bound, squared_loss_penalty
from lodrop_theory.solvable import (
    GaussianRegression,
    fit_ridge,
    leave_one_out_updates,
    mask_penalty_matrix,
    replace_one_updates,
)

seeds = st.integers(0, 2**32 - 1)
rates = st.floats(0.02, 0.9)


def population(rng: np.random.Generator, outputs: int = 1, features: int = 2):
    root = rng.standard_normal((features, features))
    return GaussianRegression(
        target=rng.standard_normal((outputs, features)),
        covariance=root @ root.T + 0.1 * np.eye(features),
        noise_scale=float(rng.uniform(0, 1)),
    )


def quadrature(here: GaussianRegression, function):
    """Expectation over (x, y) by Gauss and Hermite's rule: exact for polynomials of degree 9."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    outputs, features = here.target.shape
    root = np.linalg.cholesky(here.covariance)
    total = 0.0
    for places in product(range(5), repeat=features + outputs):
        point = nodes[list(places)]
        x = root @ point[:features]
        y = here.target @ x + here.noise_scale * point[features:]
        total += np.prod(weights[list(places)]) * function(x, y)
    return total / np.sqrt(2 * np.pi) ** (features + outputs)


def half_square(update, x, y):
    return 0.5 * np.sum((y - update @ x) ** 2)


@given(seed=seeds, outputs=st.integers(1, 2), rate=rates)
def test_closed_forms_are_the_integrals(seed, outputs, rate) -> None:
    rng = np.random.default_rng(seed)
    here = population(rng, outputs)
    one, other = rng.standard_normal((2, *here.target.shape))
    risk = quadrature(here, lambda x, y: half_square(one, x, y))
    square = quadrature(here, lambda x, y: half_square(one, x, y) ** 2)
    change = quadrature(here, lambda x, y: (half_square(one, x, y) - half_square(other, x, y)) ** 2)
    assert here.risk(one) == pytest.approx(risk, rel=1e-9)
    assert here.loss_variance(one) == pytest.approx(square - risk**2, rel=1e-7)
    assert here.mean_square_change(one, other) == pytest.approx(change, rel=1e-7)
    added = 0.5 * squared_loss_penalty(rate, one, here.covariance, rescale=True)
    assert here.risk(one, dropout_rate=rate) == pytest.approx(risk + added, rel=1e-9)
    np.testing.assert_allclose(  # and a stack of updates is a stack of risks
        here.risk(np.stack([one, other])), [here.risk(one), here.risk(other)], rtol=1e-12
    )


@given(seed=seeds, n=st.integers(2, 8), outputs=st.integers(1, 2), rate=rates)
def test_rank_one_updates_are_refits(seed, n, outputs, rate) -> None:
    rng = np.random.default_rng(seed)
    here = population(rng, outputs)
    penalty = mask_penalty_matrix(rate, here.covariance)
    (x, y), (new_x, new_y) = here.sample(n, rng), here.sample(n, rng)
    without = leave_one_out_updates(x, y, penalty)
    replaced = replace_one_updates(x, y, penalty, new_x, new_y)
    for i in range(n):
        rest = np.arange(n) != i
        np.testing.assert_allclose(
            without[i], fit_ridge(x[rest], y[rest], penalty), rtol=1e-6, atol=1e-8
        )
        x_i, y_i = x.copy(), y.copy()
        x_i[i], y_i[i] = new_x[i], new_y[i]
        np.testing.assert_allclose(replaced[i], fit_ridge(x_i, y_i, penalty), rtol=1e-6, atol=1e-8)


@given(seed=seeds, n=st.integers(1, 6), rate=rates)
def test_the_fit_is_stationary(seed, n, rate) -> None:
    rng = np.random.default_rng(seed)
    here = population(rng)
    x, y = here.sample(n, rng)
    penalty = mask_penalty_matrix([rate, 0.5], here.covariance)
    fitted = fit_ridge(x, y, penalty)
    gradient = (x @ np.swapaxes(fitted, -1, -2) - y).swapaxes(-1, -2) @ x / n + fitted @ penalty
    np.testing.assert_allclose(gradient, 0, atol=1e-9 * (1 + np.abs(y).max()))


def test_masks_of_a_whitened_layer_are_the_papers_penalty() -> None:
    rate = np.array([0.1, 0.5])
    expected = ((2 * rate - rate**2) / (1 - rate) ** 2)[:, None, None] * np.eye(3)
    np.testing.assert_allclose(mask_penalty_matrix(rate, np.eye(3)), expected, rtol=1e-14)


def replicated(here, n, penalty, n_draws, rng):
    """Gap, leave-one-out risk, and squared changes at a fresh and at the replaced point."""
    rows = []
    for _ in range(n_draws):
        (x, y), (new_x, new_y) = here.sample(n, rng), here.sample(n, rng)
        fitted, without = fit_ridge(x, y, penalty), leave_one_out_updates(x, y, penalty)
        replaced = replace_one_updates(x, y, penalty, new_x, new_y)
        inside = 0.5 * np.sum((y - x @ fitted.T) ** 2, axis=1)
        left_out = 0.5 * np.sum((y - np.einsum("nkd,nd->nk", without, x)) ** 2, axis=1)
        swapped = 0.5 * np.sum((y - np.einsum("nkd,nd->nk", replaced, x)) ** 2, axis=1)
        rows.append(
            (
                here.risk(fitted) - inside.mean(),
                left_out.mean() - here.risk(without).mean(),
                here.mean_square_change(np.broadcast_to(fitted, replaced.shape), replaced).mean(),
                np.mean((swapped - inside) ** 2),
                here.loss_variance(fitted),
            )
        )
    return np.array(rows)


def test_leave_one_out_is_unbiased_and_the_mean_square_theorem_holds() -> None:
    rng = np.random.default_rng(3)
    here = GaussianRegression(
        target=np.array([[1.0, -0.5, 0.0, 0.3]]), covariance=np.eye(4), noise_scale=1.0
    )
    n = 20
    penalty = mask_penalty_matrix(0.2, here.covariance)
    rows = replicated(here, n, penalty, 1500, rng)
    gap, unbiased, out, within, variance = rows.T
    assert abs(unbiased.mean()) < 5 * unbiased.std() / np.sqrt(len(rows))
    # the loss has no range: a huge C stands in, and the variance is what the theorem reads
    inputs = L2StabilityInputs(
        n_train=n,
        loss_range=1e9,
        delta=0.5,
        replace_one_out=np.sqrt(out.mean()),
        replace_one_in=np.sqrt(within.mean()),
        loss_variance=variance.mean(),
    )
    norm_squared = float(l2_stability_bound(inputs).gap) ** 2 * 0.5
    second_moment = np.mean(gap**2)
    assert 0.05 * norm_squared < second_moment < norm_squared


def test_leave_one_out_follows_the_risk_over_rates() -> None:
    """Few noisy examples: some dropout is best, and leave-one-out knows about which, unbiased."""
    rng = np.random.default_rng(0)
    here = GaussianRegression(
        target=0.3 * rng.standard_normal((1, 12)), covariance=np.eye(12), noise_scale=1.0
    )
    rates = np.linspace(0.02, 0.9, 23)
    penalties = mask_penalty_matrix(rates, here.covariance)
    risks, left_out = [], []
    for _ in range(200):
        x, y = here.sample(20, rng)
        without = np.array([leave_one_out_updates(x, y, p) for p in penalties])
        left_out.append(0.5 * ((y[:, 0] - np.sum(without[:, :, 0] * x, axis=2)) ** 2).mean(axis=1))
        risks.append(here.risk(fit_ridge(x, y, penalties)))
    risk, estimate = np.mean(risks, axis=0), np.mean(left_out, axis=0)
    best, chosen = int(np.argmin(risk)), int(np.argmin(estimate))
    assert 0 < best < len(rates) - 1
    assert abs(best - chosen) <= 3
    assert risk[chosen] < 1.02 * risk[best] < risk[0]


def test_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="must have shapes"):
        GaussianRegression(target=np.ones((1, 2)), covariance=np.eye(3), noise_scale=1.0)
    with pytest.raises(ValueError, match="`noise_scale` must be"):
        GaussianRegression(target=np.ones((1, 3)), covariance=np.eye(3), noise_scale=-1.0)
    with pytest.raises(ValueError, match="`input_second_moment` must be square"):
        mask_penalty_matrix(0.5, np.ones((2, 3)))
