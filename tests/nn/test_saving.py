"""Adapters on disk: plain PEFT loads the mean predictor, we load the masks as well."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lodrop_nn.adapter import attach_lora_dropout, mask_bank
from lodrop_nn.adapter.config import LoraDropoutConfig
from lodrop_nn.adapter.saving import load_adapter, save_adapter
from lodrop_nn.adapter.sidecar import FILE_NAME, WEIGHTS_NAME, AdapterFileError
from lodrop_nn.predict.ensemble import ensemble_predict, mean_predict
from lodrop_nn.train.tiling import tile_batch
from lodrop_theory.records import content_hash
from tests.nn.tiny import BASES, TARGETS, TASKS, adapted, batch, inputs, lora_config

# peft 0.19 looks for the base model's config on the hub, which models made here do not have.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")

CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def with_masks(kind: str = "bert", **options: object) -> PeftModel:
    model = adapted(kind).eval()
    attach_lora_dropout(model, **{"dropout_rate": 0.4, "seed": 5, **options})
    return model


# -- save and load ------------------------------


@pytest.mark.parametrize("kind", list(BASES))
@pytest.mark.parametrize("rescale", [True, False])
def test_plain_peft_loads_the_mean_predictor(kind: str, rescale: bool, tmp_path: Path) -> None:
    model = with_masks(kind, rescale=rescale)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert save_adapter(model, tmp_path / "new" / "adapter") == tmp_path / "new" / "adapter"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        plain = PeftModel.from_pretrained(BASES[kind](), tmp_path / "new" / "adapter")
    mean = mean_predict(model, batch(kind))
    torch.testing.assert_close(plain(**inputs(kind)).logits, mean, **CLOSE)
    assert not isinstance(plain.peft_config["default"], LoraDropoutConfig)


@pytest.mark.parametrize("kind", list(BASES))
@pytest.mark.parametrize("rescale", [True, False])
def test_loading_brings_back_weights_and_masks(kind: str, rescale: bool, tmp_path: Path) -> None:
    model = with_masks(kind, rescale=rescale, n_masks=2)
    save_adapter(model, tmp_path)
    loaded = load_adapter(BASES[kind](), tmp_path)
    assert not loaded.training
    assert mask_bank(loaded).settings == mask_bank(model).settings
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], **CLOSE)
    members = [ensemble_predict(m, batch(kind), n_masks=3, seed=1) for m in (model, loaded)]
    torch.testing.assert_close(members[1].member_logits, members[0].member_logits, **CLOSE)
    again = tmp_path / "again"
    save_adapter(loaded, again)
    torch.testing.assert_close(
        load_adapter(BASES[kind](), again).state_dict(), loaded.state_dict(), **CLOSE
    )


@pytest.mark.parametrize("is_trainable", [True, False])
def test_a_loaded_adapter_trains_if_asked_to(is_trainable: bool, tmp_path: Path) -> None:
    save_adapter(with_masks(), tmp_path)
    model = load_adapter(BASES["bert"](), tmp_path, is_trainable=is_trainable)
    assert any("lora_" in n and p.requires_grad for n, p in model.named_parameters()) == (
        is_trainable
    )
    if is_trainable:
        model.train()(**batch("bert")).loss.backward()
        assert mask_bank(model).passes.n_drawn == 1


def test_an_adapter_of_another_name_is_saved_to_the_same_place(tmp_path: Path) -> None:
    model = adapted("bert")
    model.add_adapter("other", lora_config("bert", r=2))
    attach_lora_dropout(model, 0.2, adapter_name="other", rescale=False)
    model.set_adapter("other")
    save_adapter(model, tmp_path, "other")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {FILE_NAME, WEIGHTS_NAME, "adapter_config.json"}
    loaded = load_adapter(BASES["bert"](), tmp_path)
    expected = mean_predict(model, batch("bert"), adapter_name="other")
    torch.testing.assert_close(mean_predict(loaded, batch("bert")), expected, **CLOSE)


def test_saving_again_replaces_the_old_adapter(tmp_path: Path) -> None:
    save_adapter(with_masks(dropout_rate=0.1), tmp_path)
    save_adapter(with_masks(dropout_rate=0.2, rescale=False), tmp_path)
    assert mask_bank(load_adapter(BASES["bert"](), tmp_path)).dropout_rate == 0.2


def test_an_adapter_without_masks_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        save_adapter(adapted("bert"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


# -- files that cannot be trusted ------------------------------


def forge(folder: Path, *, digest: bool, **changes: object) -> None:
    """Change the side-car, with or without a digest that fits."""
    content = json.loads((folder / FILE_NAME).read_text())
    content.update(changes)
    if digest:
        del content["digest"]
        content["digest"] = content_hash(content)
    (folder / FILE_NAME).write_text(json.dumps(content))


MASKS = {"dropout_rate": 0.4, "n_masks": 1, "mask_scope": "batch", "rescale": True, "seed": 5}


@pytest.mark.parametrize(
    ("digest", "changes", "message"),
    [
        (False, {"masks": {**MASKS, "dropout_rate": 0.3}}, "was edited"),
        (False, {"is_folded": False}, "was edited"),
        (False, {"is_folded": float("nan")}, "was edited"),
        (False, {"schema": 3}, "must have schema 2, got 3"),
        (True, {"schema": 1}, "must have schema 2, got 1"),
        (True, {"masks": {**MASKS, "dropout_rate": 1.5}}, "does not describe masks.*dropout_rate"),
        (True, {"masks": {**MASKS, "colour": "red"}}, "does not describe masks.*colour"),
        (True, {"masks": None}, "does not describe masks"),
        (True, {"is_folded": None}, "does not describe masks.*True or False, got None"),
        (True, {"weights_sha256": "0" * 64}, "was not written for the adapter_model"),
        (True, {"weights_sha256": None}, "was not written for the adapter_model"),
    ],
)
def test_side_cars_that_were_tampered_with_are_refused(
    digest: bool, changes: dict, message: str, tmp_path: Path
) -> None:
    save_adapter(with_masks(), tmp_path)
    forge(tmp_path, digest=digest, **changes)
    with pytest.raises(AdapterFileError, match=message):
        load_adapter(BASES["bert"](), tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"schema": 1}'])
def test_side_cars_that_are_no_side_cars_are_refused(text: str, tmp_path: Path) -> None:
    save_adapter(with_masks(), tmp_path)
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(AdapterFileError, match="truncated or no side-car"):
        load_adapter(BASES["bert"](), tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    save_adapter(with_masks(), here)
    save_adapter(with_masks(rescale=False), there)
    shutil.copy(there / WEIGHTS_NAME, here / WEIGHTS_NAME)
    with pytest.raises(AdapterFileError, match="was not written for"):
        load_adapter(BASES["bert"](), here)
    (there / WEIGHTS_NAME).unlink()
    with pytest.raises(AdapterFileError, match="weights are missing"):
        load_adapter(BASES["bert"](), there)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    config = LoraDropoutConfig(dropout_rate=0.4, target_modules=["query"], task_type="SEQ_CLS")
    model = get_peft_model(BASES["bert"](), config)
    model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(AdapterFileError, match="pickled weights are refused"):
        load_adapter(BASES["bert"](), tmp_path)


def test_folders_without_a_side_car_and_adapted_bases_are_refused(tmp_path: Path) -> None:
    adapted("bert").save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match="no LoRA Dropout adapter was saved there"):
        load_adapter(BASES["bert"](), tmp_path)
    with pytest.raises(TypeError, match="`base_model` must be a model without adapters"):
        load_adapter(adapted("bert"), tmp_path)


# -- the config ------------------------------


def config_of(kind: str, **options: object) -> LoraDropoutConfig:
    settings = {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": TARGETS[kind],
        "task_type": TASKS[kind],
        "init_lora_weights": False,
        "fan_in_fan_out": kind == "gpt2",
        "dropout_rate": 0.4,
        "mask_seed": 5,
    }
    return LoraDropoutConfig(**{**settings, **options})


def from_config(kind: str, config: LoraConfig) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(BASES[kind](), config)


@pytest.mark.parametrize("kind", list(BASES))
def test_a_config_is_as_good_as_attaching(kind: str) -> None:
    model = from_config(kind, config_of(kind, n_masks=2)).train()
    assert model.peft_type == "LORA"
    bank = mask_bank(model)
    assert mask_bank(model) is bank
    attached = adapted(kind).train()
    attach_lora_dropout(attached, 0.4, n_masks=2, seed=5)
    x = tile_batch(inputs(kind), 2)
    for _ in range(2):
        assert torch.equal(model(**x).logits, attached(**x).logits)


def test_a_config_masks_before_anyone_asks_for_the_bank() -> None:
    model = from_config("bert", config_of("bert", n_masks=2)).train()
    one, other = model(**tile_batch(inputs("bert"), 2)).logits.chunk(2)
    assert not torch.allclose(one, other)
    twin = from_config("bert", config_of("bert", n_masks=2)).train()
    assert torch.equal(twin(**tile_batch(inputs("bert"), 2)).logits, torch.cat([one, other]))
    model.eval()
    torch.testing.assert_close(
        model(**inputs("bert")).logits, adapted("bert").eval()(**inputs("bert")).logits
    )


def test_a_config_may_define_several_models() -> None:
    config = config_of("bert")
    one, other = from_config("bert", config).train(), from_config("bert", config).train()
    assert mask_bank(one) is not mask_bank(other)
    assert torch.equal(one(**inputs("bert")).logits, other(**inputs("bert")).logits)


def test_a_saved_config_is_a_plain_one_with_a_side_car(tmp_path: Path) -> None:
    model = from_config("bert", config_of("bert", n_masks=2))
    model.save_pretrained(tmp_path / "ours")
    adapted("bert").save_pretrained(tmp_path / "plain")
    texts = [(tmp_path / d / "adapter_config.json").read_text() for d in ("ours", "plain")]
    ours, plain = (json.loads(text) for text in texts)
    assert {**ours, "target_modules": None} == {**plain, "target_modules": None}
    assert sorted(ours["target_modules"]) == sorted(plain["target_modules"])

    config = LoraDropoutConfig.from_pretrained(tmp_path / "ours")
    assert config.mask_settings == config_of("bert", n_masks=2).mask_settings
    again = PeftModel.from_pretrained(BASES["bert"](), tmp_path / "ours", config=config)
    loaded = load_adapter(BASES["bert"](), tmp_path / "ours")
    expected = ensemble_predict(model, batch("bert"), n_masks=2, seed=0).member_logits
    for other in (again, loaded):
        members = ensemble_predict(other, batch("bert"), n_masks=2, seed=0).member_logits
        torch.testing.assert_close(members, expected, **CLOSE)


def test_a_config_refuses_weights_that_it_cannot_undo(tmp_path: Path) -> None:
    save_adapter(with_masks(rescale=False), tmp_path)
    with pytest.raises(AdapterFileError, match=r"load it with `.*load_adapter`"):
        LoraDropoutConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options", [{"dropout_rate": 1.0}, {"n_masks": 0}, {"mask_scope": "x"}, {"mask_seed": -1}]
)
def test_configs_outside_their_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        config_of("bert", **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"use_dora": True}, ValueError),
        ({"lora_bias": True}, ValueError),
        ({"target_modules": ["word_embeddings"]}, ValueError),
    ],
)
def test_a_config_refuses_what_attaching_refuses(options: dict, error: type[Exception]) -> None:
    with pytest.raises(error, match="LoRA Dropout"):
        from_config("bert", config_of("bert", **options))
