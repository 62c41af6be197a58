"""Table 2: every arm of the quality comparison, per data set, averaged over seeds.

Reads   tests/benchmarks/records/quality.json
Writes  paper_figures/out/tab02_quality.{csv,md}
Run     python -m paper_figures.tab02_quality     (CPU, seconds)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from lodrop_theory.records import write_bytes_atomically
from paper_figures._comparison import BENCHMARKS, OUT, write_points
from paper_figures._quality import ARMS, DATA, LONG, PREDICTORS, find, read

NAME = Path(__file__).stem


@dataclass(frozen=True, kw_only=True)
class Line:
    """Means over the seeds of one arm and predictor on one data set; nan where not measured.

    Attributes:
        data: The data set, or ``pooled``.
        arm: How the adapter was trained.
        cost: Rows trained, over plain LoRA's.
        predictor: ``mean`` or ``ensemble``.
        n: Splits.
        nll_last: Test NLL at the last epoch. Nats.
        nll_best: At the best epoch by validation.
        nll_tempered: At the last epoch with a fitted temperature.
        accuracy_last: Test accuracy at the last epoch.
        accuracy_best: At the best epoch.
        ece_last: Expected calibration error at the last epoch.
        ece_best: At the best epoch.
        ece_tempered: At the last epoch with a fitted temperature.
        gap: Test NLL minus training NLL at the last epoch, 8 members on both. Nats.
    """

    data: str
    arm: str
    cost: float
    predictor: str
    n: int
    nll_last: float
    nll_best: float
    nll_tempered: float
    accuracy_last: float
    accuracy_best: float
    ece_last: float
    ece_best: float
    ece_tempered: float
    gap: float


def compute(records: Path = BENCHMARKS) -> list[Line]:
    """Pick the means out of the record."""
    rows, costs = read(records)
    lines = []
    for data in (*DATA, LONG):
        for arm in ARMS:
            for predictor in PREDICTORS:
                found = find(rows, data, arm, predictor, "last")
                if found is None:
                    continue
                values = {}
                for name in (f.name for f in fields(Line) if f.name not in _KEYS):
                    measure, _, rule = name.partition("_")
                    at = find(rows, data, arm, predictor, rule or "last")
                    known = at is not None and measure in at
                    values[name] = at[measure]["value"]["mean"] if known else math.nan  # type: ignore[index]
                lines.append(
                    Line(
                        data=data,
                        arm=arm,
                        cost=costs[arm],
                        predictor=predictor,
                        n=found["nll"]["value"]["n"],
                        **values,
                    )
                )
    return lines


_KEYS = ("data", "arm", "cost", "predictor", "n")


def as_markdown(lines: Sequence[Line]) -> str:
    """One table per data set."""
    names = [f.name for f in fields(Line) if f.name not in _KEYS]
    parts = []
    for data in dict.fromkeys(line.data for line in lines):
        head = ["arm", "cost", "predictor", "splits", *(n.replace("_", ", ") for n in names)]
        table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for line in (each for each in lines if each.data == data):
            values = (getattr(line, name) for name in names)
            cells = [ARMS[line.arm], f"{line.cost:.0f}×", line.predictor, str(line.n)]
            cells += ["-" if math.isnan(value) else f"{value:.3f}" for value in values]
            table.append(f"| {' | '.join(cells)} |")
        parts.append(f"{data}\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write both forms."""
    lines = compute(records)
    write_points(out / f"{NAME}.csv", lines)
    write_bytes_atomically(out / f"{NAME}.md", as_markdown(lines).encode("utf-8"))


if __name__ == "__main__":
    main()
