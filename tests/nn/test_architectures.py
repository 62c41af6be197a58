"""LoRA Dropout on all linear layers of tiny models of several architectures."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer

from lodrop_nn.adapter import adapted_layers, attach_lora_dropout, detach_lora_dropout
from lodrop_nn.train.tiling import tile_batch
from tests.nn.architectures import BASES, adapted, base, inputs
from tests.nn.by_hand import CLOSE, assert_members_are_masked_by_hand, masked_by_hand

MODELS = {kind: adapted(kind) for kind in BASES}
# DeBERTa projects its relative positions once for all rows, so a pass has one mask.
ONE_MASK = ("deberta",)


@pytest.mark.parametrize("kind", list(BASES))
@settings(max_examples=2)
@given(
    rates=st.tuples(st.floats(0.0, 0.6), st.floats(0.0, 0.6)),
    n_masks=st.integers(1, 3),
    seed=st.integers(0, 99),
    rescale=st.booleans(),
)
def test_members_are_ordinary_adapters_with_masked_factors(
    kind: str, rates: tuple[float, float], n_masks: int, seed: int, rescale: bool
) -> None:
    model = MODELS[kind].eval()
    bank = attach_lora_dropout(model, rates, rescale=rescale)
    try:
        assert_members_are_masked_by_hand(
            model, bank, inputs(kind), n_masks, seed, in_one_pass=kind not in ONE_MASK, atol=1e-4
        )
    finally:
        detach_lora_dropout(model)


@pytest.mark.parametrize("kind", list(BASES))
def test_every_linear_layer_is_masked_and_nothing_changes_in_evaluation(kind: str) -> None:
    model = MODELS[kind].eval()
    plain = model(**inputs(kind)).logits
    attach_lora_dropout(model, 0.4)
    try:
        found = [layer.name for layer in adapted_layers(model)]
        assert found == [n for n, m in model.named_modules() if isinstance(m, LoraLayer)]
        assert len(found) == {"albert": 8, "mixtral": 8}.get(kind, len(found)) > 4
        torch.testing.assert_close(model(**inputs(kind)).logits, plain, **CLOSE)
        merged = copy.deepcopy(model).merge_and_unload()
        torch.testing.assert_close(merged(**inputs(kind)).logits, plain, **CLOSE)
    finally:
        detach_lora_dropout(model)


@pytest.mark.parametrize("kind", list(BASES))
def test_a_training_pass_is_one_draw_for_all_layers(kind: str) -> None:
    """Also of an encoder and its decoder, and of blocks that share their weights."""
    model = MODELS[kind].train()
    n_masks = 1 if kind in ONE_MASK else 2
    bank = attach_lora_dropout(model, 0.4, n_masks=n_masks, seed=5)
    try:
        tiled = tile_batch(inputs(kind), n_masks)
        out = model(**tiled).logits.unflatten(0, (n_masks, -1))
        assert bank.passes.n_drawn == 1
        assert not bank.passes.alone
        for member, masks in zip(out, bank.passes.draw.masks, strict=True):
            reference = masked_by_hand(model, bank, masks)(**inputs(kind)).logits
            torch.testing.assert_close(member, reference, rtol=1e-3, atol=1e-4)
    finally:
        detach_lora_dropout(model)


@pytest.mark.parametrize("options", [{"n_masks": 2}, {"mask_scope": "example"}])
def test_inputs_that_all_rows_share_take_one_mask(options: dict) -> None:
    model = MODELS["deberta"].train()
    attach_lora_dropout(model, 0.4, **options)
    try:
        with pytest.raises(ValueError, match=r"got shape \(1, 8, 16\).*DeBERTa's relative posit"):
            model(**tile_batch(inputs("deberta"), 2))
    finally:
        detach_lora_dropout(model)


def test_t5_generates_under_constant_masks() -> None:
    """Encoder and decoder keep their member through all steps, with and without a cache."""
    model = MODELS["t5"].eval()
    bank = attach_lora_dropout(model, 0.4)
    prompt = {k: v for k, v in inputs("t5").items() if not k.startswith("decoder")}
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    try:
        with bank.fixed(3, seed=1):
            together = model.generate(**tile_batch(prompt, 3), **options)
            recomputed = model.generate(**tile_batch(prompt, 3), use_cache=False, **options)
        assert torch.equal(together, recomputed)
        for tokens, masks in zip(together.unflatten(0, (3, -1)), bank.draw(3, 1), strict=True):
            alone = masked_by_hand(model, bank, masks).generate(**prompt, **options)
            assert torch.equal(tokens, alone)
        assert len({tuple(row) for row in together[::3].tolist()}) > 1  # members differ
    finally:
        detach_lora_dropout(model)


def test_a_disabled_adapter_leaves_the_base_model() -> None:
    for kind in ("t5", "mixtral"):
        model = MODELS[kind].train()
        bank = attach_lora_dropout(model, 0.4)
        with model.disable_adapter(), bank.fixed(1):
            disabled = model(**inputs(kind)).logits
        detach_lora_dropout(model)
        torch.testing.assert_close(disabled, base(kind).train()(**inputs(kind)).logits)
