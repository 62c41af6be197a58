"""Gauge directions against explicit tangents, and the closed-form Hessian against products."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.measure.evaluation import trained_parameters
from lodrop_nn.measure.gauge import Gauge, gauge
from lodrop_nn.measure.hessian_products import HessianOfSum

seeds = st.integers(0, 2**31)
ranks = st.integers(1, 3)


def _images(x: Tensor) -> Tensor:
    return x.reshape(4, 1, 1, 5).expand(4, 2, 5, 5)


# Two adapted layers of each kind, ending in logits of shape (4, classes).
BASES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)),
    "conv1d": lambda: nn.Sequential(Conv1D(4, 5), nn.Tanh(), Conv1D(3, 4)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 4)),
    "embedding": lambda: nn.Sequential(nn.Embedding(6, 5), nn.Tanh(), nn.Linear(5, 3)),
    "grouped": lambda: nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Conv2d(4, 2, 4)),
}
KINDS = ("linear", "conv1d", "convolution", "embedding")


def adapted(kind: str, rank: int, seed: int, **options: Any) -> PeftModel:
    """A tiny model in float64 whose factors are all random."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        config = LoraConfig(
            r=rank, target_modules=["0", "2"], fan_in_fan_out=kind == "conv1d", **options
        )
        model = get_peft_model(BASES[kind](), config).double()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.7)
    return model


def loss_of(model: PeftModel, kind: str) -> Callable[[], Tensor]:
    """A curved function of the model's outputs on four rows."""
    x = torch.sin(torch.arange(20, dtype=torch.float64)).reshape(4, 5)
    rows = torch.tensor([[0], [2], [5], [2]]) if kind == "embedding" else x
    rows = _images(x) if kind in ("convolution", "grouped") else rows
    return lambda: model(rows).flatten(1).logsumexp(1).square().sum()


def flat(model: PeftModel) -> dict[str, slice]:
    places, start = {}, 0
    for name, parameter in trained_parameters(model).items():
        places[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return places


def tangents(model: PeftModel, *, skew: bool = False) -> Tensor:
    """(XA, -BX) for a basis of all X, one per row, layer by layer: written from the definition."""
    parameters, places = trained_parameters(model), flat(model)
    rows = []
    for name, lora_A in parameters.items():
        if "lora_A" not in name and "lora_embedding_A" not in name:
            continue
        partner = name.replace("_A.", "_B.")
        A, B = lora_A.detach().flatten(1), parameters[partner].detach().flatten(1)
        r = len(A)
        for i in range(r):
            for j in range(r):
                x = torch.zeros(r, r, dtype=torch.float64)
                x[i, j] = 1.0
                if skew:
                    x = x - x.T
                row = torch.zeros(sum(p.numel() for p in parameters.values()), dtype=torch.float64)
                row[places[name]], row[places[partner]] = (x @ A).flatten(), -(B @ x).flatten()
                rows.append(row)
    return torch.stack(rows)


def basis_vectors(directions: Gauge) -> Tensor:
    """Q^T, one direction per row."""
    identity = torch.eye(directions.dimension, dtype=torch.float64)
    rows = [directions.direction(row) for row in identity]
    return torch.stack(rows) if rows else torch.zeros(0, directions.n_parameters)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(rank=ranks, seed=seeds, skew=st.booleans())
def test_the_directions_are_an_orthonormal_basis_of_the_tangents(
    kind: str, rank: int, seed: int, skew: bool
) -> None:
    model = adapted(kind, rank, seed)
    expected = tangents(model, skew=skew)

    directions = gauge(model, symmetry="orthogonal" if skew else "general")
    q = basis_vectors(directions).double()

    torch.testing.assert_close(q @ q.T, torch.eye(len(q), dtype=torch.float64))
    torch.testing.assert_close(expected @ q.T @ q, expected)
    assert directions.dimension == int(torch.linalg.matrix_rank(expected))
    assert directions.skipped == ()
    v = torch.randn(q.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(directions.coordinates(v), q @ v)
    torch.testing.assert_close(directions.project_out(v), v - q.T @ (q @ v))


@settings(max_examples=20)
@given(
    rank=ranks,
    seed=seeds,
    skew=st.booleans(),
    zeros=st.lists(st.sampled_from(["A", "B"]), max_size=3),
)
def test_dependent_directions_are_counted_once(
    rank: int, seed: int, skew: bool, zeros: list[str]
) -> None:
    model = adapted("linear", rank, seed)
    with torch.no_grad():
        for k, factor in enumerate(zeros):  # a rank direction that a factor of layer 0 lacks
            weight = model.base_model.model[0].__getattr__(f"lora_{factor}")["default"].weight
            (weight[k % rank] if factor == "A" else weight[:, k % rank]).zero_()

    directions = gauge(model, symmetry="orthogonal" if skew else "general")

    assert directions.dimension == int(torch.linalg.matrix_rank(tangents(model, skew=skew)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
@settings(max_examples=5)
@given(rank=ranks, seed=seeds)
def test_the_hessian_on_the_gauge_is_the_closed_form(
    kind: str, masked: bool, rank: int, seed: int
) -> None:
    model = adapted(kind, rank, seed)
    bank = attach_lora_dropout(model, 0.4, mask_embeddings=True)
    loss = loss_of(model, kind)
    with bank.fixed(4, seed) if masked else bank.off():
        hessian = HessianOfSum([loss], list(trained_parameters(model).values()))
    directions = gauge(model)
    stream = torch.Generator().manual_seed(seed)
    c = torch.randn(directions.dimension, dtype=torch.float64, generator=stream)
    v = torch.randn(directions.n_parameters, dtype=torch.float64, generator=stream)

    image = hessian.product(directions.direction(c))

    near = {"rtol": 1e-8, "atol": 1e-9}
    assert float(hessian.gradient.norm()) > 1e-3
    torch.testing.assert_close(directions.hessian_product(c, hessian.gradient), image, **near)
    torch.testing.assert_close(
        directions.hessian_coordinates(v, hessian.gradient),
        directions.coordinates(hessian.product(v)),
        **near,
    )


@settings(max_examples=8)
@given(rank=st.integers(2, 3), seed=seeds, ridge=st.floats(0.01, 1.0))
def test_a_ridge_leaves_the_rotations(rank: int, seed: int, ridge: float) -> None:
    model = adapted("linear", rank, seed)
    parameters = list(trained_parameters(model).values())
    loss = loss_of(model, "linear")
    hessian = HessianOfSum(
        [lambda: loss() + ridge * sum(p.square().sum() for p in parameters)], parameters
    )
    directions, all_of = gauge(model, symmetry="orthogonal"), gauge(model)
    stream = torch.Generator().manual_seed(seed)
    c = torch.randn(directions.dimension, dtype=torch.float64, generator=stream)
    other = torch.randn(all_of.dimension, dtype=torch.float64, generator=stream)

    product = hessian.product(directions.direction(c))

    torch.testing.assert_close(directions.hessian_product(c, hessian.gradient), product)
    wrong = all_of.hessian_product(other, hessian.gradient)
    assert not torch.allclose(wrong, hessian.product(all_of.direction(other)), rtol=1e-3)


@settings(max_examples=8)
@given(rank=ranks, seed=seeds, skew=st.booleans())
def test_blocks_and_residual_are_those_of_the_matrix(rank: int, seed: int, skew: bool) -> None:
    model = adapted("linear", rank, seed)
    hessian = HessianOfSum([loss_of(model, "linear")], list(trained_parameters(model).values()))
    directions = gauge(model, symmetry="orthogonal" if skew else "general")
    q, dense = basis_vectors(directions).double(), hessian.dense()

    blocks = directions.hessian_blocks(hessian.gradient)

    along = torch.block_diag(*(block for block, _ in blocks))
    squares = torch.block_diag(*(square for _, square in blocks))
    if directions.dimension:
        torch.testing.assert_close(along, q @ dense @ q.T)
        torch.testing.assert_close(squares, q @ dense @ dense @ q.T)
        longest = float(torch.linalg.matrix_norm(dense @ q.T, ord=2))
        assert directions.residual(hessian.gradient) == pytest.approx(longest, rel=1e-9)
    else:
        assert directions.residual(hessian.gradient) == 0.0
    flat_point = torch.zeros_like(hessian.gradient)
    assert directions.residual(flat_point) == 0.0


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_what_has_no_gauge_is_named() -> None:
    frozen = adapted("linear", 2, 0)
    frozen.base_model.model[0].lora_A["default"].weight.requires_grad_(False)
    adalora = get_peft_model(
        BASES["linear"](), AdaLoraConfig(target_modules=["0", "2"], init_r=3, total_step=10)
    )
    grouped = adapted("grouped", 2, 0)

    assert gauge(frozen).skipped == ("base_model.model.0",)
    assert gauge(frozen).dimension == 4
    assert gauge(adalora).skipped == ("base_model.model.0", "base_model.model.2")
    assert gauge(adalora).dimension == 0
    assert gauge(grouped).skipped == ("base_model.model.0",)


def test_without_directions_nothing_is_projected() -> None:
    model = adapted("linear", 2, 0)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    directions = gauge(model)
    v = torch.ones(directions.n_parameters, dtype=torch.float64)

    assert directions.dimension == 0
    assert directions.project_out(v).tolist() == v.tolist()
    assert directions.hessian_blocks(v) == []


def test_refuses_an_unknown_symmetry() -> None:
    with pytest.raises(ValueError, match="`symmetry` must be 'general' or 'orthogonal'"):
        gauge(adapted("linear", 2, 0), symmetry="unitary")
