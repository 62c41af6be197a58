"""N masks one after the other: the same masks and the same gradient as in one tiled pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor, nn

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.masks import MaskBank, MaskSettings
from lodrop_nn.masks.hooks import is_packed
from lodrop_nn.train.micro_steps import backward_over_masks, choose_passes
from lodrop_nn.train.tiling import tile_batch
from tests.nn.tiny import adapted, batch, enable_checkpointing, gradients

CPU = torch.device("cpu")


def attached(
    kind: str = "llama", n_masks: int = 3, **options: object
) -> tuple[PeftModel, MaskBank]:
    model = adapted(kind).train()
    return model, attach_lora_dropout(model, 0.4, n_masks=n_masks, **{"seed": 7, **options})


def accumulated(
    mask_passes: str, kind: str = "llama", *, checkpointing: dict | None = None, **options: object
) -> tuple[dict[str, Tensor], list[Tensor], int]:
    """Gradients of two accumulated batches, their risks and the passes drawn."""
    model, bank = attached(kind, **options)
    if checkpointing is not None:
        enable_checkpointing(model, **checkpointing)
    with torch.random.fork_rng():
        torch.manual_seed(5)  # read by masks without a seed
        risks = [
            backward_over_masks(
                bank,
                lambda rows: model(**rows).loss,
                batch(kind, seed=seed),
                mask_passes=mask_passes,
            )
            for seed in (0, 1)
        ]
    return gradients(model), risks, bank.passes.n_drawn


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert one
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-6)


# -- the same masks ------------------------------


def factors(bank: MaskBank, rows: int) -> Tensor:
    bank.begin_pass(0, True, (torch.ones(rows, 1),), {})
    shown = bank.masks(0, training=True, n_rows=rows, device=CPU, dtype=torch.float32)
    bank.end_pass(0)
    return torch.cat(shown, dim=1)


@settings(max_examples=30)
@given(
    n_masks=st.integers(1, 5),
    law=st.sampled_from(["iid", "balanced"]),
    seed=st.integers(0, 10),
    n_steps=st.integers(1, 3),
    n_passes=st.integers(1, 3),
)
def test_micro_passes_show_the_masks_of_the_tiled_pass(
    n_masks: int, law: str, seed: int, n_steps: int, n_passes: int
) -> None:
    """Also where a step passes several times through the model (contrastive losses)."""
    tiled, micro = (
        MaskBank(MaskSettings(0.4, n_masks=n_masks, mask_law=law, seed=seed)) for _ in range(2)
    )
    for bank in (tiled, micro):
        bank.register("layer", in_features=3, out_features=4)
    for _ in range(n_steps):
        expected = [factors(tiled, n_masks) for _ in range(n_passes)]
        for index in range(n_masks):
            with micro.micro_pass(index):
                for masks in expected:
                    assert torch.equal(factors(micro, 1), masks[index : index + 1])
    assert micro.passes.n_drawn == tiled.passes.n_drawn == n_steps * n_passes


def interrupted(bank: MaskBank) -> Tensor:
    try:
        with bank.micro_pass(0):
            shown = factors(bank, 1)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return shown


def test_passes_after_a_micro_pass_draw_anew() -> None:
    bank = MaskBank(MaskSettings(0.4, n_masks=2, seed=0))
    bank.register("layer", in_features=9, out_features=9)
    first = interrupted(bank)
    after = factors(bank, 2)
    assert after.shape[0] == 2
    assert not torch.equal(after[:1], first)


def test_micro_passes_out_of_range_or_order_are_refused() -> None:
    bank = MaskBank(MaskSettings(0.4, n_masks=2))
    with pytest.raises(ValueError, match=r"`index` must be in \[0, 2\), got 2"), bank.micro_pass(2):
        pass
    with pytest.raises(RuntimeError, match="begin with it, got index=1"), bank.micro_pass(1):
        pass


# -- the same gradient ------------------------------


@pytest.mark.parametrize("law", ["iid", "balanced"])
@pytest.mark.parametrize("seed", [7, None])
@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_micro_steps_have_the_gradient_of_the_tiled_pass(
    kind: str, seed: int | None, law: str
) -> None:
    tiled = accumulated("tiled", kind, seed=seed, mask_law=law)
    micro = accumulated("micro", kind, seed=seed, mask_law=law)
    assert_same(micro[0], tiled[0])
    torch.testing.assert_close(micro[1], tiled[1])
    assert micro[2] == tiled[2] == 2


def test_the_gradient_is_the_mean_of_those_of_ordinary_adapters() -> None:
    """Against masks put on the factors by hand, one adapter per mask."""
    model, bank = attached()
    rows = batch("llama")
    backward_over_masks(bank, lambda x: model(**x).loss, rows, mask_passes="micro")
    masks = bank.passes._joint[0].masks.float() / 0.6
    total: dict[str, Tensor] = {}
    for index in range(3):
        plain = adapted("llama").train()
        modules = dict(plain.named_modules())
        shares = {}
        for layer in bank.layers:
            columns, outputs = layer.split(masks[index : index + 1])
            A, B = (modules[f"{layer.name}.lora_{x}.default"] for x in "AB")
            A.weight.data *= columns
            B.weight.data *= outputs.T
            shares[f"{layer.name}.lora_A.default.weight"] = columns
            shares[f"{layer.name}.lora_B.default.weight"] = outputs.T
        plain(**rows).loss.backward()
        for name, gradient in gradients(plain).items():  # the chain rule through the masks
            total[name] = total.get(name, 0.0) + gradient * shares[name] / 3
    assert_same(gradients(model), total)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("preserve_rng_state", [False, True])
def test_micro_steps_under_checkpointing(reentrant: bool, preserve_rng_state: bool) -> None:
    options = {"use_reentrant": reentrant, "preserve_rng_state": preserve_rng_state}
    for seed in (7, None):
        expected = accumulated("micro", seed=seed)
        actual = accumulated("micro", seed=seed, checkpointing=options)
        assert_same(actual[0], expected[0])
        assert actual[2] == 2


def test_a_micro_step_keeps_the_activations_of_one_mask() -> None:
    """Bytes saved for the backward pass, at its largest."""

    def peak(mask_passes: str) -> int:
        model, bank = attached(n_masks=4)
        held, largest = 0, 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal held, largest
            held += tensor.nbytes
            largest = max(largest, held)
            return tensor

        def backward(loss: Tensor) -> None:
            nonlocal held
            loss.backward()
            held = 0

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backward_over_masks(
                bank,
                lambda rows: model(**rows).loss,
                batch("llama", rows=8, tokens=16),
                mask_passes=mask_passes,
                backward=backward,
            )
        return largest

    assert peak("micro") < 0.4 * peak("tiled")


def test_a_mask_per_example_is_one_pass() -> None:
    model, bank = attached(n_masks=1, mask_scope="example")
    backward_over_masks(bank, lambda rows: model(**rows).loss, batch("llama"), mask_passes="micro")
    assert bank.passes.n_drawn == 1
    assert bank.passes.draw is not None


# -- the choice ------------------------------


@given(rows=st.integers(1, 40), tokens=st.integers(2, 40), n_masks=st.integers(2, 9))
def test_the_choice_is_by_the_tokens_of_one_pass(rows: int, tokens: int, n_masks: int) -> None:
    expected = "tiled" if rows * tokens < 300 else "micro"
    ids = {"input_ids": torch.ones(rows, tokens)}
    embedded = {"inputs_embeds": torch.ones(rows, tokens, 2), "input_ids": None}
    for chosen in (ids, embedded):
        assert choose_passes(chosen, n_masks) == expected
        for forced in ("tiled", "micro"):
            assert choose_passes(chosen, n_masks, forced) == forced
    assert choose_passes(ids, 1) == "tiled"


def test_what_cannot_be_tiled_or_counted_takes_micro_steps() -> None:
    ids = torch.ones(1, 9)
    assert choose_passes({"input_ids": ids, "cu_seq_lens_q": torch.tensor([0, 4, 9])}, 2) == "micro"
    restarting = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    assert choose_passes({"input_ids": ids, "position_ids": restarting}, 2) == "micro"
    assert choose_passes({"pixel_values": torch.ones(1, 3, 4, 4)}, 2) == "micro"
    assert choose_passes({"input_ids": ids, "names": ["a"]}, 2) == "micro"
    with pytest.raises(ValueError, match="`mask_passes` must be 'tiled', 'micro' or 'auto'"):
        choose_passes({"input_ids": ids}, 2, "both")


# -- packed inputs ------------------------------


def packed() -> dict[str, Tensor]:
    ids = batch("llama", rows=1, tokens=9)["input_ids"]
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    labels = ids.clone()
    labels[positions == 0] = -100
    # With a cache, transformers does not look for packed sequences.
    return {"input_ids": ids, "position_ids": positions, "labels": labels, "use_cache": False}


def test_packed_inputs_are_told_from_others() -> None:
    assert is_packed(packed())
    assert is_packed({"cu_seq_lens_q": torch.tensor([0, 9])})
    assert not is_packed({"input_ids": torch.ones(1, 9)})
    assert not is_packed({"position_ids": torch.arange(9)[None]})
    padded = {"position_ids": torch.tensor([[1, 1, 0, 1]]), "attention_mask": torch.ones(1, 4)}
    assert not is_packed(padded)


def test_packed_inputs_are_refused_where_rows_must_be_examples() -> None:
    with pytest.raises(ValueError, match=r"cannot be tiled.*mask_passes='micro'"):
        tile_batch(packed(), 2)
    model, _ = attached(n_masks=1, mask_scope="example")
    with pytest.raises(ValueError, match="`mask_scope='example'` needs one row per example"):
        model(**packed())


def test_packed_inputs_in_micro_steps_equal_their_padded_sequences() -> None:
    """Sequences of 4 and 5 tokens: packed in one row, or one padded row each."""
    grads = []
    rows = packed()
    ids = torch.nn.utils.rnn.pad_sequence(
        [rows["input_ids"][0, :4], rows["input_ids"][0, 4:]], batch_first=True
    )
    attention = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    labels = ids.masked_fill(attention == 0, -100)
    padded = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    for inputs in (rows, padded):
        model, bank = attached()
        backward_over_masks(bank, lambda x, m=model: m(**x).loss, inputs, mask_passes="micro")
        grads.append(gradients(model))
    assert_same(*grads)


class Twice(nn.Module):
    """Two passes through one model before the backward pass."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def risk(self, rows: dict[str, Tensor]) -> Tensor:
        one, other = (self.model(**rows).logits for _ in range(2))
        return (one * other).mean()


def test_two_passes_in_one_step() -> None:
    grads = []
    for mask_passes in ("tiled", "micro"):
        model, bank = attached()
        rows = {k: v for k, v in batch("llama").items() if k != "labels"}
        backward_over_masks(bank, Twice(model).risk, rows, mask_passes=mask_passes)
        grads.append(gradients(model))
        assert bank.passes.n_drawn == 2
    assert_same(*grads)
