"""The binary-kl inverse and PAC-Bayes bounds beside pacbb: the same inputs, values and times.

Run     tests/benchmarks/build_pacbb_env.sh DIRECTORY CHECKOUT
        OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_pacbb DIRECTORY     (a minute)
Writes  tests/benchmarks/records/pacbb.json

pacbb charges its Monte Carlo step ln(2 / delta'), lodrop ln(1 / delta'): with delta' / 2 here the
two ask the same. Exact values come from 50-digit bisection.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mpmath import mp, mpf

from lodrop_theory.bounds.maurer2004 import pac_bayes_kl_bound, pac_bayes_root_bound
from lodrop_theory.inputs import PacBayesInputs
from lodrop_theory.kl_inverse import binary_kl_inverse
from tests.benchmarks import record

POINTS, CHECKED, BOUNDS = 20_000, 2_000, 2_000


def exact_inverse(risk: float, nats: float) -> mpf:
    """Bisection to 40 digits of the largest p with kl(risk || p) <= nats."""
    q, c = mpf(risk), mpf(nats)

    def kl(p: mpf) -> mpf:
        terms = [(q, p), (1 - q, 1 - p)]
        return sum((a * mp.log(a / b) for a, b in terms if a > 0), mpf(0))

    low, high = q, mpf(1)
    for _ in range(140):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(middle) <= c else (low, middle)
    return high


def ask_pacbb(directory: Path, points: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [directory / "bin/python", Path(__file__).parent / "pacbb_worker.py", directory / "source"],
        input=json.dumps(points),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def compare_inverse(risks: np.ndarray, nats: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    ours = np.asarray(binary_kl_inverse(risks, nats))
    with mp.workdps(50):
        exact = [exact_inverse(q, c) for q, c in zip(risks[:CHECKED], nats[:CHECKED], strict=True)]

        def against(values: np.ndarray) -> dict[str, Any]:
            errors = [mpf(float(v)) - e for v, e in zip(values[:CHECKED], exact, strict=True)]
            return {
                "below_the_exact_value": sum(e < 0 for e in errors),
                "largest_error": float(max(abs(e) for e in errors)),
                "of": CHECKED,
            }

        return {
            "lodrop": against(ours),
            "pacbb": against(theirs),
            "largest_difference": float(np.abs(ours - theirs).max()),
        }


def compare_bounds(points: list[list[float]], theirs: list[list[float]]) -> dict[str, Any]:
    risk, kl, n, draws, delta, delta_draws = np.array(points).T
    inputs = PacBayesInputs(
        n_train=n,
        loss_range=1.0,
        delta=delta + delta_draws / 2,
        empirical_risk=risk,
        kl_nats=kl,
        n_draws=draws,
        delta_draws=delta_draws / 2,
    )
    kl_bound, root_bound = np.array(theirs).T
    ours = np.asarray(pac_bayes_kl_bound(inputs).risk)
    ours_root = np.asarray(pac_bayes_root_bound(inputs).risk)
    return {
        "kl_largest_difference": float(np.abs(ours - kl_bound).max()),
        "kl_pacbb_below_lodrop": float(np.mean(kl_bound < ours)),
        "mcallester_pacbb_over_lodrop_median": float(np.median(root_bound / ours_root)),
        "mcallester_pacbb_over_lodrop_largest": float(np.max(root_bound / ours_root)),
        "of": BOUNDS,
    }


def main(directory: Path) -> None:
    machine = record.environment()
    rng = np.random.default_rng(0)
    risks, nats = rng.random(POINTS), 10 ** rng.uniform(-5, 0.3, POINTS)
    bounds = [
        [
            float(rng.random() * 0.5),
            float(10 ** rng.uniform(-1, 3)),
            float(rng.integers(100, 100_000)),
            float(rng.integers(100, 10_000)),
            0.025,
            0.01,
        ]
        for _ in range(BOUNDS)
    ]
    asked = {"inverse": np.stack([risks, nats], axis=1).tolist(), "bounds": bounds}
    seconds, answer = [], {}
    many, ours = rng.random(10**6), []
    budgets = 10 ** rng.uniform(-5, 0.3, 10**6)
    for _ in range(5):  # in turns
        answer = ask_pacbb(directory, asked)
        seconds.append(answer["seconds"])
        timed = record.interleaved({"inverse": lambda: binary_kl_inverse(many, budgets)}, 1)
        ours.append(timed["inverse"]["fastest_s"])
    per_second = {"lodrop": 10**6 / min(ours), "pacbb": POINTS / min(seconds)}
    results = {
        "environment": machine,
        "pacbb": {
            "version": "0.1.2",
            "repository_commit": (directory / "commit.txt").read_text().strip(),
            "import_from_pypi": (directory / "pypi.txt").read_text().strip().splitlines()[-1],
        },
        "inverse": compare_inverse(risks, nats, np.array(answer["inverse"])),
        "bounds": compare_bounds(bounds, answer["bounds"]),
        "inverses_per_second": {k: round(v) for k, v in per_second.items()},
        "ratio": round(per_second["lodrop"] / per_second["pacbb"], 1),
        "spread": {
            "lodrop": round((max(ours) - min(ours)) / min(ours), 2),
            "pacbb": round((max(seconds) - min(seconds)) / min(seconds), 2),
        },
    }
    print(record.write("pacbb", results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
