"""Stability of a training run by true retraining."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from peft import PeftModel

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.config import RunConfig
from lodrop_nn.data.examples import Examples, batches
from lodrop_nn.masks import MaskBank
from lodrop_nn.measure.retraining import retraining_stability
from lodrop_nn.train import replica_adapters
from lodrop_nn.train.finetune import fine_tune
from lodrop_theory.losses import smoothed_cross_entropy
from tests.nn.classifiers import adapted_classifier

CONFIG = RunConfig(
    dropout_rate=0.3,
    seed=3,
    n_train=9,
    n_test=7,
    epochs=3,
    batch_size=4,
    learning_rate=0.05,
    adapted_layers=(1, 2),
)


def rows(n: int, seed: int) -> Examples:
    stream = np.random.default_rng(seed)
    texts = [tuple(stream.integers(3, 23, length).tolist()) for length in stream.integers(2, 7, n)]
    return Examples(
        input_ids=tuple(texts), labels=tuple(stream.integers(0, 3, n).tolist()), pad_token_id=0
    )


TRAIN, FRESH = rows(9, seed=0), rows(7, seed=1)


def untrained(dropout_rate: float = 0.3) -> tuple[PeftModel, MaskBank]:
    model, bank = adapted_classifier("bert", dropout_rate)
    seeded = MaskBank(dataclasses.replace(bank.settings, seed=CONFIG.seed))
    bank.settings = seeded.settings
    return model.eval(), bank


def without(examples: Examples, place: int) -> Examples:
    keep = [i for i in range(len(examples)) if i != place]
    return dataclasses.replace(
        examples,
        input_ids=tuple(examples.input_ids[i] for i in keep),
        labels=tuple(examples.labels[i] for i in keep),
    )


def losses(model: PeftModel, examples: Examples) -> np.ndarray:
    found = np.empty(len(examples))
    for batch in batches(examples, 4, order="given"):
        with torch.no_grad():
            logits = model(batch["input_ids"], batch["attention_mask"]).logits
        found[batch["index"].numpy()] = smoothed_cross_entropy(
            logits.double().softmax(-1).numpy(), batch["labels"].numpy(), CONFIG.smoothing
        )
    return found


def test_one_batch_per_epoch_equals_runs_without_the_example() -> None:
    """With all rows in one batch, what is left out can be left out of the data as well."""
    config = dataclasses.replace(CONFIG, batch_size=64, dropout_rate=0.0)
    model, bank = untrained(0.0)

    _, changes = retraining_stability(model, bank, TRAIN, FRESH, config, left_out=(2, 5))

    for at, place in enumerate((2, 5)):
        again, its_bank = untrained(0.0)
        fine_tune(again, its_bank, without(TRAIN, place), config)
        assert changes.removed[1, at] == pytest.approx(losses(again, TRAIN)[place], rel=1e-6)
        assert changes.fresh[1, at] == pytest.approx(losses(again, FRESH)[2:], rel=1e-6)
    whole, its_bank = untrained(0.0)
    fine_tune(whole, its_bank, TRAIN, config)
    assert changes.removed[0] == pytest.approx(losses(whole, TRAIN)[[2, 5]], rel=1e-6)
    assert changes.fresh[0] == pytest.approx(np.tile(losses(whole, FRESH)[2:], (2, 1)), rel=1e-6)


def test_masks_are_shared_so_that_only_the_example_differs() -> None:
    """A replacement equal to the example moves nothing, although masks are drawn in each run."""
    model, bank = untrained()
    twins = dataclasses.replace(
        FRESH,
        input_ids=(TRAIN.input_ids[1], TRAIN.input_ids[4], *FRESH.input_ids[2:]),
        labels=(TRAIN.labels[1], TRAIN.labels[4], *FRESH.labels[2:]),
    )
    config = dataclasses.replace(CONFIG, batch_size=64)

    found, changes = retraining_stability(model, bank, TRAIN, twins, config, left_out=(1, 4))

    assert found.replace_one_in.value == pytest.approx(0.0, abs=1e-9)
    assert found.replace_one_out.value == pytest.approx(0.0, abs=1e-9)
    assert found.pointwise_stability.value > 1e-6
    assert not np.allclose(changes.fresh[1], changes.fresh[0])


def test_estimates_are_means_and_root_means_of_the_changes() -> None:
    model, bank = untrained()
    found, changes = retraining_stability(model, bank, TRAIN, FRESH, CONFIG, left_out=(0, 3, 8))

    moved = changes.removed[1] - changes.removed[0]
    assert found.pointwise_stability.value == pytest.approx(np.abs(moved).mean())
    assert found.leave_one_out_risk.value == pytest.approx(changes.removed[1].mean())
    swapped = changes.fresh[2] - changes.fresh[0]
    assert found.replace_one_out.value == pytest.approx(np.sqrt(np.square(swapped).mean()))
    assert changes.fresh.shape == (3, 3, 4)
    for estimate in vars(found).values():
        assert estimate.provenance == "plug-in"
        assert estimate.low <= estimate.value <= estimate.high


def test_the_model_comes_back_as_it_was() -> None:
    model, bank = untrained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    steps: list[tuple[int, int]] = []

    retraining_stability(
        model,
        bank,
        TRAIN,
        FRESH,
        CONFIG,
        left_out=(0, 1),
        on_step=lambda step, total: steps.append((step, total)),
    )

    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert model.active_adapter == "default"
    assert all(b[0] - a[0] == 1 for a, b in pairwise(steps))
    assert steps[-1][0] == steps[-1][1]


def test_a_failure_leaves_no_replica_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, bank = untrained()
    model.train()
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    attached: list[str] = []

    def once(model: PeftModel, *, adapter_name: str, **law: object) -> MaskBank:
        if attached:
            raise MemoryError("no room for another")
        attached.append(adapter_name)
        return attach_lora_dropout(model, adapter_name=adapter_name, **law)

    monkeypatch.setattr(replica_adapters, "attach_lora_dropout", once)
    with pytest.raises(MemoryError, match="no room"):
        retraining_stability(model, bank, TRAIN, FRESH, CONFIG, left_out=(0, 1))

    assert attached == ["whole"]
    assert set(model.peft_config) == {"default"}
    assert model.active_adapter == "default"
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("left_out", [(1,), (1, 1), (0, 9), (-1, 2)])
def test_examples_must_exist_once(left_out: tuple[int, ...]) -> None:
    model, bank = untrained()
    with pytest.raises(ValueError, match="`left_out` must be two or more distinct examples"):
        retraining_stability(model, bank, TRAIN, FRESH, CONFIG, left_out=left_out)


def test_fresh_rows_must_outnumber_the_replacements() -> None:
    model, bank = untrained()
    with pytest.raises(ValueError, match="`fresh` must have more than 2 rows, got 2"):
        retraining_stability(model, bank, TRAIN, rows(2, seed=2), CONFIG, left_out=(0, 1))
