"""The predictors of finished runs after their last epoch, on any rows, and paired differences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lodrop_nn.data.classification import TextClassificationData
from tests.benchmarks.quality import records
from tests.benchmarks.quality.evaluate import Float64Array, probabilities
from tests.benchmarks.quality.predictors import SEEDS_4, Variant, at_temperature, fit_temperature
from tests.benchmarks.quality.problem import N_TEST
from tests.benchmarks.quality.summarize import Scores, mean_interval

PREDICTORS = {"mean": "mean", "members": "ensemble"}  # as stored, as named


def variant(arm: str, predictor: str = "mean", *, tempered: bool = False) -> Variant:
    """A predictor after the last epoch."""
    return Variant(arm=arm, predictor=predictor, epoch="last", tempered=tempered)


REFERENCE = variant("lora")


@dataclass(frozen=True, kw_only=True, eq=False)
class Final:
    """One adapter or ensemble after its last epoch.

    Attributes:
        members: Probabilities of shape (members, n, K) by set of rows; one member for a mean.
        temperature: The one of least NLL on the validation rows.
    """

    members: Mapping[str, Float64Array]
    temperature: float

    def predicted(self, rows: str, *, tempered: bool) -> Float64Array:
        """Shape (n, K): averaged over members, then at the fitted temperature if wanted."""
        averaged = self.members[rows].mean(0)
        return at_temperature(averaged, self.temperature) if tempered else averaged


def finals(
    folder: Path, runs: Mapping[str, dict[str, Any]], validation_labels: Any
) -> dict[tuple[str, str], Final]:
    """Every arm and predictor of one split, ("lora", "mean") for example.

    Args:
        folder: Where the runs lie.
        runs: Their records by arm, of one data set and seed.
        validation_labels: Of the rows that temperatures are fitted to.
    """
    members: dict[tuple[str, str], dict[str, Float64Array]] = {}
    for arm, record in runs.items():
        for rows, stored, logits in _stored_logits(folder, record):
            each = logits if logits.ndim == 3 else logits[None]
            made = np.stack([probabilities(one) for one in each])
            members.setdefault((arm, PREDICTORS[stored]), {})[rows] = made
    if all((arm, "mean") in members for arm in SEEDS_4):
        four = [members[arm, "mean"] for arm in SEEDS_4]
        shared = set.intersection(*map(set, four))
        members["seeds-4", "ensemble"] = {
            rows: np.concatenate([one[rows] for one in four]) for rows in sorted(shared)
        }
    return {
        key: Final(
            members=sets,
            temperature=fit_temperature(sets["validation"].mean(0), validation_labels),
        )
        for key, sets in members.items()
    }


def _stored_logits(folder: Path, record: Mapping[str, Any]) -> Iterable[tuple[str, str, Any]]:
    """Set of rows, predictor and logits: of the last epoch, and of other data if there are any."""
    name = record["run_id"]
    for key, logits in records.read_logits(folder, name).items():
        rows, stored, epoch = key.split(".")
        if int(epoch) == record["config"]["epochs"]:
            yield rows, stored, logits
    elsewhere = folder / "shift" / f"{name}.npz"
    if elsewhere.exists():
        with np.load(elsewhere) as archive:
            for key in archive.files:
                if "." in key:
                    rows, stored = key.split(".")
                    yield rows, stored, archive[key]


def held_out(
    parts: tuple[TextClassificationData, TextClassificationData],
) -> dict[str, TextClassificationData]:
    """Test and validation rows out of the two parts of a split."""
    rest = parts[1]
    return {
        "test": rest.take(range(N_TEST)),
        "validation": rest.take(range(N_TEST, len(rest))),
    }


def paired_table(
    found: Scores, groups: Mapping[str, Sequence[Sequence[tuple[str, int]]]]
) -> list[dict[str, Any]]:
    """Means over seeds and differences to plain LoRA on the same rows, with intervals.

    Args:
        found: Measures by data set and seed, and by variant.
        groups: What is summarized together, by name: units that count as one value each, of one
            or several splits whose measures are averaged first.

    Returns:
        One row per group and variant; every measure has a "value" and, beside that of the
        reference itself, a "minus lora", each with Student's 95% interval over the units.
    """
    every = sorted({v for each in found.values() for v in each}, key=str)
    table = []
    for name, units in groups.items():
        for one in every:
            measures: dict[str, Any] = {}
            known = [set(found[split].get(one, {})) for unit in units for split in unit]
            for measure in sorted(set.intersection(*known)):
                values = [np.mean([found[s][one][measure] for s in unit]) for unit in units]
                measures[measure] = {"value": mean_interval([float(v) for v in values])}
                compared = all(measure in found[s][REFERENCE] for unit in units for s in unit)
                if one != REFERENCE and compared:
                    differences = [
                        np.mean([found[s][one][measure] - found[s][REFERENCE][measure] for s in u])
                        for u in units
                    ]
                    measures[measure]["minus lora"] = mean_interval([float(d) for d in differences])
            if measures:
                table.append({"data": name, **vars(one), "measures": measures})
    return table
