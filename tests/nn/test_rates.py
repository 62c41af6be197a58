"""Rates per layer and per side: members, means, and what they become on disk."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lodrop_nn.adapter import (
    adapted_layers,
    attach_lora_dropout,
    delta_weights,
    detach_lora_dropout,
    mask_bank,
)
from lodrop_nn.adapter.config import LoraDropoutConfig
from lodrop_nn.adapter.report import adapter_report
from lodrop_nn.adapter.saving import load_adapter, save_adapter
from lodrop_nn.masks import MaskBank
from lodrop_nn.masks.settings import Rate
from tests.nn.by_hand import CLOSE, assert_members_are_masked_by_hand
from tests.nn.tiny import BASES, TARGETS, TASKS, adapted, inputs

# peft 0.19 looks for the base model's config on the hub, which models made here do not have.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")

PATTERN: dict[str, Rate] = {"query": (0.0, 0.5), r"layer\.1\..*\.dense": 0.2}
MODEL = adapted("bert")
rate = st.one_of(st.floats(0.0, 0.7), st.tuples(st.floats(0.0, 0.7), st.floats(0.0, 0.7)))


def from_config(**options: object) -> PeftModel:
    settings = {"dropout_rate": 0.4, "r": 3, "lora_alpha": 6, "init_lora_weights": False}
    settings |= {"target_modules": TARGETS["bert"], "task_type": TASKS["bert"]}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(BASES["bert"](), LoraDropoutConfig(**settings | options))


# -- members and means ------------------------------


@settings(max_examples=10)
@given(default=rate, query=rate, dense=rate, seed=st.integers(0, 99), rescale=st.booleans())
def test_members_under_rates_per_layer(
    default: Rate, query: Rate, dense: Rate, seed: int, rescale: bool
) -> None:
    pattern = {"query": query, r"layer\.1\..*\.dense": dense}
    bank = attach_lora_dropout(MODEL, default, rate_pattern=pattern, rescale=rescale)
    try:
        rates = {layer.name: (layer.input_rate, layer.output_rate) for layer in bank.layers}
        assert_members_are_masked_by_hand(MODEL, bank, inputs("bert"), 2, seed)
    finally:
        detach_lora_dropout(MODEL)
    for name, found in rates.items():
        expected = query if name.endswith("query") else default
        if "layer.1" in name and name.endswith("dense"):
            expected = dense
        assert found == (expected if isinstance(expected, tuple) else (expected, expected))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("layer_class", [nn.Linear, nn.Conv1d])
def test_the_mean_over_all_masks_is_the_output_without_masks(
    layer_class: type[nn.Module], rescale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (2, 3, 1) if layer_class is nn.Conv1d else (2, 3)
    config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(nn.Sequential(layer_class(*size)), config)
    bank = attach_lora_dropout(model, (0.3, 0.6), rescale=rescale)
    masks = torch.tensor(list(itertools.product([False, True], repeat=5)))
    kept = torch.tensor([0.7] * 2 + [0.4] * 3)
    weights = torch.where(masks, kept, 1 - kept).prod(1)
    monkeypatch.setattr(MaskBank, "draw", lambda *_: masks)
    x = torch.randn(1, 2, *size[2:], generator=torch.Generator().manual_seed(0))
    with bank.fixed(32):
        members = model(x.repeat(32, *[1] * (x.dim() - 1)))
    mean = torch.einsum("m,m...->...", weights, members)
    torch.testing.assert_close(mean, model.eval()(x)[0], **CLOSE)


@pytest.mark.parametrize("rescale", [True, False])
def test_masks_off_each_layer_has_its_own_mean(rescale: bool) -> None:
    model, plain = adapted("bert").eval(), adapted("bert").eval()
    stored = delta_weights(plain)
    attach_lora_dropout(model, 0.4, rate_pattern=PATTERN, rescale=rescale)
    for layer in adapted_layers(model):
        rates = PATTERN["query"] if layer.name.endswith("query") else (0.4, 0.4)
        if "layer.1" in layer.name and layer.name.endswith("dense"):
            rates = (0.2, 0.2)
        factor = 1.0 if rescale else (1 - rates[0]) * (1 - rates[1])
        torch.testing.assert_close(delta_weights(model)[layer.name], stored[layer.name] * factor)
        plain.get_submodule(layer.name).lora_B["default"].weight.data *= factor
    x = inputs("bert")
    torch.testing.assert_close(model(**x).logits, plain(**x).logits, **CLOSE)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**x).logits, plain(**x).logits, **CLOSE)


def test_rates_of_layers_with_ranks_of_their_own() -> None:
    model = adapted("bert", rank_pattern={"query": 1, "layer.1.output.dense": 5})
    assert {m.r["default"] for m in model.modules() if hasattr(m, "lora_A")} == {1, 3, 5}
    bank = attach_lora_dropout(model, 0.3, rate_pattern=PATTERN)
    assert_members_are_masked_by_hand(model, bank, inputs("bert"), 3, 0)


# -- on disk ------------------------------


@pytest.mark.parametrize("rescale", [True, False])
def test_patterns_and_pairs_come_back_from_disk(rescale: bool, tmp_path: Path) -> None:
    model = adapted("bert").eval()
    bank = attach_lora_dropout(model, (0.4, 0.1), rate_pattern=PATTERN, rescale=rescale, seed=2)
    save_adapter(model, tmp_path)
    x, mean = inputs("bert"), model(**inputs("bert")).logits
    plain = PeftModel.from_pretrained(BASES["bert"](), tmp_path)
    torch.testing.assert_close(plain(**x).logits, mean, **CLOSE)
    loaded = load_adapter(BASES["bert"](), tmp_path)
    assert mask_bank(loaded).settings == bank.settings
    torch.testing.assert_close(loaded(**x).logits, mean, **CLOSE)
    with bank.fixed(1, seed=4), mask_bank(loaded).fixed(1, seed=4):
        torch.testing.assert_close(loaded(**x).logits, model(**x).logits, **CLOSE)


ALPHAS = [
    {},
    {"dropout_rate": (0.2, 0.5)},
    {"rate_pattern": PATTERN},
    {"alpha_pattern": {"value": 500}},
    {"use_rslora": True},
]


@pytest.mark.parametrize("options", ALPHAS)
def test_what_peft_saves_of_a_config_loads_as_the_mean_predictor(
    options: dict, tmp_path: Path
) -> None:
    model = from_config(rescale=False, **options).eval()
    mask_bank(model)
    x, mean = inputs("bert"), model(**inputs("bert")).logits
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"].lora_alpha == 6
    plain = PeftModel.from_pretrained(BASES["bert"](), tmp_path)
    assert not isinstance(plain.peft_config["default"], LoraDropoutConfig)
    torch.testing.assert_close(plain(**x).logits, mean, **CLOSE)
    for loaded in (
        load_adapter(BASES["bert"](), tmp_path),
        PeftModel.from_pretrained(
            BASES["bert"](), tmp_path, config=LoraDropoutConfig.from_pretrained(tmp_path)
        ).eval(),
    ):
        config = loaded.peft_config["default"]
        assert (config.lora_alpha, config.alpha_pattern) == (6, options.get("alpha_pattern", {}))
        assert mask_bank(loaded).settings == mask_bank(model).settings
        for name, value in loaded.state_dict().items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0)
        torch.testing.assert_close(loaded(**x).logits, mean, **CLOSE)


@pytest.mark.parametrize("rescale", [True, False])
def test_the_mean_factor_is_folded_once(rescale: bool, tmp_path: Path) -> None:
    model = from_config(rescale=rescale).eval()
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 6
    x, mean = inputs("bert"), model(**inputs("bert")).logits
    plain = PeftModel.from_pretrained(BASES["bert"](), tmp_path)
    torch.testing.assert_close(plain(**x).logits, mean, **CLOSE)
    torch.testing.assert_close(load_adapter(BASES["bert"](), tmp_path)(**x).logits, mean, **CLOSE)


def test_alphas_that_cannot_hold_the_factor_stay_as_trained(tmp_path: Path) -> None:
    both = {"rate_pattern": PATTERN, "alpha_pattern": {"query": 5}}
    words = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    plain_embedding = LoraDropoutConfig(
        dropout_rate=0.4, rescale=False, r=2, lora_alpha=6, target_modules=["0", "1"]
    )
    for i, model in enumerate(
        [from_config(rescale=False, **both), get_peft_model(words, plain_embedding)]
    ):
        model.save_pretrained(tmp_path / str(i))
        plain = LoraConfig.from_pretrained(tmp_path / str(i))
        assert plain.lora_alpha == 6
        again = LoraDropoutConfig.from_pretrained(tmp_path / str(i))
        assert (again.lora_alpha, again.alpha_pattern) == (6, plain.alpha_pattern)


# -- a typo is not silent ------------------------------


@pytest.mark.parametrize("pattern", [{"qeury": 0.1}, {"query": 0.1, "layer.7": 0.2}, {"er": 0.1}])
def test_patterns_that_match_no_layer_are_refused(pattern: dict) -> None:
    model = adapted("bert")
    with pytest.raises(ValueError, match=r"`rate_pattern` must have keys .* got \['"):
        attach_lora_dropout(model, 0.4, rate_pattern=pattern)
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        mask_bank(model)
    model = from_config(rate_pattern=pattern)
    for _ in range(2):  # the layers keep their masks, and asking again does not help
        with pytest.raises(ValueError, match=r"`rate_pattern` must have keys"):
            mask_bank(model)
    assert not torch.equal(*(model.train()(**inputs("bert")).logits for _ in range(2)))


def test_a_pattern_of_embeddings_that_are_not_masked_is_refused() -> None:
    base = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "1"]))
    with pytest.raises(ValueError, match="which match none of 1 layers"):
        attach_lora_dropout(model, 0.4, rate_pattern={"0": 0.1})
    attach_lora_dropout(model, 0.4, rate_pattern={"0": 0.1}, mask_embeddings=True)


# -- the report ------------------------------


def test_the_report_lists_layers_rates_and_sparsity() -> None:
    model = adapted("bert")
    attach_lora_dropout(model, 0.4, rate_pattern=PATTERN)
    report = adapter_report(model, n_draws=300, seed=1)
    assert report.layers == tuple(adapted_layers(model))
    assert report.unmasked == {}
    for layer in report.layers:
        assert abs(report.sparsity.per_layer[layer.name] - layer.update_sparsity) < 0.05
    lines = str(report).splitlines()
    assert len(lines) == 2 + len(report.layers)
    for layer, line in zip(report.layers, lines[2:], strict=True):
        name, kind, n_in, n_out, p_in, p_out, expected, realized = line.split()
        assert (name, kind, int(n_in), int(n_out)) == (
            layer.name,
            "Linear",
            layer.in_features,
            layer.out_features,
        )
        assert (float(p_in), float(p_out)) == (layer.input_rate, layer.output_rate)
        assert expected == f"{1 - (1 - layer.input_rate) * (1 - layer.output_rate):.3f}"
        assert realized == f"{report.sparsity.per_layer[name]:.3f}"
    assert len({len(line) for line in lines[1:]}) == 1


def test_the_report_says_what_is_not_masked_and_why() -> None:
    base = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "1"]))
    attach_lora_dropout(model, 0.4)
    report = adapter_report(model)
    assert list(report.unmasked) == ["base_model.model.0"]
    assert "mask_embeddings is False" in str(report).splitlines()[-1]
    detach_lora_dropout(model)
    attach_lora_dropout(model, 0.4, mask_embeddings=True)
    assert adapter_report(model).unmasked == {}
