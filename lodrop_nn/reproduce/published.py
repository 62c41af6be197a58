"""Scores that others have published for these tasks: quoted, never mixed with measured ones."""

from collections.abc import Iterator
from dataclasses import dataclass

SOURCE = "Zhang et al. (2023), arXiv:2303.10512, development sets, DeBERTaV3-base, means of 5 seeds"
NOT_AVAILABLE = (
    "The rows of LoRA Dropout in Lin et al. (2024) are images in the text that could be read: none "
    "is quoted. Whether its baselines' rows equal those of AdaLoRA's paper is not known."
)


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """One number of one published table.

    Attributes:
        method: Method, under the name that the table gives it.
        task: Task, as in :data:`lodrop_nn.reproduce.presets.PRESETS`.
        metric: Metric, as the presets name it.
        percent: The score, in percent (correlations times 100).
        budget: Trained parameters, as the table states them.
        source: Where it stands.
    """

    method: str
    task: str
    metric: str
    percent: float
    budget: str
    source: str = SOURCE


_GLUE_METRICS = (
    ("mnli", "accuracy_matched"),
    ("mnli", "accuracy_mismatched"),
    ("sst2", "accuracy"),
    ("cola", "matthews"),
    ("qqp", "accuracy"),
    ("qqp", "f1"),
    ("qnli", "accuracy"),
    ("rte", "accuracy"),
    ("mrpc", "accuracy"),
    ("stsb", "correlation"),
)
# fmt: off
_GLUE = {
    ("Full FT", "184M"):     (89.90, 90.12, 95.63, 69.19, 92.40, 89.80, 94.03, 83.75, 89.46, 91.60),
    ("BitFit", "0.1M"):      (89.37, 89.91, 94.84, 66.96, 88.41, 84.95, 92.24, 78.70, 87.75, 91.35),
    ("HAdapter", "1.22M"):   (90.13, 90.17, 95.53, 68.64, 91.91, 89.27, 94.11, 84.48, 89.95, 91.48),
    ("PAdapter", "1.18M"):   (90.33, 90.39, 95.61, 68.77, 92.04, 89.40, 94.29, 85.20, 89.46, 91.54),
    ("LoRA", "1.33M"):       (90.65, 90.69, 94.95, 69.82, 91.99, 89.38, 93.87, 85.20, 89.95, 91.60),
    ("AdaLoRA", "1.27M"):    (90.76, 90.79, 96.10, 71.45, 92.23, 89.74, 94.55, 88.09, 90.69, 91.84),
}
_SQUAD_BUDGETS = ("0.08%", "0.16%", "0.32%", "0.65%")
# (exact match, F1) at each budget
_SQUAD = {
    ("squad-v1.1", "LoRA"):     ((86.4, 92.8), (86.6, 92.9), (86.7, 93.1), (86.7, 93.1)),
    ("squad-v1.1", "AdaLoRA"):  ((87.2, 93.4), (87.5, 93.6), (87.5, 93.7), (87.6, 93.7)),
    ("squad-v1.1", "HAdapter"): ((84.4, 91.5), (85.3, 92.1), (86.1, 92.7), (86.7, 92.9)),
    ("squad-v1.1", "PAdapter"): ((84.4, 91.7), (85.9, 92.5), (86.2, 92.8), (86.6, 93.0)),
    ("squad-v2.0", "LoRA"):     ((84.7, 87.5), (83.6, 86.7), (84.5, 87.4), (85.0, 88.0)),
    ("squad-v2.0", "AdaLoRA"):  ((85.6, 88.7), (85.7, 88.8), (85.5, 88.6), (86.0, 88.9)),
    ("squad-v2.0", "HAdapter"): ((83.4, 86.6), (84.3, 87.3), (84.9, 87.9), (85.4, 88.3)),
    ("squad-v2.0", "PAdapter"): ((84.2, 87.2), (84.5, 87.6), (84.9, 87.8), (84.5, 87.5)),
}
_SQUAD_FULL = {"squad-v1.1": (86.0, 92.7), "squad-v2.0": (85.4, 88.4)}
# fmt: on


def _rows() -> Iterator[PublishedScore]:
    for (method, budget), scores in _GLUE.items():
        for (task, metric), percent in zip(_GLUE_METRICS, scores, strict=True):
            yield PublishedScore(
                method=method, task=task, metric=metric, percent=percent, budget=budget
            )
    squad = {("Full FT", task, "100%"): pair for task, pair in _SQUAD_FULL.items()}
    for (task, method), pairs in _SQUAD.items():
        squad |= {
            (method, task, budget): pair for budget, pair in zip(_SQUAD_BUDGETS, pairs, strict=True)
        }
    for (method, task, budget), pair in squad.items():
        for metric, percent in zip(("exact_match", "f1"), pair, strict=True):
            yield PublishedScore(
                method=method, task=task, metric=metric, percent=percent, budget=budget
            )


PUBLISHED: tuple[PublishedScore, ...] = tuple(_rows())


def published(task: str) -> tuple[PublishedScore, ...]:
    """The published scores of a task; none for MMLU.

    Example:
        >>> [score.percent for score in published("rte") if score.method == "AdaLoRA"]
        [88.09]
    """
    return tuple(score for score in PUBLISHED if score.task == task)
