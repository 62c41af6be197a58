"""Tiny benchmarks in their own schemas, and tiny base models with tokenizers, as local folders."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, normalizers

from lodrop_nn.reproduce.grid import LoadedTask, load_task
from lodrop_nn.reproduce.presets import preset

_TEXT = "the film is good bad dull Paris lies in France Rome where what a city of no"
WORDS = _TEXT.split()
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
_SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

# -- base models ------------------------------


def deberta_folder(folder: Path, **options: Any) -> str:
    """A tiny DeBERTa-v3 (shared keys, relative positions) with its kind of tokenizer."""
    pieces = [(word, 0.0) for word in SPECIAL] + [("▁" + word, -1.0) for word in WORDS]
    pieces += [(sign, -3.0) for sign in "▁.?abcdefghijklmnopqrstuvwxyz"]
    tokenizer = tf.DebertaV2Tokenizer(vocab=pieces, unk_id=3)
    config = tf.DebertaV2Config(
        **_SIZE
        | {
            "vocab_size": len(tokenizer),
            "intermediate_size": 24,
            "max_position_embeddings": 64,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 8,
            "position_biased_input": False,
            "type_vocab_size": 0,
            "initializer_range": 0.2,
        }
        | options
    )
    return _saved(tf.AutoModel.from_config, config, tokenizer, folder)


def llama_folder(folder: Path, **options: Any) -> str:
    """A tiny Llama with a byte-level tokenizer of Llama's kind: no padding token."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, "▁"])}
    vocabulary |= {f"▁{letter}": len(vocabulary) + i for i, letter in enumerate("ABCD")}
    merges = [("▁", letter) for letter in "ABCD"]
    vocabulary |= {letter: len(vocabulary) + i for i, letter in enumerate("ABCD")}
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.ByteFallback()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    config = tf.LlamaConfig(
        **_SIZE
        | {
            "vocab_size": len(tokenizer),
            "intermediate_size": 24,
            "max_position_embeddings": 2048,
            "num_key_value_heads": 1,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        | options
    )
    return _saved(tf.AutoModelForCausalLM.from_config, config, tokenizer, folder)


def _saved(make: Any, config: Any, tokenizer: Any, folder: Path) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        make(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# -- GLUE ------------------------------

GLUE_COLUMNS = {
    "mnli": ("premise", "hypothesis"),
    "sst2": ("sentence",),
    "cola": ("sentence",),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
}


def glue_rows(task: str, n_rows: int, shift: int = 0) -> list[dict[str, Any]]:
    """Rows under the hub's column names; texts differ in length."""
    n_classes = {"mnli": 3, "stsb": 0}.get(task, 2)
    rows = []
    for i in range(shift, shift + n_rows):
        label: float = i % n_classes if n_classes else (i * 7 % 11) / 2
        texts = [sentence(i + j, 2 + (i + 3 * j) % 5) for j in range(2)]
        columns = GLUE_COLUMNS[task]
        rows.append({**dict(zip(columns, texts, strict=False)), "label": label, "idx": i})
    return rows


def sentence(seed: int, n_words: int) -> str:
    return " ".join(WORDS[(seed * 5 + 3 * k * k) % len(WORDS)] for k in range(n_words)) + "."


def write_glue(folder: Path, task: str, n_rows: int = 12) -> Path:
    """Tab-separated files with the hub's columns."""
    splits = ["train", "validation"]
    if task == "mnli":
        splits = ["train", "validation_matched", "validation_mismatched"]
    for shift, split in enumerate(splits):
        write_tsv(folder / task / f"{split}.tsv", glue_rows(task, n_rows, 100 * shift))
    return folder


def write_tsv(path: Path, rows: Sequence[dict[str, Any]], *, heading: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(rows[0])] if heading else []
    lines += ["\t".join(map(str, row.values())) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# -- SQuAD ------------------------------

CONTEXT = "the city of Paris lies in France. a good film is where Rome is no city."


def squad_questions(prefix: str, *, impossible: bool) -> list[dict[str, Any]]:
    def answer(text: str) -> dict[str, Any]:
        return {"text": text, "answer_start": CONTEXT.index(text)}

    questions = [
        ("where lies Paris?", [answer("in France"), answer("France")]),
        ("what is in France?", [answer("Paris")]),
        ("what is where Rome is?", [answer("a good film")]),
    ]
    found = [
        {"id": f"{prefix}{i}", "question": question, "answers": answers}
        for i, (question, answers) in enumerate(questions)
    ]
    if impossible:
        for each in found:
            each["is_impossible"] = False
        plausible = [answer("Rome")]
        found.append(
            {
                "id": f"{prefix}n",
                "question": "what is dull?",
                "answers": [],
                "plausible_answers": plausible,
                "is_impossible": True,
            }
        )
    return found


def write_squad(folder: Path, version: str) -> Path:
    """SQuAD's own JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        questions = squad_questions(split, impossible=version == "v2.0")
        paragraphs = [{"context": CONTEXT, "qas": questions}]
        content = {"version": version, "data": [{"title": "t", "paragraphs": paragraphs}]}
        (folder / f"{split}-{version}.json").write_text(json.dumps(content))
    return folder


# -- Alpaca and MMLU ------------------------------


def write_alpaca_and_mmlu(folder: Path, n_rows: int = 8) -> Path:
    """Alpaca's JSON list; MMLU's CSV files, one per subject and split, without a heading."""
    rows = [
        {"instruction": f"Say {i}.", "input": "" if i % 2 else "a", "output": "x" * (1 + i % 4)}
        for i in range(n_rows)
    ]
    (folder / "alpaca").mkdir(parents=True, exist_ok=True)
    (folder / "alpaca" / "alpaca_data_cleaned.json").write_text(json.dumps(rows))
    for split, n_questions in (("dev", 5), ("test", 3)):
        (folder / "mmlu" / split).mkdir(parents=True, exist_ok=True)
        for subject in ("abstract_algebra", "anatomy"):
            path = folder / "mmlu" / split / f"{subject}_{split}.csv"
            with path.open("w", newline="") as file:
                for i in range(n_questions):
                    question = f'Is "{i}", in {subject}, so?'
                    csv.writer(file).writerow([question, "w", "x", "y, z", "v", "ABCD"[i % 4]])
    return folder


# -- models and data together ------------------------------

FAMILIES = {"glue": "rte", "squad": "squad-v2.0", "mmlu": "mmlu"}


@dataclass(frozen=True)
class Home:
    """A folder with a tiny model and tiny data for a task of each family."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> "Home":
        for family in ("glue", "squad"):
            deberta_folder(
                folder / family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
            )
        llama_folder(folder / "mmlu", attention_bias=True)
        write_glue(folder / "glue-data", "rte")
        write_squad(folder / "squad-data", "v2.0")
        write_alpaca_and_mmlu(folder / "mmlu-data")
        return cls(folder)

    def task(self, family: str, **settings: Any) -> LoadedTask:
        """One seed, batches of 4, two masks, fp32."""
        values = {
            "model": str(self.folder / family), "batch_size": 4, "n_masks_train": 2,
            "n_masks_test": 2, "precision": "fp32", "seeds": 1,
        }  # fmt: skip
        chosen = preset(FAMILIES[family]).with_settings(**values | settings)
        return load_task(chosen, self.folder / f"{family}-data")
