"""Mask laws against the enumeration of all masks."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf

from lodrop_theory import (
    dropout_rate_for_sparsity,
    isotropic_penalty,
    masked_update_covariance,
    masked_update_mean,
    squared_loss_penalty,
    update_sparsity,
)
from tests.theory.strategies import dropout_rates


def every_mask(rate, n_inputs, n_outputs, rescale):
    """(probability, column mask, row mask) of all 2^(d + k) draws."""
    kept = 1 / (1 - rate) if rescale else 1.0
    for bits in product((0, 1), repeat=n_inputs + n_outputs):
        on = sum(bits)
        chance = (1 - rate) ** on * rate ** (len(bits) - on)
        mask = kept * np.array(bits, dtype=float)
        yield chance, mask[:n_inputs], mask[n_inputs:]


@st.composite
def layers(draw):
    n_outputs, n_inputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(size=(n_outputs, n_inputs)), rng.normal(size=n_inputs)


@given(layer=layers(), rate=st.floats(0.0, 0.95), rescale=st.booleans())
def test_moments_equal_the_enumeration(layer, rate, rescale) -> None:
    weight, x = layer
    mean, second = 0.0, 0.0
    for chance, column_mask, row_mask in every_mask(rate, x.size, len(weight), rescale):
        z = row_mask * (weight @ (column_mask * x))
        mean, second = mean + chance * z, second + chance * np.outer(z, z)
    scale = np.abs(second).max() + 1.0
    np.testing.assert_allclose(
        masked_update_mean(rate, weight, x, rescale=rescale), mean, rtol=1e-9
    )
    np.testing.assert_allclose(
        masked_update_covariance(rate, weight, x, rescale=rescale),
        second - np.outer(mean, mean),
        atol=1e-11 * scale,
    )


@given(layer=layers(), rate=st.floats(0.0, 0.95))
def test_sparsity_is_the_enumerated_probability_of_a_zero_entry(layer, rate) -> None:
    weight, x = layer
    zero, energy = 0.0, 0.0
    for chance, column_mask, row_mask in every_mask(rate, x.size, len(weight), False):
        dropped = np.outer(row_mask, column_mask) == 0
        zero, energy = zero + chance * dropped[0, 0], energy + chance * (weight**2)[dropped].sum()
    assert zero == pytest.approx(float(update_sparsity(rate)), abs=1e-12)
    # the entries are dependent, and the expected dropped energy is s(p) ||D||^2 all the same
    assert energy == pytest.approx(float(update_sparsity(rate)) * (weight**2).sum(), abs=1e-11)


@given(layer=layers(), rate=st.floats(0.0, 0.9), rescale=st.booleans(), seed=st.integers(0, 999))
def test_penalty_is_what_the_masks_add_to_the_squared_loss(layer, rate, rescale, seed) -> None:
    weight, _ = layer
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(4, weight.shape[1]))
    answers = rng.normal(size=(4, weight.shape[0]))
    masked = 0.0
    for chance, column_mask, row_mask in every_mask(rate, weight.shape[1], len(weight), rescale):
        outputs = row_mask * ((column_mask * points) @ weight.T)
        masked += chance * ((answers - outputs) ** 2).sum(1).mean()
    means = masked_update_mean(rate, weight, points, rescale=rescale)
    plain = ((answers - means) ** 2).sum(1).mean()
    moment = points.T @ points / 4
    penalty = squared_loss_penalty(rate, weight, moment, rescale=rescale)
    assert masked == pytest.approx(plain + penalty, rel=1e-9)


@given(layer=layers(), rate=st.floats(0.0, 0.9), sigma=st.floats(0.0, 3.0), h=st.floats(0.0, 3.0))
def test_isotropic_penalty_has_the_form_of_the_paper(layer, rate, sigma, h) -> None:
    weight, _ = layer
    moment = sigma**2 * np.eye(weight.shape[1])
    exact = 0.5 * h * squared_loss_penalty(rate, weight, moment, rescale=True)
    paper = isotropic_penalty(rate, sigma, h) * update_sparsity(rate) * (weight**2).sum()
    assert float(paper) == pytest.approx(exact, rel=1e-9, abs=1e-300)


def test_isotropic_penalty_of_the_orthogonal_design() -> None:
    # the three values printed in the design for half-squared loss
    np.testing.assert_allclose(
        isotropic_penalty([0.05, 0.2, 0.5], 1.0, 1.0), [0.5540, 0.78125, 2.0], atol=5e-5
    )


@given(rate=dropout_rates)
def test_sparsity_does_not_cancel(rate) -> None:
    with mp.workdps(700):
        exact = 1 - (1 - mpf(rate)) ** 2
        assert abs(mpf(float(update_sparsity(rate))) - exact) <= exact * mpf(2) ** -51


@given(rate=st.one_of(st.floats(0.0, 0.99), st.floats(1e-300, 1e-10)))
def test_inverse_of_sparsity(rate) -> None:
    back = float(dropout_rate_for_sparsity(update_sparsity(rate)))
    assert back == pytest.approx(rate, rel=1e-9, abs=0.0)


@given(rate=st.floats(0.0, 0.9), rescale=st.booleans(), layer=layers())
def test_rates_broadcast_against_points(rate, rescale, layer) -> None:
    weight, x = layer
    rates, points = np.array([0.0, rate]), np.stack([x, 2 * x])
    together = masked_update_covariance(rates, weight, points, rescale=rescale)
    for i in range(2):
        alone = masked_update_covariance(rates[i], weight, points[i], rescale=rescale)
        np.testing.assert_allclose(together[i], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan"), float("inf")])
def test_rates_outside_the_unit_interval_are_refused(rate) -> None:
    for function in (update_sparsity, dropout_rate_for_sparsity):
        with pytest.raises(ValueError, match=r"`(dropout_rate|sparsity)` must"):
            function(rate)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="`delta_weight` must have shape"):
        masked_update_mean(0.1, np.ones((2, 3)), np.ones(2), rescale=True)
    with pytest.raises(ValueError, match="`input_second_moment` must have shape"):
        squared_loss_penalty(0.1, np.ones((2, 3)), np.ones((2, 3)), rescale=True)
