"""Covariance of the logits over masks and the gain of averaging: laws, by hand, and coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_nn.measure.ensemble import jensen_gap, output_covariance, second_order_gain
from lodrop_nn.measure.predictions import Predictions, predict_all
from lodrop_nn.measure.risk import predictor_measurement
from lodrop_theory.ensemble_gain import log_gain_bracket
from lodrop_theory.losses import smoothed_cross_entropy, smoothed_loss_range
from tests.nn.classifiers import adapted_classifier, padded_batches

SMOOTHING = 0.1


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def of_logits(logits: np.ndarray, labels: np.ndarray | None = None) -> Predictions:
    n = logits.shape[1]
    return Predictions(
        member_probabilities=softmax(logits),
        mean_probabilities=softmax(logits.mean(0)),
        labels=np.zeros(n, dtype=np.int64) if labels is None else labels,
    )


@st.composite
def predictions(draw: st.DrawFn, least_masks: int = 1) -> Predictions:
    stream = np.random.default_rng(draw(st.integers(0, 2**31)))
    n_masks, n = draw(st.integers(least_masks, 6)), draw(st.integers(1, 12))
    logits = draw(st.floats(0.01, 8)) * stream.normal(size=(n_masks, n, 3))
    return of_logits(logits, stream.integers(0, 3, n))


@given(members=predictions(least_masks=2), shift=st.floats(-5, 5))
def test_the_trace_is_numpys_of_centered_logits(members: Predictions, shift: float) -> None:
    logits = np.log(members.member_probabilities) + shift
    logits -= logits.mean(-1, keepdims=True)
    traces = [np.trace(np.cov(logits[:, row].T)) for row in range(len(members))]

    assert output_covariance(members).value == pytest.approx(np.mean(traces), rel=1e-8)


def test_the_trace_by_hand() -> None:
    # Centered: (1, -1) and (-1, 1), each at squared distance 2 from their mean.
    members = of_logits(np.array([[[2.0, 0.0]], [[0.0, 2.0]]]))

    assert output_covariance(members).value == pytest.approx(4.0)


def test_centering_gives_the_smallest_trace() -> None:
    stream = np.random.default_rng(0)
    logits = stream.normal(size=(5, 4, 3))
    smallest = output_covariance(of_logits(logits)).value

    for _ in range(20):
        moved = logits - logits.mean(-1, keepdims=True) + stream.normal(size=(5, 4, 1))
        assert np.var(moved, axis=0, ddof=1).sum(-1).mean() >= smallest


def test_unbiased_and_covered_over_rows_and_masks() -> None:
    """Logits (u + v, -(u + v)) with u of the mask, v of mask and row: trace 2 (1 + 1/4) E[s^2]."""
    stream, covered, values = np.random.default_rng(0), [], []
    for _ in range(400):
        scale = stream.choice([0.5, 1.5], size=(1, 40))  # rows differ; E[s^2] = 1.25
        spread = stream.normal(size=(12, 1)) + 0.5 * stream.normal(size=(12, 40))
        logits = np.stack([scale * spread, -scale * spread], axis=-1)
        found = output_covariance(of_logits(logits), level=0.9)
        covered.append(found.lower <= 2 * 1.25 * 1.25 <= found.upper)
        values.append(found.value)

    assert np.mean(values) == pytest.approx(3.125, abs=4 * np.std(values) / 20)
    # Masks are shared: an interval over rows alone holds far less often.
    assert np.mean(covered) > 0.8


def test_the_jackknife_leaves_one_mask_out() -> None:
    members = np.random.default_rng(0).normal(size=(4, 1, 3))
    twice = of_logits(np.repeat(members, 2, axis=1))  # two equal rows: no variance over rows
    found = output_covariance(twice, level=0.5)

    without = [
        output_covariance(of_logits(np.delete(members, mask, axis=0))).value for mask in range(4)
    ]
    # Student's law with one degree of freedom: the quartile is 1.
    error = math.sqrt(3 * np.var(without))
    assert math.log(found.upper / found.value) == pytest.approx(error / found.value)


@given(members=predictions(), level=st.floats(0.5, 0.99))
def test_the_gain_is_the_difference_of_the_risks(members: Predictions, level: float) -> None:
    risks = {
        name: predictor_measurement(members, members, name, SMOOTHING).population_risk.value
        for name in ("gibbs", "ensemble")
    }

    found = jensen_gap(members, smoothing=SMOOTHING, level=level)

    assert found.value == pytest.approx(risks["gibbs"] - risks["ensemble"], abs=1e-12)
    top = float(smoothed_loss_range(SMOOTHING, 3))
    assert 0 <= found.lower <= found.value <= found.upper <= top


@pytest.mark.parametrize("n", [1, 60])
def test_the_interval_of_the_gain_never_covers_too_little(n: int) -> None:
    """Rows of two kinds, a quarter of which gain something."""
    stream, level = np.random.default_rng(0), 0.8
    kinds = np.array([[[3.0, 0.0], [0.0, 0.0]], [[-3.0, 0.0], [0.0, 0.0]]])
    of_kind = softmax(kinds)[..., 0]
    gains = [
        float(np.mean(-np.log(0.9 * x + 0.05)) + np.log(0.9 * x.mean() + 0.05)) for x in of_kind.T
    ]
    truth = 0.25 * gains[0] + 0.75 * gains[1]
    below, above = [], []
    for _ in range(300):
        kind = (stream.random(n) > 0.25).astype(int)
        found = jensen_gap(of_logits(kinds[:, kind]), smoothing=SMOOTHING, level=level)
        below.append(found.lower > truth)
        above.append(found.upper < truth)

    slack = 4 * math.sqrt(0.1 * 0.9 / 300)
    assert np.mean(below) <= 0.1 + slack
    assert np.mean(above) <= 0.1 + slack
    assert gains[0] > 0.4 > 1e-12 > gains[1]


def test_more_rows_narrow_the_interval() -> None:
    stream = np.random.default_rng(0)
    logits = stream.normal(size=(8, 2000, 3))
    widths = [
        jensen_gap(of_logits(logits[:, :n]), smoothing=SMOOTHING).upper
        - jensen_gap(of_logits(logits[:, :n]), smoothing=SMOOTHING).lower
        for n in (20, 200, 2000)
    ]

    assert widths[0] > widths[1] > widths[2]
    assert jensen_gap(of_logits(logits), smoothing=SMOOTHING).lower > 0


@given(members=predictions(least_masks=2))
def test_second_order_is_in_the_bracket_of_the_gain(members: Predictions) -> None:
    losses = smoothed_cross_entropy(members.member_probabilities, members.labels, SMOOTHING)
    low, high = log_gain_bracket(np.exp(-losses))

    found = second_order_gain(members, smoothing=SMOOTHING)

    assert bool(np.all((low - 1e-12 <= found) & (found <= high + 1e-12)))


def test_second_order_is_exact_in_the_limit() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 30, 3))
    ratios = []
    for scale in (0.1, 0.01):
        members = of_logits(1 + scale * logits)
        gain = jensen_gap(members, smoothing=SMOOTHING).value
        ratios.append(second_order_gain(members, smoothing=SMOOTHING).mean() / gain)

    assert abs(ratios[1] - 1) < 0.2 * abs(ratios[0] - 1) < 0.02


@pytest.mark.parametrize("n_masks", [1, 3, 7])
def test_no_dropout_no_spread(n_masks: int) -> None:
    model, bank = adapted_classifier("bert", 0.0)
    found = predict_all(model, bank, padded_batches(5), n_masks=n_masks, seed=0)

    for estimate in (
        output_covariance(found, dropout_rate=0.0),
        jensen_gap(found, smoothing=SMOOTHING, dropout_rate=0.0),
    ):
        assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)
        assert estimate.provenance == "certified"
    # Without being told: the covariance of equal members is 0 to the last bit.
    if n_masks > 1:
        assert output_covariance(found).value == 0.0
        assert jensen_gap(found, smoothing=SMOOTHING).value < 1e-30


def test_one_member_and_few() -> None:
    one, two, three = (
        of_logits(np.random.default_rng(0).normal(size=(n, 4, 3))) for n in (1, 2, 3)
    )

    assert output_covariance(one) is None
    assert jensen_gap(one, smoothing=SMOOTHING).provenance == "certified"
    assert output_covariance(two).provenance == "plug-in"
    assert output_covariance(three).provenance == "interval"


def test_probabilities_that_underflow_stay_finite() -> None:
    members = of_logits(np.array([[[2000.0, 0.0]], [[0.0, 2000.0]], [[0.0, 0.0]]]))

    assert math.isfinite(output_covariance(members).value)
    assert math.isfinite(jensen_gap(members, smoothing=SMOOTHING).upper)


def test_refusals() -> None:
    members = of_logits(np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="`level` must be in"):
        output_covariance(members, level=1.0)
    with pytest.raises(ValueError, match="`level` must be in"):
        jensen_gap(members, smoothing=SMOOTHING, level=0.0)
    with pytest.raises(ValueError, match="`smoothing` must be in"):
        jensen_gap(members, smoothing=1.0)
