"""Certificates against exact truth: a noisy linear classifier on a finite pool that is known."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from lodrop_nn.certify import certificate
from lodrop_nn.certify.certificate import held_out_bounds, sample_bounds, vote_errors
from lodrop_nn.certify.config import CertifyConfig
from lodrop_nn.certify.record import read_certificate
from lodrop_nn.certify.risk import smoothed_interval
from lodrop_theory.losses import smoothed_cross_entropy

N_POOL, N_TRAIN, WIDTH, DELTA, N_REPEATS = 600, 60, 300, 0.3, 200
CONFIG = CertifyConfig(
    n_train=N_TRAIN, n_test=100, n_passes=3, n_members=5, delta=DELTA, delta_draws=0.05
)


@pytest.fixture
def one_prior(monkeypatch) -> None:
    """Without the union over the grid, whose price would hide an error."""
    monkeypatch.setattr(certificate, "N_PRIORS", 1)


def pool(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a direction predicts a little; the rest is memorized if at all."""
    x = rng.normal(size=(N_POOL, WIDTH))
    y = np.where(x[:, 0] + 2.0 * rng.normal(size=N_POOL) > 0, 1.0, -1.0)
    return x, y


def row_errors(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(y <w + noise, x> < 0) for standard normal noise: exact."""
    return norm.cdf(-y * (x @ w) / np.linalg.norm(x, axis=1))


def rates_of_failure(kl_factor: float) -> dict[str, float]:
    """How often the pool's exact risk exceeds the bound, the divergence times a factor."""
    rng = np.random.default_rng(0)
    failed = {"pac-bayes-kl": 0, "pac-bayes-kl+unseen": 0}
    for _ in range(N_REPEATS):
        x, y = pool(rng)
        order = rng.permutation(N_POOL)
        sample, others = order[:N_TRAIN], order[N_TRAIN:]
        w = 0.06 * (y[sample, None] * x[sample]).sum(0)
        errors = row_errors(w, x, y)
        drawn = rng.random((CONFIG.n_passes, N_TRAIN)) < errors[sample]
        low, _ = smoothed_interval(CONFIG.smoothing, 2)
        found = sample_bounds(
            CONFIG,
            n_classes=2,
            n_population=N_POOL,
            kl_nats=kl_factor * float(w @ w) / 2,
            training_loss=low,
            training_error=float(drawn.mean()),
        )
        truth = {"pac-bayes-kl": errors.mean(), "pac-bayes-kl+unseen": errors[others].mean()}
        for loss, bound in found:
            if loss == "0-1" and bound.bound in truth:
                failed[bound.bound] += bound.risk < truth[bound.bound]
    return {name: count / N_REPEATS for name, count in failed.items()}


@pytest.mark.usefixtures("one_prior")
def test_certificates_hold_on_a_known_pool() -> None:
    assert all(rate <= DELTA for rate in rates_of_failure(1.0).values())


@pytest.mark.usefixtures("one_prior")
def test_the_same_check_fails_without_the_divergence() -> None:
    """Negative control: the simulation can tell a bound from none."""
    assert all(rate > DELTA for rate in rates_of_failure(0.0).values())


def test_all_priors_are_paid_for() -> None:
    arguments = {
        "n_classes": 2,
        "n_population": N_POOL,
        "kl_nats": 1.0,
        "training_loss": 0.5,
        "training_error": 0.1,
    }
    paid = [bound.risk for _, bound in sample_bounds(CONFIG, **arguments)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "N_PRIORS", 1)
        free = [bound.risk for _, bound in sample_bounds(CONFIG, **arguments)]
    assert all(a > b for a, b in zip(paid, free, strict=True))


def test_hold_out_bounds_hold_for_each_predictor() -> None:
    """Rows from a known law, a draw of noise per row and member; the truth by a large sample."""
    rng = np.random.default_rng(1)
    width = 20
    w = np.zeros(width)
    w[0] = 1.0

    def predictions(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = rng.normal(size=(n, width)) / np.sqrt(width)
        y = (x[:, 0] * 3 + rng.normal(size=n) > 0).astype(np.int64)
        noise = rng.normal(size=(CONFIG.n_members, n, width))
        logits = np.stack([((w + noise) * x).sum(-1) * 4, np.zeros((CONFIG.n_members, n))], -1)
        members = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        mean = 1 / (1 + np.exp(-(x @ w) * 4))
        return members[..., ::-1], np.stack([1 - mean, mean], -1), y

    members, mean, y = predictions(20_000)
    losses = {
        ("smoothed cross-entropy", "gibbs"): smoothed_cross_entropy(members, y, 0.05).mean(),
        ("smoothed cross-entropy", "ensemble"): smoothed_cross_entropy(
            members.mean(0), y, 0.05
        ).mean(),
        ("smoothed cross-entropy", "mean"): smoothed_cross_entropy(mean, y, 0.05).mean(),
        ("0-1", "gibbs"): (members.argmax(-1) != y).mean(),
        ("0-1", "ensemble"): (members.mean(0).argmax(-1) != y).mean(),
        ("0-1, majority vote", "ensemble"): vote_errors(members, y).mean(),
        ("0-1", "mean"): (mean.argmax(-1) != y).mean(),
    }
    assert losses["0-1, majority vote", "ensemble"] <= 2 * losses["0-1", "gibbs"]
    n_repeats, failed = 100, {}
    for _ in range(n_repeats):
        for loss, bound in held_out_bounds(CONFIG, *predictions(CONFIG.n_test)):
            key = (loss, bound.predictor, bound.bound)
            failed[key] = failed.get(key, 0) + (bound.risk < losses[loss, bound.predictor])
    assert {key[:2] for key in failed} == set(losses)
    # Three standard errors above delta: the exact binomial limit is close to it.
    tolerated = n_repeats * (DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / n_repeats))
    assert max(failed.values()) <= tolerated
    assert max(failed.values()) > 0


COMMITTED = sorted(Path("paper_figures/records/certificate").glob("*.json"))


def test_there_are_committed_certificates() -> None:
    assert COMMITTED


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_certificates_follow_from_their_numbers(path: Path) -> None:
    record = read_certificate(path)
    config = CertifyConfig(**record.config)
    assert config.run_id == record.run_id
    found = sample_bounds(
        config,
        n_classes=2,
        n_population=record.n_population,
        kl_nats=record.kl_nats.value,
        training_loss=record.training["empirical_risk"].value,
        training_error=record.training["error_rate"].value,
    )
    assert record.kl_nats.value == pytest.approx(sum(record.kl_by_parameter.values()))
    assert record.n_priors == certificate.N_PRIORS
    for loss, bound in found:
        row = record.bound(bound.bound, loss, bound.predictor)
        assert row["risk"] == pytest.approx(float(bound.risk), rel=1e-9)
        assert row["kind"] == "certificate"
    # No bound is below what was measured for the same predictor on rows that nothing has seen.
    for predictor, losses in record.held_out.items():
        for loss, name in (("0-1", "error_rate"), ("smoothed cross-entropy", "population_risk")):
            of_it = [r for r in record.bounds if (r["loss"], r["predictor"]) == (loss, predictor)]
            assert all(row["risk"] > losses[name].value for row in of_it)
