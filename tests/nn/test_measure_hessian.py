"""Hessian-vector products and extreme eigenvalues against dense Hessians of tiny classifiers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad, jacrev
from torch.nn import Module
from torch.nn.functional import cross_entropy

from lodrop_nn.measure.curvature import Curvature, curvature
from lodrop_nn.measure.evaluation import mean_losses, mean_predictor, trained_parameters
from lodrop_nn.measure.hessian import hessian_max_eig, hessian_min_eig
from lodrop_nn.measure.hessian_products import HessianOfSum
from tests.nn.classifiers import KINDS, adapted_classifier, padded_batches

BATCHES = padded_batches(6, batch_size=3)
# Llama normalizes in single precision whatever the dtype of the model.
TOLERANCE = {"bert": {"rtol": 1e-7, "atol": 1e-9}, "llama": {"rtol": 1e-2, "atol": 1e-5}}


def masks_off(*args: object, **options: object) -> Curvature:
    return curvature(*args, with_masks=False, **options)


def dense_reference(kind: str, dropout_rate: float = 0.4) -> Tensor:
    """By torch.func on one ordinary pass per batch, written without the code under test."""
    model, _ = adapted_classifier(kind, dropout_rate)
    model.eval()
    model.set_attn_implementation("eager")
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def risk(point: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for batch in BATCHES:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            logits = functional_call(model, point, (), inputs).logits
            total = total + cross_entropy(logits, batch["labels"], reduction="sum")
        return total / 6

    blocks = jacrev(grad(risk))(parameters)
    rows = []
    for name, p in parameters.items():
        columns = [blocks[name][other].reshape(p.numel(), -1) for other in parameters]
        rows.append(torch.cat(columns, dim=1))
    return torch.cat(rows)


@given(seed=st.integers(0, 2**31), retain=st.booleans())
def test_products_of_a_function_with_a_known_hessian(seed: int, retain: bool) -> None:
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(3, dtype=torch.float64, generator=stream, requires_grad=True)
    y = torch.randn(2, dtype=torch.float64, generator=stream, requires_grad=True)
    unused = torch.ones(1, dtype=torch.float64, requires_grad=True)
    v = torch.randn(6, dtype=torch.float64, generator=stream)

    parts = [lambda: (x**3).sum() * y[0], lambda: x[0] * y[1] + 5 * y.sum(), lambda: y.sum()]
    operator = HessianOfSum(parts, [x, y, unused], retain=retain)

    with torch.no_grad():
        expected = torch.zeros(6, dtype=torch.float64)
        expected[:3] = 6 * x * y[0] * v[:3] + 3 * x**2 * v[3]
        expected[0] += v[4]
        expected[3] = (3 * x**2 * v[:3]).sum()
        expected[4] = v[0]
        slope = torch.cat([3 * x**2 * y[0], torch.stack([(x**3).sum() + 6, x[0] + 6])])
        slope[0] += y[1]
    torch.testing.assert_close(operator.product(v), expected)
    torch.testing.assert_close(operator.gradient[:5], slope)
    assert float(operator.gradient[5]) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_dense_hessian_is_torch_funcs(kind: str) -> None:
    model, bank = adapted_classifier(kind, 0.4)
    parameters = list(trained_parameters(model).values())

    with mean_predictor(model, bank, BATCHES):
        matrix = HessianOfSum(mean_losses(model, BATCHES), parameters).dense()

    torch.testing.assert_close(matrix, dense_reference(kind), **TOLERANCE[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_to_the_ends_of_the_spectrum(kind: str) -> None:
    model, bank = adapted_classifier(kind, 0.4)
    expected = torch.linalg.eigvalsh(dense_reference(kind))

    dense = masks_off(model, bank, BATCHES, steps=2, seed=0)
    krylov = masks_off(model, bank, BATCHES, steps=60, seed=0, dense_up_to=0)

    assert dense.n_parameters == krylov.n_parameters == len(expected)
    for found, accuracy in ((dense, 1e-5), (krylov, 1e-3)):
        assert found.hessian_min_eig.value == pytest.approx(float(expected[0]), abs=accuracy)
        assert found.hessian_max_eig.value == pytest.approx(float(expected[-1]), abs=accuracy)
    assert dense.converged["hessian_min_eig"]
    assert dense.converged["hessian_max_eig"]
    assert hessian_min_eig(model, bank, BATCHES, steps=2, seed=0) == dense.hessian_min_eig
    assert hessian_max_eig(model, bank, BATCHES, steps=2, seed=0) == dense.hessian_max_eig


REFERENCE_BERT = torch.linalg.eigvalsh(dense_reference("bert"))


@settings(max_examples=25)
@given(steps=st.integers(2, 12), seed=st.integers(0, 99))
def test_what_few_steps_promise(steps: int, seed: int) -> None:
    model, bank = adapted_classifier("bert", 0.4)

    # At this level a failure would be a wrong bound, not bad luck.
    found = masks_off(model, bank, BATCHES, steps=steps, seed=seed, level=1 - 1e-9, dense_up_to=0)

    assert found.hessian_min_eig.lower <= REFERENCE_BERT[0] <= found.hessian_min_eig.upper + 1e-9
    assert found.hessian_max_eig.lower - 1e-9 <= REFERENCE_BERT[-1] <= found.hessian_max_eig.upper
    norm = max(abs(found.hessian_min_eig.value), abs(found.hessian_max_eig.value))
    for end, converged in (
        (found.hessian_min_eig, found.converged["hessian_min_eig"]),
        (found.hessian_max_eig, found.converged["hessian_max_eig"]),
    ):
        assert converged == (end.upper - end.lower <= 1e-2 * norm)
        assert end.lower <= end.value <= end.upper
        assert end.n_draws == steps
        assert (end.level, end.provenance) == (1 - 1e-9, "interval")


@settings(max_examples=20)
@given(batch_size=st.integers(1, 6), retain=st.booleans())
def test_batches_and_memory_do_not_matter(batch_size: int, retain: bool) -> None:
    model, bank = adapted_classifier("llama", 0.4)
    batches = padded_batches(6, batch_size=batch_size)

    found = masks_off(model, bank, batches, steps=3, seed=1, retain=retain, dense_up_to=0)
    expected = masks_off(model, bank, BATCHES, steps=3, seed=1, dense_up_to=0)

    assert found.hessian_min_eig.value == pytest.approx(expected.hessian_min_eig.value, abs=1e-9)
    assert found.hessian_max_eig.value == pytest.approx(expected.hessian_max_eig.value, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_the_scaling_freedom_of_the_factors(kind: str, seed: int) -> None:
    r"""(A, B) -> ((1 + tX) A, B (1 + tX)^-1) keeps B A.

    The risk is constant along v(A, B) = (X A, -B X), so <grad R, v> = 0 at every point, and its
    derivative says H v = -(X^T grad_A, -grad_B X^T): flat directions where the gradient vanishes.
    """
    model, bank = adapted_classifier(kind, 0.4)
    parameters = trained_parameters(model)
    with mean_predictor(model, bank, BATCHES):
        operator = HessianOfSum(mean_losses(model, BATCHES), list(parameters.values()))
    slopes = dict(
        zip(
            parameters,
            operator.gradient.split([p.numel() for p in parameters.values()]),
            strict=True,
        )
    )
    x = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    direction, image = {}, {}
    for name, p in parameters.items():
        slope = slopes[name].reshape(p.shape)
        if "lora_A" in name:
            direction[name], image[name] = x @ p.detach(), -x.T @ slope
        elif "lora_B" in name:
            direction[name], image[name] = -p.detach() @ x, slope @ x.T
        else:
            direction[name], image[name] = torch.zeros_like(p), torch.zeros_like(p)

    product = operator.product(torch.cat([d.detach().flatten() for d in direction.values()]))

    torch.testing.assert_close(
        product, torch.cat([i.detach().flatten() for i in image.values()]), rtol=1e-6, atol=1e-8
    )


class Hungry:
    """Lets a pass over more than some rows fail for want of memory, a number of times."""

    def __init__(self, error: BaseException, rows: int, times: int) -> None:
        self.error, self.rows, self.times = error, rows, times

    def __call__(self, module: Module, args: tuple[object, ...], kwargs: dict[str, Tensor]) -> None:
        if len(kwargs["input_ids"]) > self.rows and self.times > 0:
            self.times -= 1
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        torch.OutOfMemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize(("rows", "times", "parts"), [(3, 1, 2), (2, 99, 4), (1, 99, 6)])
def test_memory_that_does_not_suffice_costs_time_only(
    error: Exception, rows: int, times: int, parts: int
) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    parameters = list(trained_parameters(model).values())
    v = torch.randn(sum(p.numel() for p in parameters), dtype=torch.float64)

    with mean_predictor(model, bank, BATCHES):
        expected = HessianOfSum(mean_losses(model, BATCHES), parameters)
        handle = model.register_forward_pre_hook(Hungry(error, rows, times), with_kwargs=True)
        tight = HessianOfSum(mean_losses(model, BATCHES), parameters)
        found = tight.product(v)
        handle.remove()

    torch.testing.assert_close(found, expected.product(v))
    torch.testing.assert_close(tight.gradient, expected.gradient)
    fails = rows < 3
    assert tight.n_parts == (parts if fails else 2)
    assert (tight.retained, expected.retained) == (not fails, True)


def test_memory_that_runs_out_in_a_product_costs_the_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    parameters = list(trained_parameters(model).values())
    v = torch.randn(sum(p.numel() for p in parameters), dtype=torch.float64)
    with mean_predictor(model, bank, BATCHES):
        hessian = HessianOfSum(mean_losses(model, BATCHES), parameters)
        expected = hessian.product(v)
        derivative, calls = hessian._derivative, []

        def once_too_large(*args: object) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise torch.OutOfMemoryError
            return derivative(*args)

        monkeypatch.setattr(hessian, "_derivative", once_too_large)
        found = hessian.product(v)

    torch.testing.assert_close(found, expected)
    assert (hessian.retained, len(calls)) == (False, 3)


def test_other_errors_and_single_rows_are_raised() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    parameters = list(trained_parameters(model).values())
    for error, rows in ((RuntimeError("shapes differ"), 2), (MemoryError(), 0)):
        with mean_predictor(model, bank, BATCHES):
            handle = model.register_forward_pre_hook(Hungry(error, rows, 99), with_kwargs=True)
            with pytest.raises(type(error)):
                HessianOfSum(mean_losses(model, BATCHES), parameters)
            handle.remove()


def test_masks_and_modes_are_left_as_they_were() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    model.train()
    model.base_model.eval()
    modes = [module.training for module in model.modules()]

    masks_off(model, bank, BATCHES, steps=2, seed=0, dense_up_to=0)

    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("steps", [1, 0, 2.0, True])
def test_refuses_a_number_of_steps(steps: int) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    with pytest.raises(ValueError, match="`steps` must be a whole number >= 2"):
        masks_off(model, bank, BATCHES, steps=steps, seed=0)


def test_refuses_a_frozen_model() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="must have parameters that require gradients"):
        masks_off(model, bank, BATCHES, steps=2, seed=0)
