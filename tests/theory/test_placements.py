"""Every placement against the enumeration of all its masks, and lambda against the curvature."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory import (
    dropout_rate_for_sparsity,
    isotropic_penalty,
    masked_update_covariance,
    squared_loss_penalty,
    update_sparsity,
)
from lodrop_theory.penalty_of_masks import (
    frozen_a_hessian,
    implied_penalty,
    second_order_penalty,
    softmax_hessian,
)
from lodrop_theory.placements import (
    DROP_CONNECT,
    INPUT_DROPOUT,
    LORA_DROPOUT,
    OUTPUT_DROPOUT,
    PLACEMENTS,
    RANK_DROPOUT,
    placement_covariance,
    placement_penalty,
)

by_name = pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: p.name)


def n_entries(placement, a, b) -> int:
    rank, n_in, n_out = a.shape[0], a.shape[1], b.shape[0]
    return {
        "input": n_in,
        "output": n_out,
        "both": n_in + n_out,
        "entry": n_in * n_out,
        "rank": rank,
    }[placement.name]


def masked_output(placement, mask, a, b, x):
    """One draw, by the definition of the placement."""
    if placement is INPUT_DROPOUT:
        return b @ (a @ (mask * x))
    if placement is OUTPUT_DROPOUT:
        return mask * (b @ (a @ x))
    if placement is LORA_DROPOUT:
        return mask[x.size :] * (b @ (a @ (mask[: x.size] * x)))
    if placement is DROP_CONNECT:
        return (mask.reshape(len(b), x.size) * (b @ a)) @ x
    return b @ (mask * (a @ x))


def draws(placement, rate, a, b, rescale):
    kept = 1 / (1 - rate) if rescale else 1.0
    for bits in product((0, 1), repeat=n_entries(placement, a, b)):
        chance = (1 - rate) ** sum(bits) * rate ** (len(bits) - sum(bits))
        yield chance, kept * np.array(bits, dtype=float)


@st.composite
def layers(draw):
    sizes = [draw(st.integers(1, 3)) for _ in range(3)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return (
        rng.normal(size=(sizes[0], sizes[1])),
        rng.normal(size=(sizes[2], sizes[0])),
        rng.normal(size=sizes[1]),
    )


@by_name
@given(layer=layers(), rate=st.floats(0.0, 0.9), rescale=st.booleans())
def test_mean_and_covariance_equal_the_enumeration(placement, layer, rate, rescale) -> None:
    a, b, x = layer
    mean, second = 0.0, 0.0
    for chance, mask in draws(placement, rate, a, b, rescale):
        z = masked_output(placement, mask, a, b, x)
        mean, second = mean + chance * z, second + chance * np.outer(z, z)
    factor = placement.at(rate, rescale=rescale).mean
    np.testing.assert_allclose(factor * (b @ a @ x), mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        placement_covariance(placement, rate, a, b, x, rescale=rescale),
        second - np.outer(mean, mean),
        atol=1e-11 * (1 + np.abs(second).max()),
    )


@by_name
@given(layer=layers(), rate=st.floats(0.0, 0.9), rescale=st.booleans(), seed=st.integers(0, 999))
def test_penalty_is_the_mean_trace(placement, layer, rate, rescale, seed) -> None:
    a, b, _ = layer
    points = np.random.default_rng(seed).normal(size=(5, a.shape[1]))
    covariance = placement_covariance(placement, rate, a, b, points, rescale=rescale)
    traces = np.trace(covariance, axis1=-2, axis2=-1)
    moment = points.T @ points / 5
    penalty = placement_penalty(placement, rate, a, b, moment, rescale=rescale)
    assert penalty == pytest.approx(traces.mean(), rel=1e-9, abs=1e-12)


@given(layer=layers(), rate=st.floats(0.0, 0.9), rescale=st.booleans())
def test_masks_on_both_sides_are_the_law_of_lora_dropout(layer, rate, rescale) -> None:
    a, b, x = layer
    np.testing.assert_allclose(
        placement_covariance(LORA_DROPOUT, rate, a, b, x, rescale=rescale),
        masked_update_covariance(rate, b @ a, x, rescale=rescale),
        atol=1e-10 / (1 - rate) ** 4,
    )
    moment = np.outer(x, x)
    assert placement_penalty(LORA_DROPOUT, rate, a, b, moment, rescale=rescale) == pytest.approx(
        squared_loss_penalty(rate, b @ a, moment, rescale=rescale), rel=1e-9
    )


@given(layer=layers(), rate=st.floats(0.0, 0.9), sigma=st.floats(0.1, 3))
def test_isotropic_table_of_the_design(layer, rate, sigma) -> None:
    a, b, _ = layer
    moment, odds = sigma**2 * np.eye(a.shape[1]), rate / (1 - rate)
    energy = sigma**2 * ((b @ a) ** 2).sum()

    def penalty(placement, p=rate):
        return placement_penalty(placement, p, a, b, moment, rescale=True)

    both = ((1 - rate) ** -2 - 1) * energy
    assert penalty(INPUT_DROPOUT) == pytest.approx(odds * energy, abs=1e-12)
    assert penalty(OUTPUT_DROPOUT) == pytest.approx(odds * energy, abs=1e-12)
    assert penalty(LORA_DROPOUT) == pytest.approx(both, rel=1e-9, abs=1e-12)
    # DropConnect at the rate s(p) has the same mean penalty as row and column masks
    assert penalty(DROP_CONNECT, float(update_sparsity(rate))) == pytest.approx(
        both, rel=1e-9, abs=1e-12
    )
    nuclear = np.linalg.svd(b @ a, compute_uv=False).sum()
    rank = penalty(RANK_DROPOUT)
    split = ((b**2).sum(0) * (a**2).sum(1)).sum()
    assert rank == pytest.approx(sigma**2 * odds * split, abs=1e-12)
    assert rank >= sigma**2 * odds * nuclear**2 / len(a) * (1 - 1e-12)


@by_name
@given(layer=layers(), rate=st.floats(0.0, 0.9), rescale=st.booleans(), seed=st.integers(0, 999))
def test_hessian_is_that_of_the_enumerated_loss(placement, layer, rate, rescale, seed) -> None:
    """The expected half-squared loss is quadratic in B, so second differences are its Hessian."""
    a, b, _ = layer
    rng = np.random.default_rng(seed)
    points, row = rng.normal(size=(3, a.shape[1])), b[:1]
    masks = list(draws(placement, rate, a, row, rescale))

    def loss(direction):
        return sum(
            chance * 0.5 * (masked_output(placement, m, a, direction[None], x)[0]) ** 2
            for chance, m in masks
            for x in points
        ) / len(points)

    whole, added = frozen_a_hessian(placement, rate, a, points.T @ points / 3, rescale=rescale)
    size = 1 + np.abs(whole).max()
    for direction in (*np.eye(len(a)), rng.normal(size=len(a))):
        quadratic = 0.5 * direction @ whole @ direction
        assert loss(direction) == pytest.approx(quadratic, rel=1e-9, abs=1e-11 * size)
    factor = placement.at(rate, rescale=rescale).mean
    plain = a @ (points.T @ points / 3) @ a.T
    np.testing.assert_allclose(whole - added, factor**2 * plain, atol=1e-10 * size)
    assert np.linalg.eigvalsh(added).min() >= -1e-10 * size


@by_name
@given(layer=layers(), rate=st.floats(0.01, 0.9), h=st.floats(0, 3), seed=st.integers(0, 999))
def test_implied_lambda_is_the_largest_that_the_masks_have(placement, layer, rate, h, seed) -> None:
    a, b, _ = layer
    points = np.random.default_rng(seed).normal(size=(4, a.shape[1]))
    moment = points.T @ points / 4
    weight = implied_penalty(placement, rate, moment, output_curvature=h, lora_a=a)
    _, added = frozen_a_hessian(placement, rate, a, moment, rescale=True)
    promised = weight * float(update_sparsity(rate)) * (b**2).sum()
    real = 0.5 * h * placement_penalty(placement, rate, a, b, moment, rescale=True)
    assert promised <= real * (1 + 1e-9) + 1e-12
    # it is attained in the weakest direction
    direction = np.linalg.eigh(added)[1][:, :1].T
    tight = 0.5 * h * placement_penalty(placement, rate, a, direction, moment, rescale=True)
    assert weight * float(update_sparsity(rate)) == pytest.approx(tight, rel=1e-7, abs=1e-9)


@given(rate=st.floats(0.001, 0.95), sigma=st.floats(0.1, 3), h=st.floats(0, 3))
def test_implied_lambda_of_isotropic_inputs_is_the_known_one(rate, sigma, h) -> None:
    found = implied_penalty(LORA_DROPOUT, rate, sigma**2 * np.eye(3), output_curvature=h)
    assert found == pytest.approx(float(isotropic_penalty(rate, sigma, h)), rel=1e-9)


def test_implied_lambda_of_the_orthogonal_design() -> None:
    # the three values printed in the design
    found = [
        implied_penalty(LORA_DROPOUT, p, np.eye(2), output_curvature=1) for p in (0.05, 0.2, 0.5)
    ]
    np.testing.assert_allclose(found, [0.5540, 0.78125, 2.0], atol=5e-5)


@given(rate=st.floats(0.01, 0.9))
def test_dropout_makes_a_singular_design_strongly_convex(rate) -> None:
    moment = np.ones((3, 3))  # rank one, but every input coordinate is used
    assert implied_penalty(LORA_DROPOUT, rate, moment, output_curvature=1) > 0
    assert implied_penalty(OUTPUT_DROPOUT, rate, moment, output_curvature=1) < 1e-12 / rate


@given(layer=layers(), rate=st.floats(0.0, 0.8), seed=st.integers(0, 999))
def test_second_order_form_is_exact_for_a_quadratic_loss_of_a_linear_tail(
    layer, rate, seed
) -> None:
    a, b, x = layer
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(2, len(b)))
    root = rng.normal(size=(2, 2))
    hessian, slope = root @ root.T, rng.normal(size=2)

    def loss(z):
        out = jacobian @ z
        return 0.5 * out @ hessian @ out + slope @ out

    masked = sum(
        chance * loss(masked_output(LORA_DROPOUT, mask, a, b, x))
        for chance, mask in draws(LORA_DROPOUT, rate, a, b, True)
    )
    covariance = placement_covariance(LORA_DROPOUT, rate, a, b, x, rescale=True)
    added = second_order_penalty(jacobian, hessian, covariance)
    plain = loss(b @ a @ x)
    assert masked == pytest.approx(plain + float(added), rel=1e-9, abs=1e-10 * (1 + abs(masked)))


def test_second_order_form_is_the_leading_term_for_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    a, b, x = rng.normal(size=(2, 3)), rng.normal(size=(3, 2)), rng.normal(size=3)
    logits = rng.normal(size=3)

    def loss(z):
        out = logits + z
        return np.log(np.exp(out).sum()) - out[0]

    errors = []
    for scale in (0.2, 0.1, 0.05):
        small = scale * b
        masked = sum(
            chance * loss(masked_output(LORA_DROPOUT, mask, a, small, x))
            for chance, mask in draws(LORA_DROPOUT, 0.3, a, small, True)
        )
        z = logits + small @ a @ x
        pi = np.exp(z) / np.exp(z).sum()
        covariance = placement_covariance(LORA_DROPOUT, 0.3, a, small, x, rescale=True)
        predicted = float(second_order_penalty(np.eye(3), softmax_hessian(pi), covariance))
        errors.append(abs(masked - loss(small @ a @ x) - predicted) / predicted)
    # the relative error is at least of first order in the size of the update
    assert errors[0] < 0.1
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]


@given(weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
def test_softmax_hessian_has_eigenvalues_at_most_one_half(weights) -> None:
    pi = np.array(weights) / sum(weights)
    values = np.linalg.eigvalsh(softmax_hessian(pi))
    assert values.min() >= -1e-12
    assert values.max() <= 0.5 + 1e-12


def test_second_order_form_broadcasts_over_examples() -> None:
    rng = np.random.default_rng(0)
    j, c = rng.normal(size=(5, 2, 3)), np.stack([k * np.eye(3) for k in range(5)])
    together = second_order_penalty(j, np.eye(2), c)
    assert together.shape == (5,)
    for i in range(5):
        assert together[i] == pytest.approx(float(second_order_penalty(j[i], np.eye(2), c[i])))


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="`lora_a` must have shape"):
        placement_penalty(
            LORA_DROPOUT, 0.1, np.ones((2, 3)), np.ones((2, 3)), np.eye(3), rescale=True
        )
    with pytest.raises(ValueError, match="`input_second_moment` must have shape"):
        frozen_a_hessian(LORA_DROPOUT, 0.1, np.ones((2, 3)), np.eye(2), rescale=True)
    with pytest.raises(ValueError, match="`lora_a` must be given"):
        implied_penalty(RANK_DROPOUT, 0.1, np.eye(2), output_curvature=1)
    with pytest.raises(ValueError, match=r"`dropout_rate` must be one number in \(0, 1\)"):
        implied_penalty(LORA_DROPOUT, 0.0, np.eye(2), output_curvature=1)
    with pytest.raises(ValueError, match="`x` must have shape"):
        placement_covariance(INPUT_DROPOUT, 0.1, np.eye(2), np.eye(2), np.ones(3), rescale=True)
    with pytest.raises(ValueError, match="`jacobian` must have shape"):
        second_order_penalty(np.ones((2, 3)), np.eye(3), np.eye(3))
    for placement in PLACEMENTS:
        with pytest.raises(ValueError, match="`dropout_rate` must"):
            placement.at(1.0, rescale=True)


def test_rate_conversions_meet_in_drop_connect() -> None:
    p = 0.3
    entry = float(update_sparsity(p))
    assert float(dropout_rate_for_sparsity(entry)) == pytest.approx(p)
    terms = DROP_CONNECT.at(entry, rescale=True)
    assert float(terms.own) == pytest.approx((1 - p) ** -2 - 1)
