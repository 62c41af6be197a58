"""Contracts of cost: grids within ten square roots, memory bounded by blocks, a light import.

Times are compared with a pass of `np.sqrt` in the same process, interleaved, smallest of several: a
busy machine slows both. The full figures are in `tests/benchmarks`.
"""

import json
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf

from lodrop_theory import CurvatureInputs, TailInputs, curvature_bounds, grids
from lodrop_theory.grids import GAP_FORMULAS, LIN2024, gap_grid
from tests.theory.strategies import magnitudes

NUMBERS = {
    "n_train": 1000,
    "dropout_rate": 0.5,
    "lipschitz": 1.0,
    "hessian_min_eig": 0.01,
    "penalty": 1.0,
    "loss_range": 1.0,
    "delta": 0.05,
}
TEN_MILLION = {
    **NUMBERS,
    "n_train": np.arange(100, 200)[:, None, None],
    "dropout_rate": np.linspace(0, 0.9, 100)[:, None],
    "penalty": np.linspace(0.1, 2, 1000),
}


def fastest(*functions, repeats=7):
    """Smallest processor time of each, interleaved."""
    best = [np.inf] * len(functions)
    for _ in range(repeats):
        for at, function in enumerate(functions):
            start = time.process_time()
            function()
            best[at] = min(best[at], time.process_time() - start)
    return best


def test_ten_million_points_cost_at_most_ten_square_roots() -> None:
    values = np.full(10**7, 0.5)
    out = np.empty((100, 100, 1000))
    for formula in GAP_FORMULAS:
        ours, root = fastest(
            lambda f=formula: gap_grid(f, **TEN_MILLION, out=out),
            lambda: np.sqrt(values, out=out.reshape(-1)),
            repeats=4,
        )
        assert ours <= 10 * root, (formula.bound, ours / root)


def test_memory_is_the_result_and_a_few_blocks() -> None:
    tracemalloc.start()
    gap = gap_grid(LIN2024, **TEN_MILLION)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - gap.nbytes < 3_000_000
    dense = {**NUMBERS, "penalty": np.ones(10**6), "dropout_rate": np.full(10**6, 0.1)}
    tracemalloc.start()
    gap = gap_grid(LIN2024, **dense)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - gap.nbytes < 3_000_000


AXES = st.sampled_from([(), (3,), (2, 1), (1, 3), (2, 3), (4, 1, 3), (4, 2, 1)])


@st.composite
def operands(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def drawn(low, high):
        return 10 ** rng.uniform(low, high, size=draw(AXES))

    return {
        "n_train": np.ceil(drawn(0, 9)),
        "dropout_rate": 0.9 * rng.random(size=draw(AXES)),
        "lipschitz": drawn(-2, 2) * rng.integers(0, 2, size=1),
        "hessian_min_eig": drawn(-3, 1) - 0.2,
        "penalty": drawn(-2, 2),
        "loss_range": drawn(-3, 3),
        "delta": drawn(-9, -0.1),
    }


@pytest.mark.parametrize("block", [1, 2, 5, 1 << 15])
@given(given_numbers=operands())
def test_every_way_of_blocking_gives_the_bounds(block, given_numbers) -> None:
    saved, grids._BLOCK = grids._BLOCK, block
    try:
        found = {f.bound: gap_grid(f, **given_numbers) for f in GAP_FORMULAS}
    finally:
        grids._BLOCK = saved
    names = ("n_train", "dropout_rate", "lipschitz", "hessian_min_eig", "penalty")
    results = curvature_bounds(
        CurvatureInputs(**{n: given_numbers[n] for n in names}),
        TailInputs(**{n: given_numbers[n] for n in ("n_train", "loss_range", "delta")}),
    )
    shape = np.broadcast_shapes(*(np.shape(v) for v in given_numbers.values()))
    for result in results:
        assert np.shape(found[result.bound]) == shape
        direct = np.broadcast_to(result.gap, shape)
        np.testing.assert_array_equal(np.isinf(found[result.bound]), np.isinf(direct))
        np.testing.assert_allclose(found[result.bound], direct, rtol=1e-9)


@given(
    n=st.integers(1, 10**15),
    rate=st.floats(0, 0.99),
    rho=magnitudes(-60, 60),
    low=magnitudes(-12, 6),
    weight=magnitudes(-12, 6),
    c=magnitudes(-60, 60),
    delta=magnitudes(-299, -0.01),
)
def test_grids_are_rounded_outward_and_sharp(n, rate, rho, low, weight, c, delta) -> None:
    point = {"n_train": n, "dropout_rate": rate, "lipschitz": rho, "hessian_min_eig": low}
    point |= {"penalty": weight, "loss_range": c, "delta": delta}
    with mp.workdps(60):
        p, count = mpf(rate), mpf(n)
        mu = mpf(low) + 2 * mpf(weight) * (2 * p - p**2)
        exact = mp.sqrt((mpf(c) ** 2 + 24 * mpf(c) * mpf(rho) ** 2 / mu) / (2 * count * mpf(delta)))
        assert exact <= mpf(float(gap_grid(LIN2024, **point))) <= exact * (1 + mpf(2) ** -46)
        g = 2 * mpf(rho) ** 2 / (mu * count)
        tail = g + (2 * count * g + mpf(c)) * mp.sqrt(mp.log(1 / mpf(delta)) / (2 * count))
        found = mpf(float(gap_grid(grids.UNIFORM_TAIL, **point)))
        assert tail <= found <= tail * (1 + mpf(2) ** -46)
        square = mp.sqrt(mpf(c) ** 2 / (4 * count) + g**2 / 2) + g / mp.sqrt(2) + g
        found = mpf(float(gap_grid(grids.L2_STABILITY, **point)))
        assert square / mp.sqrt(mpf(delta)) <= found
        assert found <= square / mp.sqrt(mpf(delta)) * (1 + mpf(2) ** -46)


def test_a_bad_number_deep_in_a_full_array_is_found() -> None:
    for name, bad in (("delta", 1.0), ("penalty", np.nan), ("n_train", 2.5), ("lipschitz", -1.0)):
        values = np.full(100_000, NUMBERS[name], dtype=np.float64)
        values[77_777] = bad
        with pytest.raises(ValueError, match=f"`{name}` must"):
            gap_grid(LIN2024, **{**NUMBERS, name: values})
    with pytest.raises(TypeError, match="`penalty` must be a real number"):
        gap_grid(LIN2024, **{**NUMBERS, "penalty": np.full(100_000, "1")})
    with pytest.raises(ValueError, match=r"`out` must be float64 of shape \(\)"):
        gap_grid(LIN2024, **NUMBERS, out=np.empty(3))


def test_whole_number_arrays_and_empty_grids_are_taken() -> None:
    counted = gap_grid(LIN2024, **{**NUMBERS, "n_train": np.arange(1, 100_001)})
    assert counted[99] == gap_grid(LIN2024, **{**NUMBERS, "n_train": 100})
    assert gap_grid(LIN2024, **{**NUMBERS, "penalty": np.ones((0, 3))}).shape == (0, 3)


IMPORT = """
import json, sys, time
import numpy
start = time.process_time()
import lodrop_theory
print(json.dumps([time.process_time() - start, sorted(m for m in sys.modules if "scipy" in m)]))
"""


def test_importing_adds_little_to_numpy() -> None:
    times, scipy_parts = [], []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
        )
        seconds, scipy_parts = json.loads(done.stdout)
        times.append(seconds)
    assert min(times) <= 0.1, times
    assert scipy_parts == []
