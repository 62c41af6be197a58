"""Building an adapter from a configuration, and the plain training loop."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig
from transformers import LlamaForSequenceClassification as Llama

from lodrop_nn.config import RunConfig
from lodrop_nn.data.examples import Examples, batches
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.train.finetune import ORDER, build_adapter, fine_tune, native_precision
from lodrop_nn.train.objective import masked_risk, mean_cross_entropy

SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "num_labels": 2,
    "initializer_range": 0.3,
}
CONFIG = RunConfig(
    dropout_rate=0.3,
    seed=5,
    n_train=10,
    rank=2,
    lora_alpha=6.0,
    adapted_layers=(1, 2),
    epochs=2,
    batch_size=4,
    learning_rate=0.02,
)


def tiny_base(seed: int = 0) -> BertForSequenceClassification:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForSequenceClassification(BertConfig(**SIZES, **no_dropout)).eval()


def tiny_examples(n: int = 10) -> Examples:
    """A token of its own class in every row: easy to learn."""
    rows = tuple(
        (2, 4 + row % 2, *(6 + (row + k) % 9 for k in range(row % 4)), 3) for row in range(n)
    )
    return Examples(input_ids=rows, labels=tuple(row % 2 for row in range(n)), pad_token_id=0)


def trained_weights(config: RunConfig) -> tuple[dict[str, Tensor], list[float]]:
    model, bank = build_adapter(config, tiny_base())
    losses: list[float] = []
    fine_tune(
        model, bank, tiny_examples(), config, on_step=lambda step, n, loss: losses.append(loss)
    )
    return {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}, losses


def change(**fields) -> RunConfig:
    return dataclasses.replace(CONFIG, **fields)


# -- the adapter -----------------------------------------------------------------------------


def test_only_what_the_configuration_names_is_trained() -> None:
    model, bank = build_adapter(CONFIG, tiny_base())
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    modules = {
        f"base_model.model.bert.encoder.layer.{block}.attention.{leaf}.lora_{factor}.default.weight"
        for block in (1, 2)
        for leaf in ("self.query", "self.key", "self.value", "output.dense")
        for factor in "AB"
    }
    head = {f"base_model.model.classifier.modules_to_save.default.{k}" for k in ("weight", "bias")}
    assert trained == modules | head
    query = model.get_submodule("base_model.model.bert.encoder.layer.1.attention.self.query")
    assert query.lora_A["default"].weight.shape == (CONFIG.rank, 8)
    assert query.scaling["default"] == CONFIG.lora_alpha / CONFIG.rank
    assert (bank.dropout_rate, bank.n_masks, bank.mask_scope, bank.rescale) == (
        0.3,
        1,
        "batch",
        True,
    )
    assert not model.training


@given(rate=st.floats(0, 0.9), seed=st.integers(0, 3))
@settings(max_examples=10)
def test_the_start_is_the_base_and_does_not_depend_on_the_dropout_rate(rate, seed) -> None:
    state = torch.get_rng_state()
    model, _ = build_adapter(change(dropout_rate=rate, seed=seed), tiny_base())
    plain, _ = build_adapter(change(dropout_rate=0.0, seed=seed), tiny_base())
    assert torch.equal(torch.get_rng_state(), state)
    for (name, weight), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight, other), name
    batch = batches(tiny_examples(), 10, order="given")[0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = tiny_base()(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, expected)
        torch.testing.assert_close(model.train()(**inputs).logits, expected)  # B = 0


def test_seeds_give_different_adapters() -> None:
    first, second = (build_adapter(change(seed=seed), tiny_base())[0] for seed in (0, 1))
    name = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.default.weight"
    assert not torch.equal(first.get_parameter(name), second.get_parameter(name))


def test_blocks_are_found_in_a_decoder_too() -> None:
    config = change(target_modules=("q_proj", "v_proj"))
    model, _ = build_adapter(config, Llama(LlamaConfig(**SIZES)).eval())
    adapted = set(model.base_model.targeted_module_names)
    assert adapted == {
        f"model.layers.{b}.self_attn.{k}" for b in (1, 2) for k in ("q_proj", "v_proj")
    }


def test_all_blocks_are_adapted_when_none_is_named() -> None:
    model, _ = build_adapter(change(adapted_layers=None), tiny_base())
    assert len(model.base_model.targeted_module_names) == 3 * 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapted_layers": (1, 3)}, r"`adapted_layers` must be .* \[0, 3\)"),
        ({"adapted_layers": (-1,)}, r"`adapted_layers` must be .* \[0, 3\)"),
        ({"adapted_layers": ()}, r"`adapted_layers` must be .*, got \(\)"),
        ({"target_modules": ("query", "no_such")}, "`target_modules` .* got 'no_such'"),
        ({"target_modules": ("key", "uery")}, "`target_modules` .* got 'uery'"),
    ],
)
def test_what_is_not_in_the_base_is_refused_and_not_passed_over(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_adapter(change(**fields), tiny_base())


# -- the loop --------------------------------------------------------------------------------


def test_without_dropout_the_loop_is_adamw_with_linear_decay() -> None:
    config = change(dropout_rate=0.0, weight_decay=0.1, epochs=3)
    got, losses = trained_weights(config)

    model, _ = build_adapter(config, tiny_base())
    shuffle, rows = seeded_generator(config.seed, ORDER), tiny_examples()
    named = {k: p for k, p in model.named_parameters() if p.requires_grad}
    mean = {k: torch.zeros_like(p) for k, p in named.items()}
    square = {k: torch.zeros_like(p) for k, p in named.items()}
    step, n_steps, expected_losses = 0, 9, []
    for _ in range(3):
        for chosen in (b["index"] for b in batches(rows, 4, order="length", generator=shuffle)):
            loss = torch.zeros(())
            for row in chosen:  # one by one: no padding, no batching
                logits = model(input_ids=torch.tensor([rows.input_ids[row]])).logits[0]
                loss = loss - logits.log_softmax(-1)[rows.labels[row]] / len(chosen)
            grads = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
            expected_losses.append(loss.item())
            rate = config.learning_rate * (1 - step / n_steps)
            step += 1
            with torch.no_grad():
                for k, weight in named.items():  # Loshchilov & Hutter (2019), Algorithm 2
                    mean[k] = 0.9 * mean[k] + 0.1 * grads[k]
                    square[k] = 0.999 * square[k] + 0.001 * grads[k] ** 2
                    direction = (mean[k] / (1 - 0.9**step)) / (
                        (square[k] / (1 - 0.999**step)).sqrt() + 1e-8
                    )
                    weight -= rate * (direction + 0.1 * weight)
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    for k, weight in named.items():
        # Adam divides by the root of a squared gradient: rounding of tiny ones is amplified.
        torch.testing.assert_close(got[k], weight.detach(), rtol=1e-2, atol=2e-3)


def test_equal_configurations_give_equal_weights_and_seeds_do_not() -> None:
    (first, losses), (again, same_losses) = trained_weights(CONFIG), trained_weights(CONFIG)
    assert losses == same_losses
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert trained_weights(change(seed=6))[1] != losses


def test_a_vanishing_dropout_rate_gives_the_run_without_dropout() -> None:
    """So the order of the rows and the start do not depend on the rate."""
    assert trained_weights(change(dropout_rate=1e-12))[1] == pytest.approx(
        trained_weights(change(dropout_rate=0.0))[1], rel=1e-4
    )


@pytest.mark.parametrize("fields", [{}, {"n_masks_train": 3}, {"mask_scope": "example"}])
def test_masks_change_the_run(fields) -> None:
    assert trained_weights(change(**fields))[1] != trained_weights(change(dropout_rate=0.0))[1]


def test_many_masks_without_dropout_are_one() -> None:
    tiled = trained_weights(change(dropout_rate=0.0, n_masks_train=3))[1]
    assert tiled == pytest.approx(trained_weights(change(dropout_rate=0.0))[1], rel=1e-4)


@pytest.mark.parametrize("scope", ["batch", "example"])
@pytest.mark.parametrize("rescale", [True, False])
def test_the_task_is_learned_and_the_base_stays_frozen(scope, rescale: bool) -> None:
    config = change(epochs=30, mask_scope=scope, rescale=rescale, dropout_rate=0.1)
    model, bank = build_adapter(config, tiny_base())
    frozen = {k: p.clone() for k, p in model.named_parameters() if not p.requires_grad}
    result = fine_tune(model, bank, tiny_examples(), config)
    assert result.epoch_losses[-1] < 0.5 < 0.6 < result.epoch_losses[0]
    batch = batches(tiny_examples(), 10, order="given")[0]
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(logits.argmax(-1), batch["labels"])
    assert all(torch.equal(model.get_parameter(k), weight) for k, weight in frozen.items())
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_steps_are_reported_and_epochs_are_means_over_rows() -> None:
    model, bank = build_adapter(CONFIG, tiny_base())
    seen: list[tuple[int, int, float]] = []
    result = fine_tune(
        model, bank, tiny_examples(), CONFIG, on_step=lambda *report: seen.append(report)
    )
    assert [(step, n) for step, n, _ in seen] == [(step, 6) for step in range(1, 7)]
    assert result.n_steps == 6
    assert result.seconds > 0
    losses = [loss for *_, loss in seen]
    shuffle = seeded_generator(CONFIG.seed, ORDER)
    for epoch, mean in enumerate(result.epoch_losses):
        made = batches(tiny_examples(), 4, order="length", generator=shuffle)
        sizes = [len(batch["labels"]) for batch in made]
        each = losses[3 * epoch : 3 * epoch + 3]
        assert mean == pytest.approx(sum(s * x for s, x in zip(sizes, each, strict=True)) / 10)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_way_out() -> None:
    config = change(learning_rate=1e30)
    model, bank = build_adapter(config, tiny_base())
    with pytest.raises(FloatingPointError, match=r"at step \d of 6; lower `learning_rate`, 1e\+30"):
        fine_tune(model, bank, tiny_examples(), config)
    assert not model.training


def test_a_bank_of_another_configuration_is_refused() -> None:
    model, bank = build_adapter(CONFIG, tiny_base())
    with pytest.raises(ValueError, match="`bank` must draw n_masks_train = 2"):
        fine_tune(model, bank, tiny_examples(), change(n_masks_train=2))


def test_bf16_steps_are_near_fp32_steps_and_keep_fp32_weights() -> None:
    fast, losses = trained_weights(change(precision="bf16"))
    _, exact_losses = trained_weights(CONFIG)
    assert losses != exact_losses
    assert losses == pytest.approx(exact_losses, rel=0.05)
    assert {weight.dtype for weight in fast.values()} == {torch.float32}


# -- the objective ---------------------------------------------------------------------------


def test_the_cross_entropy_is_taken_in_fp32() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 0.25]], dtype=torch.bfloat16)
    loss = mean_cross_entropy(logits, torch.tensor([0, 1]))
    expected = (math.log1p(math.exp(-3.0)) + math.log1p(math.exp(0.25))) / 2
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n_masks", [1, 3])
def test_the_objective_is_the_mean_over_the_masks_of_the_pass(n_masks: int) -> None:
    config = change(n_masks_train=n_masks)
    model, bank = build_adapter(config, tiny_base())
    fine_tune(model, bank, tiny_examples(), config)  # moves B away from 0
    batch = batches(tiny_examples(), 10, order="given")[0]
    each = []
    with torch.no_grad():
        with bank.fixed(n_masks=n_masks, seed=0):
            together = masked_risk(model, batch, n_masks=n_masks)
        masks = bank.draw(n_masks, 0)
        for j in range(n_masks):
            # Members of a smaller ensemble begin the larger one: the first j + 1 in one pass.
            with bank.fixed(n_masks=j + 1, seed=0):
                each.append((j + 1) * masked_risk(model, batch, n_masks=j + 1))
    members = [later - earlier for later, earlier in zip(each, [0.0, *each], strict=False)]
    torch.testing.assert_close(together, torch.stack(members).mean())
    assert len({tuple(row.tolist()) for row in masks}) == n_masks


# -- the precision ---------------------------------------------------------------------------


def test_bf16_is_chosen_only_where_the_processor_has_it(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert native_precision() == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False})
    assert native_precision("cpu") == "fp32"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert native_precision() == "fp32"
    assert native_precision("mps") == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert native_precision("cuda") == "bf16"
