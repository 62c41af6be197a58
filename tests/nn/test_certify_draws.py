"""What a certificate pays for is what was drawn: fresh noise everywhere, each event counted."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from lodrop_nn.certify.certificate import FRESH_DRAWS, held_out_bounds, sample_bounds
from lodrop_nn.certify.config import N_PRIORS, CertifyConfig
from lodrop_nn.certify.notes import notes
from lodrop_nn.certify.posterior import noisy_parts
from lodrop_nn.certify.risk import monte_carlo_estimate
from lodrop_nn.certify.rows_risk import SAMPLE_STREAM, drawn_probabilities
from lodrop_nn.data.examples import Examples
from lodrop_nn.measure.posterior import posterior
from lodrop_nn.predict.late_tiling import FrozenPrefix
from lodrop_nn.train.prefix_cache import PrefixCache
from lodrop_theory.kl_inverse import binary_kl
from tests.nn.classifiers import adapted_classifier, padded_batches


def test_every_row_of_every_pass_has_a_draw_of_its_own() -> None:
    model, bank = adapted_classifier("bert", 0.3, dtype=torch.float32)
    rows = Examples(input_ids=((5, 6, 7),) * 40, labels=(0,) * 40, pad_token_id=0)
    found = drawn_probabilities(
        model,
        bank,
        rows,
        PrefixCache(model, rows),
        {part.name: 0.2 for part in noisy_parts(model, bank, 0.2)},
        n_passes=3,
        seed=0,
        stream=SAMPLE_STREAM,
    )
    # More rows than one batch holds, all alike: equal draws would be seen as equal rows.
    assert len(np.unique(found.reshape(120, -1), axis=0)) == 120


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_what_is_trained_below_the_adapter_is_drawn_anew(kind: str, monkeypatch) -> None:
    """A kept output of a lower block would hold the noise of an earlier draw."""
    model, bank = adapted_classifier(kind, 0.3, adapted_layers=(2,))
    lower = [p for name, p in model.named_parameters() if ".0." in name and "norm" in name.lower()]
    assert lower
    for parameter in lower:
        parameter.requires_grad_(True)
    arguments = {"noise_stds": (1e-9, 0.5), "n_passes": 3, "seed": 0, "smoothing": 0.05}
    found = posterior(model, bank, padded_batches(10), **arguments)
    monkeypatch.setattr(FrozenPrefix, "below_the_adapter", lambda *_: FrozenPrefix([]))
    whole = posterior(model, bank, padded_batches(10), **arguments)
    for point, expected in zip(found, whole, strict=True):
        assert point.empirical_risk.value == pytest.approx(expected.empirical_risk.value, rel=1e-9)


def test_the_bound_for_unseen_rows_spends_delta_draws_on_both_sides() -> None:
    """An independent evaluation of the formula, down to two rows outside the sample."""
    config = CertifyConfig(n_train=1000, n_passes=2, delta=0.05, delta_draws=0.024)
    for n_population in (1002, 100_000):
        found = sample_bounds(
            config,
            n_classes=2,
            n_population=n_population,
            kl_nats=3.0,
            training_loss=0.5,
            training_error=0.1,
        )
        unseen = next(b for loss, b in found if loss == "0-1" and b.bound.endswith("+unseen"))
        draws = -math.log(0.024) / 2000
        nats = (3.0 + math.log(N_PRIORS * 2 * math.sqrt(1000) / (0.05 - 0.048))) / 1000
        most = _inverse(_inverse(0.1, draws, 1.0), nats, 1.0)
        top = (n_population * most - 1000 * _inverse(0.1, draws, 0.0)) / (n_population - 1000)
        assert float(unseen.risk) == pytest.approx(min(top, 1.0), rel=1e-8)
        assert float(unseen.inputs["delta_draws"]) == 0.048
        assert float(unseen.delta) == 0.05


def _inverse(q: float, nats: float, end: float) -> float:
    """Where kl(q || p) = nats between q and an end, without the library's inverse."""
    inside = abs(end - 1e-15)
    return float(brentq(lambda p: float(binary_kl(q, p)) - nats, q, inside, xtol=1e-15))


def test_bounds_of_an_ensemble_say_which_draws_it_takes() -> None:
    config = CertifyConfig(n_train=100, n_test=20, n_members=4)
    sampled = sample_bounds(
        config,
        n_classes=2,
        n_population=500,
        kl_nats=1.0,
        training_loss=0.5,
        training_error=0.1,
    )
    rng = np.random.default_rng(0)
    members = rng.dirichlet((1.0, 1.0), size=(4, 20))
    held_out = held_out_bounds(config, members, members.mean(0), rng.integers(0, 2, 20))
    for found, caveat in ((sampled, FRESH_DRAWS), (held_out, "takes 4 draws of masks and noise")):
        for _, bound in found:
            told = any(caveat in each for each in bound.caveats)
            assert told == (bound.predictor == "ensemble"), bound.bound


def test_the_notes_say_what_is_not_paid_for() -> None:
    text = " ".join(notes(CertifyConfig(), 10_566))
    assert "The base model, the smoothing, the seed, the reference rows" in text
    assert "1 - delta - (T - 1) delta_draws" in text
    assert "no choice has looked at the held-out rows" in text


def test_the_mean_of_many_draws_is_exact_to_an_ulp() -> None:
    """Bounds round it up by a few ulps only; a running sum of as many terms loses more."""
    shares = [0.2776875, 0.277, 0.2785, 0.27775]
    found = monte_carlo_estimate(
        np.repeat(shares, 8000), [1] * 32_000, low=0.0, length=1.0, level=0.99, method="fixed"
    )
    exact = sum(map(Fraction, shares)) / 4
    assert abs(Fraction(found.value) - exact) <= Fraction(math.ulp(0.25))
