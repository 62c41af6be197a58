"""LoRA Dropout on PEFT models: what it computes, what it leaves alone, what it refuses."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lodrop_nn.adapter import (
    adapted_layers,
    attach_lora_dropout,
    delta_weights,
    detach_lora_dropout,
    mask_bank,
    realized_sparsity,
)
from lodrop_nn.masks import MaskBank
from lodrop_nn.train.tiling import tile_batch
from tests.nn.tiny import BASES, adapted, batch, bert, gradients, inputs, llama, lora_config

KINDS = tuple(BASES)
MODELS = {kind: adapted(kind) for kind in KINDS}


def masked_by_hand(model: PeftModel, bank: MaskBank, masks: Tensor) -> PeftModel:
    """An ordinary LoRA model whose factors are multiplied by one mask each."""
    model = copy.deepcopy(model)
    detach_lora_dropout(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    assert list(layers) == [layer.name for layer in bank.layers]
    for slot, layer in enumerate(layers.values()):
        columns, rows = bank.split(masks[None], slot)
        layer.lora_A["default"].weight.data *= columns
        kept = bank.layers[slot].mean_factor / (1 - bank.dropout_rate) ** 2
        layer.lora_B["default"].weight.data *= rows.T * kept
    return model


# -- what it computes ------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6)
@given(
    p=st.floats(0.0, 0.8),
    n_masks=st.integers(1, 3),
    seed=st.integers(0, 99),
    rescale=st.booleans(),
    training=st.booleans(),
)
def test_members_are_ordinary_adapters_with_masked_factors(
    kind: str, p: float, n_masks: int, seed: int, rescale: bool, training: bool
) -> None:
    model = MODELS[kind]
    bank = attach_lora_dropout(model, p, rescale=rescale)
    try:
        model.train(training)
        x = inputs(kind)
        with bank.fixed(n_masks, seed):
            members = model(**tile_batch(x, n_masks)).logits.unflatten(0, (n_masks, -1))
        for member, masks in zip(members, bank.draw(n_masks, seed), strict=True):
            reference = masked_by_hand(model, bank, masks)(**x).logits
            torch.testing.assert_close(member, reference, rtol=1e-3, atol=1e-5)
    finally:
        detach_lora_dropout(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_masks", [1, 3])
def test_training_passes_use_the_masks_that_the_bank_reports(kind: str, n_masks: int) -> None:
    model = adapted(kind).train()
    bank = attach_lora_dropout(model, 0.4, n_masks=n_masks, seed=7)
    x = inputs(kind)
    outputs = [model(**tile_batch(x, n_masks)).logits for _ in range(2)]
    assert not torch.equal(*outputs)  # new masks in each pass
    members = outputs[-1].unflatten(0, (n_masks, -1))
    for member, masks in zip(members, bank.passes.draw.masks, strict=True):
        reference = masked_by_hand(model, bank, masks)(**x).logits
        torch.testing.assert_close(member, reference, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_mask_per_example(kind: str) -> None:
    model = adapted(kind).train()
    bank = attach_lora_dropout(model, 0.4, mask_scope="example", seed=7)
    for rows in (4, 3):
        x = inputs(kind, rows=rows)
        out = model(**x).logits
        assert len(bank.passes.draw.masks) == rows
        for i, masks in enumerate(bank.passes.draw.masks):
            mine = {name: value[i : i + 1] for name, value in x.items()}
            reference = masked_by_hand(model, bank, masks)(**mine).logits
            torch.testing.assert_close(out[i : i + 1], reference, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradient_of_a_tiled_batch_is_the_mean_over_its_instances(kind: str) -> None:
    model = adapted(kind).train()
    bank = attach_lora_dropout(model, 0.4)
    with bank.fixed(3, seed=2):
        model(**tile_batch(batch(kind), 3)).loss.backward()
        tiled = gradients(model)
        model.zero_grad()
        for i in range(3):
            with bank.members(i, i + 1):
                (model(**batch(kind)).loss / 3).backward()
    separate = gradients(model)
    assert tiled.keys() == separate.keys()
    assert sum(float(g.abs().sum()) for g in tiled.values()) > 0
    for name, gradient in tiled.items():
        torch.testing.assert_close(gradient, separate[name], rtol=1e-3, atol=1e-6)


def test_dropped_coordinates_get_no_gradient() -> None:
    model = adapted("bert").train()
    bank = attach_lora_dropout(model, 0.5, seed=3)
    model(**batch("bert")).loss.backward()
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    for slot, layer in enumerate(layers):
        columns, rows = bank.split(bank.passes.draw.masks, slot)
        assert not layer.lora_A["default"].weight.grad[:, ~columns[0]].any()
        assert not layer.lora_B["default"].weight.grad[~rows[0]].any()


def test_forward_under_autocast_stays_near_full_precision() -> None:
    model = adapted("llama").train()
    bank = attach_lora_dropout(model, 0.4)
    with bank.fixed(2):
        full = model(**tile_batch(inputs("llama"), 2)).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(**tile_batch(inputs("llama"), 2)).logits
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.05)


# -- what it leaves alone ------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rescale", [True, False])
def test_attaching_changes_no_key_and_detaching_changes_nothing(kind: str, rescale: bool) -> None:
    model = adapted(kind).eval()
    keys, plain = list(model.state_dict()), model(**inputs(kind)).logits
    attach_lora_dropout(model, 0.4, rescale=rescale)
    assert list(model.state_dict()) == keys
    mean = model(**inputs(kind)).logits
    assert torch.equal(mean, model(**inputs(kind)).logits)
    # Rescaled masks have the stored adapter as their mean, masks of the paper's form a weaker one.
    assert torch.allclose(mean, plain, rtol=1e-5, atol=1e-6) == rescale
    detach_lora_dropout(model)
    assert torch.equal(model.train()(**inputs(kind)).logits, plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rescale", [True, False])
def test_merging_gives_the_mean_predictor(kind: str, rescale: bool) -> None:
    model = adapted(kind).eval()
    bank = attach_lora_dropout(model, 0.4, rescale=rescale)
    x = inputs(kind)
    mean = model(**x).logits
    with bank.off():
        assert torch.equal(model.train()(**x).logits, mean)
    model.eval()
    close = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(copy.deepcopy(model).merge_and_unload()(**x).logits, mean, **close)
    for safe in (True, False):
        model.merge_adapter(safe_merge=safe)
        torch.testing.assert_close(model(**x).logits, mean, **close)
        model.unmerge_adapter()
        torch.testing.assert_close(model(**x).logits, mean, **close)
    updates = delta_weights(model)
    base = BASES[kind]()
    with torch.no_grad():
        for name, update in updates.items():
            layer = base.get_submodule(name.removeprefix("base_model.model."))
            layer.weight += update.T if kind == "gpt2" and layer.nf else update
    torch.testing.assert_close(base.eval()(**x).logits, mean, **close)


@pytest.mark.parametrize("rescale", [True, False])
def test_merged_adapters_get_and_lose_no_masks(rescale: bool) -> None:
    """Unmerging must take away the update that merging added."""
    model = adapted("bert")
    plain = copy.deepcopy(model.state_dict())
    model.merge_adapter()
    with pytest.raises(ValueError, match="must not be merged into"):
        attach_lora_dropout(model, 0.5, rescale=rescale)
    model.unmerge_adapter()
    attach_lora_dropout(model, 0.5, rescale=rescale)
    model.merge_adapter()
    with pytest.raises(ValueError, match="must not be merged into"):
        detach_lora_dropout(model)
    model.unmerge_adapter()
    detach_lora_dropout(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-6)


def test_a_disabled_adapter_leaves_the_base_model() -> None:
    model = adapted("bert").train()
    attach_lora_dropout(model, 0.4)
    with model.disable_adapter():
        disabled = model(**inputs("bert")).logits
    assert torch.equal(disabled, bert().train()(**inputs("bert")).logits)


def test_two_adapters_have_masks_of_their_own() -> None:
    model = adapted("bert")
    model.add_adapter("other", lora_config("bert", r=2))
    first = attach_lora_dropout(model, 0.4)
    second = attach_lora_dropout(model, 0.2, adapter_name="other")
    assert mask_bank(model) is first
    assert mask_bank(model, "other") is second
    model.set_adapter("other")
    model.train()(**batch("bert")).loss.backward()
    assert any("other" in name for name in gradients(model))
    detach_lora_dropout(model, "other")
    assert mask_bank(model) is first
    model.set_adapter("default")
    model.delete_adapter("other")
    assert not torch.equal(*(model.train()(**inputs("bert")).logits for _ in range(2)))


def test_adapters_mixed_in_one_batch_run_without_masks_only() -> None:
    model = adapted("bert").eval()
    bank = attach_lora_dropout(model, 0.4)
    x = inputs("bert")
    expected = model(**x).logits
    mixed = model(**x, adapter_names=["default", "__base__"] * 2).logits
    torch.testing.assert_close(mixed[::2], expected[::2])
    with bank.fixed(2), pytest.raises(ValueError, match="`adapter_names`"):
        model(**x, adapter_names=["default", "__base__"] * 2)


def test_copies_have_masks_of_their_own() -> None:
    model = adapted("bert").train()
    bank = attach_lora_dropout(model, 0.4, seed=0)
    other = copy.deepcopy(model)
    out = [other(**inputs("bert")).logits for _ in range(2)]
    assert not torch.equal(*out)
    assert (bank.passes.n_drawn, mask_bank(other).passes.n_drawn) == (0, 2)
    assert torch.equal(model(**inputs("bert")).logits, out[0])  # the same seed, the same masks
    detach_lora_dropout(other)
    model(**inputs("bert"))
    assert bank.passes.n_drawn == 2


def test_a_pickled_model_keeps_its_masks() -> None:
    model = adapted("bert").train()
    attach_lora_dropout(model, 0.4, seed=0)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    assert mask_bank(other).seed == 0
    assert torch.equal(other(**inputs("bert")).logits, model(**inputs("bert")).logits)


# -- what it reports ------------------------------


@given(p=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_realized_sparsity_is_near_its_law(p: float, seed: int) -> None:
    model = MODELS["bert"]
    attach_lora_dropout(model, p)
    try:
        report = realized_sparsity(model, n_draws=400, seed=seed)
        layers = adapted_layers(model)
    finally:
        detach_lora_dropout(model)
    assert abs(report.value - (2 * p - p**2)) < 0.05
    assert list(report.per_layer) == [layer.name for layer in layers]
    sizes = [layer.in_features * layer.out_features for layer in layers]
    weighted = sum(s * v for s, v in zip(sizes, report.per_layer.values(), strict=True))
    assert math.isclose(report.value, weighted / sum(sizes), rel_tol=1e-9)
    assert {(layer.input_rate, layer.output_rate) for layer in layers} == {(p, p)}
    assert math.isclose(layers[0].update_sparsity, 2 * p - p**2, rel_tol=1e-9)


@pytest.mark.parametrize("options", [{}, {"layers_to_transform": [1], "layers_pattern": "layer"}])
def test_adapted_layers_lists_what_peft_adapted(options: dict) -> None:
    model = adapted("bert", **options)
    attach_lora_dropout(model, 0.4)
    expected = [n for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    assert [layer.name for layer in adapted_layers(model)] == expected
    assert all(("layer.1" in name) for name in expected) == bool(options)


# -- what it refuses ------------------------------


def test_models_without_the_adapter_are_refused() -> None:
    with pytest.raises(TypeError, match=r"`model` must be a peft.PeftModel, got BertForSeq"):
        attach_lora_dropout(bert(), 0.5)
    model = adapted("bert")
    with pytest.raises(ValueError, match=r"`adapter_name` must be one of \['default'\], got 'x'"):
        attach_lora_dropout(model, 0.5, adapter_name="x")
    for ask in (mask_bank, detach_lora_dropout, adapted_layers):
        with pytest.raises(ValueError, match="has no LoRA Dropout: call `attach_lora_dropout`"):
            ask(model)


def test_adapters_of_another_kind_are_refused() -> None:
    from peft import IA3Config

    model = get_peft_model(
        bert(), IA3Config(target_modules=["key"], feedforward_modules=[], task_type="SEQ_CLS")
    )
    with pytest.raises(ValueError, match=r"adapter 'default' \(IA3Config\) has no LoRA layer"):
        attach_lora_dropout(model, 0.5)


def test_other_variants_and_biases_are_refused() -> None:
    with pytest.raises(ValueError, match="is the LoRA variant DoraLinearVariant in layer"):
        attach_lora_dropout(adapted("bert", use_dora=True), 0.5)
    with pytest.raises(ValueError, match="use `lora_bias=False`"):
        attach_lora_dropout(adapted("bert", lora_bias=True), 0.5)
    model = adapted("bert")
    attach_lora_dropout(model, 0.5)
    with pytest.raises(ValueError, match="already has LoRA Dropout: call `detach_lora_dropout`"):
        attach_lora_dropout(model, 0.5)


@pytest.mark.parametrize("p", [1.0, -0.1, math.nan, math.inf])
def test_rates_outside_their_range_are_refused_before_any_change(p: float) -> None:
    model = adapted("bert")
    with pytest.raises(ValueError, match=r"`dropout_rate` must be in \[0, 1\), or a pair"):
        attach_lora_dropout(model, p)
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        mask_bank(model)


def test_a_batch_that_does_not_hold_the_instances_is_refused() -> None:
    model = adapted("llama").train()
    attach_lora_dropout(model, 0.5, n_masks=3)
    with pytest.raises(ValueError, match=r"multiple of the 3 masks.*\(4, 6, 16\).*tile_batch"):
        model(**inputs("llama", rows=4))
    model(**inputs("llama", rows=6))  # the error left nothing behind


def test_llama_generates_under_constant_masks() -> None:
    model = adapted("llama").eval()
    bank = attach_lora_dropout(model, 0.4)
    prompt = tile_batch(inputs("llama", rows=2, tokens=4), 3)
    with bank.fixed(3, seed=0):
        tokens = model.generate(**prompt, max_new_tokens=5, do_sample=False)
        # One pass over the whole text, without a cache, must choose the same tokens.
        chosen = model(input_ids=tokens).logits[:, 3:-1].argmax(-1)
    generated = tokens[:, 4:]
    stopped = (generated == llama().config.eos_token_id).cumsum(1) > 0
    assert bool(((chosen == generated) | stopped).all())
    assert len({tuple(row) for row in generated[::2].tolist()}) > 1  # members differ
