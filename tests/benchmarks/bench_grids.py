"""Bounds over 10^7 points, in passes of `np.sqrt` over as many.

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_grids     (half a minute)
Writes  tests/benchmarks/records/grids.json
"""

import tracemalloc

import numpy as np

from lodrop_theory.grids import GAP_FORMULAS, LIN2024, gap_grid
from tests.benchmarks import record

POINTS = 10**7
AXES = {
    "n_train": np.arange(100, 200)[:, None, None],
    "dropout_rate": np.linspace(0, 0.9, 100)[:, None],
    "penalty": np.linspace(0.1, 2, 1000),
    "lipschitz": 1.0,
    "hessian_min_eig": 0.01,
    "loss_range": 1.0,
    "delta": 0.05,
}


def full_arrays() -> dict[str, np.ndarray]:
    """Seven arrays of all the points: 560 MB to read instead of 10 kB."""
    rng = np.random.default_rng(0)
    share = rng.random(POINTS)
    return {
        "n_train": np.full(POINTS, 1000.0),
        "dropout_rate": 0.9 * share,
        "penalty": share + 0.1,
        "lipschitz": share,
        "hessian_min_eig": share + 0.01,
        "loss_range": share + 1.0,
        "delta": 0.1 + 0.5 * share,
    }


def main() -> None:
    machine = record.environment()
    values, full = np.random.default_rng(0).random(POINTS), full_arrays()
    functions = {"sqrt": lambda: np.sqrt(values)}
    for formula in GAP_FORMULAS:
        functions[formula.bound] = lambda f=formula: gap_grid(f, **AXES)
    functions["lin2024, half of the points not applicable"] = lambda: gap_grid(
        LIN2024, **{**AXES, "hessian_min_eig": -0.5}
    )
    functions["lin2024, seven full arrays"] = lambda: gap_grid(LIN2024, **full)
    times = record.interleaved(functions, repeats=9)
    root = times["sqrt"]["fastest_s"]
    for each in times.values():
        each["passes_of_sqrt"] = round(each["fastest_s"] / root, 2)
    tracemalloc.start()
    gap = gap_grid(LIN2024, **AXES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    beyond = peak - gap.nbytes
    results = {"points": POINTS, "times": times, "bytes_beyond_the_result": beyond}
    print(record.write("grids", {"environment": machine, **results}))


if __name__ == "__main__":
    main()
