"""LoRA Dropout on AdaLoRA adapters."""

import copy
import importlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AdaLoraConfig, PeftModel, get_peft_model
from peft.tuners.adalora.layer import AdaLoraLayer, SVDLinear
from torch import Tensor, nn

from lodrop_nn.adapter import (
    attach_lora_dropout,
    delta_weights,
    detach_lora_dropout,
    mask_bank,
)
from lodrop_nn.adapter.saving import load_adapter, save_adapter
from lodrop_nn.predict.ensemble import ensemble_predict
from lodrop_nn.train.tiling import tile_batch
from tests.nn import tiny

# peft 0.19 looks for the base model's config on the hub, which models made here do not have.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    # peft 0.21 takes AdaLoRA's `rank_pattern` for LoRA's and says that its keys match nothing.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match"),
]


def config(kind: str = "bert", **options: Any) -> AdaLoraConfig:
    values: dict[str, Any] = {
        "init_r": 4,
        "target_r": 2,
        "tinit": 1,
        "tfinal": 1,
        "total_step": 6,
        "lora_alpha": 8,
        "target_modules": tiny.TARGETS[kind],
        "task_type": tiny.TASKS[kind],
        "fan_in_fan_out": kind == "gpt2",
    }
    return AdaLoraConfig(**{**values, **options})


def adapted(kind: str = "bert", **options: Any) -> PeftModel:
    """A tiny model with a random AdaLoRA adapter; the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(tiny.BASES[kind](), config(kind, **options))
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                nn.init.normal_(parameter)
        return model


def layers(model: nn.Module) -> dict[str, AdaLoraLayer]:
    return {name: x for name, x in model.named_modules() if isinstance(x, AdaLoraLayer)}


def logits(model: nn.Module, batch: dict[str, Tensor] | None = None) -> Tensor:
    output: Tensor = model(**(batch or tiny.inputs("bert"))).logits
    return output


def prune(model: PeftModel) -> None:
    """Train six steps, in which AdaLoRA prunes ranks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(1, 7):
        model(**tiny.batch("bert", seed=step)).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@given(rate=st.floats(0.05, 0.9), seed=st.integers(0, 2**31))
@settings(max_examples=4)
def test_members_are_adalora_with_masked_p_and_q(kind: str, rate: float, seed: int) -> None:
    model = adapted(kind).eval()
    bank = attach_lora_dropout(model, rate)
    batch = tiny.inputs(kind)
    with bank.fixed(3, seed):
        masked = model(**tile_batch(batch, 3)).logits.unflatten(0, (3, -1))
    masks = bank.draw(3, seed)
    for member in range(3):
        plain = adapted(kind).eval()
        for slot, layer in enumerate(bank.layers):
            columns, rows = (mask[member].float() for mask in bank.split(masks, slot))
            by_hand = plain.get_submodule(layer.name)
            with torch.no_grad():
                by_hand.lora_A["default"] *= columns / (1 - rate)
                by_hand.lora_B["default"] *= rows[:, None] / (1 - rate)
        torch.testing.assert_close(masked[member], plain(**batch).logits, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_members_on_average() -> None:
    tiled, single = adapted(), adapted()
    bank = attach_lora_dropout(tiled, 0.5, n_masks=3, seed=5)
    tiled.train()(**tile_batch(tiny.batch("bert"), 3)).loss.backward()
    other = attach_lora_dropout(single, 0.5)
    draw = bank.passes.draw
    assert draw is not None
    for member in range(3):
        other._fixed = draw.rows(member, member + 1)
        (single(**tiny.batch("bert")).loss / 3).backward()
    for name, gradient in tiny.gradients(tiled).items():
        torch.testing.assert_close(single.get_parameter(name).grad, gradient)
    slot, layer = 0, bank.layers[0]
    columns = bank.split(draw.masks, slot)[0]
    gradient = tiled.get_submodule(layer.name).lora_E["default"].grad
    assert gradient.abs().min() > 0  # Lambda is never masked
    assert not columns.all()


def test_the_orthogonality_loss_is_that_of_the_stored_factors() -> None:
    model = adapted(orth_reg_weight=10.0).eval()
    attach_lora_dropout(model, 0.5)
    batch = tiny.batch("bert")
    with mask_bank(model).fixed(1, seed=0):
        masked, loss = logits(model, tiny.inputs("bert")), model(**batch).loss
    norms = [
        torch.linalg.norm(gram - torch.eye(len(gram)))
        for layer in layers(model).values()
        for gram in (
            layer.lora_A["default"] @ layer.lora_A["default"].T,
            layer.lora_B["default"].T @ layer.lora_B["default"],
        )
    ]
    expected = nn.functional.cross_entropy(masked, batch["labels"]) + 10 * torch.stack(norms).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_is_unchanged_by_attaching(dtype: torch.dtype) -> None:
    model = adapted().to(dtype).eval()
    before = logits(model)
    attach_lora_dropout(model, 0.5)
    assert torch.equal(logits(model), before)
    assert before.dtype == logits(model.train()).dtype == dtype


@pytest.mark.parametrize("rescale", [True, False])
def test_a_pruned_adapter_is_saved_for_plain_peft(rescale: bool, tmp_path: Path) -> None:
    model = adapted().train()
    attach_lora_dropout(model, 0.5, rescale=rescale, seed=0)
    prune(model)
    pattern = model.peft_config["default"].rank_pattern
    assert sum(map(sum, pattern.values())) == 2 * len(layers(model)) < 4 * len(layers(model))
    expected = logits(model.eval())
    save_adapter(model, tmp_path)
    plain = PeftModel.from_pretrained(tiny.bert(), tmp_path).eval()
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)
    ranks = [len(layer.lora_E["default"]) for layer in layers(plain).values()]
    assert sum(ranks) == 2 * len(ranks)
    ours = load_adapter(tiny.bert(), tmp_path).eval()
    torch.testing.assert_close(logits(ours), expected, rtol=1e-4, atol=1e-5)
    members = (
        ensemble_predict(x, tiny.inputs("bert"), n_masks=4, seed=0).member_logits
        for x in (model, ours)
    )
    torch.testing.assert_close(*members, rtol=1e-4, atol=1e-5)


def test_labels_at_inference(tmp_path: Path) -> None:
    """PEFT leaves `trainable_adapter_name` unset on an AdaLoRA model loaded for inference."""
    model = adapted().eval()
    attach_lora_dropout(model, 0.5)
    save_adapter(model, tmp_path)
    expected = model(**tiny.batch("bert")).loss
    plain = PeftModel.from_pretrained(tiny.bert(), tmp_path).eval()
    with pytest.raises(AttributeError, match="trainable_adapter_name"):
        plain(**tiny.batch("bert"))
    attach_lora_dropout(plain, 0.5)
    torch.testing.assert_close(plain(**tiny.batch("bert")).loss, expected)
    ours = load_adapter(tiny.bert(), tmp_path)
    torch.testing.assert_close(ours(**tiny.batch("bert")).loss, expected)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_merging_adds_the_mean_update(kind: str, rescale: bool) -> None:
    model = adapted(kind).eval()
    attach_lora_dropout(model, 0.5, rescale=rescale)
    batch = tiny.inputs(kind)
    updates, expected = delta_weights(model), logits(model, batch)
    name, layer = next(iter(layers(model).items()))
    before = layer.get_base_layer().weight.clone()
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-4, atol=1e-5)
    added = layer.get_base_layer().weight - before
    torch.testing.assert_close(
        added.T if kind == "gpt2" else added, updates[name], atol=1e-6, rtol=1e-4
    )
    with mask_bank(model).fixed(1, 0):  # merged is merged
        torch.testing.assert_close(logits(model, batch), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-4, atol=1e-5)
    with model.disable_adapter(), mask_bank(model).fixed(1, 0):
        base = logits(model, batch)
    torch.testing.assert_close(base, logits(tiny.BASES[kind]().eval(), batch))
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-5)


def test_detaching_restores_peft_s_class() -> None:
    model = adapted().train()
    state = {name: vars(layer).keys() for name, layer in layers(model).items()}
    attach_lora_dropout(model, 0.5, seed=0)
    assert not torch.equal(logits(model), logits(model))
    detach_lora_dropout(model)
    assert torch.equal(logits(model), logits(model))
    for name, layer in layers(model).items():
        assert type(layer) is SVDLinear
        assert vars(layer).keys() == state[name]


def test_each_adapter_has_its_own_masks() -> None:
    model = adapted().eval()
    first = attach_lora_dropout(model, 0.5)
    model.add_adapter("other", config(inference_mode=True, init_lora_weights=False))
    attach_lora_dropout(model, 0.3, adapter_name="other")
    model.base_model.set_adapter("other", inference_mode=True)
    plain = logits(model)
    with first.fixed(1, 0):
        assert torch.equal(logits(model), plain)  # not the active one
    with mask_bank(model, "other").fixed(1, 0):
        assert not torch.equal(logits(model), plain)
    model.delete_adapter("default")
    model.add_adapter("default", config(inference_mode=True))
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        mask_bank(model)
    detach_lora_dropout(model, "other")
    assert all(type(layer) is SVDLinear for layer in layers(model).values())


def test_copies_and_pickles_have_their_own_masks() -> None:
    model = adapted().eval()
    bank = attach_lora_dropout(model, 0.5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert mask_bank(other) is not bank
        with mask_bank(other).fixed(1, 0):
            masked = logits(other)
        assert torch.equal(logits(other), logits(model))
        with bank.fixed(1, 0):
            assert torch.equal(logits(model), masked)


def test_a_layer_with_a_replaced_forward_is_refused() -> None:
    """Hooks of accelerate call the forward pass that the class had when they were placed."""
    model = adapted()
    name, layer = next(iter(layers(model).items()))
    layer.forward = layer.forward
    with pytest.raises(NotImplementedError, match=f"{name}.*attach LoRA Dropout to a model on one"):
        attach_lora_dropout(model, 0.5)
    assert not any("Masked" in type(x).__name__ for x in layers(model).values())


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights(bits: int) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    plain = getattr(bitsandbytes.nn, "Linear8bitLt" if bits == 8 else "Linear4bit")
    options = {"has_fp16_weights": False} if bits == 8 else {"compute_dtype": torch.float32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(plain(64, 32, **options)).to("cpu")
        setattr(base, f"is_loaded_in_{bits}bit", True)
        model = get_peft_model(base, config(target_modules=["0"], task_type=None))
        nn.init.normal_(model.base_model.model[0].lora_E["default"])
        x = torch.randn(6, 64)
    layer = model.eval().base_model.model[0]
    before = model(x)
    bank = attach_lora_dropout(model, 0.5)
    assert type(layer).__name__.startswith("MaskedSVDLinear")
    assert torch.equal(model(x), before)
    with bank.fixed(2, 0):
        masked = model(x)
    columns, rows = (mask.float() for mask in bank.split(bank.draw(2, 0), 0))
    (update,) = delta_weights(model).values()
    for i in range(2):
        expected = layer.base_layer(x) + x @ (4 * rows[i, :, None] * update * columns[i]).T
        torch.testing.assert_close(
            masked[3 * i : 3 * i + 3], expected[3 * i : 3 * i + 3], rtol=1e-3, atol=1e-3
        )
    assert type(pickle.loads(pickle.dumps(type(layer)))) is type(type(layer))
    detach_lora_dropout(model)
    assert torch.equal(model(x), before)


def test_the_masked_classes_are_found_by_name() -> None:
    module = importlib.import_module("lodrop_nn.adapter.adalora")
    assert issubclass(module.MaskedSVDLinear, SVDLinear)
    with pytest.raises(AttributeError, match="no attribute 'MaskedSVDConv2d'"):
        module.MaskedSVDConv2d  # noqa: B018
