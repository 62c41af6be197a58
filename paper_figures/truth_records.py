"""The bounds held against exact truth, as committed records: slack and coverage.

Writes  paper_figures/records/theory/{slack,coverage,rates}.csv and versions.json
Run     python -m paper_figures.truth_records     (CPU, about a minute)

*slack*: 240 problems in which the law of R - R_hat is exact, drawn by number: problem k has its own
seed. *coverage*: fresh training sets, counted, where the law cannot be enumerated. *rates*: one
problem against the dropout rate.
"""

import json
import math
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lodrop_theory import BoundResult, __version__
from lodrop_theory.clopper_pearson import clopper_pearson_lower, clopper_pearson_upper
from lodrop_theory.records import write_bytes_atomically
from lodrop_theory.solvable import CONTENDERS, Contender, GroundTruth, hold
from paper_figures._comparison import write_csv
from paper_figures._truth_problems import (
    coverage_populations,
    draw_problem,
    memorizer_truth,
    truths_over_rates,
)

RECORDS = Path(__file__).parent / "records" / "theory"
N_PROBLEMS = 240
N_DRAWS = 4000
PRINTED = "lemma 4.3 as printed"

SLACK_HEAD = (
    "problem",
    "family",
    "n_train",
    "dropout_rate",
    "delta",
    "contender",
    "statement",
    "certified",
    "gap",
    "truth",
    "slack",
    "violation",
    "holds",
)
COVERAGE_HEAD = (
    "population",
    "n_train",
    "delta",
    "contender",
    "n_draws",
    "violations",
    "low",
    "high",
)
RATES_HEAD = (
    "dropout_rate",
    "delta",
    "loss_range",
    "contender",
    "statement",
    "gap",
    "truth",
)

Rows = Iterator[tuple[object, ...]]


def _six(value: float | None) -> str:
    """Six digits; what is only rounding is 0."""
    if value is None:
        return ""
    return f"{0.0 if abs(value) < 1e-12 else value:.6g}"


def slack_rows(numbers: range) -> Rows:
    """One row per problem and bound."""
    for number in numbers:
        problem = draw_problem(number)
        for verdict in hold(problem.truth, delta=problem.delta):
            yield (
                number,
                problem.family,
                problem.truth.law.n_train,
                _six(problem.dropout_rate),
                problem.delta,
                verdict.contender,
                verdict.statement,
                int(verdict.certified),
                _six(verdict.gap),
                _six(verdict.truth),
                _six(verdict.slack if math.isfinite(verdict.slack) else None),
                _six(verdict.violation),
                int(verdict.holds),
            )


def _printed_lemma(truth: GroundTruth, delta: float) -> BoundResult:
    """Lemma 4.3 for a pointwise stability of 0, which the memorizer has: false."""
    n, length = truth.law.n_train, truth.interval[1]
    return BoundResult(
        bound="lin2024-lemma",
        title="Lemma 4.3 as printed",
        source="Lin et al. 2024, arXiv:2404.09610v1, Lemma 4.3",
        statement="probability",
        predictor="mean",
        gap=np.asarray(length / math.sqrt(2 * n * delta)),
        loss_range=np.asarray(length),
        delta=np.asarray(delta),
    )


def _counted(name: str, truth: GroundTruth, contenders: dict[str, Contender]) -> Rows:
    draws = len(truth.law.chance)
    for delta in (0.05, 0.2):
        for verdict in hold(truth, delta=delta, contenders=contenders):
            if verdict.violation is None:
                continue
            count = round(verdict.violation * draws)
            yield (
                name,
                truth.law.n_train,
                delta,
                verdict.contender,
                draws,
                count,
                _six(float(clopper_pearson_lower(count, draws, 0.025))),
                _six(float(clopper_pearson_upper(count, draws, 0.025))),
            )


def coverage_rows(n_draws: int) -> Rows:
    """Violations counted, with a 95% interval of Clopper and Pearson; the control at the end."""
    generator = np.random.default_rng(240409610)
    for name, truth in coverage_populations(n_draws, generator):
        yield from _counted(name, truth, dict(CONTENDERS))
    control = Contender(needs=(), bound=_printed_lemma)
    yield from _counted("memorizer", memorizer_truth(n_draws, generator), {PRINTED: control})


def rates_rows(n_train: int = 32, delta: float = 0.05) -> Rows:
    """One row per dropout rate and bound."""
    for rate, truth in truths_over_rates(n_train):
        for verdict in hold(truth, delta=delta):
            yield (
                rate,
                delta,
                _six(truth.interval[1]),
                verdict.contender,
                verdict.statement,
                _six(verdict.gap),
                _six(verdict.truth),
            )


def main(out: Path = RECORDS) -> None:
    """Write the records and the versions that made them."""
    write_csv(out / "slack.csv", [SLACK_HEAD, *slack_rows(range(N_PROBLEMS))])
    write_csv(out / "coverage.csv", [COVERAGE_HEAD, *coverage_rows(N_DRAWS)])
    write_csv(out / "rates.csv", [RATES_HEAD, *rates_rows()])
    versions = {
        "lodrop": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "system": sys.platform,
        "n_problems": N_PROBLEMS,
        "n_draws": N_DRAWS,
    }
    text = json.dumps(versions, indent=1) + "\n"
    write_bytes_atomically(out / "versions.json", text.encode("utf-8"))


if __name__ == "__main__":
    main()
