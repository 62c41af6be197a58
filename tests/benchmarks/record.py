"""What every benchmark shares: interleaved timing, and a JSON record with versions and hardware."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Any]:
    """Time functions in turns, so that a drift of the machine meets all of them alike.

    Seconds are those of the processor: the machine may be shared. ``spread`` is the interquartile
    range over the median.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    summary = {}
    for name, all_of in times.items():
        ranked = sorted(all_of)
        median = ranked[len(ranked) // 2]
        quarters = ranked[len(ranked) // 4], ranked[(3 * len(ranked)) // 4]
        summary[name] = {
            "fastest_s": ranked[0],
            "median_s": median,
            "spread": (quarters[1] - quarters[0]) / median if median else 0.0,
            "repeats": repeats,
        }
    return summary


def paired_ratios(
    functions: Mapping[str, Callable[[], object]], reference: str, repeats: int
) -> dict[str, dict[str, float]]:
    """Processor time of functions over that of a reference, run by run.

    Every round runs each function once, in an order that turns by one from round to round. A
    ratio is taken within a round, so that what slows the machine meets both sides; ``ratio`` is
    the median over rounds, ``low`` and ``high`` a 95% interval of it by order statistics.
    """
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(repeats):
        turn = round_number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.process_time()
            functions[name]()
            times[name].append(time.process_time() - start)
    summary = {}
    for name in names:
        pairs = zip(times[name], times[reference], strict=True)
        ranked = sorted(one / other for one, other in pairs)
        # Order statistics k and n + 1 - k enclose the median with probability 1 - 2 B(k - 1; n).
        k = next(k for k in range(repeats) if _binomial_half(k, repeats) > 0.025)
        summary[name] = {
            "ratio": statistics.median(ranked),
            "low": ranked[max(k - 1, 0)],
            "high": ranked[repeats - 1 - max(k - 1, 0)],
            "median_s": statistics.median(times[name]),
            "repeats": repeats,
        }
    return summary


def _binomial_half(k: int, n: int) -> float:
    """Probability of at most k heads among n tosses of a fair coin."""
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n


def versions(*distributions: str) -> dict[str, str]:
    """Installed versions."""
    return {name: metadata.version(name) for name in distributions}


def environment() -> dict[str, Any]:
    """Versions, processor and load; nothing that names the user or a path."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": names[0] if names else platform.machine(),
        "logical_cpus": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        **{name: metadata.version(name) for name in ("lodrop", "numpy", "scipy")},
    }


def write(name: str, results: Mapping[str, Any]) -> Path:
    """Write ``records/NAME.json``; the environment is taken before the results are."""
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{name}.json"
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path
