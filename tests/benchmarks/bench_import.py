"""Processor time that `import lodrop_theory` adds to `import numpy`, in fresh interpreters.

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_import     (half a minute)
Writes  tests/benchmarks/records/import.json
"""

import statistics
import subprocess
import sys

from tests.benchmarks import record

PROGRAM = """
import time
start = time.process_time()
import numpy
between = time.process_time()
import {module}
print(between - start, time.process_time() - between)
"""
MODULES = ("importlib.metadata", "lodrop_theory", "scipy.special", "scipy.stats")


def once(module: str) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.split()
    return float(first), float(second)


def main() -> None:
    machine = record.environment()
    runs = [{module: once(module) for module in MODULES} for _ in range(15)]
    added = {module: [run[module][1] for run in runs] for module in MODULES}
    added["numpy"] = [run[module][0] for run in runs for module in MODULES]
    times = {
        name: {"fastest_s": min(all_of), "median_s": statistics.median(all_of)}
        for name, all_of in added.items()
    }
    print(record.write("import", {"environment": machine, "added_to_numpy": times}))


if __name__ == "__main__":
    main()
