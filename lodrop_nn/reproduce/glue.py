"""The eight GLUE tasks: features and scores."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from lodrop_nn.reproduce.benchmark_rows import BenchmarkRows, Row
from lodrop_nn.reproduce.glue_rows import n_outputs
from lodrop_nn.reproduce.preset import Preset
from lodrop_nn.reproduce.scores import classification_scores, correlation_scores
from lodrop_nn.reproduce.task import (
    EvaluationSplit,
    Features,
    Outputs,
    PreparedTask,
    mean_over_members,
    read_logits,
)


def prepare_glue(
    rows: BenchmarkRows, tokenizer: PreTrainedTokenizerBase, preset: Preset
) -> PreparedTask:
    """Rows as inputs of a sequence classifier, and the task's scores.

    Classes: members' probabilities are averaged. STS-B: members' outputs are.

    Args:
        rows: Rows of the task.
        tokenizer: Tokenizer of the base model.
        preset: The task.
    """
    collate = DataCollatorWithPadding(tokenizer)
    is_regression = n_outputs(preset.task) == 1
    splits = tuple(
        EvaluationSplit(
            name=name,
            features=_features(each, tokenizer, preset, with_labels=False),
            score=partial(_score, [row["label"] for row in each], preset, name),
        )
        for name, each in rows.evaluation.items()
    )
    return PreparedTask(
        train=_features(rows.train, tokenizer, preset, with_labels=True),
        splits=splits,
        collate=collate,
        collate_evaluation=collate,
        read=read_logits,
        average=mean_over_members if is_regression else _mean_probabilities,
    )


def _features(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, preset: Preset, *, with_labels: bool
) -> list[Features]:
    first = [row["first"] for row in rows]
    second = [row["second"] for row in rows] if rows[0]["second"] is not None else None
    encoded = tokenizer(first, second, truncation=True, max_length=preset.max_length)
    features: list[dict[str, Any]] = [
        {name: values[i] for name, values in encoded.items()} for i in range(len(rows))
    ]
    if with_labels:
        for feature, row in zip(features, rows, strict=True):
            feature["labels"] = row["label"]
    return list(features)


def _mean_probabilities(members: Tensor) -> Tensor:
    return members.double().softmax(-1).mean(0)


def _score(
    labels: Sequence[float], preset: Preset, split: str, outputs: Outputs
) -> dict[str, float]:
    predicted = torch.from_numpy(np.stack(outputs))
    if n_outputs(preset.task) == 1:
        return correlation_scores(predicted[:, 0], torch.tensor(labels, dtype=torch.float64))
    scores = classification_scores(
        predicted,
        torch.tensor(labels, dtype=torch.long),
        with_f1="f1" in preset.metrics,
        with_matthews="matthews" in preset.metrics,
    )
    suffix = split.removeprefix("validation")
    return {f"{name}{suffix}": value for name, value in scores.items()}
