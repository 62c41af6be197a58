"""Inputs and losses: the domain of every field, and nothing outside it."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory import (
    CurvatureInputs,
    HoldOutInputs,
    L2StabilityInputs,
    TailInputs,
    TwoStabilityInputs,
    UniformStabilityInputs,
    smoothed_cross_entropy,
    smoothed_loss_range,
)
from lodrop_theory.inputs import (
    BernsteinHoldOutInputs,
    BinaryHoldOutInputs,
    CompressionInputs,
    CoveringInputs,
    DropoutCurvatureInputs,
    InformationInputs,
    L2LeaveOneOutInputs,
    LeaveOneOutInputs,
    PacBayesInputs,
    SgdInputs,
    TransverseInputs,
)

COUNT, RATE, SIZE = (0, 2.5, -1, np.inf), (-0.1, 1.0, np.inf), (-1e-300, np.inf)
POSITIVE, ANY, FAILURE = (0.0, -1.0, np.inf), (np.inf, -np.inf), (0.0, 1.0, 2.0)
TAIL = {
    "n_train": (10, COUNT),
    "loss_range": (1.0, POSITIVE),
    "delta": (0.1, FAILURE),
    "empirical_risk": (0.5, ANY),
}
DOMAINS = {
    CurvatureInputs: {
        "n_train": (10, COUNT),
        "dropout_rate": (0.5, RATE),
        "lipschitz": (1.0, SIZE),
        "hessian_min_eig": (-1.0, ANY),
        "penalty": (1.0, SIZE),
    },
    TailInputs: TAIL,
    TwoStabilityInputs: {
        **TAIL,
        "hypothesis_stability": (0.1, SIZE),
        "pointwise_stability": (0.1, SIZE),
    },
    UniformStabilityInputs: {**TAIL, "uniform_stability": (0.1, SIZE)},
    L2StabilityInputs: {
        **TAIL,
        "replace_one_out": (0.1, SIZE),
        "replace_one_in": (0.1, SIZE),
        "loss_variance": (0.2, (-1.0, 0.26, np.inf)),
    },
    HoldOutInputs: {
        "n_test": (10, COUNT),
        "loss_range": (1.0, POSITIVE),
        "delta": (0.1, FAILURE),
        "held_out_risk": (0.5, ANY),
        "empirical_risk": (0.5, ANY),
    },
    BinaryHoldOutInputs: {
        "n_test": (10, COUNT),
        "n_errors": (3, (-1, 2.5, 11)),
        "delta": (0.1, FAILURE),
        "empirical_risk": (0.5, (-0.1, 1.1)),
    },
    BernsteinHoldOutInputs: {
        "n_test": (10, (*COUNT, 1)),
        "loss_range": (1.0, POSITIVE),
        "delta": (0.1, FAILURE),
        "held_out_risk": (0.5, ANY),
        "empirical_risk": (0.5, ANY),
        "sample_variance": (0.1, (-1.0, 0.28, np.inf)),
    },
    LeaveOneOutInputs: {
        **TAIL,
        "leave_one_out_risk": (0.5, ANY),
        "hypothesis_stability": (0.1, SIZE),
    },
    L2LeaveOneOutInputs: {
        **TAIL,
        "leave_one_out_risk": (0.5, ANY),
        "remove_one_out": (0.1, SIZE),
    },
    PacBayesInputs: {
        "n_train": (10, COUNT),
        "loss_range": (1.0, POSITIVE),
        "delta": (0.1, FAILURE),
        "empirical_risk": (0.5, (*ANY, -0.01, 1.01)),
        "kl_nats": (1.0, SIZE),
        "loss_min": (0.0, ANY),
        "n_priors": (3, COUNT),
        "n_draws": (10, COUNT),
        "delta_draws": (0.05, (*FAILURE, 0.1)),
    },
    SgdInputs: {
        "n_train": (10, COUNT),
        "lipschitz": (1.0, SIZE),
        "smoothness": (1.0, SIZE),
        "largest_step_size": (1.0, SIZE),
        "step_size_sum": (1.0, SIZE),
    },
    InformationInputs: {
        "n_train": (10, COUNT),
        "loss_range": (1.0, POSITIVE),
        "information_nats": (1.0, SIZE),
    },
    CoveringInputs: {
        **TAIL,
        "lipschitz": (1.0, SIZE),
        "norm_bound": (1.0, POSITIVE),
        "dimension": (10, COUNT),
        "n_modules": (2, COUNT),
    },
    CompressionInputs: {**TAIL, "code_length_bits": (10, COUNT)},
    TransverseInputs: {
        "n_train": (10, COUNT),
        "lipschitz": (1.0, SIZE),
        "transverse_min_eig": (-1.0, ANY),
    },
    DropoutCurvatureInputs: {
        "n_train": (10, COUNT),
        "dropout_rate": (0.5, RATE),
        "dropout_lipschitz": (1.0, SIZE),
        "dropout_min_eig": (-1.0, ANY),
    },
}
CASES = [
    (kind, name, bad)
    for kind, domain in DOMAINS.items()
    for name, (_, outside) in domain.items()
    for bad in (*outside, np.nan)
]


def good(kind, **changes):
    return kind(**{name: value for name, (value, _) in DOMAINS[kind].items()} | changes)


@pytest.mark.parametrize("kind", DOMAINS)
def test_the_table_of_domains_names_every_field(kind) -> None:
    assert set(DOMAINS[kind]) == {f.name for f in fields(kind)}
    good(kind)


@pytest.mark.parametrize(("kind", "name", "bad"), CASES)
def test_a_number_outside_its_domain_is_refused_by_name(kind, name, bad) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must"):
        good(kind, **{name: bad})
    with pytest.raises(ValueError, match=f"`{name}` must"):
        good(kind, **{name: [DOMAINS[kind][name][0], bad]})


@pytest.mark.parametrize("bad", ["0.5", True, 1j, [None]])
def test_what_is_no_real_number_is_refused(bad) -> None:
    with pytest.raises(TypeError, match="`lipschitz` must be a real number"):
        good(CurvatureInputs, lipschitz=bad)


@pytest.mark.parametrize("kind", DOMAINS)
def test_inputs_are_frozen_keyword_only_and_have_no_default_delta(kind) -> None:
    with pytest.raises(TypeError):
        kind(10)
    first = fields(kind)[0].name
    with pytest.raises(AttributeError):
        setattr(good(kind), first, 3)
    if "delta" in DOMAINS[kind]:
        values = {name: value for name, (value, _) in DOMAINS[kind].items() if name != "delta"}
        with pytest.raises(TypeError, match="delta"):
            kind(**values)


@given(length=st.integers(2, 5))
def test_fields_broadcast_or_are_refused(length: int) -> None:
    assert good(TailInputs).shape == ()
    assert good(TailInputs, delta=np.full(length, 0.1)).shape == (length,)
    with pytest.raises(ValueError, match="must broadcast together"):
        good(TailInputs, delta=np.full(length, 0.1), loss_range=np.ones(length + 1))


simplex = st.lists(st.floats(0, 1), min_size=2, max_size=5).filter(lambda v: sum(v) > 0.1)


@given(weights=simplex, smoothing=st.floats(1e-6, 0.999), data=st.data())
def test_smoothed_loss_lies_in_an_interval_of_its_range(weights, smoothing, data) -> None:
    row = np.array(weights) / sum(weights)
    label = data.draw(st.integers(0, len(row) - 1))
    loss = float(smoothed_cross_entropy([row], [label], smoothing)[0])
    best = float(smoothed_cross_entropy([np.eye(len(row))[label]], [label], smoothing)[0])
    length = float(smoothed_loss_range(smoothing, len(row)))
    assert best - 1e-12 <= loss <= best + length + 1e-12
    worst = np.eye(len(row))[(label + 1) % len(row)]
    reached = float(smoothed_cross_entropy([worst], [label], smoothing)[0])
    assert reached == pytest.approx(best + length, abs=1e-9)


@given(one=simplex, smoothing=st.floats(1e-6, 0.999), share=st.floats(0, 1))
def test_smoothed_loss_is_convex_in_the_probabilities(one, smoothing, share) -> None:
    first = np.array(one) / sum(one)
    other = first[::-1]
    mixed = share * first + (1 - share) * other
    a, b, m = (float(smoothed_cross_entropy([r], [0], smoothing)[0]) for r in (first, other, mixed))
    assert m <= share * a + (1 - share) * b + 1e-12


@pytest.mark.parametrize(
    ("rows", "labels", "smoothing", "error"),
    [
        ([[0.5, 0.6]], [0], 0.1, "`probabilities` must be rows on the simplex"),
        ([[-0.5, 1.5]], [0], 0.1, "`probabilities` must be rows on the simplex"),
        ([0.5, 0.5], [0], 0.1, "`probabilities` must be rows on the simplex"),
        ([[0.5, 0.5]], [2], 0.1, "`labels` must be in"),
        ([[0.5, 0.5]], [-1], 0.1, "`labels` must be in"),
        ([[0.5, 0.5]], [0.0], 0.1, "`labels` must be whole numbers"),
        ([[0.5, 0.5]], [0, 1], 0.1, "`labels` must be whole numbers"),
        ([[0.5, 0.5]], [0], 0.0, "`smoothing` must be in"),
        ([[0.5, 0.5]], [0], 1.0, "`smoothing` must be in"),
    ],
)
def test_losses_outside_their_domain_are_refused(rows, labels, smoothing, error) -> None:
    with pytest.raises(ValueError, match=error):
        smoothed_cross_entropy(rows, labels, smoothing)
