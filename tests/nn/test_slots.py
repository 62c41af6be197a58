"""Masks in slots act as masks on factors, and reach layers that consult no variant."""

import copy
import io
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.lora.aqlm import AqlmLoraLinear
from peft.tuners.lora.awq import AwqLoraLinear
from peft.tuners.lora.te import TeLinear
from torch import nn

from lodrop_nn.adapter import attach_lora_dropout, detach_lora_dropout, kinds, mask_bank
from lodrop_nn.adapter.slots import SlotKind, SlotMask
from lodrop_nn.train.tiling import tile_batch
from tests.nn.by_hand import CLOSE, assert_members_are_masked_by_hand
from tests.nn.tiny import adapted, batch, bert, enable_checkpointing, gradients, inputs

FIXED_FORWARDS = [AwqLoraLinear, AqlmLoraLinear, TeLinear]


class SlotsOnLinear(SlotKind):
    """The slots, forced onto the layers that have the better way."""

    def matches(self, layer: LoraLayer) -> bool:
        return type(layer) is Linear


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "KINDS", (SlotsOnLinear(),))


def with_forward_of(layer_class: type[LoraLayer], name: str = "bert") -> PeftModel:
    """PEFT's layers of a backend around ordinary weights, which stand in for quantized ones."""
    model = adapted(name)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.__class__ = layer_class
            layer.quant_linear_module = layer.base_layer
    return model


MODELS = {layer_class: with_forward_of(layer_class) for layer_class in FIXED_FORWARDS}


# -- the same as the variant ------------------------------


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("options", [{}, {"n_masks": 2}, {"mask_scope": "example"}])
def test_slots_equal_the_variant_in_training(
    kind: str, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = adapted(kind).train()
    bank = attach_lora_dropout(slots, (0.3, 0.5), seed=3, **options)
    tiled = tile_batch(batch(kind), options.get("n_masks", 1))
    results = [slots(**tiled)]
    results[0].loss.backward()
    monkeypatch.undo()
    other = adapted(kind).train()
    bank = attach_lora_dropout(other, (0.3, 0.5), seed=3, **options)
    results.append(other(**tiled))
    results[1].loss.backward()
    assert bank.passes.n_drawn == 1
    torch.testing.assert_close(results[0].logits, results[1].logits, **CLOSE)
    expected = gradients(other)
    assert len(expected) > 4
    for name, gradient in gradients(slots).items():
        torch.testing.assert_close(gradient, expected[name], **CLOSE)


@pytest.mark.usefixtures("forced")
def test_slots_change_no_key_and_give_way_without_a_trace() -> None:
    model = adapted("bert", lora_dropout=0.1).eval()
    keys, text, plain = list(model.state_dict()), repr(model), model(**inputs("bert")).logits
    attach_lora_dropout(model, 0.4)
    assert any(isinstance(m, SlotMask) for m in model.modules())
    assert list(model.state_dict()) == keys
    assert torch.equal(model(**inputs("bert")).logits, plain)
    detach_lora_dropout(model)
    assert repr(model) == text
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(model(**inputs("bert")).logits, plain)


@pytest.mark.usefixtures("forced")
def test_merging_slots_adds_the_mean_update() -> None:
    model = adapted("bert").eval()
    attach_lora_dropout(model, 0.4)
    mean = model(**inputs("bert")).logits
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(merged(**inputs("bert")).logits, mean, **CLOSE)
    assert not any(isinstance(m, SlotMask) for m in merged.modules())
    model.merge_adapter()
    torch.testing.assert_close(model(**inputs("bert")).logits, mean, **CLOSE)
    model.unmerge_adapter()
    torch.testing.assert_close(model(**inputs("bert")).logits, mean, **CLOSE)


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_have_slots_of_their_own(way: str) -> None:
    model = adapted("bert").train()
    bank = attach_lora_dropout(model, 0.4, seed=0)
    if way == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    out = [other(**inputs("bert")).logits for _ in range(2)]
    assert not torch.equal(*out)
    assert (bank.passes.n_drawn, mask_bank(other).passes.n_drawn) == (0, 2)
    assert torch.equal(model(**inputs("bert")).logits, out[0])  # the same seed, the same masks
    detach_lora_dropout(other)
    plain = adapted("bert")(**inputs("bert")).logits
    torch.testing.assert_close(other(**inputs("bert")).logits, plain)
    assert not torch.equal(model(**inputs("bert")).logits, plain)


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("reentrant", [True, False])
def test_slots_under_gradient_checkpointing(reentrant: bool) -> None:
    results = []
    for checkpoint in (False, True):
        model = adapted("llama").train()
        attach_lora_dropout(model, 0.4, seed=1)
        if checkpoint:
            model.enable_input_require_grads()
            enable_checkpointing(model, use_reentrant=reentrant)
        model(**batch("llama")).loss.backward()
        results.append({k: v for k, v in gradients(model).items() if "lora_" in k})
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, **CLOSE)


@pytest.mark.usefixtures("forced")
def test_an_adapter_can_be_deleted_and_made_again() -> None:
    model = adapted("bert").train()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    attach_lora_dropout(model, 0.4)
    attach_lora_dropout(model, 0.4, adapter_name="other")
    model.delete_adapter("other")
    with pytest.raises(ValueError, match="must be one of"):
        mask_bank(model, "other")
    model.add_adapter("other", LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        mask_bank(model, "other")
    attach_lora_dropout(model, 0.2, adapter_name="other")
    model(**inputs("bert"))
    assert mask_bank(model).passes.n_drawn == 1


# -- layers that consult no variant ------------------------------


@pytest.mark.parametrize("layer_class", FIXED_FORWARDS)
@settings(max_examples=5)
@given(
    rates=st.tuples(st.floats(0.0, 0.7), st.floats(0.0, 0.7)),
    n_masks=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_members_over_layers_with_a_fixed_forward(
    layer_class: type[LoraLayer], rates: tuple[float, float], n_masks: int, seed: int
) -> None:
    model = MODELS[layer_class].eval()
    bank = attach_lora_dropout(model, rates)
    try:
        assert_members_are_masked_by_hand(model, bank, inputs("bert"), n_masks, seed)
    finally:
        detach_lora_dropout(model)


@pytest.mark.parametrize("layer_class", FIXED_FORWARDS)
def test_slots_in_half_precision(layer_class: type[LoraLayer]) -> None:
    """Weights in bf16 and factors in fp32, as PEFT keeps them over quantized weights."""
    model = with_forward_of(layer_class).to(torch.bfloat16).train()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    attach_lora_dropout(model, 0.4, seed=0)
    out = model(**batch("bert"))
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    assert all(g.dtype == torch.float32 for n, g in gradients(model).items() if "lora_" in n)


def test_masks_that_are_not_rescaled_are_refused_in_slots() -> None:
    model = with_forward_of(AwqLoraLinear)
    with pytest.raises(ValueError, match=r"`rescale` must be True for layer .*AwqLoraLinear"):
        attach_lora_dropout(model, 0.5, rescale=False)
    assert not any(isinstance(m, SlotMask) for m in model.modules())
    attach_lora_dropout(model, 0.5)


def test_megatron_layers_are_refused_with_the_reason() -> None:
    model = get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"]))
    layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
    parallel = type("LoraParallelLinear", (nn.Module, LoraLayer), {})
    layer.__class__ = parallel
    with pytest.raises(NotImplementedError, match=r"LoraParallelLinear.*tensor parallelism"):
        attach_lora_dropout(model, 0.5)


def test_backends_need_not_be_installed() -> None:
    assert "eetq" not in sys.modules
    assert SlotKind().matches(MODELS[TeLinear].base_model.model.bert.encoder.layer[0].output.dense)
