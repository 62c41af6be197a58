"""Ensembles over masks: members, uncertainty, and the state of the model around them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from peft import LoraConfig, get_peft_model
from torch import nn

from lodrop_nn.adapter import attach_lora_dropout, detach_lora_dropout
from lodrop_nn.predict.ensemble import EnsemblePrediction, ensemble_predict, mean_predict
from tests.nn.tiny import BASES, N_CLASSES, adapted, batch, inputs

BERT = adapted("bert")
BANK = attach_lora_dropout(BERT, 0.4)


@settings(max_examples=15)
@given(n_masks=st.integers(1, 6), chunk=st.none() | st.integers(1, 7), seed=st.integers(0, 99))
def test_members_are_the_same_one_by_one_in_chunks_and_at_once(
    n_masks: int, chunk: int | None, seed: int
) -> None:
    x = batch("bert")
    prediction = ensemble_predict(BERT, x, n_masks=n_masks, seed=seed, chunk=chunk)
    assert prediction.member_logits.shape == (n_masks, 4, N_CLASSES)
    BERT.eval()
    with BANK.fixed(n_masks, seed), torch.no_grad():
        for i, member in enumerate(prediction.member_logits):
            with BANK.members(i, i + 1):
                alone = BERT(**inputs("bert")).logits
            torch.testing.assert_close(member, alone, rtol=1e-4, atol=1e-6)


def test_members_depend_on_seed_and_index_alone() -> None:
    def members(rows: int, n_masks: int, seed: int) -> torch.Tensor:
        x = inputs("bert", rows=4)
        x = {name: value[:rows] for name, value in x.items()}
        return ensemble_predict(BERT, x, n_masks=n_masks, seed=seed).member_logits

    whole = members(4, 5, 0)
    torch.testing.assert_close(members(2, 3, 0), whole[:3, :2], rtol=1e-4, atol=1e-6)
    assert torch.equal(members(4, 5, 0), whole)
    assert not torch.allclose(members(4, 5, 1), whole)
    assert float(whole.std(0).max()) > 0


@pytest.mark.parametrize("rescale", [True, False])
def test_the_mean_of_many_masked_linear_models_is_the_mean_predictor(rescale: bool) -> None:
    """Of a linear model, the mean over masks of the output is the output of the mean."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(4, 3))
        config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        model = get_peft_model(base, config)
        x = torch.randn(5, 4)
    attach_lora_dropout(model, 0.3, rescale=rescale)
    n_masks = 4000
    members = ensemble_predict(model, {"input": x}, n_masks=n_masks, seed=0).member_logits.double()
    error = members.mean(0) - mean_predict(model, {"input": x})
    assert bool((error.abs() <= 5 * members.std(0) / math.sqrt(n_masks) + 1e-6).all())


@pytest.mark.parametrize("kind", list(BASES))
def test_at_rate_zero_all_members_are_the_mean(kind: str) -> None:
    model = adapted(kind)
    attach_lora_dropout(model, 0.0)
    prediction = ensemble_predict(model, batch(kind), n_masks=3, seed=0)
    mean = mean_predict(model, batch(kind))
    for member in prediction.member_logits:
        torch.testing.assert_close(member, mean, rtol=1e-4, atol=1e-6)


def test_prediction_leaves_the_model_as_it_was() -> None:
    model = adapted("bert").train()
    bank = attach_lora_dropout(model, 0.4, seed=0)
    model.get_base_model().bert.embeddings.eval()  # a part that its user keeps in evaluation mode
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    for predict in (
        lambda: ensemble_predict(model, batch("bert"), n_masks=2, seed=0).member_logits,
        lambda: mean_predict(model, batch("bert")),
    ):
        assert not predict().requires_grad
        assert [module.training for module in model.modules()] == modes
    with pytest.raises(IndexError):
        ensemble_predict(model, {"input_ids": torch.tensor([[10**6]])}, n_masks=2, seed=0)
    assert [module.training for module in model.modules()] == modes
    assert bank.passes.n_drawn == 0
    assert torch.equal(torch.get_rng_state(), state)
    model(**inputs("bert"))
    assert bank.passes.n_drawn == 1


logits = arrays(
    "float32",
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(2, 4)),
    elements=st.floats(-60, 60, width=32),
).map(torch.from_numpy)


@given(member_logits=logits)
def test_uncertainty_obeys_its_laws(member_logits: torch.Tensor) -> None:
    prediction = EnsemblePrediction(member_logits)
    _, rows, n_classes = member_logits.shape
    probabilities = prediction.member_probabilities
    total = prediction.mean_probabilities.sum(-1)
    torch.testing.assert_close(total, torch.ones(rows, dtype=torch.float64))
    assert bool((prediction.predictive_entropy <= math.log(n_classes) + 1e-12).all())
    assert bool((prediction.mutual_information >= 0).all())
    assert bool((prediction.mutual_information <= prediction.predictive_entropy).all())
    # The mean divergence of the members from their mean, by its definition.
    mean = prediction.mean_probabilities
    divergence = torch.special.xlogy(probabilities, probabilities / mean).nansum(-1).mean(0)
    torch.testing.assert_close(prediction.mutual_information, divergence, rtol=1e-6, atol=1e-9)
    spread = (probabilities**2).mean(0) - mean**2
    torch.testing.assert_close(prediction.variance, spread, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(prediction.mean_logits, member_logits.double().mean(0))


@given(member_logits=logits)
def test_members_that_agree_leave_no_uncertainty_to_the_masks(member_logits: torch.Tensor) -> None:
    prediction = EnsemblePrediction(member_logits[:1].expand(3, -1, -1))
    assert float(prediction.mutual_information.max()) <= 1e-12
    assert float(prediction.variance.max()) <= 1e-12


@pytest.mark.parametrize("options", [{"n_masks": 0}, {"chunk": 0}, {"seed": -1}, {"seed": 0.5}])
def test_arguments_outside_their_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be a whole number"):
        ensemble_predict(BERT, batch("bert"), **{"n_masks": 2, "seed": 0, **options})


def test_an_adapter_without_masks_has_no_ensemble() -> None:
    model = adapted("bert")
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        ensemble_predict(model, batch("bert"), n_masks=2, seed=0)
    attach_lora_dropout(model, 0.5)
    detach_lora_dropout(model)
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        mean_predict(model, batch("bert"))
