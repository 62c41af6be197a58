"""Shared prefixes and skipped tokens change the cost and nothing else."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.predict.ensemble import ensemble_predict
from lodrop_nn.predict.first_token import first_token_only
from lodrop_nn.predict.late_tiling import FrozenPrefix, mean_and_member_logits
from lodrop_nn.train.tiling import tile_batch
from tests.nn.classifiers import KINDS, adapted_classifier, padded_batches


def inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def count_rows(model: nn.Module, kind: str) -> dict[str, list[int]]:
    """Rows that each block's attention reads, filled in as passes run."""
    seen: dict[str, list[int]] = {}
    suffix = {"bert": "attention.output.dense", "llama": "self_attn.o_proj"}[kind]
    for name, module in model.named_modules():
        if name.endswith(suffix):

            def note(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                seen.setdefault(name.split(".")[-4 if kind == "bert" else -3], []).append(
                    args[0].shape[0]
                )

            module.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapted_layers", [(2,), (1, 2), (1,), (0, 2)])
@pytest.mark.parametrize("rescale", [True, False])
def test_equal_to_plain_tiling(kind: str, adapted_layers: tuple[int, ...], rescale: bool) -> None:
    model, bank = adapted_classifier(kind, 0.4, adapted_layers=adapted_layers, rescale=rescale)
    model.eval()
    for batch in padded_batches(7, batch_size=3):
        inputs = inputs_of(batch)
        with torch.no_grad():
            mean, members = mean_and_member_logits(
                model,
                bank,
                inputs,
                n_masks=5,
                seed=2,
                prefix=FrozenPrefix.below_the_adapter(model, bank),
            )
            with bank.fixed(n_masks=5, seed=2):
                plain = model(**tile_batch(inputs, 5)).logits
            with bank.off():
                off = model(**inputs).logits
        torch.testing.assert_close(members.flatten(0, 1), plain, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mean, off, rtol=0, atol=0)
        assert float((members[0] - members[1]).abs().max()) > 1e-3


@given(n_masks=st.integers(1, 6), rows=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_equal_to_plain_tiling_for_any_size(n_masks: int, rows: int, seed: int) -> None:
    model, bank = adapted_classifier("bert", 0.5)
    model.eval()
    inputs = inputs_of(padded_batches(rows, seed=seed)[0])
    arguments: dict[str, Any] = {"n_masks": n_masks, "seed": seed}

    with torch.no_grad():
        prefix = FrozenPrefix.below_the_adapter(model, bank)
        late = mean_and_member_logits(model, bank, inputs, **arguments, prefix=prefix)
        plain = mean_and_member_logits(model, bank, inputs, **arguments, prefix=FrozenPrefix([]))

    torch.testing.assert_close(late[1], plain[1], rtol=1e-9, atol=1e-12)
    assert late[1].shape[0] == n_masks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapted_layers", [(2,), (1, 2), (0, 2)])
@pytest.mark.parametrize("starts_at_zero", [True, False])
def test_gradients_are_those_of_plain_tiling(
    kind: str, adapted_layers: tuple[int, ...], starts_at_zero: bool
) -> None:
    """Also where lora_B = 0: what the masks touch then has equal values and unequal derivatives."""
    model, bank = adapted_classifier(kind, 0.4, adapted_layers=adapted_layers)
    if starts_at_zero:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.zeros_(parameter)
    prefix = FrozenPrefix.below_the_adapter(model, bank)
    batch = padded_batches(3, batch_size=3)[0]
    found = []
    for context in (nullcontext(), prefix.shared(4, keep=False)):
        model.zero_grad()
        with bank.fixed(4, 1), context:
            logits = model.train()(**tile_batch(inputs_of(batch), 4)).logits
            cross_entropy(logits, batch["labels"].repeat(4)).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, shared = found
    assert plain.keys() == shared.keys()
    assert any(float(g.abs().max()) > 1e-6 for n, g in plain.items() if "lora_B" in n)
    for name, gradient in plain.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_blocks_see_each_row_once(kind: str) -> None:
    model, bank = adapted_classifier(kind, 0.4, adapted_layers=(1, 2))
    model.eval()
    seen = count_rows(model, kind)
    prefix = FrozenPrefix.below_the_adapter(model, bank)

    with torch.no_grad():
        mean_and_member_logits(
            model, bank, inputs_of(padded_batches(4)[0]), n_masks=6, seed=0, prefix=prefix
        )

    assert seen == {"0": [4], "1": [4, 24], "2": [4, 24]}


@pytest.mark.parametrize("kind", KINDS)
def test_base_layers_of_the_first_adapted_block_see_each_row_once(kind: str) -> None:
    model, bank = adapted_classifier(kind, 0.4, adapted_layers=(1, 2))
    model.eval()
    inputs = inputs_of(padded_batches(4)[0])
    prefix = FrozenPrefix.below_the_adapter(model, bank)
    (first_adapted,) = prefix.first_adapted
    rows = []
    projection = next(
        module
        for name, module in first_adapted.named_modules()
        if name.endswith(("query.base_layer", "q_proj.base_layer"))
    )
    original = projection.forward
    projection.forward = lambda x: rows.append(x.shape[0]) or original(x)

    with torch.no_grad():
        mean_and_member_logits(model, bank, inputs, n_masks=6, seed=0, prefix=prefix)

    assert rows == [4, 4]
    del projection.forward


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_left_as_it_was(kind: str) -> None:
    model, bank = adapted_classifier(kind, 0.4)
    model.eval()
    prefix = FrozenPrefix.below_the_adapter(model, bank)
    inputs = inputs_of(padded_batches(4)[0])
    with prefix.shared(1), bank.off():
        expected = model(**inputs).logits

    with pytest.raises(RuntimeError, match="stop"), prefix.shared(3):
        raise RuntimeError("stop")

    assert not any("forward" in vars(module) for module in model.modules())
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=0)


def test_blocks_below_the_adapter_are_the_prefix() -> None:
    everywhere, bank = adapted_classifier("bert", 0.4, adapted_layers=None)
    prefix = FrozenPrefix.below_the_adapter(everywhere, bank)
    layers = everywhere.get_base_model().bert.encoder.layer
    assert prefix.blocks == []
    assert prefix.first_adapted == [layers[0]]

    partly, bank = adapted_classifier("bert", 0.4, adapted_layers=(2,))
    prefix = FrozenPrefix.below_the_adapter(partly, bank)
    layers = partly.get_base_model().bert.encoder.layer
    assert prefix.blocks == list(layers[:2])
    assert prefix.first_adapted == [layers[2]]


class Pair(nn.Module):
    """A block that returns a tuple and counts the rows that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, None]:
        self.rows.append(len(x))
        return (2 * x if shift is None else 2 * x + shift), None


def test_blocks_that_return_tuples_are_computed_once() -> None:
    block = Pair()
    prefix = FrozenPrefix([block])
    rows = torch.tensor([[1.0], [5.0]])
    with prefix.shared(1):
        block(rows)
    with prefix.shared(3):
        output, nothing = block(rows.repeat(3, 1))
    assert output.flatten().tolist() == [2.0, 10.0] * 3
    assert nothing is None
    assert block.rows == [2]
    with prefix.shared(3, keep=False):
        block(2 * rows.repeat(3, 1))
    with prefix.shared(1):
        assert block(2 * rows)[0].flatten().tolist() == [4.0, 20.0]
    assert block.rows == [2, 2, 2]


class InPlace(nn.Module):
    """A block that changes tensors in place, and names the input of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x += self.down(self.gate(input=x).relu_() * self.up(x).relu_())
        return x


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("target", ["up", "down"])
@pytest.mark.parametrize("n_frozen", [0, 1, 2])
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_blocks_may_change_tensors_in_place(
    chunk: int, n_frozen: int, target: str, inference: bool
) -> None:
    config = LoraConfig(target_modules=[f"1.{n_frozen}.{target}"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        frozen = [nn.Sequential(nn.Linear(4, 4), InPlace())[:n] for n in (1, 2)[:n_frozen]]
        base = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*frozen, InPlace()))
        model = get_peft_model(base, config)
    bank = attach_lora_dropout(model, 0.5)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    context = torch.inference_mode if inference else torch.no_grad
    with context(), bank.fixed(4, seed=0, mask_law="balanced"):
        plain = model(x.repeat(4, 1)).unflatten(0, (4, 3))
    with context():
        late = ensemble_predict(model, {"input": x}, n_masks=4, seed=0, chunk=chunk)
    torch.testing.assert_close(late.member_logits, plain)
    assert float((plain[0] - plain[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("keep", [True, False])
def test_calls_whose_rows_are_no_copies_run_as_usual(keep: bool) -> None:
    """Whatever the guess from the structure was: what a block reads decides."""
    block = Pair()
    prefix = FrozenPrefix([block])
    x, shift = torch.ones(2, 1), torch.tensor([[1.0], [2.0]])
    for other in (2 * x, x):  # the second is known from the first context, its shift is not
        with prefix.shared(1, keep=keep):
            block(x, shift)
        tiled, shifts = other.repeat(2, 1), torch.arange(4.0)[:, None]
        with prefix.shared(2, keep=keep):
            assert torch.equal(block(tiled, shifts)[0], 2 * tiled + shifts)
            once = block(tiled, shift.repeat(2, 1))[0]
            assert torch.equal(once, 2 * tiled + shift.repeat(2, 1))
    assert block.rows == [2, 4, 2] * 2 if not keep else [2, 4, 2, 2, 4]


def test_first_token_only_keeps_values_and_gradients() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    model.eval()
    inputs = inputs_of(padded_batches(4)[0])
    trained = [p for p in model.parameters() if p.requires_grad]
    with bank.off():
        logits = model(**inputs).logits
        slopes = torch.autograd.grad(logits.square().sum(), trained)

        with first_token_only(model, inputs) as effective:
            skipped = model(**inputs).logits
            skipped_slopes = torch.autograd.grad(skipped.square().sum(), trained)
        after = model(**inputs).logits

    assert effective
    torch.testing.assert_close(skipped, logits)
    torch.testing.assert_close(skipped_slopes, slopes)
    torch.testing.assert_close(after, logits, rtol=0, atol=0)


def test_first_token_only_refuses_what_reads_other_tokens() -> None:
    causal, _ = adapted_classifier("llama", 0.4)
    inputs = inputs_of(padded_batches(4)[0])
    with first_token_only(causal.eval(), inputs) as effective:
        assert not effective

    model, _ = adapted_classifier("bert", 0.4)
    model.eval()
    pooler = model.base_model.model.bert.pooler
    pooler.forward = lambda states: torch.tanh(pooler.dense(states.mean(1)))
    with first_token_only(model, inputs) as effective:
        assert not effective
        assert model(**inputs).logits.shape == (4, 3)


def test_first_token_only_does_not_trust_a_head_of_zeros() -> None:
    model, _ = adapted_classifier("bert", 0.4)
    model.eval()
    for name, parameter in model.named_parameters():
        if "classifier" in name and name.endswith("weight"):
            nn.init.zeros_(parameter)
    with first_token_only(model, inputs_of(padded_batches(4)[0])) as effective:
        assert not effective
