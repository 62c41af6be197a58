"""K replicas in one pass against K separate trainings."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lodrop_nn.adapter import attach_lora_dropout, mask_bank
from lodrop_nn.train.replica_settings import ReplicaSettings, leave_one_out_weights
from lodrop_nn.train.replicas import Replicas
from lodrop_nn.train.tiling import tile_batch
from tests.nn import classifiers
from tests.nn.replica_models import (
    adapted,
    adapter_config,
    alone,
    base_model,
    penalized,
    train_alone,
    weights_of,
)

N_ROWS = 6
PAIR, TRIO = ("one", "two"), ("one", "two", "three")


def train_together(
    model: PeftModel, replicas: Replicas, batches: list[dict[str, Tensor]], n_masks: int = 1
) -> None:
    n_replicas, optimizer = len(replicas.names), replicas.optimizer()
    model.train()
    for batch in batches:
        tiled = tile_batch(batch, n_replicas * n_masks)
        labels, index = tiled.pop("labels"), tiled.pop("index")
        with replicas.active():
            logits = model(**tiled).logits
        losses = cross_entropy(logits, labels, reduction="none").unflatten(0, (n_replicas, -1))
        objective = replicas.objective(losses, index.unflatten(0, (n_replicas, -1)))
        optimizer.zero_grad()
        objective.sum().backward()
        replicas.clip_gradients()
        optimizer.step()
    model.eval()


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        difference = (found[key] - value).abs().max()
        assert difference <= atol, f"{key} differs by {difference}"


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


mask_settings = st.none() | st.fixed_dictionaries(
    {
        "dropout_rate": st.sampled_from([0.0, 0.2, 0.5, (0.1, 0.6)]),
        "seed": st.integers(0, 2),
        "mask_scope": st.sampled_from(["batch", "example"]),
        "rescale": st.booleans(),
    }
)
replica_settings = st.builds(
    ReplicaSettings,
    learning_rate=st.sampled_from([1e-3, 0.01, 0.05]),
    weight_decay=st.sampled_from([0.0, 0.3]),
    penalty=st.sampled_from([0.0, 0.1]),
    penalized=st.sampled_from(["update", "factors"]),
    max_grad_norm=st.none() | st.sampled_from([0.01, 1.0]),
    train_A=st.booleans(),
    # No batch of the test is without weight.
    example_weights=st.none()
    | st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=N_ROWS, max_size=N_ROWS).map(
        lambda weights: (1.0, *weights[1:])
    ),
)


# -- equal to separate trainings -------------------------------------------------------------


@given(
    kind=st.sampled_from(classifiers.KINDS),
    all_masks=st.lists(mask_settings, min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=15)
def test_a_pass_of_replicas_trains_each_as_if_alone(kind, all_masks, data) -> None:
    masks = {f"replica{k}": each for k, each in enumerate(all_masks)}
    each = {name: data.draw(replica_settings) for name in masks}
    configs = {
        name: adapter_config(kind, r=data.draw(st.integers(1, 3)), lora_alpha=2 + k)
        for k, name in enumerate(masks)
    }
    model = adapted(kind, masks, configs=configs)
    separate = {name: alone(kind, model, name, masks[name]) for name in masks}
    batches = classifiers.padded_batches(N_ROWS, batch_size=N_ROWS) * 3
    train_together(model, Replicas(model, each), batches)
    for name in masks:
        expected = train_alone(separate[name], name, each[name], batches)
        assert_same_weights(weights_of(model, name), expected, atol=1e-9)


def test_in_single_precision_too() -> None:
    masks = {f"p{k}": {"dropout_rate": 0.2 * k, "seed": k} for k in range(4)}
    model = adapted("bert", masks, dtype=torch.float32)
    separate = {name: alone("bert", model, name, masks[name]) for name in masks}
    batches = classifiers.padded_batches(N_ROWS, batch_size=3) * 3
    replicas = Replicas(model, dict.fromkeys(masks, ReplicaSettings(learning_rate=0.01)))
    train_together(model, replicas, batches)
    for name in masks:
        expected = train_alone(separate[name], name, replicas.settings[name], batches)
        assert_same_weights(weights_of(model, name), expected, atol=1e-5)


@pytest.mark.parametrize("law", ["iid", "balanced", "orthogonal"])
def test_several_masks_per_replica(law) -> None:
    masks: dict[str, Any] = {
        "halved": {"dropout_rate": 0.5, "seed": 0, "n_masks": 4, "mask_law": law},
        "plain": None,  # its one mask serves all four instances
        "two": {"dropout_rate": 0.5, "seed": 1, "n_masks": 2},
    }
    model = adapted("bert", masks)
    separate = {name: alone("bert", model, name, masks[name]) for name in masks}
    batches = classifiers.padded_batches(N_ROWS, batch_size=3)
    replicas = Replicas(model, dict.fromkeys(masks, ReplicaSettings(learning_rate=0.02)))
    assert replicas.n_masks == 4
    train_together(model, replicas, batches, n_masks=4)
    for name, n_masks in {"halved": 4, "plain": 1, "two": 2}.items():
        expected = train_alone(
            separate[name], name, replicas.settings[name], batches, n_masks=n_masks
        )
        assert_same_weights(weights_of(model, name), expected, atol=1e-9)


def test_numbers_of_masks_that_cannot_be_matched_are_refused() -> None:
    masks = {"one": {"dropout_rate": 0.5, "n_masks": 2}, "two": {"dropout_rate": 0.5, "n_masks": 3}}
    model = adapted("bert", masks).train()
    replicas = Replicas(model, dict.fromkeys(masks, ReplicaSettings()))
    batch = inputs(classifiers.padded_batches(3)[0])
    with replicas.active(), pytest.raises(ValueError, match=r"must divide.*\[2, 3\]"):
        model(**tile_batch(batch, 6))


def test_leave_one_out_replicas_leave_one_out() -> None:
    """The weights of a leave-one-out set make the mean over the other examples."""
    names = [f"without{row}" for row in range(N_ROWS)]
    model = adapted("bert", dict.fromkeys(names, None))
    replicas = Replicas(
        model,
        {
            name: ReplicaSettings(example_weights=leave_one_out_weights(N_ROWS, row))
            for row, name in enumerate(names)
        },
    )
    batch = classifiers.padded_batches(N_ROWS, batch_size=N_ROWS)[0]
    tiled = tile_batch(batch, N_ROWS)
    labels, index = tiled.pop("labels"), tiled.pop("index")
    with replicas.active():
        logits = model(**tiled).logits
    logits.retain_grad()
    losses = cross_entropy(logits, labels, reduction="none").unflatten(0, (N_ROWS, -1))
    objective = replicas.objective(losses, index.unflatten(0, (N_ROWS, -1)))
    objective.sum().backward()
    gradient = logits.grad.unflatten(0, (N_ROWS, -1))
    for row in range(N_ROWS):
        kept = [other for other in range(N_ROWS) if other != row]
        torch.testing.assert_close(objective[row], losses[row, kept].mean())
        assert not gradient[row, row].any()
        assert gradient[row, kept].abs().amin(0).any()


def test_a_diverging_replica_leaves_the_others_alone() -> None:
    masks = {"good": {"dropout_rate": 0.3, "seed": 0}, "bad": None}
    model = adapted("bert", masks)
    expected = train_alone(
        alone("bert", model, "good", masks["good"]),
        "good",
        ReplicaSettings(),
        batches := classifiers.padded_batches(N_ROWS),
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B.bad" in key:
                parameter.fill_(float("nan"))
    train_together(model, Replicas(model, dict.fromkeys(masks, ReplicaSettings())), batches)
    assert_same_weights(weights_of(model, "good"), expected, atol=1e-9)


def test_penalties_are_those_of_the_full_matrices() -> None:
    settings = {
        "one": ReplicaSettings(penalty=0.5),
        "two": ReplicaSettings(penalty=2.0, penalized="factors"),
        "three": ReplicaSettings(),
    }
    ranks = dict(zip(TRIO, (3, 1, 2), strict=True))
    configs = {name: adapter_config("bert", r=r, lora_alpha=5) for name, r in ranks.items()}
    model = adapted("bert", dict.fromkeys(TRIO), configs=configs)
    expected = [each.penalty * penalized(model, n, each.penalized) for n, each in settings.items()]
    torch.testing.assert_close(Replicas(model, settings).penalties(), torch.stack(expected))
    assert min(expected[:2]) > 0


def test_masks_that_are_not_rescaled_act_as_their_mean_in_evaluation() -> None:
    masks = {"one": {"dropout_rate": 0.5, "rescale": False}, "two": None}
    model = adapted("bert", masks).eval()
    batch, expected = inputs(classifiers.padded_batches(3)[0]), []
    for name in masks:
        model.set_adapter(name)
        expected.append(model(**batch).logits)
    with Replicas(model, dict.fromkeys(masks, ReplicaSettings())).active():
        torch.testing.assert_close(model(**tile_batch(batch, 2)).logits, torch.cat(expected))


# -- masks -----------------------------------------------------------------------------------


def test_replicas_of_one_seed_share_their_random_numbers() -> None:
    """What a lower rate drops, a higher one drops too; equal rates see equal masks."""
    rates = {"low": 0.2, "high": 0.6, "again": 0.2}
    model = adapted("bert", {name: {"dropout_rate": p, "seed": 3} for name, p in rates.items()})
    replicas = Replicas(model, dict.fromkeys(rates, ReplicaSettings()))
    model.train()
    with replicas.active():
        model(**tile_batch(inputs(classifiers.padded_batches(3)[0]), 3))
    kept = {name: mask_bank(model, name).passes.draw.masks for name in rates}
    assert torch.equal(kept["low"], kept["again"])
    assert not (kept["high"] & ~kept["low"]).any()
    assert (kept["low"] & ~kept["high"]).any()


def test_masks_of_a_pass_are_drawn_once_and_for_the_rows_of_a_slice() -> None:
    masks = {name: {"dropout_rate": 0.5, "seed": 0, "mask_scope": "example"} for name in PAIR}
    model = adapted("bert", masks).train()
    replicas = Replicas(model, dict.fromkeys(masks, ReplicaSettings()))
    batch = inputs(classifiers.padded_batches(3)[0])
    with replicas.active():
        model(**tile_batch(batch, 2))
        model.get_base_model()(**tile_batch(batch, 2))  # entered below the outermost root
    for name in masks:
        passes = mask_bank(model, name).passes
        assert passes.n_drawn == 2
        assert len(passes.draw.masks) == 3
    model.set_adapter("one")
    model(**batch)  # the banks' own hooks are on duty again
    assert mask_bank(model, "one").passes.n_drawn == 3


def test_ensembles_of_all_replicas_in_one_pass() -> None:
    masks = {"one": {"dropout_rate": 0.5}, "two": {"dropout_rate": 0.2}}
    model = adapted("bert", masks).eval()
    batch = inputs(classifiers.padded_batches(3)[0])
    banks = [mask_bank(model, name) for name in masks]
    expected = []
    for name, bank in zip(masks, banks, strict=True):
        model.set_adapter(name)
        with bank.fixed(4, seed=1):
            expected.append(model(**tile_batch(batch, 4)).logits)
    replicas = Replicas(model, dict.fromkeys(masks, ReplicaSettings()))
    with replicas.active(), banks[0].fixed(4, seed=1), banks[1].fixed(4, seed=1):
        found = model(**tile_batch(batch, 8)).logits
    torch.testing.assert_close(found, torch.cat(expected))


def test_plain_lora_dropout_of_a_replica_stays_its_own() -> None:
    configs = {
        "dropped": adapter_config("bert", lora_dropout=0.9),
        "kept": adapter_config("bert"),
    }
    model = adapted("bert", dict.fromkeys(configs), configs=configs)
    replicas = Replicas(model, dict.fromkeys(configs, ReplicaSettings()))
    batch = tile_batch(inputs(classifiers.padded_batches(3)[0]), 2)
    with replicas.active(), torch.random.fork_rng(devices=[]):
        constant = model.eval()(**batch).logits.chunk(2)
        random = model.train()(**batch).logits.chunk(2)
    assert not torch.allclose(random[0], constant[0], atol=1e-3)
    torch.testing.assert_close(random[1], constant[1])


def test_recomputed_layers_see_the_same_masks() -> None:
    masks = {"one": {"dropout_rate": 0.5, "seed": 0}, "two": {"dropout_rate": 0.2, "seed": 1}}
    batch = tile_batch(inputs(classifiers.padded_batches(3)[0]), 2)
    found = []
    for checkpointed in (False, True):
        model = adapted("llama", masks).train()
        if checkpointed:
            base = model.get_base_model()
            enable = getattr(
                base, "activation_checkpointing_enable", base.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False, "preserve_rng_state": False})
        with Replicas(model, dict.fromkeys(masks, ReplicaSettings())).active():
            model(**batch).logits.square().sum().backward()
        found.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert_same_weights(found[1], found[0], atol=1e-12)


# -- ordinary adapters before and after ------------------------------------------------------


@pytest.mark.parametrize("kind", classifiers.KINDS)
def test_each_replica_is_saved_and_loaded_as_an_ordinary_adapter(kind, tmp_path) -> None:
    masks = {"one": {"dropout_rate": 0.5, "seed": 0}, "two": None}
    model = adapted(kind, masks)
    replicas = Replicas(model, dict.fromkeys(masks, ReplicaSettings(learning_rate=0.02)))
    batch = classifiers.padded_batches(4)[0]
    train_together(model, replicas, [batch] * 2)
    with replicas.active(), torch.no_grad():
        together = model(**tile_batch(inputs(batch), 2)).logits.unflatten(0, (2, -1))
    model.save_pretrained(tmp_path, selected_adapters=["two"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["two"]
    model.save_pretrained(tmp_path, selected_adapters=["one"])
    for number, name in enumerate(masks):
        model.set_adapter(name)
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs(batch)).logits, together[number])
        loaded = PeftModel.from_pretrained(base_model(kind).double(), tmp_path / name)
        with torch.no_grad():
            torch.testing.assert_close(loaded.eval()(**inputs(batch)).logits, together[number])


def test_a_pass_changes_nothing_that_lasts() -> None:
    masks = {"one": {"dropout_rate": 0.5}, "two": None}
    model = adapted("bert", masks)
    replicas = Replicas(model, dict.fromkeys(masks, ReplicaSettings()))
    keys, batch = set(model.state_dict()), inputs(classifiers.padded_batches(2)[0])
    before = model.eval()(**batch).logits
    with replicas.active():
        model(**tile_batch(batch, 2))
    with pytest.raises(ValueError, match="multiple of 2 rows"), replicas.active():
        model(**inputs(classifiers.padded_batches(3)[0]))
    assert set(model.state_dict()) == keys
    torch.testing.assert_close(model(**batch).logits, before)
    assert not mask_bank(model, "one").passes.n_drawn
    model.merge_adapter(["one"])
    torch.testing.assert_close(model(**batch).logits, before)


def test_disabled_adapters_are_the_base() -> None:
    model = adapted("bert", dict.fromkeys(PAIR))
    replicas = Replicas(model, dict.fromkeys(PAIR, ReplicaSettings()))
    batch = inputs(classifiers.padded_batches(2)[0])
    base = base_model("bert").double().eval()(**batch).logits
    with replicas.active(), model.eval().disable_adapter():
        found = model(**tile_batch(batch, 2)).logits
    torch.testing.assert_close(found, base.repeat(2, 1))


def test_a_copy_is_independent() -> None:
    model = adapted("bert", {"one": {"dropout_rate": 0.5, "seed": 0}, "two": None})
    replicas = Replicas(model, dict.fromkeys(PAIR, ReplicaSettings(learning_rate=0.1)))
    before = weights_of(model, "one")
    twin = copy.deepcopy(replicas)
    train_together(twin.model, twin, classifiers.padded_batches(3))
    assert_same_weights(weights_of(model, "one"), before, atol=0.0)
    assert not mask_bank(model, "one").passes.n_drawn
    train_together(model, replicas, classifiers.padded_batches(3))
    for name in PAIR:
        assert_same_weights(weights_of(model, name), weights_of(twin.model, name), atol=1e-12)


def test_another_adapter_made_active_in_between_does_not_stop_training() -> None:
    model = adapted("bert", dict.fromkeys(PAIR))
    replicas = Replicas(model, dict.fromkeys(PAIR, ReplicaSettings(train_A=False)))
    model.set_adapter("two")  # PEFT then freezes "one", and trains A
    with replicas.active():
        output = model(**tile_batch(inputs(classifiers.padded_batches(2)[0]), 2)).logits
    output.sum().backward()
    for name in PAIR:
        assert all(parameter.grad is not None for parameter in replicas.parameters(name))
    frozen = [p for key, p in model.named_parameters() if "lora_A" in key]
    assert frozen
    assert all(p.grad is None and not p.requires_grad for p in frozen)


class _Head(nn.Module):
    """A head that is no Linear, reads a second tensor, and is called with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: Tensor, shift: Tensor, *, gain: Tensor) -> Tensor:
        return torch.tanh(self.inner(x + shift)) * gain


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), _Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x), x[:, :3], gain=torch.tensor(2.0))


def test_other_heads_run_slice_by_slice() -> None:
    config = LoraConfig(
        r=2, target_modules=["body"], modules_to_save=["head"], init_lora_weights=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = get_peft_model(_Network(), config, adapter_name="one")
        model.add_adapter("two", config)
        for copied in model.base_model.model.head.modules_to_save.values():
            nn.init.normal_(copied.inner.weight)
        x = torch.randn(6, 4)
    expected = []
    for name, rows in zip(PAIR, x.chunk(2), strict=True):
        model.set_adapter(name)
        expected.append(model(rows))
    with Replicas(model, dict.fromkeys(PAIR, ReplicaSettings())).active():
        torch.testing.assert_close(model(x), torch.cat(expected))


# -- refusals --------------------------------------------------------------------------------


def plain(**options: Any) -> dict[str, LoraConfig]:
    return {"one": adapter_config("bert"), "two": adapter_config("bert", **options)}


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (plain(target_modules=["query"]), r"same modules: layer '.*' has no adapter \['two'\]"),
        (plain(layers_to_transform=[2]), "same modules"),
        (plain(use_dora=True), "'two' is the LoRA variant Dora"),
        (plain(lora_bias=True), "'two' trains a bias"),
        (plain(modules_to_save=["pooler"]), r"modules_to_save.*pooler.*no copy for \['one'\]"),
    ],
)
def test_adapters_that_cannot_run_side_by_side_are_refused(configs, message) -> None:
    model = adapted("bert", dict.fromkeys(configs), configs=configs)
    with pytest.raises(ValueError, match=message):
        Replicas(model, dict.fromkeys(configs, ReplicaSettings()))


def test_wrong_replicas_are_refused() -> None:
    model = adapted("bert", dict.fromkeys(PAIR))
    with pytest.raises(TypeError, match="PeftModel"):
        Replicas(model.get_base_model(), {"one": ReplicaSettings()})
    with pytest.raises(ValueError, match="at least one"):
        Replicas(model, {})
    with pytest.raises(ValueError, match=r"\['one', 'two'\], got \['three'\]"):
        Replicas(model, {"one": ReplicaSettings(), "three": ReplicaSettings()})
    weighted = [ReplicaSettings(example_weights=(1.0,) * n) for n in (2, 3)]
    with pytest.raises(ValueError, match="one length"):
        Replicas(model, dict(zip(PAIR, weighted, strict=True)))
    with pytest.raises(ValueError, match=r"one of \['one'\], got 'two'"):
        Replicas(model, {"one": ReplicaSettings()}).parameters("two")
    model.merge_adapter(["one"])
    with pytest.raises(ValueError, match="must not be merged"):
        Replicas(model, dict.fromkeys(PAIR, ReplicaSettings()))


def test_passes_and_losses_that_cannot_be_dealt_out_are_refused() -> None:
    model = adapted("bert", dict.fromkeys(PAIR))
    weighted = ReplicaSettings(example_weights=(1.0, 0.0))
    replicas = Replicas(model, {"one": ReplicaSettings(), "two": weighted})
    batch = inputs(classifiers.padded_batches(3)[0])
    with replicas.active():
        with pytest.raises(ValueError, match=r"multiple of 2 rows.*got 3"):
            model(**batch)
        with pytest.raises(ValueError, match="`adapter_names`"):
            model(**tile_batch(batch, 2), adapter_names=["one"] * 6)
        with pytest.raises(RuntimeError, match="already run"), replicas.active():
            pass
        with pytest.raises(RuntimeError, match="cannot be merged"):
            model.merge_adapter(["one"])
        block = model.base_model.model.bert.encoder.layer[1]
        with pytest.raises(ValueError, match="multiple of 2"):
            block.attention.self.query(torch.ones(3, 5, 8).double())
        with pytest.raises(ValueError, match="multiple of 2"):
            model.base_model.model.classifier(torch.ones(3, 8).double())
    with pytest.raises(ValueError, match="`index` must say"):
        replicas.objective(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        replicas.objective(torch.ones(2, 1), torch.tensor([[0], [2]]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"penalty": float("inf")},
        {"penalized": "both"},
        {"max_grad_norm": 0.0},
        {"train_A": 1},
        {"order_seed": -1},
        {"example_weights": ()},
        {"example_weights": (1.0, -1.0)},
    ],
)
def test_settings_outside_their_range_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must"):
        ReplicaSettings(**wrong)


def test_a_leave_one_out_set_must_exist() -> None:
    for n_train, left_out in ((1, 0), (3, 3), (3, -1)):
        with pytest.raises(ValueError, match="`left_out`"):
            leave_one_out_weights(n_train, left_out)


def test_padding_rows_do_not_count() -> None:
    model = adapted("bert", dict.fromkeys(PAIR))
    replicas = Replicas(model, dict.fromkeys(PAIR, ReplicaSettings()))
    losses = torch.tensor([[1.0, 3.0], [5.0, float("nan")]])
    is_padding = torch.tensor([[False, False], [False, True]])
    assert replicas.objective(losses, is_padding=is_padding).tolist() == [2.0, 5.0]


def test_clipping_is_by_replica() -> None:
    model = adapted("bert", dict.fromkeys(TRIO))
    limits = {"one": 0.5, "two": None, "three": 100.0}
    replicas = Replicas(
        model,
        {n: dataclasses.replace(ReplicaSettings(), max_grad_norm=x) for n, x in limits.items()},
    )
    for name in limits:
        for parameter in replicas.parameters(name):
            parameter.grad = torch.ones_like(parameter)
    size = sum(parameter.numel() for parameter in replicas.parameters("one")) ** 0.5
    assert replicas.clip_gradients().tolist() == pytest.approx([size] * 3)
    norms = [
        torch.cat([p.grad.flatten() for p in replicas.parameters(name)]).norm() for name in limits
    ]
    assert [float(norm) for norm in norms] == pytest.approx([0.5, size, size], rel=1e-5)


def test_quantized_or_other_layers_are_refused() -> None:
    embedded = LoraConfig(r=2, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Embedding(5, 3)), embedded, adapter_name="one")
    with pytest.raises(NotImplementedError, match="Embedding; replicas"):
        Replicas(model, {"one": ReplicaSettings()})


def test_attaching_masks_later_is_seen() -> None:
    model = adapted("bert", dict.fromkeys(PAIR))
    replicas = Replicas(model, dict.fromkeys(PAIR, ReplicaSettings()))
    batch = tile_batch(inputs(classifiers.padded_batches(3)[0]), 2)
    bank = attach_lora_dropout(model, 0.5, adapter_name="two", seed=0)
    with replicas.active():
        constant = model.eval()(**batch).logits.chunk(2)
        masked = model.train()(**batch).logits.chunk(2)
    torch.testing.assert_close(masked[0], constant[0])
    assert not torch.allclose(masked[1], constant[1], atol=1e-3)
    assert bank.passes.n_drawn == 1
