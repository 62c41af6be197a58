"""States below the adapters, stored for a data set, against passes that compute them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from lodrop_nn.adapter import mask_bank
from lodrop_nn.data.examples import batches
from lodrop_nn.train.prefix_cache import PrefixCache
from lodrop_nn.train.tiling import tile_batch
from tests.nn import classifiers
from tests.nn.replica_models import N_EXAMPLES, adapted, adapter_config, some_examples

EXAMPLES = some_examples()


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def model_of(kind: str, blocks: list[int], **masks: Any) -> PeftModel:
    config = adapter_config(kind, layers_to_transform=blocks)
    return adapted(kind, {"one": masks or None}, configs={"one": config})


def gradients(model: PeftModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    labels = batch["labels"]
    nn.functional.cross_entropy(model(**inputs(batch)).logits, labels).backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


# -- equality --------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(classifiers.KINDS),
    blocks=st.sampled_from([[1], [2], [1, 2]]),
    batch_size=st.integers(1, N_EXAMPLES),
    stored_by=st.integers(1, N_EXAMPLES),
    n_tiles=st.integers(1, 3),
)
@settings(max_examples=15)
def test_passes_from_stored_states_are_the_passes(
    kind, blocks, batch_size, stored_by, n_tiles
) -> None:
    model = model_of(kind, blocks).eval()
    cache = PrefixCache(model, EXAMPLES, batch_size=stored_by)
    assert (len(cache), cache.n_blocks) == (N_EXAMPLES, blocks[0])
    tokens = sum(map(len, EXAMPLES.input_ids))
    assert cache.n_bytes == tokens * 8 * 8  # hidden size 8, float64
    shuffle = torch.Generator().manual_seed(0)
    for batch in batches(EXAMPLES, batch_size, order="length", generator=shuffle):
        tiled = tile_batch(batch, n_tiles)
        with torch.no_grad():
            expected = model(**inputs(tiled)).logits
            with cache.replay(tiled):
                torch.testing.assert_close(model(**inputs(tiled)).logits, expected)


@pytest.mark.parametrize("kind", classifiers.KINDS)
def test_training_from_stored_states_has_the_same_gradients(kind) -> None:
    found, expected = (model_of(kind, [1, 2], dropout_rate=0.5, seed=0).train() for _ in range(2))
    cache = PrefixCache(found, EXAMPLES)
    for batch in batches(EXAMPLES, 4, order="given"):
        with cache.replay(batch):
            ours = gradients(found, batch)
        theirs = gradients(expected, batch)
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient)


def test_the_blocks_below_are_skipped() -> None:
    model = model_of("bert", [2])
    cache, calls = PrefixCache(model, EXAMPLES), []
    for block in model.base_model.model.bert.encoder.layer:
        block.attention.register_forward_hook(lambda module, args, output: calls.append(module))
    batch = batches(EXAMPLES, 4, order="given")[0]
    with cache.replay(batch):
        model(**inputs(batch))
    assert calls == [model.base_model.model.bert.encoder.layer[2].attention]
    model(**inputs(batch))
    assert len(calls) == 4


def test_states_are_zero_where_a_row_is_padded() -> None:
    cache = PrefixCache(model_of("bert", [1]), EXAMPLES)
    batch = batches(EXAMPLES, N_EXAMPLES, order="given")[0]
    states, present = cache.states(batch["index"], batch["attention_mask"]), batch["attention_mask"]
    assert states.shape == (*present.shape, 8)
    assert not states.requires_grad
    assert torch.equal(states.abs().sum(-1) > 0, present.bool())


def test_making_it_changes_neither_masks_nor_modes_nor_random_state() -> None:
    model = model_of("bert", [1, 2], dropout_rate=0.5, seed=0).train()
    model.base_model.model.dropout.eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    flags = [p.requires_grad for p in model.parameters()]
    PrefixCache(model, EXAMPLES)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert mask_bank(model, "one").passes.n_drawn == 0


# -- refusals --------------------------------------------------------------------------------


def bert_with(**options: float) -> PeftModel:
    sizes = {
        "vocab_size": classifiers.VOCABULARY,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 16,
    }
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = BertForSequenceClassification(BertConfig(**sizes, **{**off, **options}))
    return get_peft_model(base, adapter_config("bert", layers_to_transform=[1]))


def functional_dropout() -> PeftModel:
    model = model_of("llama", [2])
    model.base_model.model.model.layers[0].self_attn.attention_dropout = 0.5
    return model


def trained_embedding() -> PeftModel:
    model = model_of("bert", [2])
    model.base_model.model.bert.embeddings.word_embeddings.weight.requires_grad_(True)
    return model


def frozen_copy_of_the_embedding() -> PeftModel:
    config = adapter_config("bert", modules_to_save=["word_embeddings"], layers_to_transform=[2])
    return adapted("bert", {"one": None}, configs={"one": config}).requires_grad_(False)


def skipping() -> PeftModel:
    """The last block also reads what entered the first."""

    class Skip(nn.Module):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder, self.layer = encoder, encoder.layer

        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kept: list[Tensor] = []
            first = self.layer[0].register_forward_hook(
                lambda module, args, output: kept.append(output)
            )
            last = self.layer[2].register_forward_pre_hook(
                lambda module, args: (args[0] + kept[0], *args[1:])
            )
            try:
                return self.encoder(hidden_states, *args, **kwargs)
            finally:
                first.remove()
                last.remove()

    model = model_of("bert", [2])
    bert = model.base_model.model.bert
    bert.encoder = Skip(bert.encoder)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model_of("bert", [0, 2]), "leave its first block unadapted"),
        (
            lambda: bert_with(hidden_dropout_prob=0.1),
            r"no active dropout.*'.*dropout' is \(p = 0.1",
        ),
        (lambda: bert_with(attention_probs_dropout_prob=0.5), "no active dropout"),
        (functional_dropout, "differ between training and evaluation mode"),
        (trained_embedding, "train nothing below.*word_embeddings"),
        (frozen_copy_of_the_embedding, "train nothing below.*word_embeddings"),
        (skipping, "gives another result"),
        (
            lambda: get_peft_model(
                nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"])
            ),
            "ModuleList of blocks",
        ),
    ],
)
def test_models_whose_states_do_not_stay_are_refused(make, message) -> None:
    with torch.random.fork_rng(devices=[]), pytest.raises(ValueError, match=message):
        PrefixCache(make(), EXAMPLES)


def test_rows_that_were_not_stored_are_refused() -> None:
    model = model_of("bert", [1])
    cache = PrefixCache(model, EXAMPLES)
    batch = batches(EXAMPLES, 3, order="given")[0]
    with pytest.raises(ValueError, match=r"rows in \[0, 10\), got \[0, 1, 10\]"):
        cache.states(torch.tensor([0, 1, 10]), batch["attention_mask"])
    with pytest.raises(ValueError, match="padded on the left"):
        cache.states(batch["index"], batch["attention_mask"].flip(1))
    with pytest.raises(ValueError, match="reordered"):
        cache.states(batch["index"].flip(0), batch["attention_mask"])
    with (
        pytest.raises(ValueError, match=r"shape \(3, 6, 8\), got a pass of shape \(6, 6, 8\)"),
        cache.replay(batch),
    ):
        model(**tile_batch(inputs(batch), 2))
    with pytest.raises(ValueError, match="at least one row"):
        PrefixCache(model, some_examples(0))
    with pytest.raises(ValueError, match="`batch_size`"):
        PrefixCache(model, EXAMPLES, batch_size=0)
