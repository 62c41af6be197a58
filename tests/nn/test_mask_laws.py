"""Balanced and orthogonal masks: exact laws by enumeration, identities, and the theory's word."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lodrop_nn.masks import seeded_generator
from lodrop_nn.masks.balanced import balanced_masks, spread
from lodrop_nn.masks.orthogonal import _orthogonal, orthogonal_masks
from lodrop_nn.masks.orthogonal_arrays import blocks, rao_hamming, table
from lodrop_theory.mask_variance import (
    AveragedMasks,
    balanced_masks_average,
    crossed_masks_average,
    ensemble_covariance,
)

seeds = st.integers(0, 2**63)
FIELDS = [(2, 4), (2, 8), (2, 32), (3, 9), (3, 27), (4, 16), (4, 64), (5, 25), (7, 49), (8, 64)]
FIELDS += [(9, 81)]


def midpoints(digits: np.ndarray, radix: int) -> torch.Tensor:
    """Uniform numbers on a grid that no threshold with denominator ``radix`` meets."""
    return torch.from_numpy((digits + 0.5) / radix)


# -- balanced: all outcomes of one coordinate ------------------------------


def every_spread(n_masks: int, rate: float, denominator: int) -> torch.Tensor:
    """Masks (N, outcomes) of one coordinate under all its equally likely random choices.

    The number of drops is decided at a multiple of 1 / denominator, member i at one of 1 / (N - i).
    """
    radices = [denominator, *range(n_masks, 0, -1)]
    outcomes = np.unravel_index(np.arange(math.prod(radices)), radices)
    numbers = [midpoints(digits, radix) for digits, radix in zip(outcomes, radices, strict=True)]
    feed = iter([numbers[0], torch.stack(numbers[1:])])
    rates = torch.full((math.prod(radices),), rate, dtype=torch.float64)
    return spread(n_masks, rates, lambda *shape: next(feed).reshape(shape))


@given(n_masks=st.integers(1, 6), data=st.data())
def test_a_balanced_coordinate_takes_each_allowed_subset_equally_often(n_masks, data) -> None:
    denominator = 5
    share = data.draw(st.integers(0, n_masks * denominator - 1))
    rate = share / denominator / n_masks
    kept = every_spread(n_masks, rate, denominator)
    counts: dict[tuple[bool, ...], int] = {}
    for column in kept.T.tolist():
        counts[tuple(column)] = counts.get(tuple(column), 0) + 1
    fewest, fraction = divmod(share, denominator)
    for drops, chance in ((fewest, denominator - fraction), (fewest + 1, fraction)):
        everything = itertools.product([True, False], repeat=n_masks)
        subsets = [kept for kept in everything if n_masks - sum(kept) == drops]
        for subset in subsets if chance else []:
            expected = chance * math.factorial(n_masks) / len(subsets)
            assert counts.pop(subset, 0) == expected
    assert not counts


@given(n_masks=st.integers(1, 6), data=st.data())
def test_a_balanced_coordinate_has_the_moments_of_the_theory(n_masks, data) -> None:
    rate = data.draw(st.integers(0, n_masks * 5 - 1)) / 5 / n_masks
    kept = every_spread(n_masks, rate, 5).double()
    theory = balanced_masks_average(rate, n_masks, rescale=False)
    assert kept.mean(1).tolist() == pytest.approx([float(theory.mean)] * n_masks, abs=1e-12)
    assert kept.mean(0).var(correction=0).item() == pytest.approx(float(theory.columns), abs=1e-12)
    moments = torch.cov(kept, correction=0)
    product = (moments**2).sum().item() / n_masks**2
    assert product == pytest.approx(float(theory.product), abs=1e-12)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])  # the extremes of torch.rand
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_whole_share_is_whole_although_its_rate_is_rounded(number, dtype) -> None:
    for n_masks in range(1, 65):
        drops = torch.arange(n_masks)
        rates = (drops.double() / n_masks).to(dtype)
        kept = spread(n_masks, rates, lambda *shape: torch.full(shape, number))
        assert torch.equal((~kept).sum(0), drops)


@given(seed=seeds, n_masks=st.integers(1, 9), place=st.integers(0, 4))
def test_balanced_coordinates_depend_on_their_own_numbers_only(seed, n_masks, place) -> None:
    rates = torch.tensor([0.1, 0.5, 0.25, 0.9, 0.6], dtype=torch.float64)

    def draw(changed: bool) -> torch.Tensor:
        stream, other = seeded_generator(seed), seeded_generator(seed, 1)

        def uniform(*shape: int) -> torch.Tensor:
            numbers = torch.rand(shape, generator=stream)
            if changed:
                numbers[..., place] = torch.rand(shape[:-1], generator=other)
            return numbers

        return spread(n_masks, rates, uniform)

    elsewhere = torch.arange(5) != place
    assert torch.equal(draw(False)[:, elsewhere], draw(True)[:, elsewhere])


# -- orthogonal: all outcomes of one layer ------------------------------


class Case(NamedTuple):
    """A layer, and for each call for uniform numbers the radices of its rows, by side."""

    n_masks: int
    rates: tuple[float, float]
    radices: tuple[list[list[int]], list[list[int]]]
    rest: int  # members beyond the arrays
    dimensions: tuple[int, int] | None = None  # of the arrays' columns, where these fill all rows
    n_orders: int = 2


# Per block: the column, the number of dropped levels (certain), the levels; then the rest.
CASES = {
    "balanced, N = 3": Case(3, (0.5, 0.5), ([[2], [3, 2, 1]],) * 2, 3),
    "balanced, N = 2, p = 1/4 and 1/2": Case(2, (0.25, 0.5), ([[2], [2, 1]], [[1], [2, 1]]), 2),
    "balanced, rows kept": Case(3, (0.5, 0.0), ([[2], [3, 2, 1]], [[1], [3, 2, 1]]), 3),
    "N = 4": Case(4, (0.5, 0.5), ([[1], [1], [2, 1]], [[2], [1], [2, 1]]), 0, (1, 2), n_orders=24),
    "N = 5": Case(5, (0.5, 0.5), ([[1], [1], [2, 1], [2], [1]], [[2], [1], [2, 1], [2], [1]]), 1),
    "N = 6": Case(
        6, (0.5, 0.5), ([[1], [1], [2, 1], [1], [2, 1]], [[2], [1], [2, 1], [1], [2, 1]]), 2
    ),
    "N = 6, table": Case(6, (0.5, 1 / 3), ([[1], [1], [2, 1]], [[1], [1], [3, 2, 1]]), 0, (1, 2)),
    "N = 8": Case(8, (0.5, 0.5), ([[3], [1], [2, 1]], [[4], [1], [2, 1]]), 0, (3, 4)),
    "N = 9": Case(9, (1 / 3, 2 / 3), ([[2], [1], [3, 2, 1]],) * 2, 0, (4, 4)),
}


def every_outcome(case: Case, n_columns: int, n_rows: int) -> torch.Tensor:
    """Masks (N, outcomes, coordinates) of a layer under all its equally likely random choices.

    Each outcome is a layer of one large draw.
    """
    widths = (n_columns, n_rows)
    calls = [(call, w) for side, w in zip(case.radices, widths, strict=True) for call in side]
    radices = [case.n_orders, *(radix for call, w in calls for radix in call for _ in range(w))]
    n_layers = math.prod(radices)
    digits = iter(np.unravel_index(np.arange(n_layers), radices))

    def numbers() -> Iterator[torch.Tensor]:
        orders = itertools.islice(itertools.permutations(range(case.n_masks)), case.n_orders)
        yield torch.tensor(list(orders))[next(digits)] / case.n_masks
        for call, w in calls:
            rows = [[midpoints(next(digits), radix) for _ in range(w)] for radix in call]
            yield torch.stack([torch.stack(row, 1).flatten() for row in rows])

    feed = numbers()
    of_layer = torch.tensor([case.rates[0]] * n_columns + [case.rates[1]] * n_rows).double()
    sides = torch.tensor([0] * n_columns + [1] * n_rows)
    masks = _orthogonal(
        case.n_masks,
        of_layer.repeat(n_layers),
        sides.repeat(n_layers),
        torch.arange(n_layers).repeat_interleave(n_columns + n_rows),
        lambda *shape: next(feed).reshape(shape),
    )
    assert next(feed, None) is None  # the case describes every number that was drawn
    return masks.unflatten(1, (n_layers, -1))


def cases(chosen: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=name) for name, case in CASES.items() if chosen(case)]
    )


@cases()
def test_each_member_has_the_iid_law_of_all_its_coordinates(case) -> None:
    masks = every_outcome(case, 2, 1).flip(2)  # the first coordinate becomes the highest bit
    keeps = [1 - case.rates[0]] * 2 + [1 - case.rates[1]]
    patterns = itertools.product(*[(1 - keep, keep) for keep in keeps])
    law = np.array([math.prod(pattern) for pattern in patterns])
    codes = (masks.long() << torch.arange(3)).sum(2)
    for member in codes:
        observed = np.bincount(member, minlength=8) / codes.shape[1]
        np.testing.assert_allclose(observed, law, atol=1e-12)


def theory_of(case: Case) -> AveragedMasks:
    """(R / N)^2 times what R balanced masks leave; nothing where the arrays fill all members."""
    if not case.rest:
        zero = np.float64(0)
        return AveragedMasks(np.float64(1 - case.rates[0]), zero, zero, zero)
    rest = balanced_masks_average(case.rates[0], case.rest, rescale=False)
    share = (case.rest / case.n_masks) ** 2
    return AveragedMasks(rest.mean, *(share * part for part in rest[1:]))


# The theory takes one rate, but needs none where nothing is left.
@cases(lambda case: not case.rest or case.rates[0] == case.rates[1])
def test_the_mean_update_has_the_covariance_of_the_theory(case) -> None:
    masks = every_outcome(case, 2, 2 if case.n_masks < 9 else 1).double()
    columns, rows = masks[..., :2], masks[..., 2:]
    weight, x = np.array([[1.0, -2.0], [0.5, 3.0]])[: rows.shape[2]], np.array([2.0, 1.0])
    pairs = torch.einsum("nki,nkj->kij", rows, columns) / case.n_masks
    updates = torch.einsum("kij,ij,j->ki", pairs, torch.tensor(weight), torch.tensor(x))
    mean = (1 - case.rates[0]) * (1 - case.rates[1]) * weight @ x
    np.testing.assert_allclose(updates.mean(0), mean, atol=1e-12)
    covariance = (updates.T @ updates).numpy() / len(updates) - np.outer(mean, mean)
    theory = ensemble_covariance(theory_of(case), weight, x)
    np.testing.assert_allclose(covariance, theory, atol=1e-9)


def test_the_table_is_what_the_theory_calls_crossed() -> None:
    case = CASES["N = 4"]
    np.testing.assert_allclose(
        theory_of(case), crossed_masks_average(0.5, 2, 2, rescale=False), atol=1e-15
    )


@pytest.mark.parametrize("side", [0, 1])
@cases(lambda case: case.dimensions is not None)
def test_products_within_a_side_average_to_one_over_its_dimensions(case, side) -> None:
    kept = every_outcome(case, 2 - side, 1 + side)[..., side : side + 2].double()
    rate = case.rates[side]
    products = (kept - (1 - rate)).prod(2).mean(0)
    variance = (rate * (1 - rate)) ** 2
    assert products.mean().item() == pytest.approx(0.0, abs=1e-12)
    expected = variance / case.dimensions[side]
    assert (products**2).mean().item() == pytest.approx(expected, rel=1e-9)


# -- orthogonal: identities of every draw ------------------------------


def layer_of(n_columns: int, n_rows: int, n_layers: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    sides = torch.tensor(([0] * n_columns + [1] * n_rows) * n_layers)
    return sides, torch.arange(n_layers).repeat_interleave(n_columns + n_rows)


# (N, p of columns, p of rows) whose arrays fill all members
FILLED = [(4, 1 / 2, 1 / 2), (12, 1 / 2, 1 / 2), (64, 1 / 2, 1 / 2), (8, 1 / 2, 1 / 4)]
FILLED += [(16, 1 / 4, 1 / 4), (16, 3 / 4, 1 / 2), (64, 1 / 8, 3 / 8), (6, 1 / 3, 1 / 2)]
FILLED += [(25, 1 / 5, 2 / 5), (36, 1 / 6, 1 / 6), (100, 0.3, 0.1), (81, 2 / 9, 1 / 3)]


@given(law=st.sampled_from(FILLED), seed=seeds, single=st.booleans())
def test_every_pair_of_a_layer_is_kept_in_its_share_of_members(law, seed, single) -> None:
    n_masks, p_columns, p_rows = law
    sides, layers = layer_of(6, 5, 3)
    rates = torch.where(sides == 0, p_columns, p_rows).to(
        torch.float32 if single else torch.float64
    )
    masks = orthogonal_masks(n_masks, rates, sides, layers, seeded_generator(seed)).double()
    for of_layer in masks.unflatten(1, (3, 11)).unbind(1):
        pairs = of_layer[:, 6:].T @ of_layer[:, :6]
        expected = (1 - p_columns) * (1 - p_rows) * n_masks
        assert pairs.unique().tolist() == [pytest.approx(expected)]


rate_vectors = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.73, 0.999]), min_size=1, max_size=9)


@given(n_masks=st.integers(1, 40), values=rate_vectors, seed=seeds, data=st.data())
def test_each_coordinate_is_dropped_in_its_share_of_members(n_masks, values, seed, data) -> None:
    """Under both laws, whatever the rates, sides and layers and their order."""
    places = st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values))
    layers = torch.tensor(data.draw(places))
    sides = torch.tensor(data.draw(places)) % 2
    rates = torch.tensor(values, dtype=torch.float64)
    for masks in (
        balanced_masks(n_masks, rates, seeded_generator(seed)),
        orthogonal_masks(n_masks, rates, sides, layers, seeded_generator(seed)),
    ):
        assert (masks.shape, masks.dtype) == ((n_masks, len(values)), torch.bool)
        assert masks.is_contiguous()
        share = rates * n_masks
        dropped = (~masks).sum(0)
        assert bool((dropped >= torch.floor(share + 1e-6)).all())
        assert bool((dropped <= torch.ceil(share - 1e-6)).all())


@pytest.mark.parametrize("number", [0.0, 1 - 1e-9])
@pytest.mark.parametrize("rate", [0.3, 0.7])  # in single precision above 3 / 10, below 7 / 10
def test_rates_in_single_precision_are_the_shares_that_they_stand_for(
    rate: float, number: float
) -> None:
    def extreme(*sizes: int) -> torch.Tensor:
        return torch.full(sizes, number, dtype=torch.float64)

    masks = spread(10, torch.tensor([rate], dtype=torch.float32), extreme)
    assert int((~masks).sum()) == round(10 * rate)


@given(p=st.floats(0.05, 0.95), n_masks=st.integers(1, 20), seed=seeds)
def test_the_public_laws_keep_with_probability_one_minus_p_in_each_member(p, n_masks, seed) -> None:
    width = 4000
    rates = torch.full((width,), p, dtype=torch.float64)
    sides, layers = layer_of(1, 1, width // 2)
    for masks in (
        balanced_masks(n_masks, rates, seeded_generator(seed)),
        orthogonal_masks(n_masks, rates, sides, layers, seeded_generator(seed)),
    ):
        kept = masks.double().mean(1)
        assert bool(((kept - (1 - p)).abs() <= 6 * math.sqrt(p * (1 - p) / width)).all())


@given(seed=seeds, n_masks=st.sampled_from([2, 4, 7, 8, 9]))
def test_layers_depend_on_their_own_numbers_only(seed, n_masks) -> None:
    sides, layers = layer_of(3, 3, 2)
    rates = torch.full((12,), 0.5)

    def draw(changed: bool) -> torch.Tensor:
        stream, other = seeded_generator(seed), seeded_generator(seed, 1)

        def uniform(*shape: int) -> torch.Tensor:
            numbers = torch.rand(shape, generator=stream)
            fresh = torch.rand(shape, generator=other)
            if changed and shape == (2, n_masks):
                numbers[1] = fresh[1]
            elif changed:
                numbers[..., 3:] = fresh[..., 3:]  # three coordinates of one side per layer
            return numbers

        return _orthogonal(n_masks, rates, sides, layers, uniform)

    assert torch.equal(draw(False)[:, :6], draw(True)[:, :6])


@given(seed=seeds)
def test_a_layer_of_other_rates_is_drawn_beside_the_others(seed) -> None:
    """Layers at 1/2, at 1/4, and one whose columns mix 1/2 with 1/4: each is exact at N = 16."""
    sides, layers = layer_of(4, 3, 3)
    rates = torch.full((21,), 0.5)
    rates[7:14] = 0.25
    rates[14:16] = 0.25
    masks = orthogonal_masks(16, rates, sides, layers, seeded_generator(seed)).double()
    for i in range(3):
        mine, keep = masks[:, layers == i], 1 - rates[layers == i]
        expected = 16 * keep[4:, None] * keep[:4]
        assert torch.equal(mine[:, 4:].T @ mine[:, :4], expected.double())


# -- generators and arguments ------------------------------


def both(n_masks: int, rates: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    sides, layers = layer_of(len(rates) - 1, 1)
    return torch.cat(
        [
            balanced_masks(n_masks, rates, generator),
            orthogonal_masks(n_masks, rates, sides, layers, generator),
        ],
        dim=1,
    )


def test_sides_may_be_truth_values() -> None:
    sides, layers = layer_of(3, 2, 2)
    draws = (
        orthogonal_masks(4, torch.full((10,), 0.5), each, layers.to(dtype), seeded_generator(0))
        for each, dtype in ((sides, torch.int64), (sides == 1, torch.int32))
    )
    assert torch.equal(*draws)


@given(seed=seeds, n_masks=st.integers(2, 9))
def test_masks_are_a_function_of_the_generator(seed, n_masks) -> None:
    rates = torch.full((100,), 0.5)
    before = torch.get_rng_state()
    first, again = (both(n_masks, rates, seeded_generator(seed)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, both(n_masks, rates, seeded_generator(seed, 1)))
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_generator_masks_come_from_torchs_default_one() -> None:
    rates = torch.full((100,), 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        default = both(8, rates, None)
    assert torch.equal(default, both(8, rates, torch.Generator().manual_seed(0)))


def test_masks_drawn_in_inference_mode_can_be_trained_with() -> None:
    blocks.cache_clear()
    rao_hamming.cache_clear()
    rates = torch.full((3,), 0.5)
    with torch.inference_mode():
        drawn = balanced_masks(4, rates), orthogonal_masks(4, rates, *layer_of(2, 1))
    # The arrays that were made there serve on.
    for masks in (*drawn, orthogonal_masks(4, rates, *layer_of(2, 1))):
        weight = torch.ones(3, requires_grad=True)
        (weight * masks).sum().backward()
        assert torch.equal(weight.grad, masks.sum(0).float())


def test_masks_lie_on_the_cpu_whatever_the_default_device() -> None:
    rates, (sides, layers) = torch.full((3,), 0.5), layer_of(2, 1)
    blocks.cache_clear()
    with torch.device("meta"):
        drawn = balanced_masks(4, rates), orthogonal_masks(4, rates, sides, layers)
    assert [masks.sum().item() for masks in drawn] == [6, 6]


def test_no_coordinates_give_empty_masks() -> None:
    none = torch.empty(0)
    assert balanced_masks(3, none).shape == (3, 0)
    assert orthogonal_masks(3, none, none.long(), none.long()).shape == (3, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_masks": 0}, "`n_masks` must be a whole number >= 1, got 0"),
        ({"rates": torch.tensor([0.5, 1.0])}, r"`rates` must be in \[0, 1\), got 1.0"),
        ({"rates": torch.tensor([0.5, math.nan])}, "`rates`.*nan"),
        ({"rates": torch.tensor([0.5, -0.25])}, "`rates`.*-0.25"),
        ({"rates": torch.tensor([0, 0])}, "`rates` must be a vector of floating-point"),
        ({"rates": torch.ones(1, 2) / 2}, r"`rates` must be a vector.*\(1, 2\)"),
        ({"sides": torch.tensor([0])}, r"`sides` must hold a whole number for each.*\(1,\)"),
        ({"layers": torch.tensor([0.0, 0.0])}, "`layers` must hold a whole number.*float32"),
        ({"sides": torch.tensor([0, 2])}, r"`sides` must be 0 or 1.*\[0, 2\]"),
        ({"layers": torch.tensor([0, -1])}, "`layers` >= 0, got.*-1"),
    ],
)
def test_arguments_outside_their_range_are_refused(options, message) -> None:
    usual = {
        "n_masks": 4,
        "rates": torch.full((2,), 0.5),
        "sides": torch.tensor([0, 1]),
        "layers": torch.tensor([0, 0]),
    }
    usual.update(options)
    with pytest.raises(ValueError, match=message):
        orthogonal_masks(**usual)
    if options.keys() & {"n_masks", "rates"}:
        with pytest.raises(ValueError, match=message):
            balanced_masks(usual["n_masks"], usual["rates"])


# -- arrays ------------------------------


@pytest.mark.parametrize(("s", "n_rows"), FIELDS)
def test_any_two_columns_show_each_pair_of_levels_equally_often(s, n_rows) -> None:
    block = rao_hamming(s, n_rows)
    columns = torch.cat(block.levels, 1).T
    assert len(columns) == (n_rows - 1) // (s - 1)
    shown = torch.nn.functional.one_hot(columns, s).double()  # column, row, level
    counts = torch.einsum("irk,jrl->ijkl", shown, shown)
    apart = ~torch.eye(len(columns), dtype=torch.bool)
    assert counts[apart].unique().tolist() == [n_rows / s**2]


@given(s=st.integers(1, 7), t=st.integers(1, 7))
def test_a_table_shows_each_pair_of_levels_once(s, t) -> None:
    first, second = (levels[:, 0].tolist() for levels in table(s, t).levels)
    assert sorted(zip(first, second, strict=True)) == list(itertools.product(range(s), range(t)))


fractions = st.integers(2, 10).flatmap(lambda s: st.integers(0, s - 1).map(lambda k: k / s))


@given(n_rows=st.integers(1, 100), p=fractions, q=fractions)
def test_blocks_fit_and_make_all_rates_whole(n_rows, p, q) -> None:
    found = blocks(n_rows, (p,), (q,))
    for block in found:
        for rate, s, levels in zip((p, q), block.n_levels, block.levels, strict=True):
            assert rate * s == pytest.approx(round(rate * s))
            assert (levels.max() + 1, len(levels)) == (s, block.n_rows)
    rest = n_rows - sum(block.n_rows for block in found)
    assert rest >= 0
    lowest = [math.ceil(1 / rate) for rate in (p, q) if rate > 0]
    if len(lowest) == 2 and all(rate == 1 / s for rate, s in zip((p, q), lowest, strict=True)):
        # No table of p = 1/s against q = 1/t is left out that would still fit.
        assert rest < math.prod(lowest)


def test_more_columns_are_preferred() -> None:
    assert [b.n_levels for b in blocks(16, (0.5,), (0.5,))] == [(2, 2)]
    assert [b.levels[0].shape[1] for b in blocks(16, (0.25,), (0.5,))] == [2]
