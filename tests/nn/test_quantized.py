"""LoRA Dropout over quantized base weights.

bitsandbytes and HQQ run here on the CPU where they are installed. For GPTQ and torchao, PEFT's own
layer classes run around ordinary weights, which stand in for the quantized ones.
"""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.lora.gptq import GPTQLoraLinear
from peft.tuners.lora.torchao import TorchaoLoraLinear
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lodrop_nn.adapter import attach_lora_dropout, detach_lora_dropout
from lodrop_nn.adapter.config import LoraDropoutConfig
from lodrop_nn.adapter.report import adapter_report
from lodrop_nn.adapter.saving import load_adapter, save_adapter
from lodrop_nn.train.tiling import tile_batch
from tests.nn.by_hand import CLOSE, assert_members_are_masked_by_hand
from tests.nn.tiny import TARGETS, VOCABULARY, adapted, batch, gradients, inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:(Merge|Unmerge) lora module to"),  # PEFT, on every merge
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),  # peft 0.19, local models
]


def four_bit(bnb: ModuleType, layer: nn.Linear) -> nn.Module:
    new = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=torch.float32,
        quant_type="nf4",
    )
    new.load_state_dict(layer.state_dict(), strict=False)
    new.support_avx512bf16_for_cpu = False  # its kernel repacks the weights and computes in bf16
    return new.to("cpu")  # quantizes


def eight_bit(bnb: ModuleType, layer: nn.Linear) -> nn.Module:
    new = bnb.nn.Linear8bitLt(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        has_fp16_weights=False,
        threshold=6.0,
    )
    new.load_state_dict(layer.state_dict(), strict=False)
    return new.to("cpu")


def hqq(module: ModuleType, layer: nn.Linear) -> nn.Module:
    config = module.BaseQuantizeConfig(nbits=8, group_size=8)
    return module.HQQLinear(
        layer, quant_config=config, compute_dtype=torch.float32, device="cpu", del_orig=False
    )


BACKENDS: dict[str, tuple[str, Callable[[ModuleType, nn.Linear], nn.Module], str]] = {
    "Linear4bit": ("bitsandbytes", four_bit, "is_loaded_in_4bit"),
    "Linear8bitLt": ("bitsandbytes", eight_bit, "is_loaded_in_8bit"),
    "HqqLoraLinear": ("hqq.core.quantize", hqq, "is_hqq_quantized"),
}
needs = {
    name: pytest.mark.skipif(
        find_spec(module.partition(".")[0]) is None, reason=f"{module} is not installed"
    )
    for name, (module, _, _) in BACKENDS.items()
}
each_backend = pytest.mark.parametrize("name", [pytest.param(n, marks=needs[n]) for n in BACKENDS])


def llama() -> nn.Module:
    """Widths that the CPU kernels of bitsandbytes take."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=128,
                max_position_embeddings=32,
                pad_token_id=0,
            )
        )


def quantized_base(name: str) -> nn.Module:
    module_name, quantize, flag = BACKENDS[name]
    module = pytest.importorskip(module_name)
    model = llama()
    for path, layer in list(model.named_modules()):
        if path.rpartition(".")[2] in TARGETS["llama"]:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, quantize(module, layer))
    setattr(model, flag, True)
    return model.eval()


def quantized(name: str, **options: object) -> PeftModel:
    settings = {"r": 3, "lora_alpha": 6, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    settings |= {"target_modules": TARGETS["llama"]}
    base = quantized_base(name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config_class = LoraDropoutConfig if "dropout_rate" in options else LoraConfig
        return get_peft_model(base, config_class(**settings | options))


def near(name: str) -> dict[str, float]:
    """8-bit products round activations to integers, nearly equal ones to different integers."""
    return {"rtol": 0.02, "atol": 0.02} if name == "Linear8bitLt" else CLOSE


# -- real backends ------------------------------


@each_backend
@pytest.mark.parametrize("rescale", [True, False])
def test_members_over_quantized_weights(name: str, rescale: bool) -> None:
    model = quantized(name).eval()
    bank = attach_lora_dropout(model, (0.3, 0.5), rescale=rescale)
    assert {layer.kind for layer in adapter_report(model).layers} == {name}
    assert_members_are_masked_by_hand(model, bank, inputs("llama"), 3, 1, **near(name))


@each_backend
def test_training_over_quantized_weights(name: str) -> None:
    model = quantized(name, dropout_rate=0.4, n_masks=2, mask_seed=0).train()
    model(**tile_batch(batch("llama"), 2)).loss.backward()
    found = gradients(model)
    assert {n.split(".")[-3] for n in found} == {"lora_A", "lora_B"}
    assert all(g.dtype == torch.float32 and g.any() for g in found.values())


@each_backend
def test_merging_requantizes_the_mean_update(name: str) -> None:
    """The same as merging plain LoRA whose B holds the mean factor."""
    model, plain = quantized(name).eval(), quantized(name).eval()
    attach_lora_dropout(model, 0.5, rescale=False)
    mean = model(**inputs("llama")).logits
    for layer in plain.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_B["default"].weight.data *= 0.25  # exact, or weights round to other integers
    torch.testing.assert_close(plain(**inputs("llama")).logits, mean, **near(name))
    for m in (model, plain):
        m.merge_adapter()
    merged = model(**inputs("llama")).logits
    torch.testing.assert_close(merged, plain(**inputs("llama")).logits, **near(name))
    assert not torch.equal(merged, mean)
    for m in (model, plain):
        m.unmerge_adapter()
    torch.testing.assert_close(
        model(**inputs("llama")).logits, plain(**inputs("llama")).logits, **near(name)
    )
    with model.disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(
            model(**inputs("llama")).logits, plain(**inputs("llama")).logits, **near(name)
        )


@each_backend
def test_an_adapter_over_quantized_weights_on_disk(name: str, tmp_path: Path) -> None:
    model = quantized(name).eval()
    attach_lora_dropout(model, 0.5, rescale=False)
    save_adapter(model, tmp_path)
    mean = model(**inputs("llama")).logits
    loaded = load_adapter(quantized_base(name), tmp_path)
    torch.testing.assert_close(loaded(**inputs("llama")).logits, mean, **near(name))
    plain = PeftModel.from_pretrained(quantized_base(name), tmp_path)
    torch.testing.assert_close(plain(**inputs("llama")).logits, mean, **near(name))


@each_backend
def test_half_precision_under_autocast(name: str) -> None:
    model = quantized(name).train()
    bank = attach_lora_dropout(model, 0.4)
    tiled = tile_batch(inputs("llama"), 2)
    with bank.fixed(2):
        full = model(**tiled).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(**tiled).logits
    torch.testing.assert_close(half.float(), full.float(), rtol=0.1, atol=0.05)


# -- PEFT's layers around stand-ins ------------------------------


def around_ordinary_weights(layer_class: type[LoraLayer]) -> PeftModel:
    model = adapted("llama")
    for layer in model.modules():
        if type(layer) is Linear:
            layer.__class__ = layer_class
            layer.quant_linear_module = layer.base_layer
    return model


@pytest.mark.parametrize("layer_class", [GPTQLoraLinear, TorchaoLoraLinear])
def test_members_over_stand_ins(layer_class: type[LoraLayer]) -> None:
    model = around_ordinary_weights(layer_class).eval()
    plain = model(**inputs("llama")).logits
    bank = attach_lora_dropout(model, (0.3, 0.5))
    assert_members_are_masked_by_hand(model, bank, inputs("llama"), 3, 1)
    torch.testing.assert_close(model(**inputs("llama")).logits, plain, **CLOSE)
    detach_lora_dropout(model)
    assert not any(m.lora_variant for m in model.modules() if isinstance(m, LoraLayer))


def test_gptq_without_rescaling_acts_as_its_mean() -> None:
    """It cannot merge, so the mean update is needed in the forward pass alone."""
    model = around_ordinary_weights(GPTQLoraLinear).eval()
    attach_lora_dropout(model, (0.3, 0.5), rescale=False)
    mean = copy.deepcopy(model)
    detach_lora_dropout(mean)
    for layer in mean.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_B["default"].weight.data *= 0.7 * 0.5
    x = inputs("llama")
    torch.testing.assert_close(model(**x).logits, mean(**x).logits, **CLOSE)


def test_torchao_needs_rescaled_masks() -> None:
    """Its merge adds the stored update without asking the variant."""
    model = around_ordinary_weights(TorchaoLoraLinear)
    with pytest.raises(ValueError, match=r"`rescale` must be True for layer .*TorchaoLoraLinear"):
        attach_lora_dropout(model, 0.5, rescale=False)
