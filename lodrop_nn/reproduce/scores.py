"""Scores of GLUE, SQuAD and MMLU, by torchmetrics."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import (
    binary_f1_score,
    binary_matthews_corrcoef,
    multiclass_accuracy,
    multiclass_calibration_error,
)
from torchmetrics.functional.text import squad

_N_BINS = 15


def classification_scores(
    probabilities: Tensor, labels: Tensor, *, with_f1: bool = False, with_matthews: bool = False
) -> dict[str, float]:
    """Accuracy, expected calibration error and, of two classes, F1 or Matthews' correlation.

    Args:
        probabilities: Shape (n, K), rows on the simplex.
        labels: Shape (n,), whole numbers in [0, K).
        with_f1: Whether to add F1 of class 1; K must be 2.
        with_matthews: Whether to add Matthews' correlation; K must be 2.

    Returns:
        ``accuracy``, ``f1`` and ``ece`` (15 bins) in [0, 1], ``matthews`` in [-1, 1].

    Example:
        >>> rows = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> classification_scores(rows, torch.tensor([0, 1]), with_f1=True)["f1"]
        1.0
    """
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    scores = {
        "accuracy": multiclass_accuracy(predicted, labels, n_classes, average="micro"),
        # Clamped: averaged probabilities may sum to 1 and a rounding error.
        "ece": multiclass_calibration_error(
            probabilities.clamp(0.0, 1.0), labels, n_classes, n_bins=_N_BINS
        ),
    }
    if with_f1:
        scores["f1"] = binary_f1_score(predicted, labels)
    if with_matthews:
        scores["matthews"] = binary_matthews_corrcoef(predicted, labels)
    return {name: float(value) for name, value in scores.items()}


def correlation_scores(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """Pearson's and Spearman's correlation and their mean, each in [-1, 1].

    Args:
        predicted: Shape (n,).
        target: Shape (n,).

    Example:
        >>> scores = correlation_scores(torch.tensor([1.0, 2.0, 9.0]), torch.arange(3))
        >>> round(scores["spearman"], 3)
        1.0
    """
    target = target.to(predicted.dtype)
    pearson = float(pearson_corrcoef(predicted, target))
    spearman = float(spearman_corrcoef(predicted, target))
    return {"correlation": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}


def squad_scores(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of SQuAD v1.1 and v2.0, each in [0, 1].

    The metric of torchmetrics is that of v1.1 and fails on a question without answers. The
    official definition of v2.0 gives such a question the empty text as its one answer, and its F1
    of two empty texts, or of an empty and another one, is already what torchmetrics computes.
    Answers of which normalization leaves nothing (an article, a sign) are no answers there either.

    Args:
        predicted: Predicted text of each question; empty for "no answer".
        answers: Texts of its answers; none for a question that has no answer.

    Source:
        Rajpurkar et al. (2018), arXiv:1806.03822, evaluate-v2.0.py.

    Example:
        >>> squad_scores(["Paris", ""], [["in Paris", "Paris"], []])
        {'exact_match': 1.0, 'f1': 1.0}
        >>> squad_scores(["Paris"], [[]])
        {'exact_match': 0.0, 'f1': 0.0}
    """
    ids = [str(i) for i in range(len(predicted))]
    preds = [{"id": i, "prediction_text": text} for i, text in zip(ids, predicted, strict=True)]
    target = [
        {"id": i, "answers": {"text": [t for t in texts if _says_something(t)] or [""]}}
        for i, texts in zip(ids, answers, strict=True)
    ]
    return {name: float(value) / 100.0 for name, value in squad(preds, target).items()}


def _says_something(text: str) -> bool:
    """Whether SQuAD's normalization leaves something of it: one equal to '' says nothing."""
    empty = {"id": "0", "answers": {"text": [""]}}
    return float(squad([{"id": "0", "prediction_text": text}], [empty])["exact_match"]) == 0.0


def choice_scores(chosen: Tensor, answers: Tensor, subjects: Sequence[str]) -> dict[str, float]:
    """Accuracy over questions, and the mean over subjects of each subject's accuracy.

    Args:
        chosen: Shape (n,), the chosen option of each question.
        answers: Shape (n,), the right one.
        subjects: Subject of each question.

    Example:
        >>> ones = torch.ones(3, dtype=torch.long)
        >>> choice_scores(ones, torch.tensor([1, 1, 0]), ["law", "law", "logic"])
        {'accuracy': 0.6666666666666666, 'accuracy_over_subjects': 0.5}
    """
    right = (chosen == answers).double()
    by_subject = [
        right[torch.tensor([each == subject for each in subjects])].mean()
        for subject in sorted(set(subjects))
    ]
    return {
        "accuracy": float(right.mean()),
        "accuracy_over_subjects": float(torch.stack(by_subject).mean()),
    }
