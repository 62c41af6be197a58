"""The proved Lipschitz constant: where there is one, it bounds every gradient and is attained."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.masks import MaskBank
from lodrop_nn.measure.linear_head import lipschitz_bound
from lodrop_nn.measure.lipschitz import example_gradients
from tests.nn.classifiers import _base, adapted_classifier, padded_batches

BATCHES = padded_batches(6, shuffle=True)
PROVED = ("head", "factor B", "both")


def trained(what: str, *, rescale: bool = True) -> tuple[PeftModel, MaskBank]:
    """A classifier of which only (parts of) the last map are trained."""
    if what == "head":
        model, bank = adapted_classifier("bert", 0.4, rescale=rescale)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".classifier." in name and "modules_to_save" in name)
        return model, bank
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = LoraConfig(
            r=2, lora_alpha=3, target_modules=["classifier"], init_lora_weights=False
        )
        model = get_peft_model(_base("bert"), config).double()
    for name, parameter in model.named_parameters():
        kept = (".lora_B.",) if what == "factor B" else (".lora_B.", "classifier.base_layer.bias")
        parameter.requires_grad_(any(part in name for part in kept))
    return model, attach_lora_dropout(model, 0.4, rescale=rescale)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("what", PROVED)
@settings(max_examples=4)
@given(scale=st.floats(0, 1e4), seed=st.integers(0, 2**31))
def test_no_gradient_is_longer_wherever_the_parameters_are(
    what: str, rescale: bool, scale: float, seed: int
) -> None:
    model, bank = trained(what, rescale=rescale)
    bound = lipschitz_bound(model, bank, BATCHES)
    assert bound is not None
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=stream).double())

    moved = lipschitz_bound(model, bank, BATCHES)
    gradients = example_gradients(model, bank, BATCHES)

    assert bound.value == pytest.approx(moved.value, rel=1e-9)  # it does not depend on them
    assert float(gradients.norms.max()) <= bound.upper


@pytest.mark.parametrize("what", PROVED)
def test_it_is_attained(what: str) -> None:
    """Parameters that are sure of a wrong class: pi - e_y has length sqrt 2."""
    model, bank = trained(what)
    single = padded_batches(1)
    single[0]["labels"] = torch.tensor([0])
    best = 0.0
    for seed in range(40):
        stream = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(1e4 * torch.randn(parameter.shape, generator=stream).double())
        best = max(best, float(example_gradients(model, bank, single).norms.max()))

    bound = lipschitz_bound(model, bank, single)

    assert best == pytest.approx(bound.value, rel=1e-6)
    assert best <= bound.upper
    assert (bound.low, bound.level, bound.provenance) == (0.0, None, "certified")


def test_features_by_hand() -> None:
    """The head reads the pooled first token: its features are that and 1."""
    model, bank = trained("head")
    lengths = []

    def note(_module: nn.Module, args: tuple[torch.Tensor], _output: torch.Tensor) -> None:
        lengths.append((1 + args[0].square().sum(-1)).max().sqrt())

    head = model.get_submodule("base_model.model.classifier.modules_to_save.default")
    handle = head.register_forward_hook(note)
    with torch.no_grad():
        for batch in BATCHES:
            model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    handle.remove()

    expected = math.sqrt(2) * float(max(lengths))
    assert lipschitz_bound(model, bank, BATCHES).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_none_where_blocks_are_trained(kind: str) -> None:
    model, bank = adapted_classifier(kind, 0.4)
    assert lipschitz_bound(model, bank, BATCHES) is None


def test_none_where_both_factors_are_trained() -> None:
    model, bank = trained("factor B")
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(True)
    assert lipschitz_bound(model, bank, BATCHES) is None


def test_none_where_something_bends_the_logits() -> None:
    class Bent(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).tanh()

    model, bank = trained("head")
    head = model.get_submodule("base_model.model.classifier.modules_to_save.default")
    head.__class__ = Bent  # not a plain linear map
    assert lipschitz_bound(model, bank, BATCHES) is None
    head.__class__ = nn.Linear
    assert lipschitz_bound(model, bank, BATCHES) is not None
    # A plain one by its type, that another wraps: seen in the numbers.
    forward = head.forward
    head.forward = lambda x: forward(x).tanh()
    assert lipschitz_bound(model, bank, BATCHES) is None


def test_rows_are_reported() -> None:
    model, bank = trained("head")
    seen: list[tuple[int, int]] = []

    bound = lipschitz_bound(model, bank, BATCHES, on_batch=lambda *rows: seen.append(rows))

    assert seen == [(4, 6), (6, 6)]
    assert bound.n_draws == 6
