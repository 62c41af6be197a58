"""LoRA Dropout on convolutions and embeddings."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from lodrop_nn.adapter import (
    adapted_layers,
    attach_lora_dropout,
    delta_weights,
    detach_lora_dropout,
    mask_bank,
)
from lodrop_nn.adapter.config import LoraDropoutConfig
from lodrop_nn.adapter.saving import load_adapter, save_adapter
from lodrop_nn.masks.activations import mask_activations
from tests.nn.by_hand import CLOSE, assert_members_are_masked_by_hand, masked_by_hand
from tests.nn.tiny import gradients

# peft 0.19 looks for the base model's config on the hub, which models made here do not have.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")

CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1),
    "2d": lambda: nn.Conv2d(4, 6, (3, 2), padding=1),
    "2d-pointwise": lambda: nn.Conv2d(4, 6, 1),
    "3d": lambda: nn.Conv3d(4, 6, 2),
    "1d-groups": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "2d-groups": lambda: nn.Conv2d(4, 6, 3, groups=2),
}
RATES = st.tuples(st.floats(0.0, 0.7), st.floats(0.0, 0.7))


class Net(nn.Module):
    """A convolution and a linear layer behind it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[kind]()
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(2).mean(-1))


class Words(nn.Module):
    """Embeddings and a linear layer behind them; the positions are those of all rows."""

    def __init__(self, embedding: type[nn.Embedding] = nn.Embedding) -> None:
        super().__init__()
        self.words = embedding(9, 4, padding_idx=0)
        self.positions = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])[None]
        return self.head(torch.tanh(self.words(ids) + self.positions(places)).mean(1))


class Scaled(nn.Embedding):
    """As in Gemma 3: the output is multiplied with a number."""

    embed_scale = 3.0

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale


def adapted(base: Callable[[], nn.Module], targets: list[str], **options: object) -> PeftModel:
    config = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "target_modules": targets}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(base(), LoraConfig(**config | options))


def conv_net(kind: str) -> PeftModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LoRA adapter added to ConvNd layer with groups > 1")
        return adapted(lambda: Net(kind), ["conv", "head"])


def images(kind: str, rows: int = 4) -> dict[str, Tensor]:
    size = (rows, 4, *[5] * int(kind[0]))
    return {"x": torch.randn(size, generator=torch.Generator().manual_seed(1))}


def words(embedding: type[nn.Embedding] = nn.Embedding, **options: object) -> PeftModel:
    return adapted(lambda: Words(embedding), ["words", "head"], **options)


IDS = {"ids": torch.randint(0, 9, (4, 6), generator=torch.Generator().manual_seed(1))}
NETS = {kind: conv_net(kind) for kind in CONVOLUTIONS}
WORDS = {"plain": words(), "scaled": words(Scaled)}


# -- members are ordinary adapters with masked factors ------------------------------


@pytest.mark.parametrize("kind", list(CONVOLUTIONS))
@settings(max_examples=6)
@given(rates=RATES, n_masks=st.integers(1, 3), seed=st.integers(0, 99), rescale=st.booleans())
def test_members_of_a_convolution(
    kind: str, rates: tuple[float, float], n_masks: int, seed: int, rescale: bool
) -> None:
    model = NETS[kind]
    bank = attach_lora_dropout(model, rates, rescale=rescale)
    try:
        sizes = [(layer.in_features, layer.out_features) for layer in adapted_layers(model)]
        assert sizes == [(4, 6), (6, 5)]
        assert_members_are_masked_by_hand(model, bank, images(kind), n_masks, seed)
    finally:
        detach_lora_dropout(model)


@pytest.mark.parametrize("kind", list(WORDS))
@settings(max_examples=6)
@given(rates=RATES, n_masks=st.integers(1, 3), seed=st.integers(0, 99), rescale=st.booleans())
def test_members_of_an_embedding(
    kind: str, rates: tuple[float, float], n_masks: int, seed: int, rescale: bool
) -> None:
    model = WORDS[kind]
    bank = attach_lora_dropout(model, rates, rescale=rescale, mask_embeddings=True)
    try:
        sizes = [(layer.in_features, layer.out_features) for layer in adapted_layers(model)]
        assert sizes == [(9, 4), (4, 3)]
        assert_members_are_masked_by_hand(model, bank, IDS, n_masks, seed)
    finally:
        detach_lora_dropout(model)


@pytest.mark.parametrize("kind", ["2d-groups", "words"])
def test_one_mask_per_example(kind: str) -> None:
    model, batch = (words(), IDS) if kind == "words" else (conv_net(kind), images(kind))
    bank = attach_lora_dropout(model, 0.4, mask_scope="example", mask_embeddings=True)
    out = model.train()(**batch)
    for i, masks in enumerate(bank.passes.draw.masks):
        mine = {name: value[i : i + 1] for name, value in batch.items()}
        torch.testing.assert_close(
            out[i : i + 1], masked_by_hand(model, bank, masks)(**mine), **CLOSE
        )


@pytest.mark.parametrize("kind", ["1d", "2d-groups", "words"])
def test_gradients_are_those_of_the_masked_factors(kind: str) -> None:
    model, batch = (words(), IDS) if kind == "words" else (conv_net(kind), images(kind))
    bank = attach_lora_dropout(model, (0.3, 0.5), mask_embeddings=True)
    with bank.fixed(3, seed=2):
        tiled = {k: v.repeat(3, *[1] * (v.dim() - 1)) for k, v in batch.items()}
        (model(**tiled).square().sum() / 3).backward()
        joint = gradients(model)
        model.zero_grad()
        for i in range(3):
            with bank.members(i, i + 1):
                (model(**batch).square().sum() / 3).backward()
    separate = gradients(model)
    assert len(joint) == 4
    for name, gradient in joint.items():
        assert gradient.any()
        torch.testing.assert_close(gradient, separate[name], **CLOSE)


@given(
    n_masks=st.integers(1, 3), rows=st.integers(0, 3), tokens=st.integers(1, 3), seed=st.integers(0)
)
def test_masked_activations_are_masked_row_by_row(
    n_masks: int, rows: int, tokens: int, seed: int
) -> None:
    stream = torch.Generator().manual_seed(seed % 2**32)
    x = torch.randn(n_masks * rows, tokens, 4, generator=stream)
    factors = torch.randn(n_masks, 4, generator=stream)
    masked = mask_activations(x, factors)
    for i in range(n_masks):
        mine = slice(i * rows, (i + 1) * rows)
        assert torch.equal(masked[mine], x[mine] * factors[i])
    channels_first = mask_activations(x.mT, factors, channel_dim=-2)
    assert torch.equal(channels_first.mT, masked)


# -- masks off, merging, what is stored ------------------------------


@pytest.mark.parametrize("kind", [*CONVOLUTIONS, "words", "scaled"])
@pytest.mark.parametrize("rescale", [True, False])
def test_masks_off_and_merged_act_as_the_mean(kind: str, rescale: bool) -> None:
    if kind in CONVOLUTIONS:
        model, batch = conv_net(kind).eval(), images(kind)
    else:
        model, batch = words(Scaled if kind == "scaled" else nn.Embedding).eval(), IDS
    plain, keys = model(**batch), list(model.state_dict())
    attach_lora_dropout(model, (0.4, 0.2), rescale=rescale, mask_embeddings=True)
    assert list(model.state_dict()) == keys
    mean = model(**batch)
    assert torch.allclose(mean, plain, rtol=1e-5, atol=1e-6) == rescale
    if "groups" in kind:
        with pytest.raises(NotImplementedError, match="groups > 1"):  # PEFT's own limit
            model.merge_adapter()
        return
    unmerged = copy.deepcopy(model)
    torch.testing.assert_close(copy.deepcopy(model).merge_and_unload()(**batch), mean, **CLOSE)
    for safe in (True, False):
        model.merge_adapter(safe_merge=safe)
        torch.testing.assert_close(model(**batch), mean, **CLOSE)
        model.unmerge_adapter()
        torch.testing.assert_close(model(**batch), unmerged(**batch), **CLOSE)


@pytest.mark.parametrize("kind", [*CONVOLUTIONS, "words"])
def test_delta_weights_are_the_mean_updates(kind: str) -> None:
    model = words() if kind == "words" else conv_net(kind)
    name = f"base_model.model.{'words' if kind == 'words' else 'conv'}"
    attach_lora_dropout(model, (0.4, 0.2), rescale=False, mask_embeddings=True)
    update = delta_weights(model)[name]
    layer, batch = model.get_submodule(name), IDS if kind == "words" else images(kind)
    x = next(iter(batch.values()))
    effect = layer.eval()(x) - layer.base_layer(x)
    if kind == "words":
        torch.testing.assert_close(effect, update.T[x], **CLOSE)
        return
    dense = copy.deepcopy(layer.base_layer)
    dense.groups, dense.bias = 1, None
    dense.weight = nn.Parameter(update.reshape(6, 4, *dense.kernel_size))
    torch.testing.assert_close(effect, dense(x), **CLOSE)


@pytest.mark.parametrize("mask_embeddings", [True, False])
def test_a_saved_adapter_with_embeddings(mask_embeddings: bool, tmp_path: Path) -> None:
    model = words().eval()
    attach_lora_dropout(model, 0.4, rescale=False, mask_embeddings=mask_embeddings)
    save_adapter(model, tmp_path)
    mean = model(**IDS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = PeftModel.from_pretrained(Words(), tmp_path)
        torch.manual_seed(0)
        loaded = load_adapter(Words(), tmp_path)
    torch.testing.assert_close(plain(**IDS), mean, **CLOSE)
    torch.testing.assert_close(loaded(**IDS), mean, **CLOSE)
    assert mask_bank(loaded).settings == mask_bank(model).settings
    assert len(mask_bank(loaded).layers) == 1 + mask_embeddings


# -- embeddings are masked if asked for ------------------------------


def test_embeddings_stay_plain_unless_asked_for() -> None:
    model = words().train()
    bank = attach_lora_dropout(model, 0.5)
    assert [layer.name for layer in bank.layers] == ["base_model.model.head"]
    layer = model.base_model.model.words
    assert not layer.lora_variant
    with bank.fixed(1):
        assert torch.equal(layer(IDS["ids"]), layer.eval()(IDS["ids"]))
    with pytest.raises(ValueError, match=r"adapts embeddings only.*`mask_embeddings=True`"):
        attach_lora_dropout(adapted(Words, ["words"]), 0.5)
    assert attach_lora_dropout(adapted(Words, ["words"]), 0.5, mask_embeddings=True).n_coordinates


@pytest.mark.parametrize("mask_embeddings", [True, False])
def test_a_config_masks_embeddings_if_asked_for(mask_embeddings: bool) -> None:
    config = LoraDropoutConfig(
        dropout_rate=0.5, mask_embeddings=mask_embeddings, r=2, target_modules=["words", "head"]
    )
    model = get_peft_model(Words(), config)
    assert bool(model.base_model.model.words.lora_variant) == mask_embeddings
    assert len(mask_bank(model).layers) == 1 + mask_embeddings


def test_a_config_for_embeddings_only_is_refused() -> None:
    for targets in (["words"], ["words", "positions"]):
        with pytest.raises(ValueError, match=r"adapts embeddings only.*`mask_embeddings=True`"):
            get_peft_model(Words(), LoraDropoutConfig(dropout_rate=0.5, target_modules=targets))
    config = LoraDropoutConfig(dropout_rate=0.5, target_modules=["positions", "head", "words"])
    assert len(mask_bank(get_peft_model(Words(), config)).layers) == 1


def test_a_dropped_entry_gets_no_gradient() -> None:
    model = words().train()
    bank = attach_lora_dropout(model, (0.5, 0.0), seed=1, mask_embeddings=True)
    ids = torch.arange(9)[None]
    model.base_model.model.positions = nn.Embedding(9, 4)
    model(ids=ids).square().sum().backward()
    kept, _ = bank.split(bank.passes.draw.masks, 0)
    gradient = model.base_model.model.words.lora_embedding_A["default"].grad
    assert 0 < kept.sum() < 9
    expected = kept[0].clone()
    expected[0] = False  # the padding entry
    assert torch.equal(gradient.any(0), expected)


# -- what is refused ------------------------------


def test_rows_that_cannot_be_dealt_out_are_refused() -> None:
    model = adapted(Words, ["positions"])
    bank = attach_lora_dropout(model, 0.5, mask_embeddings=True)
    with bank.fixed(1):
        model(**IDS)
    with bank.fixed(2), pytest.raises(ValueError, match=r"one mask per pass, got 2.*\(1, 6\)"):
        model(**IDS)
    net = conv_net("1d")
    bank = attach_lora_dropout(net, 0.5)
    unbatched = torch.ones(4, 7)
    with bank.fixed(1):
        net.base_model.model.conv(unbatched)
    with bank.fixed(2), pytest.raises(ValueError, match=r"3 dimensions.*got shape \(4, 7\)"):
        net.base_model.model.conv(unbatched)


def test_layers_that_cannot_be_masked_are_refused_with_the_reason() -> None:
    base = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "1"]))
    with pytest.raises(NotImplementedError, match=r"MultiheadAttention.*\(it computes attention"):
        attach_lora_dropout(model, 0.5)


@pytest.mark.parametrize("kind", ["1d", "words"])
def test_variants_of_these_layers_are_refused(kind: str) -> None:
    base = Words if kind == "words" else lambda: Net(kind)
    model = adapted(base, ["words", "conv"], use_dora=True)
    with pytest.raises(ValueError, match=r"is the LoRA variant Dora\w+ in layer"):
        attach_lora_dropout(model, 0.5, mask_embeddings=True)
