"""The loop over replicas against separate runs of `fine_tune`, and its batches."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from lodrop_nn.adapter import attach_lora_dropout, mask_bank
from lodrop_nn.adapter.config import LoraDropoutConfig
from lodrop_nn.config import RunConfig
from lodrop_nn.data.examples import batches
from lodrop_nn.masks import MaskSettings
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.train.finetune import ORDER, build_adapter, fine_tune
from lodrop_nn.train.prefix_cache import PrefixCache
from lodrop_nn.train.replica_adapters import add_replicas
from lodrop_nn.train.replica_batches import stack_batches
from lodrop_nn.train.replica_settings import ReplicaSettings, leave_one_out_weights
from lodrop_nn.train.replica_training import train_replicas
from lodrop_nn.train.tiling import tile_batch
from tests.nn.replica_models import (
    N_EXAMPLES,
    adapted,
    alone,
    some_examples,
    train_alone,
    weights_of,
)

EXAMPLES = some_examples()
SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "num_labels": 3,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CONFIG = RunConfig(
    dropout_rate=0.3,
    n_train=N_EXAMPLES,
    rank=2,
    lora_alpha=6.0,
    adapted_layers=(1, 2),
    epochs=2,
    batch_size=4,  # the last batch has two rows
    learning_rate=0.02,
)


def tiny_base() -> BertForSequenceClassification:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return BertForSequenceClassification(BertConfig(**SIZES)).eval().double()


def separate_run(config: RunConfig) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple]:
    """Weights at the start and at the end, and the losses of the epochs."""
    model, bank = build_adapter(config, tiny_base())
    model.double()
    start = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
    result = fine_tune(model, bank, EXAMPLES, config)
    return start, get_peft_model_state_dict(model), result.epoch_losses


def replicas_of(configs: dict[str, RunConfig], starts: dict[str, dict[str, Tensor]]) -> PeftModel:
    """A model with an adapter per configuration, each where its separate run starts."""
    first, *others = configs
    model, _ = build_adapter(configs[first], tiny_base())
    lora = model.peft_config["default"]
    for name in (first, *others):
        model.add_adapter(name, dataclasses.replace(lora))
        config = configs[name]
        attach_lora_dropout(
            model,
            config.dropout_rate,
            adapter_name=name,
            n_masks=config.n_masks_train,
            mask_scope=config.mask_scope,
            rescale=config.rescale,
            seed=config.seed,
        )
    model.double()
    for name in configs:
        set_peft_model_state_dict(model, starts[name], adapter_name=name)
    return model


def settings_of(config: RunConfig) -> ReplicaSettings:
    return ReplicaSettings(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        order_seed=config.seed,
    )


GRIDS = {
    "rates": {f"p{k}": {"dropout_rate": p} for k, p in enumerate((0.0, 0.3, 0.6))},
    "steps": {
        "slow": {"learning_rate": 0.005},
        "decayed": {"weight_decay": 0.5},
        "unscaled": {"rescale": False},
    },
    "seeds": {f"seed{seed}": {"seed": seed} for seed in range(3)},  # an order for each
    "seeds, by example": {
        f"seed{seed}": {"seed": seed, "mask_scope": "example"} for seed in range(3)
    },
    "several masks": {f"seed{seed}": {"seed": seed, "n_masks_train": 2} for seed in range(2)},
}


@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_replicas_are_separate_runs_of_fine_tune(grid, with_prefix) -> None:
    configs = {k: dataclasses.replace(CONFIG, **changes) for k, changes in GRIDS[grid].items()}
    runs = {name: separate_run(config) for name, config in configs.items()}
    model = replicas_of(configs, {name: run[0] for name, run in runs.items()})
    steps: list[tuple[int, int, dict[str, float]]] = []
    results = train_replicas(
        model,
        {name: settings_of(config) for name, config in configs.items()},
        EXAMPLES,
        epochs=CONFIG.epochs,
        batch_size=CONFIG.batch_size,
        prefix=PrefixCache(model, EXAMPLES) if with_prefix else None,
        on_step=lambda step, n_steps, losses: steps.append((step, n_steps, losses)),
    )
    assert not model.training
    assert [step[:2] for step in steps] == [(k, 6) for k in range(1, 7)]
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, (start, end, losses) in runs.items():
        assert any(not torch.equal(start[key], end[key]) for key in end)
        found = get_peft_model_state_dict(model, adapter_name=name)
        for key, value in end.items():
            # The losses are in fp32, as those of `fine_tune` are.
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
        assert results[name].epoch_objectives == pytest.approx(losses, abs=1e-5)
        assert (results[name].n_steps, results[name].diverged_at) == (6, None)


def test_a_replica_takes_no_step_on_a_batch_without_its_examples() -> None:
    """With one row per batch, leaving an example out is training on the others."""
    names, left_out = ("whole", "without"), 3
    model = adapted("bert", dict.fromkeys(names), dtype=torch.float32)
    separate = alone("bert", model, "without", None)
    weights = leave_one_out_weights(N_EXAMPLES, left_out)
    results = train_replicas(
        model,
        {
            "whole": ReplicaSettings(),
            "without": ReplicaSettings(example_weights=weights, weight_decay=0.5),
        },
        EXAMPLES,
        epochs=1,
        batch_size=1,
    )
    assert [results[name].n_steps for name in names] == [N_EXAMPLES, N_EXAMPLES - 1]
    rows = batches(EXAMPLES, 1, order="length", generator=seeded_generator(0, ORDER))
    falling = [1 - step / N_EXAMPLES for step in range(N_EXAMPLES)]
    settings = ReplicaSettings(example_weights=weights, weight_decay=0.5)
    trained = train_alone(separate, "without", settings, rows, rates=falling, skip=left_out)
    for key, value in trained.items():
        torch.testing.assert_close(weights_of(model, "without")[key], value, rtol=0, atol=1e-5)


def test_a_diverging_replica_is_reported() -> None:
    model = adapted("bert", dict.fromkeys(("fine", "wild")), dtype=torch.float32)
    results = train_replicas(
        model,
        {"fine": ReplicaSettings(), "wild": ReplicaSettings(learning_rate=1e30)},
        EXAMPLES,
        epochs=2,
        batch_size=4,
    )
    assert results["fine"].diverged_at is None
    assert all(map(math.isfinite, results["fine"].epoch_objectives))
    assert results["wild"].diverged_at is not None
    assert 1 < results["wild"].diverged_at <= 6


def test_what_does_not_fit_the_examples_is_refused() -> None:
    model = adapted("bert", {"one": None})
    options = {"epochs": 1, "batch_size": 4}
    short = {"one": ReplicaSettings(example_weights=(1.0, 1.0))}
    with pytest.raises(ValueError, match=r"`example_weights` must be as many.*10, got 2 for.*one"):
        train_replicas(model, short, EXAMPLES, **options)
    prefix = PrefixCache(model, some_examples(4))
    plain = {"one": ReplicaSettings()}
    with pytest.raises(ValueError, match=r"`prefix` must hold.*10 rows, got 4"):
        train_replicas(model, plain, EXAMPLES, prefix=prefix, **options)
    for name in options:
        with pytest.raises(ValueError, match=f"`{name}`"):
            train_replicas(model, plain, EXAMPLES, **{**options, name: 0})


# -- batches side by side --------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 5),
)
def test_stacked_batches_hold_each_batch(sizes, seed) -> None:
    parts = [
        batches(
            EXAMPLES, size, order="length", generator=torch.Generator().manual_seed(seed + number)
        )[0]
        for number, size in enumerate(sizes)
    ]
    stacked, is_padding = stack_batches(parts, pad_token_id=9)
    assert is_padding.shape == (len(sizes), max(map(len, (p["labels"] for p in parts))))
    for number, part in enumerate(parts):
        slices = {k: v.unflatten(0, is_padding.shape)[number] for k, v in stacked.items()}
        n_rows, width = part["input_ids"].shape
        assert is_padding[number].tolist() == [False] * n_rows + [True] * (
            is_padding.shape[1] - n_rows
        )
        for key, value in part.items():
            cut = slices[key][:n_rows]
            assert torch.equal(cut[:, :width] if cut.dim() > 1 else cut, value)
            assert (slices[key][n_rows:] == slices[key][0]).all()
        assert (slices["input_ids"][:, width:] == 9).all()
        assert not slices["attention_mask"][:, width:].any()


def test_equal_batches_are_stacked_as_they_are_tiled() -> None:
    batch = batches(EXAMPLES, 4, order="given")[0]
    stacked, is_padding = stack_batches([batch] * 3, EXAMPLES.pad_token_id)
    tiled = tile_batch(batch, 3)
    assert not is_padding.any()
    assert stacked.keys() == tiled.keys()
    assert all(torch.equal(stacked[key], tiled[key]) for key in tiled)


def test_no_batch_cannot_be_stacked() -> None:
    with pytest.raises(ValueError, match="one row or more"):
        stack_batches([], 0)


# -- copies of an adapter --------------------------------------------------------------------


def test_added_replicas_start_as_copies() -> None:
    model = adapted("bert", {"default": {"dropout_rate": 0.9}}, dtype=torch.float32)
    active = model.active_adapter
    laws = {
        "low": MaskSettings((0.1, 0.2), seed=4, rate_pattern={"query": 0.5}),
        "plain": None,
    }
    add_replicas(model, laws)
    assert model.active_adapter == active
    assert mask_bank(model, "low").settings == laws["low"]
    with pytest.raises(ValueError, match="no LoRA Dropout"):
        mask_bank(model, "plain")
    for name in laws:
        copied = weights_of(model, name)
        for key, value in weights_of(model, "default").items():
            assert torch.equal(copied[key], value)
    train_replicas(model, {"low": ReplicaSettings()}, EXAMPLES, epochs=1, batch_size=4)
    untouched = weights_of(model, "default")
    assert all(torch.equal(untouched[k], v) for k, v in weights_of(model, "plain").items())
    assert any(not torch.equal(untouched[k], v) for k, v in weights_of(model, "low").items())


def test_replicas_that_cannot_be_added_are_refused() -> None:
    model = adapted("bert", {"default": None})
    with pytest.raises(ValueError, match="'other'"):
        add_replicas(model, {"p": None}, start="other")
    with pytest.raises(ValueError, match=r"new names.*\['default'\]"):
        add_replicas(model, {"default": None})
    config = LoraDropoutConfig(dropout_rate=0.5, target_modules=["query"])
    special = get_peft_model(tiny_base(), config)
    with pytest.raises(ValueError, match="LoraConfig, got LoraDropoutConfig"):
        add_replicas(special, {"p": None})


def test_bfloat16_passes_train_as_separate_ones_do() -> None:
    configs = {
        f"p{k}": dataclasses.replace(CONFIG, precision="bf16", dropout_rate=0.3 * k)
        for k in range(2)
    }
    starts, runs = {}, {}
    for name, config in configs.items():
        model, bank = build_adapter(config, tiny_base().float())
        starts[name] = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
        runs[name] = fine_tune(model, bank, EXAMPLES, config).epoch_losses
    together = replicas_of(configs, starts).float()
    settings = {name: settings_of(config) for name, config in configs.items()}
    results = train_replicas(together, settings, EXAMPLES, epochs=2, batch_size=4, precision="bf16")
    for name, losses in runs.items():
        assert results[name].epoch_objectives == pytest.approx(losses, abs=0.02)
