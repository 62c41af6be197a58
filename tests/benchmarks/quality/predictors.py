"""Every predictor that finished runs give, after the fact: stopped, tempered or averaged."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from tests.benchmarks.quality import records, train
from tests.benchmarks.quality.evaluate import Float64Array, nll, probabilities, scores

SEEDS_4 = ("lora", "lora-member-1", "lora-member-2", "lora-member-3")
LOG_TEMPERATURES = (-3.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to predict.

    Attributes:
        arm: How the adapter was trained.
        predictor: "mean" or "ensemble".
        epoch: "last", or "best" by the NLL of the validation rows.
        tempered: Whether log-probabilities are divided by a temperature fitted to those rows.
    """

    arm: str
    predictor: str
    epoch: str
    tempered: bool

    def __str__(self) -> str:
        marks = [self.predictor, self.epoch] + ["tempered"] * self.tempered
        return f"{self.arm} ({', '.join(marks)})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoints:
    """Predicted probabilities of one arm on one split, by epoch.

    Attributes:
        arm: How the adapter was trained.
        predictor: "mean" or "ensemble".
        validation: Shape (n, K) by epoch.
        test: The same.
        best: What stands for ``test`` when the epoch is chosen: as many members at each.
        train: Shape (n, K), at the last epoch alone, with as many members; empty if unknown.
    """

    arm: str
    predictor: str
    validation: Mapping[int, Float64Array]
    test: Mapping[int, Float64Array]
    best: Mapping[int, Float64Array]
    train: Mapping[int, Float64Array]


def variants(
    folder: Path, runs: Mapping[str, dict[str, Any]], labels: Mapping[str, NDArray[np.int64]]
) -> dict[Variant, dict[str, float]]:
    """Test scores of all variants of one split.

    Args:
        folder: Where the runs lie.
        runs: Their records by arm.
        labels: Of the training, the validation and the test rows.
    """
    made: dict[Variant, dict[str, float]] = {}
    for each in checkpoints(folder, runs):
        risks = {epoch: nll(p, labels["validation"]) for epoch, p in each.validation.items()}
        chosen = {"last": max(risks), "best": min(risks, key=risks.__getitem__)}
        for rule, epoch in chosen.items():
            if rule == "best" and len(risks) == 1:
                continue
            test = (each.test if rule == "last" else each.best)[epoch]
            # The validation rows see the members that `best` has.
            temperature = fit_temperature(each.validation[epoch], labels["validation"])
            for tempered in (False, True):
                variant = Variant(
                    arm=each.arm, predictor=each.predictor, epoch=rule, tempered=tempered
                )
                predicted = at_temperature(test, temperature) if tempered else test
                extra = {"chosen_epoch": float(epoch)}
                extra |= {"temperature": temperature} if tempered else {}
                if rule == "last" and not tempered and epoch in each.train:
                    fitted = nll(each.train[epoch], labels["train"])
                    extra["gap"] = nll(each.best[epoch], labels["test"]) - fitted
                made[variant] = {**scores(predicted, labels["test"]), **extra}
    return made


def checkpoints(folder: Path, runs: Mapping[str, dict[str, Any]]) -> Iterator[Checkpoints]:
    """The trajectories of all finished arms, and of the average over four of them."""
    means: dict[str, Checkpoints] = {}
    for arm, record in runs.items():
        logits = records.read_logits(folder, record["run_id"])
        at: dict[str, dict[int, NDArray[np.float32]]] = {}
        for key, value in logits.items():
            rows, predictor, epoch = key.split(".")
            at.setdefault(f"{rows}.{predictor}", {})[int(epoch)] = value
        for predictor, name in (("mean", "mean"), ("members", "ensemble")):
            if f"test.{predictor}" not in at:
                continue
            found = {
                rows: {
                    epoch: probabilities(v)
                    for epoch, v in at.get(f"{rows}.{predictor}", {}).items()
                }
                for rows in ("train", "validation", "test")
            }
            test = at[f"test.{predictor}"]
            fewer = {epoch: probabilities(v[: train.MEMBERS]) for epoch, v in test.items()}
            each = Checkpoints(
                arm=arm,
                predictor=name,
                **found,
                best=fewer if name == "ensemble" else found["test"],
            )
            if name == "mean":
                means[arm] = each
            if arm not in SEEDS_4[1:]:
                yield each
    if all(arm in means for arm in SEEDS_4):
        averaged = {
            rows: {
                epoch: np.mean([getattr(means[arm], rows)[epoch] for arm in SEEDS_4], 0)
                for epoch in getattr(means["lora"], rows)
            }
            for rows in ("train", "validation", "test")
        }
        yield Checkpoints(arm="seeds-4", predictor="ensemble", **averaged, best=averaged["test"])


def at_temperature(predicted: Float64Array, temperature: float) -> Float64Array:
    """Probabilities proportional to a power 1 / T of those given."""
    tiny = np.finfo(np.float64).tiny
    return probabilities(np.log(np.maximum(predicted, tiny)) / temperature)


def fit_temperature(predicted: Float64Array, labels: NDArray[np.int64]) -> float:
    """The temperature of least NLL."""
    found = minimize_scalar(
        lambda log_t: nll(at_temperature(predicted, np.exp(log_t)), labels),
        bounds=LOG_TEMPERATURES,
        method="bounded",
    )
    return float(np.exp(found.x))
