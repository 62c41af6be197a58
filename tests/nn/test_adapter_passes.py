"""One draw per forward pass, under checkpointing, interrupts, partial calls and compilation."""

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.masks import MaskBank
from lodrop_nn.train.tiling import tile_batch
from tests.nn.tiny import adapted, batch, enable_checkpointing, gradients, inputs


def llama(**options: object) -> tuple[PeftModel, MaskBank]:
    model = adapted("llama").train()
    return model, attach_lora_dropout(model, 0.4, **{"seed": 7, **options})


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert one
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scope", ["batch", "example"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("preserve_rng_state", [False, True])
def test_checkpointing_recomputes_under_the_masks_of_the_pass(
    scope: str, reentrant: bool, preserve_rng_state: bool
) -> None:
    n_masks = 2 if scope == "batch" else 1

    def train(*, checkpointed: bool) -> tuple[dict[str, Tensor], int]:
        model, bank = llama(n_masks=n_masks, mask_scope=scope)
        if checkpointed:
            enable_checkpointing(
                model, use_reentrant=reentrant, preserve_rng_state=preserve_rng_state
            )
        for seed in (0, 1):  # gradient accumulation: two passes, each with its backward
            model(**tile_batch(batch("llama", seed=seed), n_masks)).loss.backward()
        return gradients(model), bank.passes.n_drawn

    expected, drawn = train(checkpointed=False)
    actual, drawn_checkpointed = train(checkpointed=True)
    assert drawn == drawn_checkpointed == 2
    assert_same(actual, expected)


def test_unseeded_masks_survive_a_random_state_that_is_not_restored() -> None:
    def train(*, checkpointed: bool) -> dict[str, Tensor]:
        model, _ = llama(seed=None)
        if checkpointed:
            enable_checkpointing(model, use_reentrant=False, preserve_rng_state=False)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model(**batch("llama")).loss.backward()
        return gradients(model)

    assert_same(train(checkpointed=True), train(checkpointed=False))


def contrast(model: PeftModel) -> None:
    """Two forward passes before one backward pass."""
    one, other = (model(**inputs("llama", seed=seed)).logits for seed in (0, 1))
    (one * other).sum().backward()


def test_two_passes_before_one_backward() -> None:
    model, _ = llama()
    contrast(model)
    expected = gradients(model)

    model, bank = llama()
    enable_checkpointing(model, use_reentrant=False, context_fn=bank.checkpoint_contexts)
    contrast(model)
    assert_same(gradients(model), expected)
    assert bank.passes.n_drawn == 2

    # Without the context, recomputation sees the latest masks: why the context is there.
    model, _ = llama()
    enable_checkpointing(model, use_reentrant=False)
    contrast(model)
    actual = gradients(model)
    assert not all(torch.allclose(actual[k], expected[k], rtol=1e-3, atol=1e-6) for k in expected)


def test_a_pass_without_the_adapter_may_come_before_the_backward_pass() -> None:
    """The reference of a preference loss, under TRL's default of gradient checkpointing."""

    def prefer(model: PeftModel) -> dict[str, Tensor]:
        logits = model(**inputs("llama")).logits
        with torch.no_grad(), model.disable_adapter():
            reference = model(**inputs("llama")).logits
        (logits - reference).square().sum().backward()
        return gradients(model)

    model, bank = llama()
    enable_checkpointing(model, use_reentrant=False)
    assert_same(prefer(model), prefer(llama()[0]))
    assert bank.passes.n_drawn == 2


def test_a_checkpointed_pass_may_be_backed_after_its_context() -> None:
    def train(*, checkpointed: bool, inside: bool) -> dict[str, Tensor]:
        model, bank = llama()
        if checkpointed:
            enable_checkpointing(model, use_reentrant=False, context_fn=bank.checkpoint_contexts)
        with bank.fixed(2, seed=3):
            loss = model(**tile_batch(batch("llama"), 2)).loss
            if inside:
                loss.backward(retain_graph=True)
        loss.backward()  # with `inside`, the graph is run through for the second time
        return gradients(model)

    for inside in (False, True):
        assert_same(
            train(checkpointed=True, inside=inside), train(checkpointed=False, inside=inside)
        )


def test_recomputing_without_the_masks_of_the_pass_is_an_error() -> None:
    model, bank = llama()
    enable_checkpointing(model, use_reentrant=False)
    with bank.fixed(2, seed=3):
        loss = model(**tile_batch(batch("llama"), 2)).loss
    with pytest.raises(RuntimeError, match=r"is recomputed, but the masks .* are gone"):
        loss.backward()


class Interrupts(nn.Module):
    def forward(self, *args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_passes_go_on_after_one_that_failed(error: type[BaseException]) -> None:
    model, bank = llama()
    if error is ValueError:
        with pytest.raises(ValueError, match="input_ids"):
            model(attention_mask=torch.ones(1, 2))
    else:  # not an Exception: torch runs no hook after it
        backbone = model.get_base_model().model
        norm, backbone.norm = backbone.norm, Interrupts()
        with pytest.raises(KeyboardInterrupt):
            model(**inputs("llama"))
        backbone.norm = norm
    before = bank.passes.n_drawn
    outputs = [model(**inputs("llama")).logits for _ in range(2)]
    assert bank.passes.n_drawn == before + 2
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("entry", ["peft", "tuner", "base", "backbone"])
def test_a_pass_may_be_entered_at_any_level(entry: str) -> None:
    model, bank = llama()
    roots = {
        "peft": model,
        "tuner": model.base_model,
        "base": model.get_base_model(),
        "backbone": model.get_base_model().model,
    }
    for expected in (1, 2):
        roots[entry](**inputs("llama"))
        assert bank.passes.n_drawn == expected


def test_a_bare_block_draws_for_itself_and_recomputes_the_same() -> None:
    def run(*, checkpointed: bool) -> dict[str, Tensor]:
        model, bank = llama()
        block = model.get_base_model().model.layers[0].mlp
        x = torch.linspace(-1, 1, 4 * 16).reshape(4, 16).requires_grad_()
        if checkpointed:
            out = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
        else:
            out = block(x)
        out.sum().backward()
        assert not torch.equal(out, block(x))
        assert bank.passes.n_drawn == 0
        return {"out": out.detach(), "x": x.grad, **gradients(model)}

    assert_same(run(checkpointed=True), run(checkpointed=False))


def test_a_pass_does_not_use_what_a_bare_block_drew() -> None:
    outputs = []
    for bare in (False, True):
        model, _ = llama()
        if bare:
            model.get_base_model().model.layers[0].mlp(torch.ones(2, 16))
        outputs.append(model(**inputs("llama")).logits)
    assert torch.equal(*outputs)


def test_layers_put_in_training_mode_by_hand_are_masked() -> None:
    """The usual way of Monte Carlo dropout: the model evaluates, its dropout layers train."""
    model, bank = llama()
    model.eval()
    for name, module in model.named_modules():
        if name in {layer.name for layer in bank.layers}:
            module.train()
    assert not torch.equal(*(model(**inputs("llama")).logits for _ in range(2)))


def test_evaluation_between_forward_and_backward_changes_nothing() -> None:
    def train(*, evaluate: bool) -> dict[str, Tensor]:
        model, _ = llama()
        enable_checkpointing(model, use_reentrant=False)
        loss = model(**batch("llama")).loss
        if evaluate:
            with torch.no_grad():
                model.eval()(**batch("llama", seed=1))
            model.train()
        loss.backward()
        return gradients(model)

    assert_same(train(evaluate=True), train(evaluate=False))


def test_seeded_trainings_repeat_and_resume() -> None:
    first, bank = llama()
    outputs = [first(**inputs("llama")).logits for _ in range(3)]
    second, bank = llama()
    bank.passes.n_drawn = 2
    assert torch.equal(second(**inputs("llama")).logits, outputs[2])
    other, _ = llama(seed=8)
    assert not torch.equal(other(**inputs("llama")).logits, outputs[0])


def test_unseeded_masks_follow_the_global_generator() -> None:
    model, _ = llama(seed=None)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = model(**inputs("llama")).logits
        torch.manual_seed(3)
        assert torch.equal(model(**inputs("llama")).logits, first)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("n_masks", [1, 2])
def test_compiled_layers_get_new_masks_without_recompiling(n_masks: int) -> None:
    model, _ = llama(n_masks=n_masks)
    x = tile_batch(inputs("llama"), n_masks)
    eager = [model(**x).logits for _ in range(3)]
    model, _ = llama(n_masks=n_masks)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    for block in model.get_base_model().model.layers:
        block.compile(backend=backend, fullgraph=True)
    compiled, counts = [], []
    for _ in range(3):
        compiled.append(model(**x).logits)
        counts.append(len(graphs))
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other)
    assert counts[1:] == counts[:1] * 2
