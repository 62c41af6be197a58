"""Scores against their definitions, and published numbers kept apart from measured ones."""

import re
import string
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lodrop_nn.reproduce.presets import PRESETS
from lodrop_nn.reproduce.published import PUBLISHED, published
from lodrop_nn.reproduce.scores import (
    choice_scores,
    classification_scores,
    correlation_scores,
    squad_scores,
)
from lodrop_nn.reproduce.tables import published_table, results_table

# -- classification and correlation ------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_accuracy_f1_and_matthews_are_their_definitions(pairs: list[tuple[bool, bool]]) -> None:
    predicted, labels = (np.array(column, dtype=int) for column in zip(*pairs, strict=True))
    probabilities = torch.from_numpy(np.eye(2)[predicted] * 0.6 + 0.2)
    scores = classification_scores(
        probabilities, torch.from_numpy(labels), with_f1=True, with_matthews=True
    )
    hits = predicted == labels
    both = int((predicted & labels).sum())
    assert scores["accuracy"] == pytest.approx(hits.mean())
    assert scores["ece"] == pytest.approx(abs(hits.mean() - 0.8), abs=1e-6)
    counted = predicted.sum() + labels.sum()
    assert scores["f1"] == pytest.approx(2 * both / counted if counted else 0.0)
    if 0 < predicted.mean() < 1 and 0 < labels.mean() < 1:
        assert scores["matthews"] == pytest.approx(np.corrcoef(predicted, labels)[0, 1], abs=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_correlations_are_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, target = rng.normal(size=20), rng.integers(0, 11, 20) / 2
    scores = correlation_scores(torch.from_numpy(predicted), torch.from_numpy(target))
    pearson = stats.pearsonr(predicted, target).statistic
    spearman = stats.spearmanr(predicted, target).statistic
    assert scores["pearson"] == pytest.approx(pearson, abs=1e-6)
    assert scores["spearman"] == pytest.approx(spearman, abs=1e-6)
    assert scores["correlation"] == pytest.approx((pearson + spearman) / 2, abs=1e-6)


def test_subjects_count_alike_in_the_second_accuracy_of_mmlu() -> None:
    scores = choice_scores(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 2]), ["a", "a", "b"])
    assert scores == pytest.approx({"accuracy": 2 / 3, "accuracy_over_subjects": 0.75})


# -- SQuAD ------------------------------


def official(predicted: str, answers: list[str]) -> tuple[float, float]:
    """SQuAD v2.0's definition of exact match and F1, written from its description."""

    def normalize(text: str) -> str:
        text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    golds = [normalize(text) for text in answers if normalize(text)] or [""]
    ours = normalize(predicted)

    def f1(gold: str) -> float:
        a, b = ours.split(), gold.split()
        same = sum((Counter(a) & Counter(b)).values())
        if not a or not b:
            return float(a == b)
        return 2 * same / (len(a) + len(b))

    return float(max(ours == gold for gold in golds)), max(map(f1, golds))


TEXTS = st.lists(
    st.sampled_from(["the", "a", "Paris", "paris.", "in", "France", "!", "an film"]), max_size=4
).map(" ".join)


@given(TEXTS, st.lists(TEXTS, max_size=3))
def test_exact_match_and_f1_are_those_of_squad_2(predicted: str, answers: list[str]) -> None:
    scores = squad_scores([predicted], [answers])
    expected = official(predicted, answers)
    assert (scores["exact_match"], scores["f1"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("predicted", "answers", "exact_match", "f1"),
    [
        ("", [], 1.0, 1.0),  # rightly no answer
        ("Paris", [], 0.0, 0.0),  # an answer where there is none
        ("", ["Paris"], 0.0, 0.0),  # none where there is one
        ("The Paris!", ["paris"], 1.0, 1.0),  # article, sign and case do not count
        ("in Paris", ["Paris"], 0.0, 2 / 3),
        ("Paris", ["Rome", "in Paris", "Paris"], 1.0, 1.0),  # the best of the answers
        ("", ["the"], 1.0, 1.0),  # an answer of which nothing is left is none
    ],
)
def test_known_cases_of_squad(
    predicted: str, answers: list[str], exact_match: float, f1: float
) -> None:
    assert squad_scores([predicted], [answers]) == pytest.approx(
        {"exact_match": exact_match, "f1": f1}
    )


def test_scores_of_squad_are_means_over_questions() -> None:
    scores = squad_scores(["", "in Paris"], [[], ["Paris"]])
    assert scores == pytest.approx({"exact_match": 0.5, "f1": 5 / 6})


# -- published numbers ------------------------------


def test_published_scores_are_of_known_tasks_and_metrics_and_never_the_papers_own() -> None:
    for score in PUBLISHED:
        assert score.metric in PRESETS[score.task].metrics
        assert "dropout" not in score.method.lower()
        assert "2303.10512" in score.source
    assert len(PUBLISHED) == 6 * 10 + 2 * (1 + 4 * 4) * 2
    assert published("mmlu") == ()
    assert published_table("mmlu") is None


def test_the_published_averages_are_those_of_the_rows() -> None:
    """The table's last column, which is not stored: a check of the transcription."""
    averages = {
        "Full FT": 88.09, "BitFit": 86.02, "HAdapter": 88.12, "PAdapter": 88.24, "LoRA": 88.34,
        "AdaLoRA": 89.31,
    }  # fmt: skip
    for method, average in averages.items():
        rows: dict[str, list[float]] = {}
        for score in PUBLISHED:
            if score.method == method and not score.task.startswith("squad"):
                rows.setdefault(score.task, []).append(score.percent)
        of_tasks = [np.mean(values) for values in rows.values()]  # MNLI and QQP have two scores
        assert np.mean(of_tasks) == pytest.approx(average, abs=0.01)


def test_measured_and_published_scores_stand_in_different_tables() -> None:
    record = {
        "config": {"method": "lora+dropout"},
        "scores": {"mean": {"accuracy": 0.5}, "ensemble": {"accuracy": 0.75}},
    }
    measured, quoted = results_table([record, record]), published_table("rte")
    assert quoted is not None
    assert list(measured.columns[3].cells) == ["50.00 (0.00)", "75.00 (0.00)"]
    cells = {cell for column in quoted.columns for cell in column.cells}
    assert "88.09" in cells
    assert not any("dropout" in str(cell) for cell in cells)
