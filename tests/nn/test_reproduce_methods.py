"""What each method trains, and how: tiny models of the real architectures."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from lodrop_nn.adapter import mask_bank
from lodrop_nn.reproduce import run as single
from lodrop_nn.reproduce.best_epoch import BestEpoch
from lodrop_nn.reproduce.evaluation import scores_of
from lodrop_nn.reproduce.grid import LoadedTask, runs_of
from lodrop_nn.reproduce.methods import n_trained, put_method_on
from lodrop_nn.reproduce.models import ModelUnavailableError, load_base, load_tokenizer
from lodrop_nn.reproduce.plan import METHODS, Method, Run, has_masks, is_adalora, schedule
from lodrop_nn.reproduce.presets import preset
from lodrop_nn.reproduce.training import train
from tests.nn import benchmark_files as files
from tests.nn.benchmark_files import FAMILIES, Home

pytestmark = [
    # peft 0.19 looks for the base model's config on the hub, which models made here do not have.
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    # peft 0.21 takes AdaLoRA's `rank_pattern` for LoRA's and says that its keys match nothing.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match"),
]

STEPS = 3
CASES = [(family, method) for family in FAMILIES for method in METHODS]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    return Home.made(tmp_path_factory.mktemp("home"))


def wanted(task: LoadedTask, method: Method, max_steps: int = STEPS) -> Run:
    (found,) = runs_of(task, [method], max_steps)
    return found


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_method_trains_what_it_says(family: str, method: Method, home: Home) -> None:
    task = home.task(family)
    steps = schedule(task.preset, len(task.features.train), STEPS)
    base = load_base(task.preset, method, 0)
    heads = {"glue": ("pooler", "classifier"), "squad": ("qa_outputs",), "mmlu": ()}[family]
    n_head = sum(p.numel() for n, p in base.named_parameters() if n.split(".")[0] in heads)
    n_all = sum(p.numel() for p in base.parameters())
    n_biases = sum(
        p.numel()
        for n, p in base.named_parameters()
        if n.endswith("bias") and n.split(".")[0] not in heads
    )
    model = put_method_on(base, task.preset, method, steps, 0)
    factors = sum(
        p.numel() for n, p in model.named_parameters() if "lora_" in n and p.requires_grad
    )
    expected = {"full": n_all, "bitfit": n_biases + n_head}.get(method, factors + n_head)
    assert n_trained(model) == expected > n_head
    layers = {"glue": 12, "squad": 12, "mmlu": 4}[family]  # of two blocks: all matrices, or q and v
    if method not in ("full", "bitfit"):
        found = [n for n, _ in model.named_parameters() if ".lora_A." in n]
        rank = 12 if is_adalora(method) else 8
        assert len(found) == layers
        assert all(p.shape[0] == rank for n, p in model.named_parameters() if ".lora_A." in n)
    if has_masks(method):
        bank = mask_bank(model)
        assert (bank.n_masks, bank.rescale) == (2, False)


def test_masks_of_deberta_pass_one_after_the_other(home: Home) -> None:
    """Its layers serve one mask per pass; so do those of an ensemble."""
    task = home.task("glue")
    steps = schedule(task.preset, len(task.features.train), 1)
    model = put_method_on(load_base(task.preset, "lora+dropout", 0), task.preset, "lora+dropout",
                          steps, 0)  # fmt: skip
    rows: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[0])
    )
    folder = home.folder / "trainer"
    train(model, task.features, task.preset, "lora+dropout", steps, seed=0, folder=folder)
    assert mask_bank(model).one_mask_per_pass
    assert rows[-2:] == [4, 4]  # after the tiled pass of 8 rows was refused
    rows.clear()
    scores_of(model, task.features, n_masks=3)
    assert set(rows) == {12}


def test_the_ensemble_differs_from_the_mean_and_from_another_seed(home: Home) -> None:
    task = home.task("mmlu")
    steps = schedule(task.preset, len(task.features.train), STEPS)
    hot = task.preset.with_settings(learning_rate=0.3)
    model = put_method_on(load_base(hot, "lora+dropout", 0), hot, "lora+dropout", steps, 0)
    train(model, task.features, hot, "lora+dropout", steps, seed=0, folder=home.folder / "t")
    outputs: list[torch.Tensor] = []
    (split,) = task.features.splits
    kept = replace(split, score=lambda rows: {"n": outputs.append(torch.tensor(np.stack(rows)))})
    for n_masks, seed in ((None, 0), (2, 0), (2, 0), (2, 1)):
        scores_of(model, replace(task.features, splits=(kept,)), n_masks=n_masks, seed=seed)
    assert torch.equal(outputs[1], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    assert not torch.allclose(outputs[1], outputs[3], atol=1e-3)


def test_smaller_device_batches_train_the_same(home: Home) -> None:
    task = home.task("glue", head_dropout=0.0)
    losses = []
    for device_batch in (None, 2):
        run = wanted(task, "bitfit", 1)
        record = single.run(run, task.rows, task.features, device_batch=device_batch)
        losses.append(record["training_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(ValueError, match="`device_batch` must divide batch_size = 4, got 3"):
        single.run(wanted(task, "lora"), task.rows, task.features, device_batch=3)


def test_adalora_gives_up_ranks(home: Home) -> None:
    task = home.task("glue", rank=2)
    steps = schedule(task.preset, len(task.features.train), 6)
    model = put_method_on(load_base(task.preset, "adalora+dropout", 0), task.preset,
                          "adalora+dropout", steps, 0)  # fmt: skip
    folder = home.folder / "ada"
    train(model, task.features, task.preset, "adalora+dropout", steps, seed=0, folder=folder)
    values = [p for n, p in model.named_parameters() if ".lora_E." in n]
    assert sum(p.numel() for p in values) == 3 * 12
    assert sum(int((p != 0).sum()) for p in values) == 2 * 12


def test_the_best_epoch_comes_back(home: Home) -> None:
    """Scores that rise and fall: the weights after training are those of the best epoch."""
    task = home.task("glue")
    steps = schedule(task.preset.with_settings(epochs=3), len(task.features.train))
    model = put_method_on(load_base(task.preset, "lora", 0), task.preset, "lora", steps, 0)
    seen = []

    def score(trained) -> dict[str, float]:
        seen.append({n: p.clone() for n, p in trained.named_parameters() if p.requires_grad})
        return {"accuracy": [math.nan, 0.7, 0.7][len(seen) - 1]}

    best = BestEpoch(score, "accuracy")
    result = train(model, task.features, task.preset, "lora", steps, seed=0,
                   folder=home.folder / "best", best=best)  # fmt: skip
    assert len(result.epoch_scores) == 3
    kept = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept)
    assert any(not torch.equal(kept[name], seen[2][name]) for name in kept)


def test_bitfit_needs_biases(tmp_path: Path, home: Home) -> None:
    chosen = preset("mmlu").with_settings(model=files.llama_folder(tmp_path), precision="fp32")
    steps = schedule(chosen, 8, 1)
    with pytest.raises(ValueError, match="must leave out bitfit for LlamaForCausalLM"):
        put_method_on(load_base(chosen, "bitfit", 0), chosen, "bitfit", steps, 0)


def test_frozen_weights_are_bf16_where_the_preset_says_so(home: Home) -> None:
    task = home.task("mmlu").preset.with_settings(precision="bf16")
    assert {p.dtype for p in load_base(task, "lora", 0).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_base(task, "full", 0).parameters()} == {torch.float32}


def test_a_model_that_is_nowhere_names_both_ways(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"must come from the hub .*--model FOLDER"):
        load_tokenizer(preset("rte").with_settings(model=str(tmp_path)))
    with pytest.raises(ModelUnavailableError, match=r"'microsoft/deberta-v3-base' must come from"):
        load_base(preset("rte"), "lora", 0)


@pytest.mark.parametrize(("devices", "processes"), [(2, 1), (1, 2)])
def test_several_devices_are_refused(devices: int, processes: int, home: Home, monkeypatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: devices))
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: processes))
    task = home.task("glue")
    with pytest.raises(ValueError, match=f"got {devices} devices and {processes} processes"):
        single.run(wanted(task, "lora"), task.rows, task.features)
