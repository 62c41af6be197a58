"""Probabilistic enclosures against dense spectra: what holds for sure, and how often."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor

from lodrop_nn.measure.enclosure import relative_gap, spectrum_enclosure, start_overlap
from lodrop_nn.measure.lanczos import KrylovSpace, krylov_space

seeds = st.integers(0, 2**31)


def spectrum(kind: str, n: int, gap: float, seed: int) -> Tensor:
    """Eigenvalues in ascending order, of the kinds that are hard for Lanczos."""
    stream = torch.Generator().manual_seed(seed)
    values = torch.rand(n, dtype=torch.float64, generator=stream)
    if kind == "outlier":
        values[0] = -10.0
    elif kind == "clustered":  # two clusters of width 1e-9
        values = torch.where(values < 0.5, -0.1, 3.0) + 1e-9 * values
    elif kind == "tiny gap":
        values[0] = values.min() - gap
    elif kind == "decaying":
        values = -(values**12) * 5
    elif kind == "two values":
        values = torch.where(values < 0.1, -1.0, 1.0)
    return values.sort().values


KINDS = ("uniform", "outlier", "clustered", "tiny gap", "decaying", "two values")


def run(values: Tensor, steps: int, seed: int, noise: float = 0.0) -> tuple[KrylovSpace, Tensor]:
    """A Krylov space of the diagonal matrix, and its unit start vector."""
    stream = torch.Generator().manual_seed(seed)
    start = torch.randn(len(values), dtype=torch.float64, generator=stream)
    errors = torch.zeros(1, dtype=torch.float64)
    if noise:
        errors = torch.randn(len(values), len(values), dtype=torch.float64, generator=stream)
        errors *= noise / math.sqrt(len(values))
    space = krylov_space(lambda v: values * v + (errors @ v if noise else 0.0), start, steps=steps)
    return space, start / start.norm()


def overlap(start: Tensor, values: Tensor, end: float) -> float:
    """Length of the start vector in the eigenspace of one end."""
    return float(start[values == end].norm())


@settings(max_examples=400)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 120),
    steps=st.integers(1, 40),
    gap=st.floats(1e-12, 1.0),
    level=st.floats(0.2, 0.999),
    seed=seeds,
)
def test_no_end_is_missed_by_a_start_that_sees_it(
    kind: str, n: int, steps: int, gap: float, level: float, seed: int
) -> None:
    values = spectrum(kind, n, gap, seed)
    space, start = run(values, steps, seed)

    low, high = spectrum_enclosure(space, dimension=n, level=level)

    enough = start_overlap(n, (1 - level) / 2)
    ritz = space.ritz().values
    assert low <= ritz[0] + 1e-12
    assert high >= ritz[-1] - 1e-12
    if overlap(start, values, values[0].item()) >= enough:
        assert low <= values[0]
    if overlap(start, values, values[-1].item()) >= enough:
        assert high >= values[-1]


@settings(max_examples=200)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(4, 100),
    steps=st.integers(2, 30),
    digits=st.integers(3, 12),
    seed=seeds,
)
def test_rounded_products_are_allowed_for(
    kind: str, n: int, steps: int, digits: int, seed: int
) -> None:
    values = spectrum(kind, n, 0.1, seed)
    space, start = run(values, steps, seed, noise=10.0**-digits)

    # The norm of E is proven to suffice; here it is known: that of the noise, and of the defect.
    defect = 3 * 10.0**-digits
    low, high = spectrum_enclosure(space, dimension=n, level=0.9, rounding=5 * defect)

    enough = start_overlap(n, 0.05)
    if overlap(start, values, values[0].item()) >= enough:
        assert low <= values[0]
    if overlap(start, values, values[-1].item()) >= enough:
        assert high >= values[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_coverage_of_a_loose_level(kind: str) -> None:
    values = spectrum(kind, 60, 0.01, 0)
    missed = 0
    for seed in range(200):
        space, _ = run(values, 8, seed)
        low, high = spectrum_enclosure(space, dimension=60, level=0.5)
        missed += bool(low > values[0] or high < values[-1])
    # 100 are allowed in expectation; 3 standard deviations above that are 121.
    assert missed <= 121


@given(level=st.floats(0.1, 0.99), seed=seeds)
def test_intervals_shrink_with_the_level_and_with_steps(level: float, seed: int) -> None:
    values = spectrum("uniform", 80, 0.1, seed)
    few, many = run(values, 6, seed)[0], run(values, 30, seed)[0]

    low, high = spectrum_enclosure(few, dimension=80, level=level)
    wide_low, wide_high = spectrum_enclosure(few, dimension=80, level=(1 + level) / 2)
    near_low, near_high = spectrum_enclosure(many, dimension=80, level=level)

    assert wide_low <= low
    assert wide_high >= high
    assert near_high - near_low <= high - low


@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 5), seed=seeds)
def test_shift_and_scale(shift: float, scale: float, seed: int) -> None:
    values = spectrum("uniform", 50, 0.1, seed)

    low, high = spectrum_enclosure(run(values, 8, seed)[0], dimension=50, level=0.9)
    moved = spectrum_enclosure(run(scale * values + shift, 8, seed)[0], dimension=50, level=0.9)

    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-7)


def test_an_invariant_space_encloses_tightly() -> None:
    space, _ = run(torch.full((30,), 2.5, dtype=torch.float64), 10, 0)

    low, high = spectrum_enclosure(space, dimension=30, level=0.99)

    assert len(space.basis) == 1
    assert low <= 2.5 <= high
    assert high - low < 1e-9
    zero = krylov_space(torch.zeros_like, torch.ones(4), steps=3)
    assert spectrum_enclosure(zero, dimension=4, level=0.9) == (0.0, 0.0)


@settings(max_examples=300)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 120),
    steps=st.integers(1, 40),
    failure=st.floats(0.001, 0.9),
    seed=seeds,
)
def test_the_relative_gap_bounds_what_lanczos_misses(
    kind: str, n: int, steps: int, failure: float, seed: int
) -> None:
    values = spectrum(kind, n, 0.1, seed)
    space, start = run(values, steps, seed)

    epsilon = relative_gap(n, steps, failure=failure)

    ritz, width = space.ritz().values, values[-1] - values[0]
    enough = start_overlap(n, failure)
    if overlap(start, values, values[0].item()) >= enough:
        assert ritz[0] - values[0] <= epsilon * width + 1e-10
    if overlap(start, values, values[-1].item()) >= enough:
        assert values[-1] - ritz[-1] <= epsilon * width + 1e-10


@given(n=st.integers(2, 10**7), steps=st.integers(1, 200), epsilon=st.floats(1e-4, 0.9))
def test_the_relative_gap_is_below_its_closed_form(n: int, steps: int, epsilon: float) -> None:
    failure = 2 * math.sqrt(2 * n / math.pi) * math.exp(-math.sqrt(epsilon) * (2 * steps - 1))
    if 0.0 < failure < 1.0:
        assert relative_gap(n, steps, failure=failure) <= epsilon * (1 + 1e-9)


@given(n=st.integers(2, 400), failure=st.floats(0.001, 0.99))
def test_the_overlap_is_a_quantile_on_the_sphere(n: int, failure: float) -> None:
    g = start_overlap(n, failure)

    # In spherical coordinates the first entry is cos(angle), of density sin(angle)^(n - 2).
    def density(angle: float) -> float:
        return math.sin(angle) ** (n - 2)

    inside = integrate.quad(density, math.acos(g), math.pi / 2)[0]
    assert inside / integrate.quad(density, 0, math.pi / 2)[0] == pytest.approx(failure, rel=1e-6)


def test_in_one_dimension_every_start_sees_all() -> None:
    assert start_overlap(1, 0.3) == 1.0
    assert relative_gap(1, 1, failure=0.3) == 0.0


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, float("nan")])
def test_refuses_a_level(level: float) -> None:
    space, _ = run(torch.ones(3, dtype=torch.float64), 2, 0)
    with pytest.raises(ValueError, match="`level` must be in"):
        spectrum_enclosure(space, dimension=3, level=level)
    with pytest.raises(ValueError, match="`failure` must be in"):
        start_overlap(3, level)


def test_refuses_an_empty_space() -> None:
    with pytest.raises(ValueError, match="`dimension` must be >= 1"):
        start_overlap(0, 0.5)
    with pytest.raises(ValueError, match="`steps` must be >= 1"):
        relative_gap(3, 0, failure=0.5)
