"""Predictions and scores of the three predictors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lodrop_nn.measure.predictions import Predictions, predict_all
from lodrop_nn.measure.risk import negative_log_likelihoods, predictor_measurement
from lodrop_nn.train.tiling import tile_batch
from lodrop_theory.losses import smoothed_cross_entropy, smoothed_loss_range
from lodrop_theory.records import PREDICTORS, PredictorMeasurement
from tests.nn.classifiers import KINDS, adapted_classifier, padded_batches


@st.composite
def predictions(draw: st.DrawFn, n_classes: int = 3) -> Predictions:
    stream = np.random.default_rng(draw(st.integers(0, 2**31)))
    n_masks, n = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    sharpness = draw(st.floats(0.1, 3))
    rows = stream.dirichlet(np.full(n_classes, sharpness), size=(n_masks + 1, n))
    return Predictions(
        member_probabilities=rows[1:],
        mean_probabilities=rows[0],
        labels=stream.integers(0, n_classes, n),
    )


def all_three(train: Predictions, test: Predictions) -> dict[str, PredictorMeasurement]:
    return {name: predictor_measurement(train, test, name, 0.1) for name in PREDICTORS}


@settings(max_examples=25)
@given(train=predictions(), test=predictions())
def test_averaging_members_obeys_jensen(train: Predictions, test: Predictions) -> None:
    scores = all_three(train, test)

    for name in ("empirical_risk", "population_risk", "train_nll", "test_nll", "brier_score"):
        gibbs, ensemble = (getattr(scores[p], name).value for p in ("gibbs", "ensemble"))
        assert gibbs >= ensemble - 1e-12


@settings(max_examples=25)
@given(train=predictions(), test=predictions())
def test_ranges_and_intervals(train: Predictions, test: Predictions) -> None:
    for scores in all_three(train, test).values():
        best = -math.log(0.9 + 0.1 / 3)
        worst = best + float(smoothed_loss_range(0.1, 3))
        for risk in (scores.empirical_risk, scores.population_risk):
            assert best - 1e-9 <= risk.value <= worst + 1e-9
        for share in (scores.train_accuracy, scores.test_accuracy, scores.calibration_error):
            assert 0 <= share.value <= 1
        gap = scores.generalization_gap
        assert gap.value == scores.population_risk.value - scores.empirical_risk.value
        assert gap.upper - gap.lower == pytest.approx(
            scores.population_risk.upper - scores.population_risk.lower, abs=1e-12
        )
        for name in ("empirical_risk", "population_risk", "test_accuracy", "brier_score"):
            estimate = getattr(scores, name)
            assert estimate.lower <= estimate.value <= estimate.upper


@settings(max_examples=25)
@given(test=predictions(), seed=st.integers(0, 2**31))
def test_the_order_of_rows_and_of_members_does_not_matter(test: Predictions, seed: int) -> None:
    stream = np.random.default_rng(seed)
    rows, members = stream.permutation(len(test)), stream.permutation(test.n_masks)
    shuffled = Predictions(
        member_probabilities=test.member_probabilities[members][:, rows],
        mean_probabilities=test.mean_probabilities[rows],
        labels=test.labels[rows],
    )

    for name in PREDICTORS:
        first = predictor_measurement(test, test, name, 0.1)
        second = predictor_measurement(shuffled, shuffled, name, 0.1)
        for field in ("empirical_risk", "test_nll", "test_accuracy", "calibration_error"):
            a, b = getattr(first, field), getattr(second, field)
            assert (a.value, a.upper) == pytest.approx((b.value, b.upper), abs=1e-6)


@settings(max_examples=25)
@given(test=predictions())
def test_one_member_is_its_own_ensemble(test: Predictions) -> None:
    alone = Predictions(
        member_probabilities=test.member_probabilities[:1],
        mean_probabilities=test.member_probabilities[0],
        labels=test.labels,
    )

    scores = all_three(alone, alone)

    for field in ("empirical_risk", "population_risk", "test_accuracy", "calibration_error"):
        values = [getattr(scores[name], field).value for name in PREDICTORS]
        assert values == pytest.approx([values[0]] * 3, abs=1e-6)


@settings(max_examples=25)
@given(test=predictions(n_classes=2), seed=st.integers(0, 2**31))
def test_scores_beyond_the_risks(test: Predictions, seed: int) -> None:
    votes = np.random.default_rng(seed).random(len(test))

    for name in PREDICTORS:
        scores = predictor_measurement(test, test, name, 0.1, vote_shares=votes)
        rows = test.of(name)
        losses = smoothed_cross_entropy(rows, test.labels, 0.1).mean(0)
        if len(test) == 1:
            assert scores.sample_variance is None
        else:
            assert scores.sample_variance.value == pytest.approx(losses.var(ddof=1), abs=1e-12)
        wrong = (rows.argmax(-1) != test.labels).sum()
        assert scores.n_errors == (None if name == "gibbs" else wrong)
        distance = np.abs(rows[..., 1] - votes).mean()
        assert scores.vote_distance.value == pytest.approx(distance)
        assert 0 <= scores.vote_distance.lower <= scores.vote_distance.upper <= 1
        assert scores.debiased_calibration_error.value <= scores.calibration_error.value + 1e-12
        assert 0 <= scores.smooth_calibration_error.value <= 1
        for error in ("calibration", "debiased_calibration", "smooth_calibration"):
            assert getattr(scores, f"{error}_error").provenance == "plug-in"
        if name != "gibbs":
            accuracy = scores.test_accuracy.value
            assert scores.n_errors == pytest.approx((1 - accuracy) * len(test))


def test_votes_are_optional_and_checked() -> None:
    rows = Predictions(
        member_probabilities=np.full((1, 3, 2), 0.5),
        mean_probabilities=np.full((3, 2), 0.5),
        labels=np.zeros(3, dtype=int),
    )

    assert predictor_measurement(rows, rows, "mean", 0.1).vote_distance is None
    with pytest.raises(ValueError, match="`vote_shares` must have shape"):
        predictor_measurement(rows, rows, "mean", 0.1, vote_shares=np.zeros(2))


def test_scores_by_hand() -> None:
    """Two members, one row of label 0 with probabilities 1/2 and 1/4 among two classes."""
    rows = Predictions(
        member_probabilities=np.array([[[0.5, 0.5]], [[0.25, 0.75]]]),
        mean_probabilities=np.array([[0.8, 0.2]]),
        labels=np.array([0]),
    )

    scores = all_three(rows, rows)

    assert scores["gibbs"].test_nll.value == pytest.approx(math.log(8) / 2)
    assert scores["ensemble"].test_nll.value == pytest.approx(-math.log(0.375))
    assert scores["mean"].test_nll.value == pytest.approx(-math.log(0.8))
    assert scores["mean"].population_risk.value == pytest.approx(-math.log(0.9 * 0.8 + 0.05))
    assert scores["gibbs"].brier_score.value == pytest.approx((0.5 + 2 * 0.75**2) / 2)
    assert [scores[name].test_accuracy.value for name in PREDICTORS] == [0.5, 0.0, 1.0]
    # The gibbs predictor is right half of the time, with confidence 1/2 and 3/4.
    assert scores["gibbs"].calibration_error.value == pytest.approx((0.5 + 0.75) / 2, abs=1e-6)
    # One row says nothing about other rows; two members say something about other masks.
    assert scores["mean"].population_risk.low is None
    assert scores["gibbs"].empirical_risk.low is not None


def test_impossible_labels_stay_finite() -> None:
    losses = negative_log_likelihoods(np.array([[1.0, 0.0]]), np.array([1]))
    assert 700 < losses[0] < math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_hand_tiled_passes(kind: str) -> None:
    model, bank = adapted_classifier(kind, 0.4)
    model.eval()

    found = predict_all(model, bank, padded_batches(7), n_masks=3, seed=4)

    for row, batch in enumerate(padded_batches(7, batch_size=1)):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), bank.fixed(n_masks=3, seed=4):
            members = model(**tile_batch(inputs, 3)).logits.softmax(-1).numpy()
        with torch.no_grad(), bank.off():
            mean = model(**inputs).logits.softmax(-1).numpy()
        np.testing.assert_allclose(found.member_probabilities[:, row], members, atol=1e-6)
        np.testing.assert_allclose(found.mean_probabilities[row], mean[0], atol=1e-6)
        assert found.labels[row] == batch["labels"]


@given(batch_size=st.integers(1, 7))
def test_batches_and_their_order_do_not_matter(batch_size: int) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    expected = predict_all(model, bank, padded_batches(7, batch_size=7), n_masks=3, seed=4)

    shuffled = padded_batches(7, batch_size=batch_size, shuffle=True)
    found = predict_all(model, bank, shuffled, n_masks=3, seed=4)

    np.testing.assert_allclose(
        found.member_probabilities, expected.member_probabilities, atol=1e-12
    )
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_without_dropout_all_predictors_are_one() -> None:
    model, bank = adapted_classifier("bert", 0.0)
    found = predict_all(model, bank, padded_batches(6), n_masks=5, seed=0)

    assert found.member_probabilities.shape == (5, 6, 3)
    assert all(
        (members == found.mean_probabilities).all() for members in found.member_probabilities
    )
    scores = all_three(found, found)
    assert scores["gibbs"].empirical_risk.value == pytest.approx(
        scores["mean"].empirical_risk.value
    )


def test_masks_that_are_fixed_around_it_do_not_matter() -> None:
    model, bank = adapted_classifier("bert", 0.5)
    expected = predict_all(model, bank, padded_batches(4), n_masks=2, seed=0)

    with bank.fixed(n_masks=3, seed=1):
        found = predict_all(model, bank, padded_batches(4), n_masks=2, seed=0)

    np.testing.assert_array_equal(found.member_probabilities, expected.member_probabilities)
    np.testing.assert_array_equal(found.mean_probabilities, expected.mean_probabilities)


def test_the_seed_names_the_members() -> None:
    model, bank = adapted_classifier("bert", 0.5)
    model.train()

    runs = [
        predict_all(model, bank, padded_batches(4), n_masks=2, seed=seed).member_probabilities
        for seed in (1, 1, 2)
    ]

    assert np.array_equal(runs[0], runs[1])
    assert not np.allclose(runs[0], runs[2], atol=1e-3)
    assert model.training


def test_refusals() -> None:
    model, bank = adapted_classifier("bert", 0.5)
    twice = [{**batch, "index": torch.zeros(4, dtype=torch.long)} for batch in padded_batches(4)]
    with pytest.raises(ValueError, match="`index` must name each of the 4 rows once"):
        predict_all(model, bank, twice, n_masks=2, seed=0)
    with pytest.raises(ValueError, match="must hold at least one example"):
        predict_all(model, bank, [], n_masks=2, seed=0)
    with pytest.raises(ValueError, match="must have shapes"):
        Predictions(
            member_probabilities=np.ones((2, 3, 2)) / 2,
            mean_probabilities=np.ones((4, 2)) / 2,
            labels=np.zeros(4, dtype=int),
        )
    rows = predict_all(model, bank, padded_batches(4), n_masks=2, seed=0)
    with pytest.raises(ValueError, match="`predictor` must be one of"):
        rows.of("majority")
    with pytest.raises(ValueError, match="`smoothing` must be in"):
        predictor_measurement(rows, rows, "mean", 0.0)
