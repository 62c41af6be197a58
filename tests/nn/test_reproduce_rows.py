"""Benchmarks' own files become rows and features: all tasks, nothing lost or shifted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lodrop_nn.reproduce import benchmark_rows
from lodrop_nn.reproduce.answer_spans import AnswerWindow, best_answers
from lodrop_nn.reproduce.benchmark_rows import BenchmarkDataError
from lodrop_nn.reproduce.glue_rows import n_outputs
from lodrop_nn.reproduce.load import load_rows, prepare
from lodrop_nn.reproduce.mmlu import LETTERS, mmlu_prompt
from lodrop_nn.reproduce.presets import PRESETS, preset
from tests.nn import benchmark_files as files

GLUE = [task for task, each in PRESETS.items() if each.family == "glue"]


@pytest.fixture(scope="module")
def deberta(tmp_path_factory):
    return AutoTokenizer.from_pretrained(files.deberta_folder(tmp_path_factory.mktemp("deberta")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return AutoTokenizer.from_pretrained(files.llama_folder(tmp_path_factory.mktemp("llama")))


# -- GLUE ------------------------------


@pytest.mark.parametrize("task", GLUE)
def test_glue_features_hold_the_texts_and_the_labels(task: str, deberta, tmp_path: Path) -> None:
    files.write_glue(tmp_path, task)
    rows = load_rows(preset(task), tmp_path)
    prepared = prepare(rows, deberta, preset(task))
    originals = files.glue_rows(task, 12)
    assert [each["labels"] for each in prepared.train] == [each["label"] for each in originals]
    columns = files.GLUE_COLUMNS[task]
    for feature, original in zip(prepared.train, originals, strict=True):
        parts = deberta.decode(feature["input_ids"]).replace("[CLS]", "").split("[SEP]")
        texts = [part.strip() for part in parts if part.strip()]
        assert texts == [original[column] for column in columns]
    assert all("labels" not in each for split in prepared.splits for each in split.features)
    batch = prepared.collate(prepared.train[:3])
    assert batch["labels"].dtype == (torch.float32 if task == "stsb" else torch.int64)
    assert len(prepared.splits) == (2 if task == "mnli" else 1)


@pytest.mark.parametrize("task", GLUE)
def test_a_right_prediction_of_a_glue_task_scores_one(task: str, deberta, tmp_path: Path) -> None:
    files.write_glue(tmp_path, task)
    prepared = prepare(load_rows(preset(task), tmp_path), deberta, preset(task))
    found: dict[str, float] = {}
    for shift, split in enumerate(prepared.splits, start=1):
        labels = [row["label"] for row in files.glue_rows(task, 12, 100 * shift)]
        right = np.array(labels)[:, None] if task == "stsb" else np.eye(n_outputs(task))[labels]
        found |= split.score(list(right))
    assert set(preset(task).metrics) <= set(found)
    assert all(found[name] == pytest.approx(1.0) for name in preset(task).metrics)


def test_the_hubs_parquet_files_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for split in ("train", "validation_matched", "validation_mismatched"):
        table = pyarrow.Table.from_pylist(files.glue_rows("mnli", 6))
        parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    files.write_glue(tmp_path / "tsv", "mnli", 6)
    found = load_rows(preset("mnli"), tmp_path)
    assert found.train == load_rows(preset("mnli"), tmp_path / "tsv").train
    assert list(found.evaluation) == ["validation_matched", "validation_mismatched"]


def test_truncation_keeps_the_longest_input(deberta, tmp_path: Path) -> None:
    files.write_glue(tmp_path, "rte")
    short = preset("rte").with_settings(max_length=7)
    prepared = prepare(load_rows(short, tmp_path), deberta, short)
    assert max(len(each["input_ids"]) for each in prepared.train) == 7


OFFICIAL = {
    "mnli": ({"sentence1": "a", "sentence2": "b", "gold_label": "contradiction"}, 2),
    "qnli": ({"index": 0, "question": "a", "sentence": "b", "label": "not_entailment"}, 1),
    "rte": ({"index": 0, "sentence1": "a", "sentence2": "b", "label": "entailment"}, 0),
    "qqp": ({"id": 0, "question1": "a", "question2": "b", "is_duplicate": 1}, 1),
    "mrpc": ({"Quality": 1, "#1 ID": 0, "#2 ID": 1, "#1 String": "a", "#2 String": "b"}, 1),
    "stsb": ({"index": 0, "sentence1": "a", "sentence2": "b", "score": 3.8}, 3.8),
    "sst2": ({"sentence": "a", "label": 0}, 0),
}


@pytest.mark.parametrize("task", OFFICIAL)
def test_glue_files_of_the_benchmark_itself_are_read(task: str, tmp_path: Path) -> None:
    row, label = OFFICIAL[task]
    splits = ("train", "dev_matched", "dev_mismatched") if task == "mnli" else ("train", "dev")
    for split in splits:
        files.write_tsv(tmp_path / f"{split}.tsv", [row])
    second = None if task == "sst2" else "b"
    assert load_rows(preset(task), tmp_path).train == [
        {"first": "a", "second": second, "label": label}
    ]


def test_cola_without_a_heading_and_with_unbalanced_quotes(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        path = tmp_path / "CoLA" / f"{split}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text('gj04\t1\t\tHe said "no.\ngj04\t0\t*\tNo him.\n')
    rows = load_rows(preset("cola"), tmp_path).train
    assert [(row["first"], row["label"]) for row in rows] == [('He said "no.', 1), ("No him.", 0)]


def test_rows_that_are_not_whole_are_left_out_and_told(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        text = "id\tquestion1\tquestion2\tis_duplicate\n0\ta\tb\t1\n1\tc\n"
        (tmp_path / f"{split}.tsv").write_text(text)
    rows = load_rows(preset("qqp"), tmp_path)
    assert len(rows.train) == 1
    assert rows.caveats == ("2 rows that lack a text or a label were left out",)


def test_the_digest_depends_on_the_rows_and_not_on_the_file(tmp_path: Path) -> None:
    files.write_glue(tmp_path / "a", "rte")
    for split, shift in (("train", 0), ("validation", 100)):
        path = tmp_path / "b" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, files.glue_rows("rte", 12, shift))))
    same = [load_rows(preset("rte"), tmp_path / name).digest for name in "ab"]
    assert same[0] == same[1]
    assert load_rows(preset("rte"), tmp_path / "a", 11).digest != same[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "a", "label": 0}, "must have the columns sentence1, sentence2 and label"),
        ({"sentence1": "a", "sentence2": "b", "label": 2}, r"row 1: `label` must be one of ent"),
        ({"sentence1": "a", "sentence2": "b", "label": "-1"}, r"or its index, got '-1'"),
    ],
)
def test_files_of_another_schema_are_refused(row: dict, message: str, tmp_path: Path) -> None:
    files.write_tsv(tmp_path / "train.tsv", [row])
    with pytest.raises(BenchmarkDataError, match=message):
        load_rows(preset("rte"), tmp_path)


def test_missing_data_name_both_ways(tmp_path: Path, monkeypatch) -> None:
    for task in ("rte", "squad-v2.0", "mmlu"):
        with pytest.raises(BenchmarkDataError, match=r"must hold .*`datasets`.*`--files`"):
            load_rows(preset(task), tmp_path)
    with pytest.raises(BenchmarkDataError, match="`files` must be a folder"):
        load_rows(preset("rte"), tmp_path / "nowhere")
    monkeypatch.setattr(benchmark_rows, "find_spec", lambda name: None)
    with pytest.raises(BenchmarkDataError, match=r"hub \(pip install datasets.*`--files FOLDER`"):
        load_rows(preset("rte"), None)


def test_the_hub_is_asked_for_the_presets_data(monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*arguments, split):
        asked.append((*arguments, split))
        return files.glue_rows("rte", 3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_rows(preset("rte"), None)
    assert asked == [("nyu-mll/glue", "rte", "train"), ("nyu-mll/glue", "rte", "validation")]
    assert rows.source == "nyu-mll/glue:rte"
    assert len(rows.train) == len(rows.evaluation["validation"]) == 3


def test_a_hub_that_does_not_answer_is_one_clear_line(monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*arguments, split):
        raise ConnectionError("Couldn't reach 'x' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BenchmarkDataError, match=r"--files FOLDER.*said: Couldn't reach 'x'.*Hub$"):
        load_rows(preset("squad-v1.1"), None)


# -- SQuAD ------------------------------


@pytest.mark.parametrize("version", ["v1.1", "v2.0"])
@pytest.mark.parametrize("max_length", [384, 18])
def test_squad_windows_label_the_tokens_of_the_answer(
    version: str, max_length: int, deberta, tmp_path: Path
) -> None:
    files.write_squad(tmp_path, version)
    chosen = preset(f"squad-{version}").with_settings(max_length=max_length)
    rows = load_rows(chosen, tmp_path)
    prepared = prepare(rows, deberta, chosen)
    assert (len(prepared.train) > len(rows.train)) is (max_length == 18)
    texts = []
    for each in prepared.train:
        start, end = each["start_positions"], each["end_positions"]
        texts.append("" if start == 0 else deberta.decode(each["input_ids"][start : end + 1]))
    expected = {"in France", "Paris", "a good film"} | ({""} if version == "v2.0" else set())
    assert {text.strip() for text in texts} - {""} == expected - {""}
    assert ("" in texts) is (version == "v2.0" or max_length == 18)


@pytest.mark.parametrize("version", ["v1.1", "v2.0"])
@pytest.mark.parametrize("max_length", [384, 18])
def test_right_spans_score_one(version: str, max_length: int, deberta, tmp_path: Path) -> None:
    """Logits that point at the labels give each answer back, over windows of a context too."""
    files.write_squad(tmp_path, version)
    chosen = preset(f"squad-{version}").with_settings(max_length=max_length)
    prepared = prepare(load_rows(chosen, tmp_path), deberta, chosen)
    (split,) = prepared.splits
    outputs = []
    for feature in prepared.train:  # the same questions as those of the evaluation
        logits = np.zeros((len(feature["input_ids"]), 2))
        in_window = feature["start_positions"] > 0
        logits[0] = 1.0  # no answer in this window
        logits[feature["start_positions"], 0] = 9.0 if in_window else 1.0
        logits[feature["end_positions"], 1] = 9.0 if in_window else 1.0
        outputs.append(logits)
    scores = split.score(outputs)
    assert scores["exact_match"] == scores["f1"] == 1.0
    assert ("f1_unanswerable" in scores) is (version == "v2.0")


@settings(max_examples=30)
@given(data=st.data())
def test_the_best_span_is_the_best_of_all_spans(data: st.DataObject) -> None:
    """Against a search over all pairs (fewer tokens than are combined, so none is passed over)."""
    n_context = data.draw(st.integers(1, 8))
    numbers = st.lists(st.integers(-9, 9), min_size=n_context + 1, max_size=n_context + 1)
    starts, ends = data.draw(numbers), data.draw(numbers)
    offsets = (None, *((2 * i, 2 * i + 1) for i in range(n_context)))
    window = AnswerWindow(row=0, offsets=offsets, null_token=0)
    context = "a b c d e f g h i"[: 2 * n_context]
    logits = np.array([starts, ends], dtype=float).T
    (found,) = best_answers([context], [window], [logits], may_abstain=False)
    pairs = {
        context[2 * i - 2 : 2 * j - 1]: starts[i] + ends[j]
        for i in range(1, n_context + 1)
        for j in range(i, n_context + 1)
    }
    assert pairs[found] == max(pairs.values())
    (maybe,) = best_answers([context], [window], [logits], may_abstain=True)
    assert maybe == ("" if starts[0] + ends[0] > max(pairs.values()) else found)


# -- Alpaca and MMLU ------------------------------


def test_alpaca_features_are_the_whole_text_and_its_end(llama, tmp_path: Path) -> None:
    files.write_alpaca_and_mmlu(tmp_path)
    chosen = preset("mmlu").with_settings(max_length=400)
    prepared = prepare(load_rows(chosen, tmp_path), llama, chosen)
    first = prepared.train[0]
    text = llama.decode(first["input_ids"]).replace("▁", " ")
    assert "### Instruction:\nSay 0.\n\n### Input:\na\n\n### Response:\nx" in text
    assert first["labels"] == first["input_ids"]
    assert first["input_ids"][-1] == llama.eos_token_id
    batch = prepared.collate(prepared.train[:2])
    lengths = [len(each["input_ids"]) for each in prepared.train[:2]]
    assert (batch["labels"] != -100).sum(1).tolist() == lengths


@pytest.mark.parametrize("shots", [0, 5])
def test_mmlu_asks_for_the_letter_after_the_prompt(shots: int, llama, tmp_path: Path) -> None:
    files.write_alpaca_and_mmlu(tmp_path)
    chosen = preset("mmlu").with_settings(shots=shots)
    rows = load_rows(chosen, tmp_path)
    prepared = prepare(rows, llama, chosen)
    (split,) = prepared.splits
    texts = [llama.decode(each["input_ids"]).replace("▁", " ") for each in split.features]
    assert texts[0].startswith("The following are multiple choice questions (with answers) about  ")
    assert all(text.endswith("\nAnswer:") for text in texts)
    assert {text.count("Answer:") for text in texts} == {shots + 1}
    assert ("anatomy" in texts[0], "anatomy" in texts[-1]) == (False, True)
    batch = prepared.collate_evaluation(split.features)
    assert (batch["input_ids"][:, -1] == split.features[0]["input_ids"][-1]).all()  # left padding
    assert batch["attention_mask"][:, -1].all()


def test_the_letters_log_probabilities_choose_the_answer(llama, tmp_path: Path) -> None:
    files.write_alpaca_and_mmlu(tmp_path)
    chosen = preset("mmlu")
    prepared = prepare(load_rows(chosen, tmp_path), llama, chosen)
    letters = [llama(f": {letter}")["input_ids"][-1] for letter in LETTERS]

    class Output:
        logits = torch.zeros(2, 1, len(llama))

    Output.logits[0, 0, letters[2]], Output.logits[1, 0, letters[1]] = 5.0, 5.0
    read = prepared.read(Output)
    assert read.argmax(1).tolist() == [2, 1]
    assert (read.exp().sum(1) < 1.0).all()  # probabilities among all tokens
    (split,) = prepared.splits
    right = np.eye(4)[[0, 1, 2, 0, 1, 2]]
    assert split.score(list(right)) == {"accuracy": 1.0, "accuracy_over_subjects": 1.0}


def test_a_letter_of_several_tokens_is_refused(tmp_path: Path, deberta) -> None:
    files.write_alpaca_and_mmlu(tmp_path)
    with pytest.raises(ValueError, match=r"must add one token for ' A' after a prompt"):
        prepare(load_rows(preset("mmlu"), tmp_path), deberta, preset("mmlu"))


def test_the_prompt_is_that_of_the_benchmark() -> None:
    row = {"subject": "anatomy", "question": "Q?", "choices": ["w", "x", "y", "z"], "answer": 3}
    head = "The following are multiple choice questions (with answers) about  anatomy.\n\n"
    question = "Q?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert mmlu_prompt(row) == head + question
    assert mmlu_prompt(row, [row]) == head + question + " D\n\n" + question
