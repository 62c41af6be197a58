"""Stabilities against refits that SciPy does, on models where the truth is known."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from lodrop_nn.measure.stability import StabilitySettings, stability, strongly_convex
from lodrop_nn.measure.stability.neighbors import Draw, draw_neighbors
from lodrop_theory.records import StabilityEstimates
from tests.nn.classifiers import adapted_classifier, padded_batches
from tests.nn.stability_models import (
    Oracle,
    feature_batches,
    linear_head,
    set_point,
    trained_transformer,
)

N, N_FRESH, TAU = 12, 9, 0.02
TRAIN, FRESH = feature_batches(N, 1), feature_batches(N_FRESH, 2)
EXACT = StabilitySettings(
    center="origin",
    ridge=TAU,
    n_newton=N,
    n_refits=N,
    fresh_per_example=3,
    newton_tolerance=1e-8,
    refit_tolerance=1e-8,
    refit_steps=60,
)
NUMBERS = (
    "pointwise_stability",
    "hypothesis_stability",
    "remove_one_out",
    "replace_one_out",
    "replace_one_in",
    "leave_one_out_risk",
    "replace_one_gap",
)


def values(estimates: StabilityEstimates) -> dict[str, float]:
    return {name: getattr(estimates, name).value for name in NUMBERS}


def true_stabilities(oracle: Oracle, draw: Draw, smoothing: float) -> dict[str, float]:
    """All by SciPy, from the definitions."""
    n = draw.n_train
    full = np.where(np.arange(len(oracle.labels)) < n, 1.0 / n, 0.0)
    before = oracle.smoothed(oracle.minimizer(full, TAU), smoothing)
    inside, outside, swapped, elsewhere, risks = [], [], [], [], []
    for i, z, fresh in zip(
        draw.left_out.tolist(), draw.replaced_by.tolist(), draw.felt_at.tolist(), strict=True
    ):
        without = full * n / (n - 1)
        without[i] = 0.0
        removed = oracle.smoothed(oracle.minimizer(without, TAU), smoothing)
        other = full.copy()
        other[i], other[z] = 0.0, 1.0 / n
        replaced = oracle.smoothed(oracle.minimizer(other, TAU), smoothing)
        inside.append(removed[i] - before[i])
        outside.append(removed[fresh] - before[fresh])
        swapped.append(replaced[i] - before[i])
        elsewhere.append(replaced[fresh] - before[fresh])
        risks.append(removed[i])
    return {
        "pointwise_stability": float(np.abs(inside).mean()),
        "hypothesis_stability": float(np.abs(outside).mean()),
        "remove_one_out": float(np.sqrt(np.square(outside).mean())),
        "replace_one_out": float(np.sqrt(np.square(elsewhere).mean())),
        "replace_one_in": float(np.sqrt(np.square(swapped).mean())),
        "leave_one_out_risk": float(np.mean(risks)),
        "replace_one_gap": float(np.mean(swapped)),
    }


def solved_head() -> tuple[PeftModel, object, Oracle]:
    model, bank = linear_head()
    oracle = Oracle(model, [*TRAIN, *FRESH])
    full = np.where(np.arange(N + N_FRESH) < N, 1.0 / N, 0.0)
    set_point(model, oracle.minimizer(full, TAU))
    return model, bank, oracle


@contextmanager
def untouched(model: PeftModel) -> Iterator[None]:
    """The model must come back bit by bit, with its flags, gradients, hooks and modules."""

    def picture() -> dict[str, object]:
        modules = dict(model.named_modules())
        return {
            "weights": {name: id(p) for name, p in model.named_parameters()},
            "flags": {name: p.requires_grad for name, p in model.named_parameters()},
            "gradients": {name: id(p.grad) for name, p in model.named_parameters()},
            "modes": {name: m.training for name, m in modules.items()},
            "modules": {name: id(m) for name, m in modules.items()},
            "hooks": {
                name: (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
                for name, m in modules.items()
            },
            "adapters": (list(model.peft_config), model.active_adapter, model.active_adapters),
            "random": torch.get_rng_state().tolist(),
        }

    tensors = {name: t.clone() for name, t in model.state_dict().items()}
    before = picture()
    yield
    assert picture() == before
    after = model.state_dict()
    assert list(after) == list(tensors)
    assert all(torch.equal(after[name], t) for name, t in tensors.items())


def test_a_linear_head_against_scipy() -> None:
    model, bank, oracle = solved_head()

    with untouched(model):
        found = stability(model, bank, TRAIN, FRESH, EXACT)

    expected = true_stabilities(oracle, draw_neighbors(N, N, N_FRESH, 3, 0), EXACT.smoothing)
    assert values(found.estimates["refit"]) == pytest.approx(expected, rel=1e-5)
    # The Gauss-Newton Hessian of a model that is linear in its parameters is the Hessian.
    assert values(found.estimates["gauss-newton"]) == pytest.approx(
        values(found.estimates["newton"]), rel=1e-5
    )
    assert found.newton_ratio is not None
    assert found.newton_ratio.value == pytest.approx(1.0, abs=0.05)
    assert found.influence_ratio is not None
    assert found.influence_ratio.value < found.newton_ratio.value
    assert found.gradient_norm.value < 1e-7
    assert found.n_parameters == 6
    assert all(
        getattr(estimates, name).provenance == "plug-in"
        for estimates in found.estimates.values()
        for name in NUMBERS
    )
    assert "strongly convex everywhere" in found.objective
    assert found.objective_min_eig.provenance == "certified"
    assert found.objective_min_eig.low == 2 * TAU
    assert "coupled replicas" in found.estimates["refit"].pointwise_stability.method


def test_what_is_convex_and_what_is_not() -> None:
    model, bank = linear_head()
    assert strongly_convex(model, bank, TRAIN).is_linear
    both = strongly_convex(*linear_head(train_A=True), TRAIN)
    assert not both.is_linear
    assert "lora_A" in both.reason
    transformer, masks = adapted_classifier("bert", 0.3)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_("layer.2.attention.output.dense.lora_B" in name)
    below = strongly_convex(transformer, masks, padded_batches(4))
    assert not below.is_linear
    assert "is not the logits" in below.reason
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_("classifier.modules_to_save" in name)
    with untouched(transformer):
        assert strongly_convex(transformer, masks, padded_batches(4)).is_linear


def test_a_transformer_with_a_ridge() -> None:
    train, fresh = padded_batches(20, batch_size=20), padded_batches(8, seed=5, batch_size=8)
    tau = 1e-3
    model, bank = trained_transformer(train, tau)
    settings = replace(
        EXACT, ridge=tau, n_newton=10, n_refits=10, refit_tolerance=1e-5, newton_products=200
    )

    with untouched(model):
        found = stability(model, bank, train, fresh, settings)

    assert found.gradient_norm.value < 1e-6
    assert found.newton_ratio is not None
    assert found.newton_ratio.value == pytest.approx(1.0, abs=0.05)
    assert found.influence_ratio is not None
    assert found.influence_ratio.value < 0.93
    assert found.estimates["refit"].pointwise_stability.value > 0.05  # no small move
    assert "not proved" in found.objective
    assert "above the tolerance" not in found.estimates["refit"].pointwise_stability.method

    krylov = stability(model, bank, train, fresh, replace(settings, dense_up_to=1))
    assert krylov.newton_ratio is not None
    assert krylov.newton_ratio.value == pytest.approx(found.newton_ratio.value, rel=1e-5)
    assert values(krylov.estimates["refit"]) == pytest.approx(
        values(found.estimates["refit"]), rel=1e-3
    )

    few = replace(settings, dense_up_to=1, n_newton=4, n_refits=4)
    whole = stability(model, bank, train, fresh, few)
    partial = stability(model, bank, train, fresh, replace(few, max_bytes=22 * 2 * 96 * 8))
    assert set(partial.estimates) == {"newton", "refit"}
    assert partial.trace_gap is None
    assert "max_bytes" in partial.objective
    assert values(partial.estimates["newton"]) == pytest.approx(
        values(whole.estimates["newton"]), rel=1e-5
    )


def test_a_solution_that_is_not_stationary() -> None:
    model, bank = adapted_classifier("bert", 0.3, rescale=False)
    train, fresh = padded_batches(8), padded_batches(6, seed=5)
    settings = StabilitySettings(
        n_newton=3, n_refits=3, fresh_per_example=2, dense_up_to=1, newton_products=8
    )
    steps: list[tuple[int, int]] = []

    with untouched(model):
        found = stability(
            model, bank, train, fresh, settings, on_step=lambda *step: steps.append(step)
        )

    assert found.center == "solution"
    assert found.gradient_norm.value == 0.0
    assert found.objective_min_eig.value > 0.0
    assert "not of the training run" in found.objective
    # Masks that scale the update cannot be had by replicas without masks.
    assert "one by one" in found.estimates["refit"].pointwise_stability.method
    assert steps == sorted(steps)
    assert steps[-1] == (1000, 1000)


def test_equal_examples_cannot_be_missed() -> None:
    model, bank = adapted_classifier("bert", 0.3)
    row = padded_batches(1)[0]
    batch = {name: tensor.repeat(4, *[1] * (tensor.dim() - 1)) for name, tensor in row.items()}
    settings = StabilitySettings(
        n_newton=2, n_refits=2, fresh_per_example=2, refit_steps=3, dense_up_to=1
    )

    found = stability(model, bank, [batch], [batch], settings)

    assert "one of norm 3" in found.gradient_norm.method  # the risk's own gradient is not zero
    for estimates in found.estimates.values():
        for name, value in values(estimates).items():
            if name != "leave_one_out_risk":
                assert value == pytest.approx(0.0, abs=1e-9)
    assert found.newton_ratio is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ridge": 0.0}, "`ridge`"),
        ({"ridge": -1.0}, "`ridge`"),
        ({"ridge": None}, "`ridge`"),
        ({"center": "mean"}, "`center`"),
        ({"methods": ()}, "`methods`"),
        ({"methods": ("refit",)}, "`methods`"),
        ({"methods": ("newton", "retrain")}, "`methods` must be some of"),
        ({"n_refits": 1}, "`n_refits`"),
        ({"n_refits": N + 1}, "`n_refits`"),
        ({"n_left_out": N + 1}, "`n_left_out`"),
        ({"smoothing": float("nan")}, "`smoothing`"),
        ({"max_bytes": 1}, "`max_bytes`"),
    ],
)
def test_settings_out_of_range(changes: dict[str, object], message: str) -> None:
    model, bank = linear_head()
    with pytest.raises(ValueError, match=message):
        stability(model, bank, TRAIN, FRESH, replace(EXACT, **changes))


def first(batches: Sequence[dict[str, Tensor]], count: int) -> list[dict[str, Tensor]]:
    return [{name: tensor[:count] for name, tensor in batches[0].items()}]


def test_rows_that_cannot_be_used() -> None:
    model, bank = linear_head()
    with pytest.raises(ValueError, match="`train` must hold at least 2"):
        stability(model, bank, first(TRAIN, 1), FRESH, EXACT)
    with pytest.raises(ValueError, match="`fresh` must hold at least 2"):
        stability(model, bank, TRAIN, first(FRESH, 1), EXACT)
    with pytest.raises(ValueError, match="at least one example"):
        stability(model, bank, TRAIN, [], EXACT)
    broken = [{**batch, "features": batch["features"].clone()} for batch in FRESH]
    broken[1]["features"][2] = float("nan")
    with pytest.raises(ValueError, match="row 7 of `fresh`"):
        stability(model, bank, TRAIN, broken, EXACT)


def test_a_ridge_that_leaves_negative_curvature() -> None:
    model, bank = adapted_classifier("bert", 0.3)
    with pytest.raises(ValueError, match="`ridge` must be above"):
        stability(
            model,
            bank,
            padded_batches(8),
            padded_batches(6, seed=5),
            StabilitySettings(ridge=1e-4, n_newton=2, n_refits=2),
        )
