"""Table 6: LoRA Dropout on LoRA and on AdaLoRA, scores at the last epoch and costs.

Reads   tests/benchmarks/records/adalora.json
Writes  paper_figures/out/tab06_adalora.{csv,md}
Run     python -m paper_figures.tab06_adalora     (CPU, seconds)
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lodrop_theory.records import write_bytes_atomically
from paper_figures._comparison import BENCHMARKS, OUT, write_csv

NAME = Path(__file__).stem

ARMS = {
    ("lora", False): "LoRA",
    ("lora", True): "LoRA + dropout",
    ("adalora", False): "AdaLoRA",
    ("adalora", True): "AdaLoRA + dropout",
}
MEASURES = {"nll": "NLL", "accuracy": "accuracy", "ece": "ECE", "gap": "gap", "train_nll": "fit"}
# Differences in print: of which measures, to what.
DIFFERENCES = {
    "minus no dropout": ("nll", "accuracy", "ece", "gap"),
    "minus plain lora": ("nll",),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A mean or a mean paired difference with its 95% Student interval.

    Attributes:
        mean: Over the splits; nan where there is nothing to subtract.
        low: Lower end.
        high: Upper end.
    """

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Line:
    """One predictor of one arm on one data set, at the last epoch.

    Attributes:
        data: The data set, or ``pooled``.
        adapter: ``lora`` or ``adalora``.
        dropout: Whether it was trained with LoRA Dropout.
        predictor: ``mean`` or ``ensemble``.
        n: Splits.
        rows: Rows trained, over plain LoRA's.
        time: Processor time of a training step, over plain LoRA's.
        values: By measure: ``nll`` and ``gap`` (nats), ``accuracy``, ``ece``, ``train_nll``.
        differences: By difference and measure, as in the record.
    """

    data: str
    adapter: str
    dropout: bool
    predictor: str
    n: int
    rows: float
    time: float
    values: Mapping[str, Cell] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)


def compute(records: Path = BENCHMARKS) -> list[Line]:
    """Pick the cells out of the record."""
    content = json.loads((records / "adalora.json").read_text(encoding="utf-8"))
    arm_of = {tuple(cell): arm for arm, cell in content["protocol"]["arms"].items()}
    lines = []
    for row in content["table"]:
        measures = row["measures"]
        cost = content["costs"][arm_of[row["adapter"], row["dropout"]]]
        lines.append(
            Line(
                data=row["data"],
                adapter=row["adapter"],
                dropout=row["dropout"],
                predictor=row["predictor"],
                n=measures["nll"]["value"]["n"],
                rows=cost["rows_over_lora"],
                time=cost["time_over_lora"],
                values={name: _cell(measures[name], "value") for name in MEASURES},
                differences={
                    difference: {name: _cell(measures[name], difference) for name in names}
                    for difference, names in DIFFERENCES.items()
                },
            )
        )
    return lines


def _cell(measure: Mapping[str, Mapping[str, float]], name: str) -> Cell:
    found = measure.get(name)
    if found is None:
        return Cell()
    return Cell(mean=found["mean"], low=found["low"], high=found["high"])


def flat(line: Line) -> dict[str, Any]:
    """The fields of a line, one number in each."""
    row = {name: value for name, value in vars(line).items() if not isinstance(value, dict)}
    cells = {**line.values}
    for difference, each in line.differences.items():
        cells |= {f"{name} {difference}": cell for name, cell in each.items()}
    for name, cell in cells.items():
        row |= {f"{name} {end}": value for end, value in asdict(cell).items()}
    return row


def _print(cell: Cell, sign: str = "") -> str:
    if math.isnan(cell.mean):
        return "-"
    return f"{cell.mean:{sign}.3f} [{cell.low:{sign}.3f}, {cell.high:{sign}.3f}]"


def as_markdown(lines: Sequence[Line]) -> str:
    """One table per data set."""
    head = ["arm", "predictor", "rows", "time per step", *MEASURES.values()]
    for difference, names in DIFFERENCES.items():
        head += [f"{MEASURES[name]} {difference}" for name in names]
    parts = [
        "Last epoch; 95% Student intervals in brackets. NLL, gap and fit (training NLL) in nats; "
        "differences are paired by split; an ensemble predicts with 16 passes. Rows trained and "
        "processor time of a step over plain LoRA's. AdaLoRA's learning rate is that of three "
        "tried on another split whose training NLL was nearest to LoRA's.\n"
    ]
    for data in dict.fromkeys(line.data for line in lines):
        here = [line for line in lines if line.data == data]
        table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for line in here:
            cells = [ARMS[line.adapter, line.dropout], line.predictor]
            cells += [f"{line.rows:.0f}×", f"{line.time:.2f}×"]
            cells += [_print(line.values[name]) for name in MEASURES]
            for each in line.differences.values():
                cells += [_print(cell, "+") for cell in each.values()]
            table.append(f"| {' | '.join(cells)} |")
        parts.append(f"{data}, {here[0].n} splits\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write both forms."""
    lines = compute(records)
    rows = [flat(line) for line in lines]
    write_csv(out / f"{NAME}.csv", [tuple(rows[0]), *(tuple(row.values()) for row in rows)])
    write_bytes_atomically(out / f"{NAME}.md", as_markdown(lines).encode("utf-8"))


if __name__ == "__main__":
    main()
