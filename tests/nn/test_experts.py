"""LoRA Dropout on the expert tensors of a mixture of experts."""

import copy
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from lodrop_nn.adapter import (
    attach_lora_dropout,
    delta_weights,
    detach_lora_dropout,
    mask_bank,
    realized_sparsity,
)
from lodrop_nn.adapter.config import LoraDropoutConfig
from lodrop_nn.adapter.experts import MaskedParamWrapper
from lodrop_nn.adapter.saving import load_adapter, save_adapter
from lodrop_nn.masks import MaskBank
from lodrop_nn.predict.ensemble import ensemble_predict
from tests.nn import tiny

# peft 0.19 looks for the base model's config on the hub, which models made here do not have.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")
needs_peft_0_20 = pytest.mark.skipif(
    Version(peft.__version__) < Version("0.20"),
    reason="peft 0.19 takes one adapter with `target_parameters`, and transformers 5.23 breaks "
    "its loading of experts",
)

EXPERTS, HIDDEN, INNER = 4, 16, 24
PARAMETERS = ["experts.gate_up_proj", "experts.down_proj"]


def mixtral() -> nn.Module:
    """Two blocks of four experts; each token goes to two of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MixtralForCausalLM(
            MixtralConfig(
                vocab_size=tiny.VOCABULARY,
                hidden_size=HIDDEN,
                intermediate_size=INNER,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_local_experts=EXPERTS,
                num_experts_per_tok=2,
                max_position_embeddings=32,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )


class Transposed(nn.Module):
    """Experts stored as (experts, in, out), as GPT-OSS has them."""

    is_transposed = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, 5, 3))

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        return torch.bmm(x[:, None], self.weight[expert])[:, 0]


def adapted(**options: Any) -> PeftModel:
    """A tiny Mixtral with a random adapter on its experts and one attention matrix."""
    values = {"target_modules": ["q_proj"], "target_parameters": PARAMETERS, **options}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, **values)
        return get_peft_model(mixtral(), config)


def wrappers(model: nn.Module) -> dict[str, ParamWrapper]:
    return {name: x for name, x in model.named_modules() if isinstance(x, ParamWrapper)}


def logits(model: nn.Module, **options: int) -> Tensor:
    output: Tensor = model(**tiny.inputs("llama", **options)).logits
    return output


def by_hand(bank: MaskBank, model: PeftModel, seed: int) -> MixtralForCausalLM:
    """The base model with the masked update of each expert added, expert by expert."""
    base = copy.deepcopy(model).unload()
    masks = bank.draw(1, seed)
    for slot, layer in enumerate(bank.layers):
        columns, rows = (x[0].float() for x in bank.split(masks, slot))
        adapted = model.get_submodule(layer.name)
        A, B = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
        factor = adapted.scaling["default"] / ((1 - layer.input_rate) * (1 - layer.output_rate))
        path = layer.name.removeprefix("base_model.model.").removesuffix(".base_layer")
        if not isinstance(adapted, ParamWrapper):
            weight = base.get_submodule(path).weight
            weight.data += factor * rows[:, None] * (B @ A) * columns
            continue
        weight = getattr(base.get_submodule(path), adapted.parameter_name)
        for e, (column, row) in enumerate(
            zip(columns.chunk(EXPERTS), rows.chunk(EXPERTS), strict=True)
        ):
            # PEFT's layout: A is expert after expert, B has the experts of a rank side by side.
            A_e, B_e = A[2 * e : 2 * e + 2], B[:, e::EXPERTS]
            weight.data[e] += factor * row[:, None] * (B_e @ A_e) * column
    return base


@pytest.fixture
def model() -> PeftModel:
    return adapted().eval()


@given(rate=st.floats(0.05, 0.9), seed=st.integers(0, 2**31))
@settings(max_examples=5)
def test_each_expert_has_its_own_masks(rate: float, seed: int) -> None:
    model = adapted().eval()
    bank = attach_lora_dropout(model, rate)
    expected = logits(by_hand(bank, model, seed).eval())
    with bank.fixed(1, seed):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_to_run_the_experts_sees_the_masks(model: PeftModel, implementation: str) -> None:
    model.get_base_model().set_experts_implementation(implementation)
    bank = attach_lora_dropout(model, 0.5)
    expected = logits(by_hand(bank, model, seed=0).eval())
    with bank.fixed(1, seed=0):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_evaluation_is_unchanged_by_attaching(model: PeftModel) -> None:
    before = logits(model)
    attach_lora_dropout(model, 0.5)
    assert torch.equal(logits(model), before)


def test_gradients_reach_kept_columns_only(model: PeftModel) -> None:
    bank = attach_lora_dropout(model, 0.5, seed=3)
    model.train()
    model(**tiny.batch("llama", rows=8)).loss.backward()
    assert bank.passes.draw is not None
    masks = bank.passes.draw.masks
    for slot, layer in enumerate(bank.layers):
        columns, rows = (x[0] for x in bank.split(masks, slot))
        adapted = model.get_submodule(layer.name)
        if isinstance(adapted, ParamWrapper):
            A, B = (x["default"].weight.grad for x in (adapted.lora_A, adapted.lora_B))
            kept = columns.reshape(EXPERTS, 1, -1).expand(-1, 2, -1).reshape(A.shape)
            assert not A[~kept].any()
            assert A[kept].any()
            # B[:, r * experts + e] belongs to expert e.
            kept = rows.reshape(EXPERTS, -1).T.repeat(1, 2)
            assert not B[~kept].any()
            assert B[kept].any()


@pytest.mark.parametrize("options", [{"use_reentrant": True}, {"use_reentrant": False}])
def test_checkpointing_recomputes_under_the_same_masks(options: dict[str, bool]) -> None:
    expected, model = adapted(), adapted()
    tiny.enable_checkpointing(model, **options)
    model.enable_input_require_grads()
    for x in (expected, model):
        attach_lora_dropout(x, 0.5, seed=3)
        x.train()
        x(**tiny.batch("llama")).loss.backward()
    for name, gradient in tiny.gradients(expected).items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_several_masks_in_one_pass_are_refused(model: PeftModel) -> None:
    bank = attach_lora_dropout(model, 0.5, n_masks=2)
    model.train()
    with pytest.raises(ValueError, match=r"must have one mask per pass, got 2.*chunk=1"):
        model(**tiny.batch("llama"))
    detach_lora_dropout(model)
    attach_lora_dropout(model, 0.5, mask_scope="example")
    with pytest.raises(ValueError, match="must have one mask per pass, got 4"):
        model(**tiny.batch("llama"))
    assert not bank.is_watching
    model(**tiny.batch("llama", rows=1))  # one example, one mask


def test_an_ensemble_takes_one_member_at_a_time(model: PeftModel) -> None:
    bank = attach_lora_dropout(model, 0.5)
    batch = tiny.inputs("llama")
    members = ensemble_predict(model, batch, n_masks=3, seed=0, chunk=1).member_logits
    for i in range(3):
        with bank.fixed(3, 0, "balanced"), bank.members(i, i + 1):
            torch.testing.assert_close(members[i], logits(model))
    with pytest.raises(ValueError, match="must have one mask per pass, got 3"):
        ensemble_predict(model, batch, n_masks=3, seed=0, chunk=3)


@pytest.mark.parametrize("rescale", [True, False])
def test_merging_adds_the_mean_update(rescale: bool) -> None:
    model = adapted().train()
    plain = {name: x.detach().clone() for name, x in model.get_base_model().named_parameters()}
    attach_lora_dropout(model, 0.5, rescale=rescale, seed=0)
    updates = delta_weights(model)
    expected = logits(model.eval())
    merged = copy.deepcopy(model).train().merge_and_unload()  # training: masks are due elsewhere
    torch.testing.assert_close(logits(merged.eval()), expected, rtol=1e-4, atol=1e-5)
    name = "model.layers.0.mlp.experts"
    update = updates[f"base_model.model.{name}.base_layer"]
    assert update.shape == (EXPERTS, 2 * INNER, HIDDEN)
    before = plain[f"{name}.base_layer.base_layer.gate_up_proj"]
    torch.testing.assert_close(merged.get_parameter(f"{name}.gate_up_proj"), before + update)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@needs_peft_0_20
@pytest.mark.parametrize("rescale", [True, False])
def test_plain_peft_loads_the_mean_predictor(rescale: bool, tmp_path: Path) -> None:
    model = adapted().eval()
    attach_lora_dropout(model, 0.5, rescale=rescale)
    expected = logits(model)
    save_adapter(model, tmp_path)
    plain = PeftModel.from_pretrained(mixtral(), tmp_path).eval()
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)
    ours = load_adapter(mixtral(), tmp_path).eval()
    with mask_bank(model).fixed(1, 5), mask_bank(ours).fixed(1, 5):
        torch.testing.assert_close(logits(ours), logits(model), rtol=1e-4, atol=1e-5)


def test_detaching_restores_peft_s_class(model: PeftModel) -> None:
    state = {name: vars(x).keys() for name, x in wrappers(model).items()}
    attach_lora_dropout(model, 0.5, seed=0)
    model.train()
    assert not torch.equal(logits(model), logits(model))
    detach_lora_dropout(model)
    assert torch.equal(logits(model), logits(model))
    for name, wrapper in wrappers(model).items():
        assert type(wrapper) is ParamWrapper
        assert vars(wrapper).keys() == state[name]


@needs_peft_0_20
def test_each_adapter_has_its_own_masks(model: PeftModel) -> None:
    first = attach_lora_dropout(model, 0.5)
    config = LoraConfig(
        r=2, init_lora_weights=False, target_modules=["q_proj"], target_parameters=PARAMETERS
    )
    model.add_adapter("other", config)
    assert len(wrappers(model)) == 4  # nested within each other, not around each other
    before = logits(model)
    attach_lora_dropout(model, 0.3, adapter_name="other")
    assert torch.equal(logits(model), before)
    model.base_model.set_adapter(["default", "other"])
    alone = logits(model)
    with first.fixed(1, 0):
        assert not torch.equal(logits(model), alone)
    model.delete_adapter("default")
    detach_lora_dropout(model, "other")
    assert all(type(x) is ParamWrapper for x in wrappers(model).values())


@needs_peft_0_20
def test_two_active_adapters_are_masked_apart(model: PeftModel) -> None:
    """PEFT adds up whole updates, not factors, when several adapters are active."""
    config = LoraConfig(
        r=2, init_lora_weights=False, target_modules=["q_proj"], target_parameters=PARAMETERS
    )
    model.add_adapter("other", config)
    bank = attach_lora_dropout(model, 0.5)
    with bank.fixed(1, 0):
        alone = logits(model)
        for name, parameter in model.named_parameters():
            if "lora_B.other" in name:
                nn.init.zeros_(parameter)
        model.base_model.set_adapter(["default", "other"])
        torch.testing.assert_close(logits(model), alone, rtol=1e-4, atol=1e-5)


def test_copies_and_pickles_have_their_own_masks(model: PeftModel) -> None:
    bank = attach_lora_dropout(model, 0.5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert mask_bank(other) is not bank
        with mask_bank(other).fixed(1, 0):
            masked = logits(other)
        assert torch.equal(logits(other), logits(model))
        with bank.fixed(1, 0):
            assert torch.equal(logits(model), masked)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=5)
def test_transposed_experts(seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential()
        base.experts = Transposed()
        config = LoraConfig(
            r=2, target_modules=[], target_parameters=["experts.weight"], init_lora_weights=False
        )
        model = get_peft_model(base, config).eval()
    (wrapper,) = wrappers(model).values()
    bank = attach_lora_dropout(model, 0.5)
    x, expert = torch.randn(7, 5), torch.arange(7) % EXPERTS
    columns, rows = (
        mask.reshape(EXPERTS, -1).float() for mask in bank.split(bank.draw(1, seed), 0)
    )
    (update,) = delta_weights(model).values()
    masked = 4 * rows[:, :, None] * update * columns[:, None, :]
    weight = wrapper.get_param() + masked.mT
    with bank.fixed(1, seed):
        torch.testing.assert_close(wrapper(x, expert), torch.bmm(x[:, None], weight[expert])[:, 0])


def test_a_config_masks_experts_too() -> None:
    config = LoraDropoutConfig(
        r=2,
        dropout_rate=0.5,
        mask_seed=0,
        init_lora_weights=False,
        target_modules=["q_proj"],
        target_parameters=PARAMETERS,
    )
    model = get_peft_model(mixtral(), config)
    assert all(isinstance(x, MaskedParamWrapper) for x in wrappers(model).values())
    assert len(mask_bank(model).layers) == 6
    assert not torch.equal(logits(model.train()), logits(model))


@given(rate=st.floats(0.05, 0.9), seed=st.integers(0, 2**31))
@settings(max_examples=5)
def test_sparsity_is_counted_expert_by_expert(rate: float, seed: int) -> None:
    model = adapted().eval()
    bank = attach_lora_dropout(model, rate)
    realized = realized_sparsity(model, n_draws=3, seed=seed)
    masks = bank.draw(3, seed)
    for slot, layer in enumerate(bank.layers):
        if "experts" not in layer.name:
            continue
        columns, rows = (x.reshape(3, EXPERTS, -1) for x in bank.split(masks, slot))
        kept = (rows[..., None] & columns[..., None, :]).double().mean()
        assert realized.per_layer[layer.name] == pytest.approx(1 - float(kept))
