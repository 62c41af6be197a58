"""The law of the randomized adapter: its divergence, its draws, its Monte Carlo risk."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal

from lodrop_nn.certify.posterior import drawn, initial_values, keep_rates, noisy_parts, total_kl
from lodrop_nn.certify.risk import effective_draws, monte_carlo_estimate
from lodrop_nn.certify.rows import RowDraws
from lodrop_nn.measure.posterior import posterior
from lodrop_theory import masked_factors_kl
from tests.nn.classifiers import KINDS, adapted_classifier, padded_batches

BATCHES = padded_batches(10, batch_size=4)


def head_std(parts, factors: float, head: float):
    return {part.name: factors if ".lora_" in part.name else head for part in parts}


@pytest.mark.parametrize("rescale", [True, False])
def test_the_divergence_is_the_mean_log_ratio_of_the_deployed_factors(rescale: bool) -> None:
    """Monte Carlo over masks and noise, in deployed entries: nothing of the formula is used."""
    rate, std, n_draws = 0.4, 0.7, 40_000
    model, bank = adapted_classifier("bert", rate, rescale=rescale)
    (name, part) = next((p.name, p) for p in noisy_parts(model, bank, std) if "lora_B" in p.name)
    trained, scaling = part.parameter.detach(), (1 / (1 - rate) if rescale else 1.0)
    start = torch.full_like(trained, 0.1)

    generator = torch.Generator().manual_seed(0)
    keep = (torch.rand(n_draws, trained.shape[0], 1, generator=generator) >= rate).double()
    noise = torch.randn(n_draws, *trained.shape, generator=generator, dtype=torch.float64)
    deployed = keep * scaling * (trained + std * noise)
    # The masks have the same law under both, so their part of the ratio is 0.
    ratio = keep * (
        Normal(scaling * trained, scaling * std).log_prob(deployed)
        - Normal(scaling * start, scaling * std).log_prob(deployed)
    )
    per_draw = ratio.sum((1, 2))

    centers = {**initial_values(model), name: start}
    found = next(p for p in noisy_parts(model, bank, std, initial=centers) if p.name == name)
    error = float(per_draw.std()) / math.sqrt(n_draws)
    assert found.kl_nats == pytest.approx(float(per_draw.mean()), abs=5 * error)
    assert error < 0.02 * found.kl_nats


@given(rate=st.floats(0.01, 0.9), std=st.floats(1e-3, 10))
@settings(max_examples=20)
def test_both_conventions_of_the_theory_give_the_same_divergence(rate: float, std: float) -> None:
    stored = masked_factors_kl(3.0, rate, std, rescale=False)
    deployed = masked_factors_kl(3.0, rate, std / (1 - rate), rescale=True)
    assert stored == pytest.approx(deployed, rel=1e-9)


def test_kept_entries_are_those_that_masks_keep() -> None:
    model, bank = adapted_classifier("bert", 0.3)
    rates = keep_rates(model, bank)
    assert {name for name, rate in rates.items() if rate == 0.7} == {
        n for n in rates if "lora" in n
    }
    assert all(rate == 1.0 for name, rate in rates.items() if "classifier" in name)
    assert any("classifier" in name for name in rates)


def test_the_prior_of_a_head_is_its_original() -> None:
    model, _ = adapted_classifier("bert", 0.3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(1.0)
    parameters = dict(model.named_parameters())
    for name, center in initial_values(model).items():
        if "modules_to_save" in name:
            assert torch.allclose(parameters[name] - center, torch.ones_like(center))
        else:
            assert not center.any()


def test_an_untrained_adapter_has_no_divergence() -> None:
    model, bank = adapted_classifier("bert", 0.3)
    now = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert total_kl(noisy_parts(model, bank, 0.1, initial=now)) < 1e-300


def test_a_draw_is_undone_to_the_last_bit_also_after_an_error() -> None:
    model, bank = adapted_classifier("bert", 0.3)
    parts = noisy_parts(model, bank, 0.1)
    before = [part.parameter.detach().clone() for part in parts]

    def fail() -> None:
        with drawn(parts, torch.Generator().manual_seed(0)):
            moved = [not torch.equal(p.parameter, b) for p, b in zip(parts, before, strict=True)]
            raise KeyError(all(moved))

    with pytest.raises(KeyError, match="True"):
        fail()
    assert all(torch.equal(p.parameter, b) for p, b in zip(parts, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("trained_A", [True, False])
def test_each_row_sees_the_adapter_of_its_own_draw(
    kind: str, rescale: bool, trained_A: bool
) -> None:
    """A pass with a draw per row equals one pass per row with that draw put into the model."""
    model, bank = adapted_classifier(kind, 0.4, rescale=rescale)
    model.eval()
    for name, parameter in model.named_parameters():
        if "lora_A" in name and not trained_A:
            parameter.requires_grad_(False)
    parts = noisy_parts(model, bank, 1.0)
    stds = head_std(parts, 0.2, 0.5)
    draws = RowDraws(model, bank, stds, torch.Generator().manual_seed(3))
    batch = {k: v for k, v in BATCHES[0].items() if k in ("input_ids", "attention_mask")}
    n_rows = len(batch["input_ids"])
    with torch.no_grad(), bank.off():
        with draws.pass_over(n_rows):
            together = model(**batch).logits
        masks, noise = draws._masks, dict(draws._noise)
        for row in range(n_rows):
            saved = [part.parameter.detach().clone() for part in parts]
            for part in parts:
                part.parameter.add_(noise[id(part.parameter)][row] * stds[part.name])
            one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            bank._off, bank._fixed = False, masks.rows(row, row + 1)
            alone = model(**one).logits
            bank._off, bank._fixed = True, None
            for part, values in zip(parts, saved, strict=True):
                part.parameter.copy_(values)
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert len(noise) == len(parts)


def test_draws_differ_from_row_to_row_and_are_those_of_the_seed() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    model.eval()
    stds = head_std(noisy_parts(model, bank, 1.0), 0.2, 0.5)
    one = {k: v[:1].repeat(3, 1) for k, v in BATCHES[0].items() if "i" in k and v.dim() == 2}

    def logits(seed: int) -> torch.Tensor:
        draws = RowDraws(model, bank, stds, torch.Generator().manual_seed(seed))
        with torch.no_grad(), bank.off(), draws.pass_over(3):
            return model(**one).logits

    first = logits(0)
    assert len({tuple(row) for row in first.tolist()}) == 3
    assert torch.equal(first, logits(0))
    assert not torch.equal(first, logits(1))


def test_scales_and_values_have_gradients() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    model.eval()
    scale = torch.tensor(0.3, requires_grad=True)
    stds = {part.name: scale for part in noisy_parts(model, bank, 1.0)}
    draws = RowDraws(model, bank, stds, torch.Generator().manual_seed(0))
    inputs = {k: v for k, v in BATCHES[0].items() if k in ("input_ids", "attention_mask")}
    with bank.off(), draws.pass_over(4):
        model(**inputs).logits.square().sum().backward()
    assert scale.grad is not None
    assert scale.grad != 0
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@given(
    passes=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
)
def test_draws_count_by_the_largest_weight(passes: int, sizes: list[int]) -> None:
    found = effective_draws(sizes * passes)
    assert 1 <= found <= len(sizes) * passes
    assert found <= sum(sizes) * passes / max(sizes) < found + 1


def test_the_monte_carlo_interval_covers_with_unequal_groups_and_means() -> None:
    """Groups of different size and law; the two-sided interval misses at most 1 - level."""
    rng = np.random.default_rng(0)
    sizes = [8, 8, 8, 3] * 6
    means = np.tile([0.02, 0.6, 0.3, 0.9], 6)  # of draws that are 0 or 1: the worst law
    truth = float(means @ np.array(sizes) / sum(sizes))
    missed = 0
    for _ in range(2000):
        losses = (rng.random(len(sizes)) < means).astype(float)
        found = monte_carlo_estimate(
            losses, sizes, low=0.0, length=1.0, level=0.8, method="simulated"
        )
        missed += not found.low <= truth <= found.high
    assert missed / 2000 <= 0.2
    assert found.n_draws == sum(sizes) // 8


@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_of_a_trained_adapter(kind: str) -> None:
    model, bank = adapted_classifier(kind, 0.3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps = []

    small, large = posterior(
        model,
        bank,
        BATCHES,
        noise_stds=(1e-6, 1.0),
        n_passes=3,
        seed=0,
        smoothing=0.05,
        on_step=lambda done, total: steps.append((done, total)),
    )

    squared = sum(
        (1.0 if "modules_to_save" in n else 0.7)
        * float((p.detach() - initial_values(model)[n]).square().sum())
        for n, p in model.named_parameters()
        if p.requires_grad
    )
    for point, std in ((small, 1e-6), (large, 1.0)):
        assert point.noise_std == std
        assert point.kl_nats.value == pytest.approx(squared / (2 * std**2), rel=1e-6)
        assert point.kl_nats.provenance == "certified"
        assert 0 <= point.error_rate.low <= point.error_rate.value <= point.error_rate.high <= 1
        assert point.error_rate.n_draws == 30 // 4
        assert point.empirical_risk.provenance == "interval"
    assert steps[-1] == (18, 18)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    again = posterior(model, bank, BATCHES, noise_stds=(1.0,), n_passes=3, seed=0, smoothing=0.05)
    assert again == (large,)


def test_without_masks_and_almost_without_noise_it_is_the_mean_predictor() -> None:
    model, bank = adapted_classifier("bert", 0.0)
    (point,) = posterior(
        model, bank, BATCHES, noise_stds=(1e-9,), n_passes=1, seed=0, smoothing=0.05
    )
    wrong = []
    with torch.no_grad():
        model.eval()
        for batch in BATCHES:
            inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
            wrong += (model(**inputs).logits.argmax(-1) != batch["labels"]).tolist()
    assert point.error_rate.value == pytest.approx(np.mean(wrong), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_stds": ()}, "`noise_stds` must hold at least one"),
        ({"noise_stds": (0.0,)}, "must be finite and > 0, got 0.0"),
        ({"noise_stds": (math.nan,)}, "must be finite and > 0, got nan"),
        ({"n_passes": 0}, "`n_passes` must be a whole number >= 1"),
        ({"seed": -1}, "`seed` must be a whole number >= 0"),
        ({"level": 1.0}, r"`level` must be in \(0, 1\)"),
        ({"initial": {}}, "`initial` must hold"),
    ],
)
def test_arguments_outside_their_range_are_refused(change: dict, message: str) -> None:
    model, bank = adapted_classifier("bert", 0.3)
    arguments = {"noise_stds": (0.1,), "n_passes": 1, "seed": 0, "smoothing": 0.05, **change}
    with pytest.raises(ValueError, match=message):
        posterior(model, bank, BATCHES, **arguments)


def test_a_row_needs_layers_that_can_be_told_apart() -> None:
    model, bank = adapted_classifier("bert", 0.3)
    with pytest.raises(ValueError, match="`noise_std` must hold every trained parameter"):
        RowDraws(model, bank, {}, torch.Generator())


def test_masks_keep_with_their_probability() -> None:
    """The law of the masks behind the divergence is the law that is drawn."""
    model, bank = adapted_classifier("bert", 0.4)
    draws = RowDraws(
        model, bank, {p.name: 0.1 for p in noisy_parts(model, bank, 1.0)}, torch.Generator()
    )
    with draws.pass_over(2000):
        kept = draws._masks.masks.double().mean()
    spread = Bernoulli(torch.tensor(0.6)).variance.sqrt() / math.sqrt(2000 * bank.n_coordinates)
    assert abs(float(kept) - 0.6) < 5 * float(spread)
