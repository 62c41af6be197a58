"""Cleaned Alpaca to train on, MMLU to answer: rows, prompts and scores."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

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
from lodrop_nn.reproduce.scores import choice_scores
from lodrop_nn.reproduce.task import EvaluationSplit, Features, Outputs, PreparedTask

LETTERS = ("A", "B", "C", "D")
_COLUMNS = ("question", *LETTERS, "answer")
_INSTRUCTION = ("instruction", "input", "output")


def mmlu_rows_of_files(preset: Preset, files: Path) -> BenchmarkRows:
    """Alpaca's rows from a JSON list, MMLU's from its CSV files without a heading.

    Args:
        preset: MMLU.
        files: Folder with ``alpaca/*.json`` and ``mmlu/test/*_test.csv`` (and, for solved
            examples, ``mmlu/dev/*_dev.csv``).

    Raises:
        BenchmarkDataError: If a file is missing or not of the schema.
    """
    alpaca = find_folder(files, ("alpaca", "alpaca-cleaned"))
    path = find_file(alpaca, ("*alpaca*.json", "*.json", "*.parquet"), what="Alpaca's rows")
    folder = find_folder(files, ("mmlu",))
    find_file(folder, ("test/*_test.csv",), what="MMLU's questions")
    return BenchmarkRows(
        train=_instructions(read_table(path), str(path)),
        evaluation={"test": _questions_of(folder, "test")},
        examples=_questions_of(folder, "dev") if preset.shots else (),
    )


def mmlu_rows_of_hub(preset: Preset) -> BenchmarkRows:
    """The same rows from the hub.

    Raises:
        BenchmarkDataError: If it cannot be had.
    """
    alpaca, mmlu = preset.data.split(", ")
    examples = hub_rows(mmlu, "dev") if preset.shots else []
    return BenchmarkRows(
        train=_instructions(hub_rows(alpaca, "train"), alpaca),
        evaluation={"test": [_of_hub(row) for row in hub_rows(mmlu, "test")]},
        examples=[_of_hub(row) for row in examples],
        source=preset.data,
    )


def _instructions(rows: Iterable[Row], where: str) -> list[Row]:
    try:
        found: list[Row] = [{name: row[name] for name in _INSTRUCTION} for row in rows]
    except KeyError as error:
        raise BenchmarkDataError(
            f"{where} must have the columns {', '.join(_INSTRUCTION)}, but lacks {error}."
        ) from error
    if not found:
        raise BenchmarkDataError(f"{where} must hold rows, got none.")
    return found


def _of_hub(row: Row) -> Row:
    return {
        "subject": row["subject"],
        "question": row["question"],
        "choices": list(row["choices"]),
        "answer": int(row["answer"]),
    }


def _questions_of(folder: Path, split: str) -> list[Row]:
    questions: list[Row] = []
    for path in sorted((folder / split).glob(f"*_{split}.csv")):
        subject = path.name.removesuffix(f"_{split}.csv")
        for number, row in enumerate(read_table(path, _COLUMNS), start=1):
            if row["answer"] not in LETTERS:
                raise BenchmarkDataError(
                    f"{path}, row {number}: `answer` must be one of {', '.join(LETTERS)}, "
                    f"got {row['answer']!r}."
                )
            choices = [row[letter] for letter in LETTERS]
            answer = LETTERS.index(row["answer"])
            questions.append(
                {
                    "subject": subject,
                    "question": row["question"],
                    "choices": choices,
                    "answer": answer,
                }
            )
    return questions


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """Stanford Alpaca's template up to the response.

    Source:
        Taori et al. (2023), github.com/tatsu-lab/stanford_alpaca.

    Example:
        >>> alpaca_prompt("Name a colour.").splitlines()[2:]
        ['### Instruction:', 'Name a colour.', '', '### Response:']
    """
    about = ", paired with an input that provides further context" if context else ""
    given = f"### Input:\n{context}\n\n" if context else ""
    return (
        f"Below is an instruction that describes a task{about}. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n{given}### Response:\n"
    )


def mmlu_prompt(row: Row, examples: Sequence[Row] = ()) -> str:
    """MMLU's own prompt, which ends where the letter of the answer is due.

    Args:
        row: The question: subject, question, choices and answer.
        examples: Solved questions of the same subject.

    Source:
        Hendrycks et al. (2021), arXiv:2009.03300, github.com/hendrycks/test, two spaces included.

    Example:
        >>> row = {"subject": "college_law", "question": "Is it?", "choices": list("wxyz")}
        >>> mmlu_prompt(row).splitlines()[-2:]
        ['D. z', 'Answer:']
    """
    subject = row["subject"].replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about  {subject}.\n\n"
    solved = "".join(f"{_question(each)} {LETTERS[each['answer']]}\n\n" for each in examples)
    return head + solved + _question(row)


def _question(row: Row) -> str:
    choices = zip(LETTERS, row["choices"], strict=True)
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in choices)
    return f"{row['question']}{listed}\nAnswer:"


def prepare_mmlu(
    rows: BenchmarkRows, tokenizer: PreTrainedTokenizerBase, preset: Preset
) -> PreparedTask:
    """Instructions to train a language model on, and questions that a letter answers.

    The chosen letter is the one of the largest probability after the prompt; members' probabilities
    are averaged. Training predicts the instruction's tokens too, as Alpaca-LoRA's default does.

    Args:
        rows: Rows of both data sets.
        tokenizer: Tokenizer of the base model; without a padding token it gets one that training
            ignores.
        preset: MMLU.

    Raises:
        ValueError: If a letter is more than one token.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    questions = rows.evaluation["test"]
    by_subject: dict[str, list[Row]] = {}
    for each in rows.examples:
        by_subject.setdefault(each["subject"], []).append(each)
    prompts = [
        mmlu_prompt(row, by_subject.get(row["subject"], [])[: preset.shots]) for row in questions
    ]
    letters = torch.tensor(_letter_tokens(tokenizer, prompts[0]))
    features = [{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in prompts]
    split = EvaluationSplit(name="test", features=features, score=partial(_score, questions))
    return PreparedTask(
        train=[_instruction_features(row, tokenizer, preset.max_length) for row in rows.train],
        splits=(split,),
        collate=DataCollatorForSeq2Seq(tokenizer),
        collate_evaluation=_prompts_end_together(tokenizer),
        read=partial(_letter_log_probs, letters),
        average=_mean_of_log_probs,
    )


def _instruction_features(
    row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Features:
    text = alpaca_prompt(row["instruction"], row["input"]) + row["output"]
    ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    if len(ids) < max_length and ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, tokenizer.eos_token_id]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}


def _letter_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    before = tokenizer(prompt)["input_ids"]
    tokens = []
    for letter in LETTERS:
        after = tokenizer(f"{prompt} {letter}")["input_ids"]
        if after[:-1] != before:
            raise ValueError(
                f"`tokenizer` must add one token for ' {letter}' after a prompt, "
                f"got {after[len(before) :]} after {before[-3:]}."
            )
        tokens.append(after[-1])
    return tokens


def _prompts_end_together(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[Sequence[Features]], dict[str, Any]]:
    """Pads on the left, so that the answer is due at the last token of each row."""

    def collate(features: Sequence[Features]) -> dict[str, Any]:
        batch = tokenizer.pad(list(features), padding_side="left", return_tensors="pt")
        # The only logits that are read; those of all tokens of a 7B model would fill a GPU.
        return {**batch, "logits_to_keep": 1, "use_cache": False}

    return collate


def _letter_log_probs(letters: Tensor, output: Any) -> Tensor:
    log_probs: Tensor = output.logits[:, -1].float().log_softmax(-1)
    return log_probs[:, letters.to(log_probs.device)]


def _mean_of_log_probs(members: Tensor) -> Tensor:
    return members.double().logsumexp(0) - np.log(len(members))


def _score(questions: Sequence[Row], outputs: Outputs) -> dict[str, float]:
    chosen = torch.from_numpy(np.stack(outputs)).argmax(1)
    answers = torch.tensor([row["answer"] for row in questions])
    return choice_scores(chosen, answers, [row["subject"] for row in questions])
