"""Several adapters on one model, each with masks of its own or none."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from lodrop_nn.adapter import attach_lora_dropout, detach_lora_dropout, mask_bank
from lodrop_nn.adapter.config import LoraDropoutConfig
from lodrop_nn.adapter.saving import load_adapter, save_adapter
from tests.nn.by_hand import CLOSE, assert_members_are_masked_by_hand, masked_by_hand
from tests.nn.tiny import BASES, TARGETS, adapted, batch, bert, gradients, inputs, lora_config

# peft 0.19 looks for the base model's config on the hub, which models made here do not have.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")

X = inputs("bert")


def two_adapters(kind: str = "bert", **options: object) -> PeftModel:
    model = adapted(kind)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model.add_adapter("other", lora_config(kind, **{"r": 2, **options}))
    return model


def test_each_adapter_has_its_own_rates_and_masks() -> None:
    model = two_adapters()
    banks = {
        "default": attach_lora_dropout(model, 0.4),
        "other": attach_lora_dropout(model, (0.1, 0.6), adapter_name="other", rescale=False),
    }
    for name in ("default", "other", "default"):
        model.set_adapter(name)
        assert_members_are_masked_by_hand(model, banks[name], X, 3, 1, name)
        # The masks of an adapter that is not active act on nothing.
        mean = model.eval()(**X).logits
        with banks["other" if name == "default" else "default"].fixed(1, seed=0):
            assert torch.equal(model(**X).logits, mean)
    assert mask_bank(model, "other") is banks["other"]


def test_adapters_that_are_active_together_are_masked_apart() -> None:
    model = two_adapters("llama").train()
    first = attach_lora_dropout(model, 0.4, seed=1)
    second = attach_lora_dropout(model, (0.1, 0.6), adapter_name="other", seed=1)
    model.base_model.set_adapter(["default", "other"])
    out = model(**batch("llama"))
    out.loss.backward()
    assert {name.split(".")[-2] for name in gradients(model) if "lora_A" in name} == {
        "default",
        "other",
    }
    reference = masked_by_hand(model, first, first.passes.draw.masks[0])
    reference = masked_by_hand(reference, second, second.passes.draw.masks[0], "other")
    torch.testing.assert_close(out.logits, reference(**inputs("llama")).logits, **CLOSE)
    both = model.eval()(**inputs("llama")).logits
    torch.testing.assert_close(
        copy.deepcopy(model).merge_and_unload()(**inputs("llama")).logits, both, **CLOSE
    )


def test_an_adapter_added_to_the_same_layers_has_no_masks_until_attached() -> None:
    model = adapted("bert").train()
    bank = attach_lora_dropout(model, 0.4)
    model.add_adapter("other", lora_config("bert"))
    with pytest.raises(ValueError, match="'other' has no LoRA Dropout"):
        mask_bank(model, "other")
    assert mask_bank(model) is bank
    model.set_adapter("other")
    assert torch.equal(*(model(**X).logits for _ in range(2)))
    attach_lora_dropout(model, 0.4, adapter_name="other")
    assert not torch.equal(*(model(**X).logits for _ in range(2)))


def test_deleting_an_adapter_leaves_the_masks_of_the_others() -> None:
    model = two_adapters()
    bank = attach_lora_dropout(model, 0.4)
    attach_lora_dropout(model, 0.1, adapter_name="other")
    model.delete_adapter("other")
    assert_members_are_masked_by_hand(model, bank, X, 2, 0)
    model.add_adapter("other", lora_config("bert"))
    with pytest.raises(ValueError, match="'other' has no LoRA Dropout"):
        mask_bank(model, "other")


@pytest.mark.parametrize("options", [{}, {"target_modules": ["key", "query"]}])
def test_a_config_for_a_further_adapter_is_refused(options: dict) -> None:
    """PEFT grows it inside the layers that exist, where it would train without masks."""
    model = adapted("bert")
    shared = {"dropout_rate": 0.5, "target_modules": TARGETS["bert"], **options}
    with pytest.raises(ValueError, match=r"defines the first adapter of a model.*`attach_lora_dro"):
        model.add_adapter("other", LoraDropoutConfig(**shared))
    assert list(model.peft_config) == ["default"]
    plain = adapted("bert")(**X).logits
    assert torch.equal(model(**X).logits, plain)
    # Layers that no adapter has taken are made by the config.
    model.add_adapter("new", LoraDropoutConfig(dropout_rate=0.5, target_modules=["key"]))
    assert len(mask_bank(model, "new").layers) == 2


def test_a_config_can_be_used_again_and_saved(tmp_path: Path) -> None:
    config = LoraDropoutConfig(dropout_rate=0.5, lora_dropout=0.25, target_modules=["query"])
    for model in (get_peft_model(bert(), copy.deepcopy(config)), get_peft_model(bert(), config)):
        layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
        assert [m.lora_dropout["default"].p for m in layers] == [0.25, 0.25]
        assert type(layers[0].lora_dropout["default"].p) is float
        assert len(mask_bank(model).layers) == 2
    model.save_pretrained(tmp_path)
    assert LoraConfig.from_pretrained(tmp_path).lora_dropout == 0.25


def test_modules_to_save_train_beside_masks(tmp_path: Path) -> None:
    model = adapted("bert", modules_to_save=["pooler"]).train()
    attach_lora_dropout(model, 0.4, rescale=False)
    model(**batch("bert")).loss.backward()
    trained = {name for name in gradients(model) if "lora_" not in name}
    assert any("pooler" in name for name in trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter += 0.1
    save_adapter(model.eval(), tmp_path)
    mean = model(**X).logits
    loaded = load_adapter(BASES["bert"](), tmp_path)
    torch.testing.assert_close(loaded(**X).logits, mean, **CLOSE)
    torch.testing.assert_close(
        PeftModel.from_pretrained(bert(), tmp_path)(**X).logits, mean, **CLOSE
    )


def test_the_second_adapter_is_saved_and_merged_alone(tmp_path: Path) -> None:
    model = two_adapters().eval()
    attach_lora_dropout(model, 0.4)
    attach_lora_dropout(model, (0.1, 0.6), adapter_name="other", rescale=False)
    model.set_adapter("other")
    mean = model(**X).logits
    save_adapter(model, tmp_path, "other")
    plain = PeftModel.from_pretrained(bert(), tmp_path)
    torch.testing.assert_close(plain(**X).logits, mean, **CLOSE)
    model.merge_adapter(["other"])
    torch.testing.assert_close(model(**X).logits, mean, **CLOSE)
    model.unmerge_adapter()
    model.set_adapter("default")
    detach_lora_dropout(model)
    torch.testing.assert_close(model(**X).logits, adapted("bert").eval()(**X).logits, **CLOSE)
    with model.disable_adapter():
        torch.testing.assert_close(model(**X).logits, bert().eval()(**X).logits, **CLOSE)


# -- adapters that cannot have masks ------------------------------


def test_a_bias_that_only_one_adapter_trains_stops_that_adapter_only() -> None:
    model = two_adapters(lora_bias=True)
    attach_lora_dropout(model, 0.4)
    with pytest.raises(ValueError, match="adapter 'other' trains a bias of lora_B"):
        attach_lora_dropout(model, 0.4, adapter_name="other")


@pytest.mark.parametrize("name", ["x", "", "query"])
def test_unknown_names_are_refused(name: str) -> None:
    model = adapted("bert")
    with pytest.raises(ValueError, match=r"`adapter_name` must be one of \['default'\], got "):
        attach_lora_dropout(model, 0.4, adapter_name=name)


def test_an_adapter_without_layers_is_refused() -> None:
    base = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["1"]))
    model.set_adapter("other")
    model.delete_adapter("default")
    with pytest.raises(ValueError, match="must be one of"):
        attach_lora_dropout(model, 0.4)
    assert len(attach_lora_dropout(model, 0.4, adapter_name="other").layers) == 1
