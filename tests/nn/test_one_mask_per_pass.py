"""Models with layers that lose track of the rows of a pass: masks go one after the other."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import Trainer

from lodrop_nn.adapter import attach_lora_dropout, mask_bank
from lodrop_nn.masks.layout import InstanceLayoutError
from lodrop_nn.predict.batches import ensemble_predict_batches
from lodrop_nn.predict.ensemble import ensemble_predict
from lodrop_nn.predict.generate import ensemble_generate, member_generate
from lodrop_nn.predict.scoring import score_sequences
from lodrop_nn.train.micro_steps import MaskPasses, backward_over_masks
from lodrop_nn.train.tiling import tile_batch
from tests.nn import architectures, test_experts, tiny
from tests.nn.test_trainer import (
    PLAIN_SGD,
    DropoutTrainer,
    MicroTrainer,
    TiledTrainer,
    assert_equal_weights,
    trainer_of,
)

# peft 0.19 looks for the base model's config on the hub, which models made here do not have.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")

# Relative positions that all rows share; experts that a router sends the tokens of all rows to.
MODELS: dict[str, Callable[[], PeftModel]] = {
    "deberta": lambda: architectures.adapted("deberta"),
    "experts": test_experts.adapted,
}
ON_EACH = pytest.mark.parametrize("kind", list(MODELS))


def batch(kind: str, rows: int = 4, tokens: int = 6, seed: int = 0) -> dict[str, Tensor]:
    return tiny.batch("bert" if kind == "deberta" else "llama", rows, tokens, seed)


class Passes:
    """The rows of each pass that a model was asked for."""

    def __init__(self, model: PeftModel) -> None:
        self.rows: list[int] = []
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
        self.rows.append(kwargs["input_ids"].shape[0])


# -- prediction ------------------------------


@ON_EACH
def test_an_ensemble_finds_out_that_members_must_go_one_by_one(kind: str) -> None:
    model = MODELS[kind]()
    attach_lora_dropout(model, 0.4)
    x = batch(kind)
    options = {"n_masks": 3, "seed": 1}
    expected = ensemble_predict(model, x, chunk=1, **options).member_logits
    with pytest.raises(InstanceLayoutError, match="must have one mask per pass, got 2"):
        ensemble_predict(copy.deepcopy(model), x, chunk=2, **options)
    passes = Passes(model)
    predictions = list(ensemble_predict_batches(model, [x, x], **options))
    assert passes.rows == [12, *[4] * 6]  # one attempt, not one per batch
    for prediction in predictions:
        torch.testing.assert_close(prediction.member_logits, expected)
    assert float(expected.std(0).max()) > 0
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert mask_bank(other).one_mask_per_pass


def test_sequences_are_scored_one_member_at_a_time() -> None:
    model = MODELS["experts"]()
    attach_lora_dropout(model, 0.4)
    one_by_one, chosen = (
        score_sequences(model, batch("experts"), n_masks=3, seed=1, chunk=chunk)
        for chunk in (1, None)
    )
    expected = one_by_one.member_token_log_probs
    torch.testing.assert_close(chosen.member_token_log_probs, expected)
    assert float(expected.std(0).max()) > 0


@pytest.mark.parametrize("generate", [ensemble_generate, member_generate])
def test_generation_refuses_several_members(generate: Callable[..., Tensor]) -> None:
    model = MODELS["experts"]()
    attach_lora_dropout(model, 0.4)
    prompt = {name: x for name, x in batch("experts").items() if name != "labels"}
    with pytest.raises(InstanceLayoutError, match="generate with one member at a time"):
        generate(model, prompt, n_masks=2, seed=0, max_new_tokens=2)


# -- training ------------------------------


def accumulated(
    kind: str, mask_passes: MaskPasses, seed: int | None
) -> tuple[dict[str, Tensor], Tensor, list[int]]:
    """Gradients of two batches, their risks, and the rows of the passes."""
    model = MODELS[kind]().train()
    bank = attach_lora_dropout(model, 0.4, n_masks=2, seed=seed)
    passes = Passes(model)
    with torch.random.fork_rng():
        torch.manual_seed(5)  # read by masks without a seed
        risks = [
            backward_over_masks(
                bank,
                lambda rows: model(**rows).loss,
                batch(kind, seed=seed),
                mask_passes=mask_passes,
            )
            for seed in (0, 1)
        ]
    assert bank.passes.n_drawn == 2
    return tiny.gradients(model), torch.stack(risks), passes.rows


@ON_EACH
@pytest.mark.parametrize("seed", [7, None])
def test_backward_over_masks_turns_to_micro_steps(kind: str, seed: int | None) -> None:
    expected, risks, _ = accumulated(kind, "micro", seed)
    gradients, risks_found, rows = accumulated(kind, "auto", seed)
    assert rows == [8, 4, 4, 4, 4]
    assert torch.equal(risks_found, risks)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name
    with pytest.raises(InstanceLayoutError, match="mask_passes='auto'"):
        accumulated(kind, "tiled", seed)


def trained(
    kind: str, folder: Path, trainer: type[Trainer], seed: int | None
) -> tuple[PeftModel, list[int]]:
    rows = batch(kind, rows=16)
    with torch.random.fork_rng():
        model = MODELS[kind]()
        bank = attach_lora_dropout(model, 0.4, n_masks=2, seed=seed)
        passes = Passes(model)
        data = [{name: x[i] for name, x in rows.items()} for i in range(16)]
        trainer_of(
            model, folder, kind=kind, trainer=trainer, train_dataset=data, **PLAIN_SGD
        ).train()
    assert bank.passes.n_drawn == 4
    return model, passes.rows


@ON_EACH
@pytest.mark.parametrize("seed", [3, None])
def test_the_trainer_turns_to_micro_steps(kind: str, seed: int | None, tmp_path: Path) -> None:
    expected, _ = trained(kind, tmp_path, MicroTrainer, seed)
    model, rows = trained(kind, tmp_path, DropoutTrainer, seed)
    assert rows == [8, *[4] * 8]  # one attempt in the whole training
    assert_equal_weights(model, expected)
    other, _ = trained(kind, tmp_path, MicroTrainer, seed=4)
    with pytest.raises(AssertionError):
        assert_equal_weights(model, other)


@ON_EACH
def test_a_trainer_that_must_tile_does_not_turn(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InstanceLayoutError, match="must have one mask per pass, got 2"):
        trained(kind, tmp_path, TiledTrainer, seed=3)


# -- what the error is not for ------------------------------


@ON_EACH
def test_a_batch_that_was_not_tiled_is_told_apart(kind: str) -> None:
    model = MODELS[kind]().train()
    bank = attach_lora_dropout(model, 0.4, n_masks=2)
    with pytest.raises(
        ValueError, match=r"multiple of the 2 masks of this pass.*\(3, 6, 16\)"
    ) as e:
        model(**batch(kind, rows=3))
    assert not isinstance(e.value, InstanceLayoutError)
    assert not bank.one_mask_per_pass
    with pytest.raises(InstanceLayoutError):
        model(**tile_batch(batch(kind, rows=3), 2))


@ON_EACH
def test_a_mask_per_example_is_refused_with_the_way_out(kind: str) -> None:
    model = MODELS[kind]().train()
    attach_lora_dropout(model, 0.4, mask_scope="example")
    with pytest.raises(InstanceLayoutError, match=r"got 4: .*mask_scope='batch', not 'example'"):
        model(**batch(kind))
