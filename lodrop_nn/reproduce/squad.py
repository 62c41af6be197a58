"""SQuAD v1.1 and v2.0: rows, windows over long contexts, and scores."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from lodrop_nn.reproduce.answer_spans import AnswerWindow, best_answers
from lodrop_nn.reproduce.benchmark_rows import (
    BenchmarkDataError,
    BenchmarkRows,
    Row,
    find_file,
    find_folder,
    hub_rows,
    read_table,
)
from lodrop_nn.reproduce.preset import Preset
from lodrop_nn.reproduce.scores import squad_scores
from lodrop_nn.reproduce.task import (
    EvaluationSplit,
    Features,
    Outputs,
    PreparedTask,
    mean_over_members,
)

_SPLITS = ("train", "validation")


def squad_rows_of_files(preset: Preset, files: Path) -> BenchmarkRows:
    """Rows from ``train-v*.json`` and ``dev-v*.json``, or from the hub's parquet files.

    Args:
        preset: SQuAD v1.1 or v2.0.
        files: Folder that holds them, or a folder ``squad`` or ``squad_v2`` with them.

    Raises:
        BenchmarkDataError: If a file is missing or not of the schema.
    """
    version = preset.task.removeprefix("squad-")
    folder = find_folder(files, ("squad_v2" if version == "v2.0" else "squad", preset.task))
    found = {}
    for split in _SPLITS:
        own = "train" if split == "train" else "dev"
        names = (f"{own}-{version}.json", f"{split}.parquet", f"{split}-*-of-*.parquet")
        path = find_file(folder, names, what=f"the {split} rows of SQuAD {version}")
        table = _official(path) if path.suffix == ".json" else read_table(path)
        found[split] = _rows(table, str(path))
    return BenchmarkRows(train=found["train"], evaluation={"validation": found["validation"]})


def squad_rows_of_hub(preset: Preset) -> BenchmarkRows:
    """The same rows from the hub.

    Raises:
        BenchmarkDataError: If it cannot be had.
    """
    train, validation = (_rows(hub_rows(preset.data, split), preset.data) for split in _SPLITS)
    return BenchmarkRows(train=train, evaluation={"validation": validation}, source=preset.data)


def _official(path: Path) -> Iterable[Row]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [] if question.get("is_impossible") else question["answers"]
                    yield {
                        "id": question["id"],
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answers": {
                            "text": [each["text"] for each in answers],
                            "answer_start": [each["answer_start"] for each in answers],
                        },
                    }
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise BenchmarkDataError(
            f"{path} must be SQuAD's JSON (data, paragraphs, qas, answers): {error!r}."
        ) from error


def _rows(rows: Iterable[Row], where: str) -> list[Row]:
    names = ("id", "question", "context", "answers")
    try:
        found: list[Row] = [{name: row[name] for name in names} for row in rows]
    except KeyError as error:
        raise BenchmarkDataError(
            f"{where} must have the columns {', '.join(names)}, but lacks {error}."
        ) from error
    if not found:
        raise BenchmarkDataError(f"{where} must hold rows, got none.")
    return found


def prepare_squad(
    rows: BenchmarkRows, tokenizer: PreTrainedTokenizerBase, preset: Preset
) -> PreparedTask:
    """Windows over question and context as inputs of a span predictor, and SQuAD's scores.

    Start and end logits are averaged over members (Eq. (8) averages outputs), not probabilities:
    the answer is a maximum over windows of sums of logits, which need not be normalized alike.

    Args:
        rows: Rows of the task.
        tokenizer: Tokenizer of the base model; it must know where its tokens are in the text.
        preset: The task.

    Raises:
        ValueError: If the tokenizer does not.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            "`tokenizer` must be a fast one, which knows the place of each token in the text, got "
            f"{type(tokenizer).__name__}."
        )
    validation = rows.evaluation["validation"]
    encoded = _windows(validation, tokenizer, preset)
    collate = DataCollatorWithPadding(tokenizer)
    may_abstain = preset.task == "squad-v2.0"
    split = EvaluationSplit(
        name="validation",
        features=[inputs for inputs, _ in encoded],
        score=partial(_score, validation, [window for _, window in encoded], may_abstain),
    )
    return PreparedTask(
        train=[
            {**inputs, **_labels(rows.train[window.row], window)}
            for inputs, window in _windows(rows.train, tokenizer, preset)
        ],
        splits=(split,),
        collate=collate,
        collate_evaluation=collate,
        read=_read_span_logits,
        average=mean_over_members,
    )


def _windows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, preset: Preset
) -> list[tuple[Features, AnswerWindow]]:
    """All windows of all rows: what the model reads, and where the context's tokens are."""
    encoded = tokenizer(
        [row["question"].strip() for row in rows],
        [row["context"] for row in rows],
        truncation="only_second",
        max_length=preset.max_length,
        stride=min(preset.doc_stride, preset.max_length // 3),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    row_of = encoded.pop("overflow_to_sample_mapping")
    offsets = encoded.pop("offset_mapping")
    windows: list[tuple[Features, AnswerWindow]] = []
    for i, row in enumerate(row_of):
        of_context = [part == 1 for part in encoded.sequence_ids(i)]
        window = AnswerWindow(
            row=row,
            offsets=tuple(
                tuple(span) if inside else None
                for span, inside in zip(offsets[i], of_context, strict=True)
            ),
            null_token=encoded["input_ids"][i].index(tokenizer.cls_token_id),
        )
        windows.append(({name: values[i] for name, values in encoded.items()}, window))
    return windows


def _labels(row: Row, window: AnswerWindow) -> dict[str, int]:
    """First and last token of the first answer; the null token where the window lacks it."""
    answers: Mapping[str, Any] = row["answers"]
    start = end = window.null_token
    if answers["text"]:
        first = answers["answer_start"][0]
        span = window.tokens_of(first, first + len(answers["text"][0]))
        if span is not None:
            start, end = span
    return {"start_positions": start, "end_positions": end}


def _read_span_logits(output: Any) -> Tensor:
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


def _score(
    rows: Sequence[Row], windows: Sequence[AnswerWindow], may_abstain: bool, outputs: Outputs
) -> dict[str, float]:
    contexts = [row["context"] for row in rows]
    predicted = best_answers(contexts, windows, outputs, may_abstain=may_abstain)
    answers = [row["answers"]["text"] for row in rows]
    scores = squad_scores(predicted, answers)
    for name, kept in (("answerable", True), ("unanswerable", False)):
        chosen = [i for i, texts in enumerate(answers) if bool(texts) is kept]
        if may_abstain and chosen:
            part = squad_scores([predicted[i] for i in chosen], [answers[i] for i in chosen])
            scores |= {f"{metric}_{name}": value for metric, value in part.items()}
    return scores
