"""The benchmark of causal models, from reviews to its summary, on a tiny random Llama."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lodrop_nn import attach_lora_dropout, score_sequences
from lodrop_nn.data import TextClassificationData, batches
from paper_figures import fig19_language_model
from tests.benchmarks.causal import evaluate, problem, summarize
from tests.benchmarks.causal.__main__ import run_all
from tests.benchmarks.causal.train import Problem, Setting
from tests.benchmarks.quality import records

WORDS = [f"w{k}" for k in range(12)]
VOCABULARY = ["[PAD]", "[UNK]", "Review", ":", "Sentiment", "negative", "positive", *WORDS]
SETTING = Setting(
    n_train=6,
    n_test=5,
    n_blocks=2,
    epochs=2,
    traced=(1,),
    batch_size=4,
    learning_rate=1e-2,
    n_masks=3,
)


def load() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    splits = Tokenizer(models.WordLevel({w: k for k, w in enumerate(VOCABULARY)}, "[UNK]"))
    splits.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=splits, pad_token="[PAD]", unk_token="[UNK]"
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=12,
            max_position_embeddings=32,
            initializer_range=0.4,
            pad_token_id=0,
        )
        return LlamaForCausalLM(config).eval(), tokenizer


def reviews() -> TextClassificationData:
    draw = np.random.default_rng(0)
    lengths = [3, 6, 9, 6, 20, 21, 7, 8, 6, 11, 12, 7, 6]
    return TextClassificationData(
        texts=tuple(" ".join(draw.choice(WORDS, n)) for n in lengths),
        labels=np.array([0, 1] * 6 + [0]),
        vote_shares=None,
        name="words",
        n_classes=2,
        source="here",
        licence_note="none",
    )


def test_the_sentence_and_the_word_are_predicted_and_nothing_else() -> None:
    _, tokenizer = load()
    pool = problem.short_sentences(reviews(), tokenizer)
    assert len(pool) == 11  # those of 3 and of 21 words are left out
    rows = problem.rows_of(pool, tokenizer)
    for batch in batches(rows.examples, 4, order="given"):
        for row, targets in zip(batch["index"].tolist(), rows.targets(batch), strict=True):
            predicted = [VOCABULARY[t] for t in targets.tolist() if t != problem.IGNORED]
            word = ("negative", "positive")[rows.examples.labels[row]]
            assert predicted == [*pool.texts[row].split(), word]


def test_scores_are_those_of_the_public_scoring() -> None:
    base, tokenizer = load()
    rows = problem.divided(reviews(), tokenizer, 6, 5, seed=1)
    task = Problem(base, rows, SETTING, seed=1)
    finished = task.run(0.5)
    test, found = rows["test"], finished.outputs["test"]
    attach_lora_dropout(task.model, 0.5)
    (batch,) = batches(test.examples, 5, order="given")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    whole = score_sequences(
        task.model,
        {**inputs, "labels": test.targets(batch)},
        n_masks=SETTING.n_masks,
        seed=evaluate.MEMBER_SEED,
    )
    assert whole.member_token_log_probs.std(0).max() > 1e-3
    for mine, expected in (
        (found["mean.tokens"], whole.mean_token_log_probs),
        (found["members.tokens"], whole.member_token_log_probs),
    ):
        np.testing.assert_allclose(mine, expected.numpy(), atol=1e-5)
    last = batch["attention_mask"].sum(1) - 1
    labels = torch.tensor(test.examples.labels)
    log_odds = []
    for word in test.words:
        ids = batch["input_ids"].scatter(1, last[:, None], word)
        only_word = torch.full_like(ids, -100).scatter(1, last[:, None], word)
        scored = score_sequences(
            task.model,
            {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": only_word},
            n_masks=SETTING.n_masks,
            seed=evaluate.MEMBER_SEED,
        )
        log_odds.append(scored.member_log_likelihood)
    probabilities = torch.stack(log_odds, -1).softmax(-1).mean(0)
    scores = evaluate.scores(found, test)
    nll = -probabilities[torch.arange(5), labels].log().mean()
    assert scores["ensemble"]["label_nll"] == pytest.approx(float(nll), abs=1e-5)
    in_text = whole.is_scored & (torch.arange(len(batch["input_ids"][0])) < last[:, None])
    text = whole.ensemble_token_log_probs[in_text]
    assert scores["ensemble"]["text_nll"] == pytest.approx(-float(text.mean()), abs=1e-5)
    assert scores["ensemble"]["text_nll"] <= scores["gibbs"]["text_nll"]  # Jensen


def test_a_second_call_continues_and_the_summary_pairs_seeds(tmp_path: Path) -> None:
    said: list[str] = []
    runs = [(seed, rate) for seed in (0, 1) for rate in (None, 0.0, 0.5)]

    def go(some: list[tuple[int, float | None]]) -> None:
        run_all(load, reviews(), some, SETTING, tmp_path, provenance={}, say=said.append)

    go(runs[:2])
    go(runs)
    assert len(said) == len(runs)
    assert said[2].startswith("[1/4] seed 0, p = 0.5")
    content = summarize.summary(list(records.read_all(tmp_path)))
    json.dumps(content, allow_nan=False)
    assert len(content["splits"]) == 3 * len(runs)
    by_key = {
        (r["seed"], r["dropout_rate"], r["predictor"]): r["scores"] for r in content["splits"]
    }
    for predictor in ("gibbs", "ensemble", "mean"):  # no masks, no difference
        assert by_key[0, 0.0, predictor] == pytest.approx(by_key[0, 0.0, "mean"])
    (row,) = (
        r for r in content["table"] if (r["dropout_rate"], r["predictor"]) == (0.5, "ensemble")
    )
    for measure in ("gap_text_nll", "test_label_nll"):
        each = [
            by_key[s, 0.5, "ensemble"][measure] - by_key[s, 0.0, "mean"][measure] for s in (0, 1)
        ]
        assert row["measures"][measure]["minus p=0"]["mean"] == pytest.approx(sum(each) / 2)
    scores = by_key[1, 0.5, "ensemble"]
    assert scores["gap_text_nll"] == scores["test_text_nll"] - scores["train_text_nll"]
    traced = content["traces"]
    assert {t["epoch"] for t in traced} == {1, 2}
    best = [
        min(t["text_nll"] for t in traced if (t["seed"], t["dropout_rate"]) == (s, 0.0))
        for s in (0, 1)
    ]
    own = [by_key[s, 0.5, "ensemble"]["test_text_nll"] for s in (0, 1)]
    cell = row["measures"]["test_text_nll"]["minus p=0 stopped"]
    assert cell["mean"] == pytest.approx((sum(own) - sum(best)) / 2)


def test_runs_of_two_protocols_are_not_mixed(tmp_path: Path) -> None:
    for epochs in (1, 2):
        setting = replace(SETTING, epochs=epochs, traced=())
        run_all(load, reviews(), [(0, None)], setting, tmp_path, provenance={}, say=lambda _: None)
    found = list(records.read_all(tmp_path))
    assert len(found) == 2
    assert len(summarize.summary(found[:1])["table"]) == 1
    for some in ([], found):
        with pytest.raises(ValueError, match="one protocol"):
            summarize.summary(some)


RECORD = summarize.OUT


@pytest.mark.skipif(not RECORD.exists(), reason="the experiment has not been run")
def test_the_committed_record_follows_from_its_rows() -> None:
    content = json.loads(RECORD.read_text())
    assert "dequantized from 4-bit" in content["protocol"]["model"]
    rows = {(r["seed"], r["dropout_rate"], r["predictor"]): r["scores"] for r in content["splits"]}
    for (_, rate, predictor), scores in rows.items():
        for part in ("train", "test"):
            nll, perplexity = scores[f"{part}_text_nll"], scores[f"{part}_text_perplexity"]
            assert perplexity == pytest.approx(math.exp(nll), rel=1e-4)
        for name in summarize.GAPS:
            gap = scores[f"test_{name}"] - scores[f"train_{name}"]
            assert scores[f"gap_{name}"] == pytest.approx(gap, abs=2e-5)
        if not rate:  # no masks, no difference
            assert scores == rows[_, rate, "mean"], predictor
    for (seed, rate, predictor), scores in rows.items():
        if predictor == "ensemble":  # Jensen's inequality
            for part in ("train", "test"):
                for name in ("text_nll", "label_nll", "word_nll"):
                    own, members = scores[f"{part}_{name}"], rows[seed, rate, "gibbs"]
                    assert own <= members[f"{part}_{name}"] + 1e-5
    for row in content["table"]:
        rate, predictor = row["dropout_rate"], row["predictor"]
        own = {s: v for (s, r, p), v in rows.items() if (r, p) == (rate, predictor)}
        plain = {s: v for (s, r, p), v in rows.items() if (r, p) == (0.0, "mean")}
        for measure, cell in row["measures"].items():
            _check_cell(measure, cell["value"], [v[measure] for v in own.values()])
            if "minus p=0" in cell:
                both = sorted(set(own) & set(plain))
                _check_cell(
                    measure, cell["minus p=0"], [own[s][measure] - plain[s][measure] for s in both]
                )


def _check_cell(measure: str, cell: dict[str, Any], values: list[float]) -> None:
    # The record has six digits of each number, and perplexities are some hundreds.
    close = {"rel": 1e-4, "abs": 5e-3 if "perplexity" in measure else 5e-5}
    assert cell["n"] == len(values)
    assert cell["mean"] == pytest.approx(sum(values) / len(values), **close)
    if len(values) > 1:
        interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert cell["low"] == pytest.approx(interval.low, **close)
        assert cell["high"] == pytest.approx(interval.high, **close)


@pytest.mark.skipif(not RECORD.exists(), reason="the experiment has not been run")
def test_the_figure_shows_the_numbers_of_the_record(tmp_path: Path) -> None:
    rows = json.loads(RECORD.read_text())["splits"]
    points = fig19_language_model.compute()
    for point in points:
        rate = None if point.rate == "before" else float(point.rate)
        values = [
            row["scores"][point.panel]
            for row in rows
            if (row["dropout_rate"], row["predictor"]) == (rate, point.predictor)
            and point.seed in (-1, row["seed"])
        ]
        assert point.n == len(values) > 0
        assert point.value == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-5)
        if point.n > 1:
            assert point.low < point.value < point.high
            assert min(values) <= point.value <= max(values)
        else:
            assert math.isnan(point.low)
    shown = {(p.panel, p.rate, p.predictor) for p in points}
    assert {("gap_text_nll", "before", "mean"), ("test_label_nll", "0.5", "ensemble")} <= shown
    for name in ("one", "two"):
        fig19_language_model.main(out=tmp_path / name)
    for first in (tmp_path / "one").iterdir():
        assert first.read_bytes() == (tmp_path / "two" / first.name).read_bytes()
    committed = fig19_language_model.OUT / f"{fig19_language_model.NAME}.csv"
    assert (tmp_path / "one" / committed.name).read_text() == committed.read_text()
