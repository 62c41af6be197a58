"""Table 5: the tables of the paper in its layout, with what is known: quoted, measured or empty.

Methods by tasks: GLUE, SQuAD and MMLU with scores quoted from another paper, and below them our
small tasks, measured. A cell is empty where a score was neither measured nor can be quoted.

Reads   tests/benchmarks/records/{quality,adalora}.json, lodrop_nn/reproduce/published.py
Writes  paper_figures/out/tab05_results.{csv,md}
Run     python -m paper_figures.tab05_results     (CPU, seconds)
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodrop_nn.reproduce.plan import METHODS, Method, has_masks
from lodrop_nn.reproduce.published import NOT_AVAILABLE, PUBLISHED, SOURCE
from lodrop_theory.records import write_bytes_atomically
from paper_figures._comparison import BENCHMARKS, OUT, write_points
from paper_figures._quality import Row, find, read

NAME = Path(__file__).stem
QUOTED = "†"

LABELS: dict[Method, str] = {
    "full": "Full fine-tuning",
    "bitfit": "BitFit",
    "lora": "LoRA",
    "adalora": "AdaLoRA",
    "lora+dropout": "LoRA + LoRA Dropout",
    "adalora+dropout": "AdaLoRA + LoRA Dropout",
}
# What the methods are called where they were published, and in our record.
PUBLISHED_AS: dict[Method, str] = {
    "full": "Full FT",
    "bitfit": "BitFit",
    "lora": "LoRA",
    "adalora": "AdaLoRA",
}
ARMS: dict[Method, str] = {"lora": "lora", "lora+dropout": "example-balanced"}
ADALORA: dict[Method, bool] = {"adalora": False, "adalora+dropout": True}  # trained with masks
PREDICTORS = ("mean", "ensemble")
GLUE = {
    "MNLI m": ("mnli", "accuracy_matched"),
    "MNLI mm": ("mnli", "accuracy_mismatched"),
    "SST-2 acc": ("sst2", "accuracy"),
    "CoLA mcc": ("cola", "matthews"),
    "QQP acc": ("qqp", "accuracy"),
    "QQP F1": ("qqp", "f1"),
    "QNLI acc": ("qnli", "accuracy"),
    "RTE acc": ("rte", "accuracy"),
    "MRPC acc": ("mrpc", "accuracy"),
    "STS-B corr": ("stsb", "correlation"),
}
SQUAD = ("squad-v1.1", "squad-v2.0")
SQUAD_BUDGETS = ("100%", "0.08%", "0.16%", "0.32%", "0.65%")
SQUAD_METRICS = ("exact_match", "f1")
OURS = ("movie-reviews", "sarcasm", "trec")
MEASURES = {"accuracy": 100.0, "nll": 1.0, "ece": 100.0}  # percent, nats, percent
LEGEND = f"""\
{QUOTED} quoted: {SOURCE}. Empty: neither measured nor published where it could be read.
{NOT_AVAILABLE}
Our tasks are not the paper's: MiniLM-L6, LoRA of rank 8 in the upper two blocks, 256 training and
384 test rows, 12 epochs, last epoch; means over seeds with Student's 95% intervals. LoRA Dropout is
at p = 0.5 with one balanced mask per example; the ensemble has 16 masks, "mean" has none. AdaLoRA's
learning rate is the one of three whose training loss was nearest to LoRA's; trec is not fitted yet.
"""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of one table.

    Attributes:
        table: ``glue``, ``squad``, ``mmlu`` or ``ours``.
        method: As in :data:`~lodrop_nn.reproduce.plan.METHODS`.
        predictor: ``mean`` or ``ensemble`` of what was measured; empty elsewhere.
        task: Name of the task.
        metric: Name of the metric.
        budget: Trained parameters, as published; empty where none were.
        status: ``quoted``, ``measured`` or ``empty``.
        value: Percent, or nats for an NLL; nan where empty.
        low: Lower end of the 95% interval over seeds; nan unless measured.
        high: Upper end.
        n_seeds: Seeds behind a measured mean; 0 elsewhere.
        source: Where the number is from; empty where there is none.
    """

    table: str
    method: Method
    predictor: str
    task: str
    metric: str
    budget: str
    status: str = "empty"
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n_seeds: int = 0
    source: str = ""


def compute(records: Path = BENCHMARKS) -> list[Cell]:
    """Every cell of every table, empty ones too."""
    measured = _measures(records)
    cells = []
    for method in METHODS:
        budget = _glue_budget(method)
        cells += [_quoted("glue", method, *column, budget) for column in GLUE.values()]
        cells += [
            _quoted("squad", method, task, metric, budget)
            for task in SQUAD
            for budget in SQUAD_BUDGETS
            for metric in SQUAD_METRICS
        ]
        cells.append(_quoted("mmlu", method, "mmlu", "accuracy", ""))
        cells += [
            _measured(measured, method, predictor, task, metric)
            for predictor in PREDICTORS
            if predictor == "mean" or has_masks(method)
            for task in OURS
            for metric in MEASURES
        ]
    return cells


def _glue_budget(method: Method) -> str:
    """Trained parameters on GLUE; every task of it has the same."""
    name = PUBLISHED_AS.get(method)
    return next((s.budget for s in PUBLISHED if (s.method, s.task) == (name, "rte")), "")


def _quoted(table: str, method: Method, task: str, metric: str, budget: str) -> Cell:
    known: dict[str, Any] = {}
    key = (PUBLISHED_AS.get(method), task, metric, budget)
    for score in PUBLISHED:
        if (score.method, score.task, score.metric, score.budget) == key:
            known = {"status": "quoted", "value": score.percent, "source": score.source}
    return Cell(
        table=table, method=method, predictor="", task=task, metric=metric, budget=budget, **known
    )


Measured = Mapping[tuple[Method, str, str], tuple[Row, str]]


def _measures(records: Path) -> Measured:
    """Measures at the last epoch with their record, by method, predictor and task."""
    rows, _ = read(records)
    found: dict[tuple[Method, str, str], tuple[Row, str]] = {}
    for method, arm in ARMS.items():
        for predictor in PREDICTORS:
            for task in OURS:
                measures = find(rows, task, arm, predictor, "last")
                if measures is not None:
                    found[method, predictor, task] = measures, "quality.json"
    content = json.loads((records / "adalora.json").read_text(encoding="utf-8"))
    for row in content["table"]:
        for method, dropout in ADALORA.items():
            if (row["adapter"], row["dropout"]) == ("adalora", dropout):
                found[method, row["predictor"], row["data"]] = row["measures"], "adalora.json"
    return found


def _measured(measured: Measured, method: Method, predictor: str, task: str, metric: str) -> Cell:
    known: dict[str, Any] = {}
    if (method, predictor, task) in measured:
        measures, name = measured[method, predictor, task]
        value, unit = measures[metric]["value"], MEASURES[metric]
        known = {
            "status": "measured",
            "value": unit * value["mean"],
            "low": unit * value["low"],
            "high": unit * value["high"],
            "n_seeds": value["n"],
            "source": f"tests/benchmarks/records/{name}",
        }
    return Cell(
        table="ours",
        method=method,
        predictor=predictor,
        task=task,
        metric=metric,
        budget="",
        **known,
    )


def as_markdown(cells: Sequence[Cell]) -> str:
    """One table per benchmark and, of our tasks, per measure; then what the marks mean."""
    parts = [("GLUE, development sets (percent)", _glue(cells))]
    parts += [
        (f"SQuAD {task.removeprefix('squad-')}, exact match / F1 (percent)", _squad(cells, task))
        for task in SQUAD
    ]
    parts.append(("MMLU, 0-shot, LLaMA2-7B on Alpaca (percent)", _mmlu(cells)))
    names = {"accuracy": "accuracy (percent)", "nll": "test NLL (nats)", "ece": "ECE (percent)"}
    parts += [(f"Our tasks, {name}", _ours(cells, metric)) for metric, name in names.items()]
    return "\n".join([*(f"{title}\n\n{table}" for title, table in parts), LEGEND])


def _glue(cells: Sequence[Cell]) -> str:
    lines = [["method", "trained", *GLUE]]
    for method in METHODS:
        here = [c for c in cells if (c.table, c.method) == ("glue", method)]
        lines.append([LABELS[method], here[0].budget, *(_text(c, 2) for c in here)])
    return _table(lines)


def _squad(cells: Sequence[Cell], task: str) -> str:
    lines = [["method", *(f"{budget} trained" for budget in SQUAD_BUDGETS)]]
    for method in METHODS:
        here = [c for c in cells if (c.method, c.task) == (method, task)]
        pairs = ([c for c in here if c.budget == budget] for budget in SQUAD_BUDGETS)
        lines.append(
            [LABELS[method], *(" / ".join(filter(None, (_text(c, 1) for c in p))) for p in pairs)]
        )
    return _table(lines)


def _mmlu(cells: Sequence[Cell]) -> str:
    lines = [["method", "accuracy"]]
    lines += [[LABELS[c.method], _text(c, 2)] for c in cells if c.table == "mmlu"]
    return _table(lines)


def _ours(cells: Sequence[Cell], metric: str) -> str:
    here = [c for c in cells if (c.table, c.metric) == ("ours", metric)]
    lines = [["method", "predictor", *OURS, "seeds"]]
    for method, predictor in dict.fromkeys((c.method, c.predictor) for c in here):
        row = [c for c in here if (c.method, c.predictor) == (method, predictor)]
        seeds = max(c.n_seeds for c in row)
        texts = (_text(c, 3 if metric == "nll" else 1) for c in row)
        lines.append([LABELS[method], predictor, *texts, f"{seeds}" if seeds else ""])
    return _table(lines)


def _text(cell: Cell, digits: int) -> str:
    """The number, marked where it is quoted and with its interval where it has one."""
    if cell.status == "empty":
        return ""
    text = f"{cell.value:.{digits}f}"
    if cell.status == "quoted":
        return text + QUOTED
    return f"{text} [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"


def _table(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def main(records: Path = BENCHMARKS, out: Path = OUT) -> None:
    """Write both forms."""
    cells = compute(records)
    write_points(out / f"{NAME}.csv", cells)
    write_bytes_atomically(out / f"{NAME}.md", as_markdown(cells).encode("utf-8"))


if __name__ == "__main__":
    main()
