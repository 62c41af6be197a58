"""How figures 8 and 18 name and mark the predictors, and find them in their records."""

from collections.abc import Mapping
from typing import Any

from lodrop_nn.report.style import COLORS

PURPLE = "#CC79A7"
Key = tuple[str, str, bool]

# Arm, predictor and whether tempered, in the order of the figures.
PREDICTORS: dict[Key, str] = {
    ("lora", "mean", False): "LoRA",
    ("lora", "mean", True): "LoRA, tempered",
    ("example-balanced", "mean", False): "LoRA Dropout, mean",
    ("example-balanced", "ensemble", False): "LoRA Dropout, ensemble",
    ("example-balanced", "ensemble", True): "LoRA Dropout, ens., tempered",
    ("n4", "mean", False): "N = 4, mean",
    ("n4", "ensemble", False): "N = 4, ensemble",
    ("n4", "ensemble", True): "N = 4, ens., tempered",
    ("peft-lora-dropout", "mean", False): "PEFT lora_dropout, mean",
    ("peft-lora-dropout", "ensemble", False): "PEFT lora_dropout, passes",
    ("peft-lora-dropout", "ensemble", True): "PEFT, passes, tempered",
    ("seeds-4", "ensemble", False): "four seeds",
    ("seeds-4", "ensemble", True): "four seeds, tempered",
}
# One color per way of training; a mean is a diamond, an ensemble a circle, tempered is open.
ARM_COLORS = {
    "lora": COLORS["floor"],
    "example-balanced": COLORS["ensemble"],
    "n4": COLORS["hold-out"],
    "peft-lora-dropout": COLORS["bound"],
    "seeds-4": PURPLE,
}


def key_of(row: Mapping[str, Any]) -> Key:
    """What a row of a record is about."""
    return row["arm"], row["predictor"], row["tempered"]


def mark(key: Key) -> dict[str, Any]:
    """Color and marker of a predictor."""
    arm, predictor, tempered = key
    color = ARM_COLORS[arm]
    return {
        "color": color,
        "marker": "D" if predictor == "mean" else "o",
        "mfc": "white" if tempered else color,
    }
