"""Curvature without masks, across the gauge and under masks, against dense matrices."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lodrop_nn.measure.curvature import Curvature, curvature
from lodrop_nn.measure.evaluation import mean_losses, mean_predictor, trained_parameters
from lodrop_nn.measure.hessian import (
    dropout_min_eig,
    gauge_residual,
    hessian_max_eig,
    hessian_min_eig,
    transverse_min_eig,
)
from lodrop_nn.measure.hessian_products import HessianOfSum
from lodrop_nn.measure.lipschitz import example_gradients
from lodrop_nn.measure.masked_losses import masked_losses
from lodrop_nn.measure.penalty import penalty_curvature
from tests.nn.classifiers import adapted_classifier, padded_batches

BATCHES = padded_batches(6, batch_size=4)
SURE = 1 - 1e-9  # at this level a miss would be a wrong bound, not bad luck
NAMES = (
    "hessian_min_eig",
    "hessian_max_eig",
    "transverse_min_eig",
    "dropout_min_eig",
    "dropout_max_eig",
)


@cache
def matrix(*members: int) -> Tensor:
    """The dense Hessian: masks off, or each batch under some of the six members of seed 0.

    One member is for all rows of all batches, two for one batch each, six for one row each.
    """
    model, bank = adapted_classifier("bert", 0.4)
    parameters = list(trained_parameters(model).values())
    pieces = BATCHES
    if len(members) == 6:
        pieces = [
            {k: t[i : i + 1] for k, t in b.items()} for b in BATCHES for i in range(len(b["index"]))
        ]
    members = members * len(pieces) if len(members) == 1 else members
    with mean_predictor(model, bank, BATCHES), bank.fixed(6, 0):
        if not members:
            with bank.off():
                return HessianOfSum(mean_losses(model, pieces), parameters).dense()
        shares = []
        for piece, member in zip(pieces, members, strict=True):
            with bank.members(member, member + 1):
                share = HessianOfSum(mean_losses(model, [piece]), parameters).dense()
            shares.append(share * len(piece["index"]) / 6)
    return torch.stack(shares).sum(0)


def transverse(dense: Tensor) -> Tensor:
    """The matrix on the complement of the tangents (XA, -BX)."""
    model, _ = adapted_classifier("bert", 0.4)
    parameters = trained_parameters(model)
    places, start = {}, 0
    for name, p in parameters.items():
        places[name] = slice(start, start := start + p.numel())
    tangents = []
    for name, lora_A in parameters.items():
        if "lora_A" in name:
            partner = name.replace("lora_A", "lora_B")
            for k in range(4):
                x = torch.eye(4, dtype=torch.float64)[k].reshape(2, 2)
                row = torch.zeros(start, dtype=torch.float64)
                row[places[name]] = (x @ lora_A.detach()).flatten()
                row[places[partner]] = -(parameters[partner].detach() @ x).flatten()
                tangents.append(row)
    frame = torch.linalg.qr(torch.stack(tangents, 1), mode="complete").Q[:, len(tangents) :]
    return frame.T @ dense @ frame


@cache
def truths() -> dict[str, float]:
    plain, masked = matrix(), matrix(*range(6))
    across = torch.linalg.eigvalsh(transverse(plain))
    ends = [torch.linalg.eigvalsh(each)[[0, -1]].tolist() for each in (plain, masked)]
    return dict(zip(NAMES, (*ends[0], float(across[0]), *ends[1]), strict=True))


@cache
def dense_curvature() -> Curvature:
    model, bank = adapted_classifier("bert", 0.4)
    return curvature(model, bank, BATCHES, steps=2, seed=0)


def test_a_small_hessian_is_built_as_a_matrix() -> None:
    model, bank = adapted_classifier("bert", 0.4)

    found = dense_curvature()

    for name, truth in truths().items():
        end = getattr(found, name)
        assert end.value == pytest.approx(truth, abs=1e-9)
        assert end.n_draws == found.n_parameters == len(matrix())
        assert end.provenance == ("plug-in" if "dropout" in name else "interval")
        assert found.converged[name]
    assert found.gauge_dimension == 16
    assert found.skipped == ()
    assert found.graphs_kept
    assert found.seconds_per_product > 0
    gradient = example_gradients(model, bank, BATCHES).mean
    expected = torch.cat([g.flatten() for g in gradient.values()])
    torch.testing.assert_close(found.gradient, expected)


@settings(max_examples=12)
@given(steps=st.integers(2, 25), seed=st.integers(0, 10**6))
def test_every_interval_of_a_krylov_run_holds(steps: int, seed: int) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    found = curvature(
        model, bank, BATCHES, steps=steps, seed=seed, level=SURE, dense_up_to=0, with_masks=False
    )
    under_masks = curvature(model, bank, BATCHES, steps=steps, seed=0, level=SURE, dense_up_to=0)

    for name, truth in truths().items():
        end = getattr(under_masks if "dropout" in name else found, name)
        assert end.lower <= end.value <= end.upper
        assert end.lower - 1e-9 <= truth <= end.upper + 1e-9
        assert end.n_draws == steps
    assert found.dropout_min_eig is None
    assert found.dropout_max_eig is None
    assert found.hessian_min_eig.value <= found.transverse_min_eig.value + 1e-12


def test_many_steps_reach_the_ends() -> None:
    model, bank = adapted_classifier("bert", 0.4)

    found = curvature(model, bank, BATCHES, steps=110, seed=0, dense_up_to=0)

    for name, truth in truths().items():
        assert getattr(found, name).value == pytest.approx(truth, abs=2e-3)
        assert found.residuals[name] < 0.05
    assert found.converged["transverse_min_eig"]
    assert found.gauge_residual == dense_curvature().gauge_residual


def test_residuals_are_those_of_unit_vectors() -> None:
    # Within its residual of each value there is an eigenvalue of the matrix.
    model, bank = adapted_classifier("bert", 0.4)
    spectra = {
        "hessian": torch.linalg.eigvalsh(matrix()),
        "transverse": torch.linalg.eigvalsh(transverse(matrix())),
        "dropout": torch.linalg.eigvalsh(matrix(*range(6))),
    }
    for steps in (2, 5, 12):
        found = curvature(model, bank, BATCHES, steps=steps, seed=0, dense_up_to=0)
        for name, residual in found.residuals.items():
            distance = (spectra[name.split("_")[0]] - getattr(found, name).value).abs().min()
            assert distance <= residual + 1e-9


def test_many_gauge_directions_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    every = curvature(model, bank, BATCHES, steps=10, seed=0, level=SURE, dense_up_to=0)
    monkeypatch.setattr("lodrop_nn.measure.spectrum._DENSE_GAUGE", 8)

    some = curvature(model, bank, BATCHES, steps=10, seed=0, level=SURE, dense_up_to=0)

    truth = truths()["hessian_min_eig"]
    assert truth <= every.hessian_min_eig.value <= some.hessian_min_eig.value
    assert some.hessian_min_eig.lower == every.hessian_min_eig.lower
    assert some.hessian_min_eig.value <= some.transverse_min_eig.value


def test_shared_masks_are_averaged() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    expected = torch.linalg.eigvalsh((matrix(0) + matrix(1)) / 2)

    found = curvature(model, bank, BATCHES, steps=2, seed=0, n_masks=2)

    assert found.dropout_min_eig is not None
    assert found.dropout_min_eig.value == pytest.approx(float(expected[0]), abs=1e-9)
    assert "mean over 2 masks" in found.dropout_min_eig.method


def test_a_model_of_one_mask_per_pass_gets_one_per_batch() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    bank.one_mask_per_pass = True
    expected = torch.linalg.eigvalsh(matrix(0, 1))

    found = curvature(model, bank, BATCHES, steps=2, seed=0)

    assert found.dropout_min_eig is not None
    assert found.dropout_min_eig.value == pytest.approx(float(expected[0]), abs=1e-9)
    assert "one mask per batch" in found.dropout_min_eig.method


def test_halved_batches_keep_their_masks() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    parameters = list(trained_parameters(model).values())
    v = torch.ones(sum(p.numel() for p in parameters), dtype=torch.float64)

    def hungry(module: torch.nn.Module, args: object, kwargs: dict[str, Tensor]) -> None:
        if len(kwargs["input_ids"]) > 1:
            raise MemoryError

    with (
        mean_predictor(model, bank, BATCHES),
        masked_losses(model, bank, BATCHES, n_masks=0, seed=0) as (parts, words),
    ):
        handle = model.register_forward_pre_hook(hungry, with_kwargs=True)
        tight = HessianOfSum(parts, parameters)
        product = tight.product(v)
        handle.remove()

    assert words == "one mask per example"
    assert (tight.n_parts, tight.retained) == (6, False)
    torch.testing.assert_close(product, matrix(*range(6)) @ v)


def test_without_dropout_both_are_the_same() -> None:
    model, bank = adapted_classifier("bert", 0.0)
    calls: list[tuple[int, int]] = []

    found = curvature(
        model, bank, BATCHES, steps=4, seed=0, dense_up_to=0, on_step=lambda *c: calls.append(c)
    )

    assert found.dropout_min_eig is not None
    assert found.dropout_min_eig.value == found.hessian_min_eig.value
    assert found.dropout_min_eig.provenance == "interval"
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert penalty_curvature(model, bank, BATCHES, steps=4, seed=0) is None


def test_without_gauge_directions_all_is_across() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)

    for dense_up_to in (0, 2500):
        found = curvature(
            model, bank, BATCHES, steps=5, seed=0, dense_up_to=dense_up_to, with_masks=False
        )
        assert found.gauge_dimension == 0
        assert len(found.skipped) == 4
        assert found.gauge_residual.value == 0.0
        assert found.transverse_min_eig.value == found.hessian_min_eig.value


def test_one_by_one() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    whole = dense_curvature()
    assert hessian_min_eig(model, bank, BATCHES, steps=2, seed=0) == whole.hessian_min_eig
    functions = (
        hessian_min_eig,
        hessian_max_eig,
        transverse_min_eig,
        gauge_residual,
        dropout_min_eig,
    )
    for function in functions:
        expected = getattr(whole, function.__name__)
        assert function(model, bank, [], steps=2, seed=0, curvature=whole) == expected


def test_progress_counts_both_hessians() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    calls: list[tuple[int, int]] = []

    curvature(
        model, bank, BATCHES, steps=3, seed=0, dense_up_to=0, on_step=lambda *c: calls.append(c)
    )

    assert calls == [(k, 6) for k in range(1, 7)]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "`steps` must be a whole number >= 2"),
        ({"level": 1.0}, "`level` must be in"),
        ({"n_masks": -1}, "`n_masks` must be a whole number >= 0"),
        ({"n_masks": True}, "`n_masks` must be a whole number >= 0"),
    ],
)
def test_refuses(options: dict[str, float], message: str) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    with pytest.raises(ValueError, match=message):
        curvature(model, bank, BATCHES, **{"steps": 2, "seed": 0, "dense_up_to": 0, **options})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_refuses_half_precision(dtype: torch.dtype) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    model.get_submodule("base_model.model.bert.embeddings").to(dtype)  # the adapter is not
    with pytest.raises(ValueError, match=r"`model` must have weights in float32 or float64, got"):
        curvature(model, bank, BATCHES, steps=2, seed=0)
