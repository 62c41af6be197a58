"""A task made ready for a model: features to train on, features to predict, and how to score."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

Features = Mapping[str, Any]
Outputs = Sequence[NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class EvaluationSplit:
    """Rows to predict and what a prediction of them is worth.

    Attributes:
        name: Name of the split.
        features: Inputs of the model, one pass row each.
        score: From the averaged output of each feature, in their order, to scores by name.
    """

    name: str
    features: Sequence[Features]
    score: Callable[[Outputs], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class PreparedTask:
    """One task, tokenized.

    Attributes:
        train: Training features, with labels.
        splits: What is evaluated.
        collate: From features to a training batch.
        collate_evaluation: From features to a batch to predict.
        read: From a model's output to what is averaged over members, one row per example.
        average: From the members' rows (n_masks, b, ...) to the predictor's (b, ...); the mean
            predictor is an ensemble of one.
    """

    train: Sequence[Features]
    splits: tuple[EvaluationSplit, ...]
    collate: Callable[[Sequence[Features]], dict[str, Any]]
    collate_evaluation: Callable[[Sequence[Features]], dict[str, Any]]
    read: Callable[[Any], Tensor]
    average: Callable[[Float[Tensor, "n_masks b *output"]], Float[Tensor, "b *output"]]


def read_logits(output: Any) -> Tensor:
    """The logits of a classifier's output."""
    logits: Tensor = output.logits
    return logits


def mean_over_members(members: Float[Tensor, "n_masks b *output"]) -> Float[Tensor, "b *output"]:
    """Outputs averaged over members, as the paper's Eq. (8) has it."""
    return members.double().mean(0)
