"""The committed comparison of quality: its arms, in the order of figure 4 and table 2."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_figures._comparison import BENCHMARKS

Row = Mapping[str, Any]
Cost = Mapping[str, float]

# Arms, as they are called in the record and in print. Cost: rows trained, over plain LoRA's.
ARMS = {
    "lora": "LoRA",
    "batch": "one mask per batch",
    "example": "one mask per example",
    "example-balanced": "per example, balanced",
    "n4": "N = 4 masks per step",
    "peft-lora-dropout": "PEFT lora_dropout",
    "monteclora": "MonteCLoRA",
    "decay-to-init": "decay of the update",
    "laplace-full-ggn": "LoRA, Laplace",
    "seeds-4": "LoRA, four seeds",
}
PREDICTORS = ("mean", "ensemble")
# Epoch rule and temperature; the same of both sides of a difference.
RULES = {"last": ("last", False), "best": ("best", False), "tempered": ("last", True)}
LONG = "trec, 36 epochs"  # stands apart from the pool, which was fixed before it
DATA = ("movie-reviews", "trec", "sarcasm", "pooled")


def read(records: Path = BENCHMARKS) -> tuple[list[Row], dict[str, float]]:
    """Rows of the summary, and rows trained over plain LoRA's by arm."""
    content = json.loads((records / "quality.json").read_text(encoding="utf-8"))
    costs = {
        arm: float(cost["rows_over_lora"])
        for arm, cost in content["costs"].items()
        if "rows_over_lora" in cost
    }
    return content["table"], costs


def find(
    rows: Sequence[Row], data: str, arm: str, predictor: str, rule: str
) -> Mapping[str, Any] | None:
    """Measures of one variant on one data set, or None where it was not run."""
    epoch, tempered = RULES[rule]
    for row in rows:
        key = (row["data"], row["arm"], row["predictor"], row["epoch"], row["tempered"])
        if key == (data, arm, predictor, epoch, tempered):
            return row["measures"]  # type: ignore[no-any-return]
    return None
