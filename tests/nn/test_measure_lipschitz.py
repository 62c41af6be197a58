"""Per-example gradients: vectorized, in a loop, and by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from lodrop_nn.masks import MaskBank
from lodrop_nn.measure import lipschitz as module_function  # the function, as users import it
from lodrop_nn.measure.lipschitz import (
    dropout_lipschitz,
    example_gradients,
    gradient_norm,
    lipschitz,
)
from lodrop_nn.train.tiling import tile_batch
from tests.nn.classifiers import KINDS, adapted_classifier, padded_batches


def by_hand(kind: str, n_rows: int) -> Tensor:
    """One ordinary backward pass per unpadded row, shape (n_rows, n_parameters)."""
    model, _ = adapted_classifier(kind, 0.4)
    model.eval()
    rows = []
    for batch in padded_batches(n_rows, batch_size=1):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        loss = cross_entropy(model(**inputs).logits, batch["labels"])
        model.zero_grad()
        loss.backward()
        slopes = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        rows.append(torch.cat(slopes))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_gradients_by_hand(kind: str, batch_size: int) -> None:
    model, bank = adapted_classifier(kind, 0.4)
    expected = by_hand(kind, 7)

    found = example_gradients(model, bank, padded_batches(7, batch_size=batch_size))

    torch.testing.assert_close(found.norms, expected.norm(dim=1), rtol=1e-8, atol=1e-10)
    mean = torch.cat([piece.flatten() for piece in found.mean.values()])
    torch.testing.assert_close(mean, expected.mean(0), rtol=1e-8, atol=1e-10)


def test_encoders_are_vectorized_and_causal_models_are_not() -> None:
    # The ready-made mask is bidirectional: under a causal model the losses give it away.
    for kind, method in (("bert", "torch.func.vmap"), ("llama", "loop")):
        model, bank = adapted_classifier(kind, 0.4)
        assert example_gradients(model, bank, padded_batches(5)).method == method


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_agree(attention: str) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    model.set_attn_implementation(attention)

    found = example_gradients(model, bank, padded_batches(5))

    assert found.method == "torch.func.vmap"
    torch.testing.assert_close(found.norms, by_hand("bert", 5).norm(dim=1))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_the_largest_norm_is_at_least_the_norm_of_the_mean(seed: int) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    batches = padded_batches(5, seed=seed)

    largest, mean = lipschitz(model, bank, batches), gradient_norm(model, bank, batches)

    assert largest.value >= mean.value > 0
    assert largest.n_draws == mean.n_draws == 5


def test_masks_do_not_matter() -> None:
    batches = padded_batches(5)
    values = []
    for rate in (0.0, 0.7):
        model, bank = adapted_classifier("bert", rate)
        model.train()
        with bank.fixed(n_masks=1, seed=3):
            values.append(module_function(model, bank, batches).value)

    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_gradients_under_masks_by_hand(kind: str, batch_size: int) -> None:
    model, bank = adapted_classifier(kind, 0.4)
    model.eval()
    largest = 0.0
    for batch in padded_batches(5, batch_size=1):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        model.zero_grad()
        with bank.fixed(n_masks=3, seed=4):
            logits = model(**tile_batch(inputs, 3)).logits
            cross_entropy(logits, batch["labels"].repeat(3)).backward()
        slopes = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        largest = max(largest, float(torch.cat(slopes).norm()))

    batches = padded_batches(5, batch_size=batch_size)
    found = dropout_lipschitz(model, bank, batches, n_masks=3, seed=4)

    assert found.value == pytest.approx(largest, rel=1e-8)
    assert ("vmap" if kind == "bert" else "loop") in found.method
    assert (found.n_draws, found.provenance) == (5, "plug-in")


def test_without_dropout_masks_change_nothing() -> None:
    model, bank = adapted_classifier("bert", 0.0)
    batches = padded_batches(5)

    masked = dropout_lipschitz(model, bank, batches, n_masks=3, seed=0).value

    assert masked == lipschitz(model, bank, batches).value
    masked_model, masked_bank = adapted_classifier("bert", 0.5)
    assert masked != pytest.approx(
        dropout_lipschitz(masked_model, masked_bank, batches, n_masks=3, seed=0).value, rel=1e-3
    )


def test_one_label_too_many_and_what_is_not_finite() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    batches = padded_batches(6, batch_size=2, shuffle=True)
    wrong = [{**batch} for batch in batches]
    wrong[1]["labels"] = torch.tensor([0, 3])
    with pytest.raises(ValueError, match=r"`labels` must be whole numbers in \[0, 3\), got 3"):
        lipschitz(model, bank, wrong)
    del wrong[1]["labels"]
    with pytest.raises(ValueError, match=r"`batches\[1\]` must have `labels`"):
        lipschitz(model, bank, wrong)
    with pytest.raises(ValueError, match="`n_masks` must be a whole number >= 1"):
        dropout_lipschitz(model, bank, batches, n_masks=0, seed=0)
    # A token that a single row holds, and whose embedding is not finite.
    unused = 22
    rows = [{name: tensor.clone() for name, tensor in batch.items()} for batch in batches]
    for batch in rows:
        batch["input_ids"][batch["input_ids"] == unused] = 3
    rows[1]["input_ids"][1, 0] = unused
    with torch.no_grad():
        model.get_base_model().bert.embeddings.word_embeddings.weight[unused] = torch.nan
    named = int(batches[1]["index"][1])
    with pytest.raises(ValueError, match=rf"finite gradients .* 1 of 6 rows, .* row {named}"):
        lipschitz(model, bank, rows)


def test_rows_are_reported() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    seen: list[tuple[int, int]] = []

    example_gradients(
        model, bank, padded_batches(5, batch_size=2), on_batch=lambda *rows: seen.append(rows)
    )

    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_refuses_no_examples() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    assert isinstance(bank, MaskBank)
    with pytest.raises(ValueError, match="`batches` must hold at least one example"):
        lipschitz(model, bank, [])
