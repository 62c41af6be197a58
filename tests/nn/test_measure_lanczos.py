"""Lanczos against dense eigenvalues, and what its residuals promise."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lodrop_nn.measure.lanczos import lanczos

seeds = st.integers(0, 2**31)


def symmetric(n: int, seed: int) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, n, dtype=torch.float64, generator=stream)
    return (matrix + matrix.T) / 2


def gaussian(n: int, seed: int) -> Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(n=st.integers(1, 15), seed=seeds)
def test_a_full_krylov_space_gives_all_eigenvalues(n: int, seed: int) -> None:
    matrix = symmetric(n, seed)

    ritz = lanczos(lambda v: matrix @ v, gaussian(n, seed), steps=n)

    torch.testing.assert_close(ritz.values, torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-9)
    assert float(ritz.residuals.max()) < 1e-7
    assert ritz.asymmetry < 1e-12


@given(n=st.integers(2, 30), steps=st.integers(1, 29), seed=seeds)
def test_what_residuals_promise(n: int, steps: int, seed: int) -> None:
    matrix = symmetric(n, seed)
    eigenvalues = torch.linalg.eigvalsh(matrix)

    ritz = lanczos(lambda v: matrix @ v, gaussian(n, seed), steps=steps)

    assert ritz.values[0] >= eigenvalues[0] - 1e-12
    assert ritz.values[-1] <= eigenvalues[-1] + 1e-12
    distance = (ritz.values[:, None] - eigenvalues).abs().min(dim=1).values
    assert bool((distance <= ritz.residuals + 1e-12).all())


@given(n=st.integers(3, 20), seed=seeds)
def test_more_steps_never_move_the_ends_inward(n: int, seed: int) -> None:
    matrix, start = symmetric(n, seed), gaussian(n, seed)

    ends = [lanczos(lambda v: matrix @ v, start, steps=k).values[[0, -1]] for k in range(1, n)]

    for fewer, more in itertools.pairwise(ends):
        assert more[0] <= fewer[0] + 1e-10
        assert more[1] >= fewer[1] - 1e-10


@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 5), seed=seeds)
def test_shift_and_scale(shift: float, scale: float, seed: int) -> None:
    matrix, start = symmetric(12, seed), gaussian(12, seed)

    plain = lanczos(lambda v: matrix @ v, start, steps=4)
    moved = lanczos(lambda v: scale * (matrix @ v) + shift * v, start, steps=4)

    torch.testing.assert_close(moved.values, scale * plain.values + shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.residuals, scale * plain.residuals, rtol=1e-6, atol=1e-8)


def test_no_ghosts_of_an_isolated_eigenvalue() -> None:
    # Without reorthogonalization an eigenvalue this isolated comes back within 40 steps.
    diagonal = torch.cat([torch.linspace(0, 1, 199, dtype=torch.float64), torch.tensor([1e6])])

    ritz = lanczos(lambda v: diagonal * v, gaussian(200, 0), steps=60)

    assert int((ritz.values > 2).sum()) == 1
    assert float(ritz.values[-1]) == pytest.approx(1e6, rel=1e-12)


def test_an_invariant_space_ends_the_iteration() -> None:
    products = []

    ritz = lanczos(lambda v: products.append(1) or 3 * v, gaussian(50, 0), steps=20)

    assert len(products) == 1
    assert ritz.values.tolist() == pytest.approx([3.0])
    assert float(ritz.residuals[0]) < 1e-12


@given(seed=seeds)
def test_the_interval_still_holds_when_products_are_rounded(seed: int) -> None:
    matrix = symmetric(40, seed)
    eigenvalues = torch.linalg.eigvalsh(matrix)

    def rounded(vector: Tensor) -> Tensor:
        return (matrix.half() @ vector.half()).double()

    ritz = lanczos(rounded, gaussian(40, seed), steps=40)

    assert ritz.asymmetry > 1e-6
    # Half precision rounds each of 40 products to about 1e-3 of their length.
    assert float((ritz.values[0] - eigenvalues[0]).abs()) < 0.05
    distance = (ritz.values[0] - eigenvalues).abs().min()
    assert distance <= ritz.residuals[0] + 5 * ritz.asymmetry


@given(n=st.integers(4, 30), removed=st.integers(1, 3), seed=seeds)
def test_a_projection_restricts_the_operator(n: int, removed: int, seed: int) -> None:
    matrix = symmetric(n, seed)
    stream = torch.Generator().manual_seed(seed)
    random = torch.randn(n, n, dtype=torch.float64, generator=stream)
    frame = torch.linalg.qr(random).Q
    gone, kept = frame[:, :removed], frame[:, removed:]

    ritz = lanczos(
        lambda v: matrix @ v,
        gaussian(n, seed),
        steps=n - removed,
        project=lambda v: v - gone @ (gone.T @ v),
    )

    expected = torch.linalg.eigvalsh(kept.T @ matrix @ kept)
    torch.testing.assert_close(ritz.values, expected, rtol=0, atol=1e-8)
    assert float(ritz.residuals.max()) < 1e-6


def test_the_residual_is_no_bound_of_the_minimum() -> None:
    # A start that barely sees the smallest eigenvalue: value less residual lies above it.
    diagonal = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    start = torch.tensor([1e-9, 1.0, 1.0, 1.0], dtype=torch.float64)

    ritz = lanczos(lambda v: diagonal * v, start, steps=3)

    assert float(ritz.values[0] - ritz.residuals[0]) > -0.5


def test_start_is_kept_and_steps_are_reported() -> None:
    start = torch.full((9,), 2.0, dtype=torch.float64)
    seen: list[tuple[int, int]] = []

    lanczos(
        lambda v: torch.arange(9.0, dtype=torch.float64) * v,
        start,
        steps=3,
        on_step=lambda step, steps: seen.append((step, steps)),
    )

    assert start.tolist() == [2.0] * 9
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("start", [torch.zeros(3), torch.tensor([1.0, float("nan"), 0.0])])
def test_refuses_a_useless_start(start: Tensor) -> None:
    with pytest.raises(ValueError, match="`start` must be finite and not zero"):
        lanczos(lambda v: v, start, steps=2)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_refuses_a_number_of_steps(steps: int) -> None:
    with pytest.raises(ValueError, match="`steps` must be a whole number >= 1"):
        lanczos(lambda v: v, torch.ones(3), steps=steps)


def test_refuses_products_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="`product` must be finite"):
        lanczos(lambda v: v / 0, torch.ones(3), steps=2)
