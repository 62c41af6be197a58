"""Adapters of anyone's: what is loaded is what was saved, and what does not fit is refused."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.adapter.loading import base_folder, load_classifier
from lodrop_nn.adapter.saving import save_adapter
from lodrop_nn.adapter.sidecar import WEIGHTS_NAME, AdapterFileError
from lodrop_nn.data.models import load_base_model
from lodrop_nn.predict.ensemble import ensemble_predict, mean_predict
from tests.nn.checkpoints import BERT_LIKE, save_checkpoint

# peft 0.19 looks for the base model's config on the hub, which models made here do not have.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 8, 5, 3]])
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
LORA = {"r": 2, "lora_alpha": 3, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    return save_checkpoint(transformers.BertConfig(**BERT_LIKE), folder)


def new_adapter(base: str, n_classes: int = 3, **options: object) -> PeftModel:
    """A random adapter with a random head."""
    model, _ = load_base_model(base, n_classes, seed=7)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        torch.default_generator.manual_seed(1)
        config = LoraConfig(**{**LORA, "init_lora_weights": False, **options})
        return get_peft_model(model, config).eval()


def saved(base: str, folder: Path, **options: object) -> PeftModel:
    model = new_adapter(base, **options)
    model.save_pretrained(folder)
    return model


# -- what is loaded ------------------------------


def test_a_plain_adapter_comes_back_without_masks(base: str, tmp_path: Path) -> None:
    model = saved(base, tmp_path, lora_dropout=0.3)
    state = torch.get_rng_state()
    loaded, tokenizer, bank = load_classifier(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(loaded(**BATCH).logits, model(**BATCH).logits)
    assert bank.settings.dropout_rate == 0.0
    assert not loaded.training
    assert tokenizer("good film")["input_ids"] == [2, 5, 7, 3]
    noisy = loaded.train()(**BATCH).logits  # neither the base's dropout nor the adapter's own
    torch.testing.assert_close(noisy, model(**BATCH).logits)


@pytest.mark.parametrize("rescale", [True, False])
def test_masks_come_back_as_they_were(base: str, rescale: bool, tmp_path: Path) -> None:
    model = new_adapter(base)
    attach_lora_dropout(model, 0.4, rescale=rescale, seed=5)
    save_adapter(model, tmp_path)
    loaded, _, bank = load_classifier(tmp_path)
    assert (bank.settings.dropout_rate, bank.settings.rescale) == (0.4, rescale)
    torch.testing.assert_close(mean_predict(loaded, BATCH), mean_predict(model, BATCH))
    members = (ensemble_predict(m, BATCH, n_masks=4, seed=0).member_logits for m in (loaded, model))
    torch.testing.assert_close(*members)


@pytest.mark.parametrize("with_masks", [True, False])
def test_another_rate_replaces_the_adapters_own(base: str, with_masks: bool, tmp_path: Path):
    model = new_adapter(base)
    if with_masks:
        attach_lora_dropout(model, 0.4, seed=5)
        save_adapter(model, tmp_path)
    else:
        model.save_pretrained(tmp_path)
    loaded, _, bank = load_classifier(tmp_path, dropout_rate=0.1)
    assert bank.settings.dropout_rate == 0.1
    torch.testing.assert_close(mean_predict(loaded, BATCH), model(**BATCH).logits)


@pytest.mark.parametrize("train_A", [True, False])
def test_adapter_and_head_are_trainable_and_in_fp32(base: str, train_A: bool, tmp_path: Path):
    new_adapter(base).half().save_pretrained(tmp_path)
    model, _, _ = load_classifier(tmp_path, train_A=train_A)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    for name, weight in model.named_parameters():
        trained = "lora_B" in name or "modules_to_save" in name or (train_A and "lora_A" in name)
        assert weight.requires_grad == trained, name


def test_a_head_of_another_width_in_the_base_gives_way_to_the_adapters(tmp_path: Path) -> None:
    config = transformers.BertConfig(**BERT_LIKE, num_labels=5)
    headed = save_checkpoint(config, tmp_path / "base", head=True)
    plain = save_checkpoint(transformers.BertConfig(**BERT_LIKE), tmp_path / "plain")
    model = new_adapter(plain)
    model.save_pretrained(tmp_path / "adapter")
    loaded, _, _ = load_classifier(tmp_path / "adapter", base=headed)
    assert loaded(**BATCH).logits.shape == (2, 3)
    weight = loaded.get_base_model().classifier.modules_to_save["default"].weight
    assert torch.equal(weight, model.get_base_model().classifier.modules_to_save["default"].weight)


def test_the_head_may_come_from_the_base(tmp_path: Path) -> None:
    config = transformers.BertConfig(**BERT_LIKE, num_labels=3)
    headed = save_checkpoint(config, tmp_path / "base", head=True)
    model = saved(headed, tmp_path / "adapter", task_type=None)
    assert not any("classifier" in key for key in load_file(tmp_path / "adapter" / WEIGHTS_NAME))
    loaded, _, _ = load_classifier(tmp_path / "adapter", n_classes=3)
    torch.testing.assert_close(loaded(**BATCH).logits, model(**BATCH).logits)


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        (transformers.RobertaConfig(**BERT_LIKE), ["query"]),
        (transformers.DistilBertConfig(vocab_size=16, dim=8, n_layers=2, n_heads=2), ["q_lin"]),
        (
            transformers.LlamaConfig(**BERT_LIKE, bos_token_id=1, eos_token_id=2),
            ["q_proj", "v_proj"],
        ),
    ],
    ids=["roberta", "distilbert", "llama"],
)
def test_other_architectures_bring_their_heads(architecture, targets, tmp_path: Path) -> None:
    base = save_checkpoint(architecture, tmp_path / "base")
    model = saved(base, tmp_path / "adapter", target_modules=targets)
    loaded, _, _ = load_classifier(tmp_path / "adapter", n_classes=3)
    torch.testing.assert_close(loaded(**BATCH).logits, model(**BATCH).logits)


def test_a_tokenizer_beside_the_adapter_is_preferred(base: str, tmp_path: Path) -> None:
    saved(base, tmp_path / "adapter")
    own = transformers.AutoTokenizer.from_pretrained(base)
    own.add_tokens(["splendid"])
    own.save_pretrained(tmp_path / "adapter")
    _, tokenizer, _ = load_classifier(tmp_path / "adapter")
    assert tokenizer("splendid")["input_ids"] == [2, 9, 3]
    own.add_tokens([f"new{k}" for k in range(9)])
    own.save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match="tokenizer of 19 tokens, but its model knows 16"):
        load_classifier(tmp_path / "adapter")


# -- what is refused ------------------------------


def test_a_base_that_is_not_at_hand_is_asked_for(base: str, tmp_path: Path) -> None:
    saved(base, tmp_path)
    assert base_folder(tmp_path) == Path(base)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for name in ("someone/some-model", "/nowhere/at all", None):
        edited = json.dumps({**config, "base_model_name_or_path": name})
        (tmp_path / "adapter_config.json").write_text(edited)
        with pytest.raises(ValueError, match=r"`base` must name the model .*neither a local") as e:
            load_classifier(tmp_path)
        assert repr(name) in str(e.value)
    assert load_classifier(tmp_path, base=base)[0](**BATCH).logits.shape == (2, 3)


def test_a_pickle_is_never_read(base: str, tmp_path: Path) -> None:
    new_adapter(base).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(AdapterFileError, match=r"is a pickle, which can run code"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "adapter of type LORA, got 'IA3'"),
        ({"task_type": "CAUSAL_LM"}, "sequence classifier .* got CAUSAL_LM"),
    ],
)
def test_other_kinds_of_adapter_are_refused(base, change, message, tmp_path: Path) -> None:
    saved(base, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(AdapterFileError, match=message):
        load_classifier(tmp_path)


def test_dora_is_refused_by_name(base: str, tmp_path: Path) -> None:
    saved(base, tmp_path, use_dora=True)
    with pytest.raises(ValueError, match=r"DoRA|LoRA Dropout"):
        load_classifier(tmp_path)


def test_damaged_and_missing_files_are_named(base: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="must be the folder of an adapter"):
        load_classifier(tmp_path)
    saved(base, tmp_path)
    (tmp_path / WEIGHTS_NAME).write_bytes(b"\x00" * 20)
    with pytest.raises(AdapterFileError, match="is damaged or no safetensors"):
        load_classifier(tmp_path)
    (tmp_path / WEIGHTS_NAME).unlink()
    with pytest.raises(AdapterFileError, match=f"must hold {WEIGHTS_NAME}"):
        load_classifier(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterFileError, match="must hold a JSON object"):
        load_classifier(tmp_path)


def test_a_wider_base_is_refused_with_both_shapes(base: str, tmp_path: Path) -> None:
    saved(base, tmp_path / "adapter")
    wide = transformers.BertConfig(**{**BERT_LIKE, "hidden_size": 12})
    other = save_checkpoint(wide, tmp_path / "wide")
    with pytest.raises(ValueError, match=r"shape \(2, 8\) in the adapter and \(2, 12\) here .*mor"):
        load_classifier(tmp_path / "adapter", base=other)


@pytest.mark.parametrize("deeper", ["adapter", "base"])
def test_a_base_of_another_depth_is_refused(base: str, deeper: str, tmp_path: Path) -> None:
    deep = save_checkpoint(
        transformers.BertConfig(**{**BERT_LIKE, "num_hidden_layers": 3}), tmp_path / "deep"
    )
    of_adapter, other = (deep, base) if deeper == "adapter" else (base, deep)
    saved(of_adapter, tmp_path / "adapter")
    message = {
        "adapter": r"the adapter holds \S*layer\.2\S*, for which this model has no place",
        "base": r"the adapter does not hold \S*layer\.2",
    }
    with pytest.raises(ValueError, match=message[deeper]):
        load_classifier(tmp_path / "adapter", base=other)


def test_a_base_without_the_target_modules_is_refused(base: str, tmp_path: Path) -> None:
    saved(base, tmp_path / "adapter")
    config = transformers.DistilBertConfig(vocab_size=16, dim=8, n_layers=2, n_heads=2)
    other = save_checkpoint(config, tmp_path / "distilbert")
    with pytest.raises(ValueError, match=r"`base` must be the model .*[Tt]arget modules"):
        load_classifier(tmp_path / "adapter", base=other)


def test_a_missing_factor_is_named(base: str, tmp_path: Path) -> None:
    saved(base, tmp_path)
    weights = load_file(tmp_path / WEIGHTS_NAME)
    lost = next(key for key in weights if "lora_B" in key)
    del weights[lost]
    save_file(weights, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=f"the adapter does not hold {lost}"):
        load_classifier(tmp_path)


def test_random_weights_are_never_measured(base: str, tmp_path: Path) -> None:
    saved(base, tmp_path / "headless", task_type=None)  # neither base nor adapter has a head
    with pytest.raises(ValueError, match=r"neither of them holds classifier\.bias, classifier\.w"):
        load_classifier(tmp_path / "headless")
    shutil.copytree(base, tmp_path / "poolerless")
    weights = load_file(tmp_path / "poolerless" / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "pooler" not in key}
    save_file(kept, tmp_path / "poolerless" / "model.safetensors", metadata={"format": "pt"})
    saved(base, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"neither of them holds bert\.pooler"):
        load_classifier(tmp_path / "adapter", base=str(tmp_path / "poolerless"))


def test_another_number_of_classes_is_refused(base: str, tmp_path: Path) -> None:
    saved(base, tmp_path)
    with pytest.raises(ValueError, match="`n_classes` must be 3, the width of the head"):
        load_classifier(tmp_path, n_classes=2)
    with pytest.raises(ValueError, match="`dropout_rate`"):
        load_classifier(tmp_path, dropout_rate=1.0)
