"""Compiled models: masks and rates are inputs of the graph, so new ones compile nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.masks import MaskBank
from lodrop_nn.train.micro_steps import backward_over_masks
from tests.nn.tiny import adapted, batch, gradients

# The input of the first block needs no gradient, that of the others does: one graph for each.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

Compile = Callable[[PeftModel, object], None]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_blocks(model: PeftModel, backend: object) -> None:
    """Regional compilation, in one graph per block."""
    for block in model.get_base_model().model.layers:
        block.compile(backend=backend, fullgraph=True)


def compile_whole(model: PeftModel, backend: object) -> None:
    model.compile(backend=backend)


def steps(
    compile_model: Compile | None, backend: object, *, mask_passes: str = "tiled", **options: Any
) -> tuple[list[Tensor], list[dict[str, Tensor]], list[int], MaskBank]:
    """Risks, gradients and graphs compiled so far, of training steps with a rising rate."""
    model = adapted("llama").train()
    bank = attach_lora_dropout(model, 0.4, **{"seed": 7, **options})
    counter = CompileCounterWithBackend(backend)
    if compile_model is not None:
        compile_model(model, counter)
    risks, grads, counts = [], [], []
    for step, multiplier in enumerate((1.0, 0.5, 0.0, 1.0)):
        bank.rate_multiplier = multiplier
        model.zero_grad()
        risks.append(
            backward_over_masks(
                bank,
                lambda rows: model(**rows).loss,
                batch("llama", seed=step),
                mask_passes=mask_passes,
            )
        )
        grads.append(gradients(model))
        counts.append(counter.frame_count)
    return risks, grads, counts, bank


CASES = {
    "one mask": {},
    "two tiled": {"n_masks": 2},
    "two in micro-steps": {"n_masks": 2, "mask_passes": "micro"},
    "one per example": {"mask_scope": "example"},
}


def assert_same_steps(compile_model: Compile, backend: object, case: str) -> None:
    risks, grads, counts, bank = steps(compile_model, backend, **CASES[case])
    expected_risks, expected_grads, _, _ = steps(None, "eager", **CASES[case])
    torch.testing.assert_close(risks, expected_risks)
    for one, other in zip(grads, expected_grads, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-6)
    assert counts[0] > 0
    assert counts == [counts[0]] * 4  # later masks and rates compile nothing
    assert bank.passes.n_drawn == 4


@pytest.mark.parametrize("case", CASES)
def test_blocks_compile_once_and_equal_eager(case: str) -> None:
    assert_same_steps(compile_blocks, "aot_eager", case)


@pytest.mark.parametrize("case", ["two tiled"])
def test_a_whole_model_compiles_once_and_equals_eager(case: str) -> None:
    assert_same_steps(compile_whole, "aot_eager", case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("case", ["two tiled", "one per example"])
@pytest.mark.parametrize("compile_model", [compile_blocks, compile_whole])
def test_inductor_equals_eager(compile_model: Compile, case: str) -> None:
    assert_same_steps(compile_model, "inductor", case)


@pytest.mark.slow
def test_ensembles_compile_a_bounded_number_of_graphs() -> None:
    model = adapted("llama").eval()
    bank = attach_lora_dropout(model, 0.4, seed=7)
    rows = {k: v.repeat(2, 1) for k, v in batch("llama").items()}
    with bank.fixed(2, seed=0), torch.no_grad():
        expected = model(**rows).logits
    counter = CompileCounterWithBackend("aot_eager")
    compile_blocks(model, counter)
    counts = []
    for _ in range(3):
        with bank.fixed(2, seed=0), torch.no_grad():
            torch.testing.assert_close(model(**rows).logits, expected)
        counts.append(counter.frame_count)
    assert counts[1:] == counts[1:2] * 2
