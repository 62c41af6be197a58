"""What a reproduction prints: its protocol, its measured scores and, apart, published ones."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from string import ascii_lowercase
from typing import Any

from rich.table import Table

from lodrop_nn.reproduce.plan import METHODS
from lodrop_nn.reproduce.preset import Preset
from lodrop_nn.reproduce.published import published

_SHOWN = (
    "epochs", "batch_size", "learning_rate", "full_learning_rate", "bitfit_learning_rate",
    "warmup_steps", "weight_decay", "head_dropout", "max_length", "target_modules", "rank",
    "initial_rank", "lora_alpha", "orthogonality", "warm_steps", "final_steps",
    "allocation_interval", "seeds", "dropout_rate", "n_masks_train", "n_masks_test", "rescale",
    "precision", "select", "doc_stride", "shots",
)  # fmt: skip


def protocol_table(presets: Sequence[Preset]) -> tuple[Table, list[str]]:
    """Settings of the tasks with a letter for where each is from, and what the letters mean."""
    table, letters = Table(), dict[str, str]()
    table.add_column("setting")
    for preset in presets:
        table.add_column(preset.task, justify="right")
    table.add_column("from")
    for name in _SHOWN:
        sources = [preset.sources.get(name) for preset in presets]
        if all(source is None for source in sources):
            continue
        values = [_value(getattr(preset, name)) for preset in presets]
        named = [letters.setdefault(s, ascii_lowercase[len(letters)]) for s in sources if s]
        table.add_row(name, *values, ", ".join(dict.fromkeys(named)))
    return table, [f"{letter}  {source}" for source, letter in letters.items()]


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def results_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Measured scores of a task: mean and standard deviation over seeds, in percent.

    Args:
        records: Records of its runs, >= 1.
    """
    metrics = list(dict.fromkeys(name for r in records for s in r["scores"].values() for name in s))
    table = Table()
    for column in ("method", "predictor", "seeds"):
        table.add_column(column)
    for metric in metrics:
        table.add_column(metric, justify="right")
    for method in METHODS:
        of_method = [r for r in records if r["config"]["method"] == method]
        for predictor in ("mean", "ensemble"):
            scores = [r["scores"][predictor] for r in of_method if predictor in r["scores"]]
            if scores:
                cells = [_mean_and_sd([each[metric] for each in scores]) for metric in metrics]
                table.add_row(method, predictor, str(len(scores)), *cells)
    return table


def _mean_and_sd(values: Sequence[float | None]) -> str:
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        return "not defined"
    spread = f" ({100 * stdev(defined):.2f})" if len(defined) > 1 else ""
    return f"{100 * fmean(defined):.2f}{spread}"


def published_table(task: str) -> Table | None:
    """Published scores of a task, quoted; None where there are none."""
    scores = published(task)
    if not scores:
        return None
    metrics = list(dict.fromkeys(score.metric for score in scores))
    table = Table()
    for column in ("method", "trained", *metrics):
        table.add_column(column)
    for method, budget in dict.fromkeys((score.method, score.budget) for score in scores):
        row = {s.metric: s.percent for s in scores if (s.method, s.budget) == (method, budget)}
        table.add_row(method, budget, *(f"{row[m]:.2f}" if m in row else "" for m in metrics))
    return table
