"""The three estimators of the penalty's weight, and what they are made of."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.adapter.report import delta_weights
from lodrop_nn.masks import MaskBank, MaskSettings
from lodrop_nn.measure.curvature import curvature
from lodrop_nn.measure.lipschitz import example_gradients
from lodrop_nn.measure.penalty import (
    delta_weight_norm,
    penalty,
    penalty_curvature,
    penalty_kkt,
)
from lodrop_nn.measure.predictions import predict_all
from lodrop_nn.measure.sparsity import update_sparsity
from tests.nn.classifiers import KINDS, _base, adapted_classifier, padded_batches

BATCHES = padded_batches(6, batch_size=3)


def risk(kind: str, growth: float, rate: float, rescale: bool) -> float:
    """Plain cross-entropy when all factors B have grown by a factor, masks off."""
    model, bank = adapted_classifier(kind, rate, rescale=rescale)
    model.eval()
    with torch.no_grad(), bank.off():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter *= growth
        losses = [
            cross_entropy(
                model(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits,
                b["labels"],
                reduction="sum",
            )
            for b in BATCHES
        ]
    return float(sum(losses)) / 6


def squared_norm(kind: str, factor: float) -> float:
    """||D||^2 from PEFT's own weights of the update; lora_alpha / r = 3/2."""
    model, _ = adapted_classifier(kind, 0.0)
    factors = {name: p.detach() for name, p in model.named_parameters()}
    total = 0.0
    for name, lora_A in factors.items():
        if "lora_A" in name:
            update = 1.5 * factors[name.replace("lora_A", "lora_B")] @ lora_A
            total += float((factor * update).square().sum())
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rescale", [True, False])
def test_the_norm_is_that_of_the_applied_update(kind: str, rescale: bool) -> None:
    model, _ = adapted_classifier(kind, 0.4, rescale=rescale)

    found = delta_weight_norm(model)

    factor = 1.0 if rescale else 0.36
    assert found.value == pytest.approx(squared_norm(kind, factor) ** 0.5, rel=1e-12)
    assert found.n_draws == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rescale", [True, False])
def test_stationarity_is_the_slope_along_the_update(kind: str, rescale: bool) -> None:
    model, bank = adapted_classifier(kind, 0.4, rescale=rescale)
    step = 1e-4

    found = penalty_kkt(model, bank, BATCHES)

    slope = (risk(kind, 1 + step, 0.4, rescale) - risk(kind, 1 - step, 0.4, rescale)) / (2 * step)
    unit = (2 * 0.4 - 0.4**2) * squared_norm(kind, 1.0 if rescale else 0.36)
    assert found is not None
    # Llama normalizes in single precision, which the quotient of differences sees.
    accuracy = 1e-6 if kind == "bert" else 1e-2
    assert found.value == pytest.approx(-slope / (2 * unit), rel=accuracy, abs=accuracy * 1e-2)


@given(rate=st.floats(0.05, 0.8), seed=st.integers(0, 99))
def test_energy_is_what_the_masks_add(rate: float, seed: int) -> None:
    model, bank = adapted_classifier("bert", rate)
    rows = predict_all(model, bank, BATCHES, n_masks=3, seed=seed)

    found = penalty(model, bank, BATCHES, n_masks=3, seed=seed)
    reused = penalty(model, bank, [], n_masks=3, seed=seed, predictions=rows)

    chosen = rows.member_probabilities[:, np.arange(6), rows.labels]
    masked = -np.log(chosen).mean()
    unit = rate * (2 - rate) * squared_norm("bert", 1.0)
    assert found is not None
    assert found == reused
    assert found.value == pytest.approx((masked - risk("bert", 1.0, rate, True)) / unit, rel=1e-9)
    assert found.lower < found.value < found.upper
    assert found.n_draws == 3


@pytest.mark.parametrize("dense_up_to", [0, 2500])
def test_curvature_is_what_the_masks_lift(dense_up_to: int) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    whole = curvature(model, bank, BATCHES, steps=6, seed=0, level=0.9, dense_up_to=dense_up_to)

    found = penalty_curvature(model, bank, BATCHES, steps=6, seed=0, curvature=whole)

    plain, masked = whole.hessian_min_eig, whole.dropout_min_eig
    assert found is not None
    assert masked is not None
    unit = 2 * (2 * 0.4 - 0.4**2)
    assert found.value == pytest.approx((masked.value - plain.value) / unit)
    assert found.low == pytest.approx((masked.lower - plain.upper) / unit)
    assert found.high == pytest.approx((masked.upper - plain.lower) / unit)
    assert found.level == pytest.approx(0.8)
    assert found.provenance == "plug-in"
    alone = curvature(
        model, bank, BATCHES, steps=6, seed=0, dense_up_to=dense_up_to, with_masks=False
    )
    assert penalty_curvature(model, bank, [], steps=6, seed=0, curvature=alone) is None


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_no_penalty_has_no_weight(rate: float) -> None:
    model, bank = adapted_classifier("bert", rate)
    if rate > 0:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()

    assert penalty(model, bank, BATCHES, n_masks=2, seed=0) is None
    assert penalty_kkt(model, bank, BATCHES) is None


def test_stationarity_counts_the_layers_whose_factor_is_trained() -> None:
    """Also those of embeddings, whose factors PEFT keeps under another name."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = LoraConfig(
            r=2, target_modules=["word_embeddings", "query"], init_lora_weights=False
        )
        model = get_peft_model(_base("bert"), config).double().eval()
    bank = attach_lora_dropout(model, 0.4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_embedding" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
            frozen = "layer.0." in name and "lora_B" in name
            parameter.requires_grad_(parameter.requires_grad and not frozen)
    growing = [p for n, p in model.named_parameters() if p.requires_grad and ("_B.default" in n)]
    assert len(growing) == 3  # of the embedding and of two blocks
    gradient = example_gradients(model, bank, BATCHES).mean
    names = {n for n, p in model.named_parameters() if any(p is q for q in growing)}
    slope = sum(float((gradient[n] * model.get_parameter(n).detach()).sum()) for n in names)
    updates = delta_weights(model)
    square = sum(
        float(d.detach().square().sum()) for n, d in updates.items() if ".layer.0." not in n
    )

    found = penalty_kkt(model, bank, BATCHES)

    assert len(updates) == 4
    assert found is not None
    assert found.value == pytest.approx(-slope / (2 * (2 * 0.4 - 0.4**2) * square), rel=1e-9)


def test_stationarity_needs_trained_factors() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="must train the factors B of adapter 'default'"):
        penalty_kkt(model, bank, BATCHES)


@given(rate=st.floats(0, 0.9), n_draws=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_sparsity_counts_the_zeros_of_masked_matrices(rate: float, n_draws: int, seed: int) -> None:
    bank = MaskBank(MaskSettings(rate))
    shapes = [(5, 3), (2, 7)]
    for width, height in shapes:
        bank.register("layer", in_features=width, out_features=height)

    found = update_sparsity(bank, n_draws=n_draws, seed=seed)

    zeros = entries = 0
    for draw in bank.draw(n_draws, seed):
        for layer in bank.layers:
            columns, rows = layer.split(draw[None])
            masked = torch.ones(layer.out_features, layer.in_features) * columns * rows.T
            zeros += int((masked == 0).sum())
            entries += masked.numel()
    assert found.value == pytest.approx(zeros / entries)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_realized_sparsity_is_the_law(rate: float) -> None:
    _, bank = adapted_classifier("bert", rate)

    found = update_sparsity(bank, n_draws=2000, seed=0, level=0.9999)

    assert found.lower - 1e-12 <= 2 * rate - rate**2 <= found.upper + 1e-12


def test_sparsity_refuses_a_bank_without_layers() -> None:
    with pytest.raises(ValueError, match="`bank` must serve at least one layer"):
        update_sparsity(MaskBank(MaskSettings(0.5)), n_draws=2, seed=0)
