"""Ensembles over masks: members, uncertainty, memory, and the state of the model around them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from lodrop_nn.adapter import attach_lora_dropout, detach_lora_dropout, mask_bank
from lodrop_nn.predict.batches import ensemble_predict_batches
from lodrop_nn.predict.ensemble import ensemble_predict, mean_predict
from lodrop_nn.predict.memory import in_chunks, members_per_pass
from lodrop_nn.predict.prediction import EnsemblePrediction
from lodrop_nn.train.tiling import tile_batch
from tests.nn.language import adapted_language_model, prompts
from tests.nn.tiny import BASES, N_CLASSES, adapted, batch, inputs

BERT = adapted("bert")
BANK = attach_lora_dropout(BERT, 0.4)


@settings(max_examples=15)
@given(n_masks=st.integers(1, 6), chunk=st.none() | st.integers(1, 7), seed=st.integers(0, 99))
def test_members_are_the_same_one_by_one_in_chunks_and_at_once(
    n_masks: int, chunk: int | None, seed: int
) -> None:
    x = batch("bert")
    prediction = ensemble_predict(BERT, x, n_masks=n_masks, seed=seed, chunk=chunk)
    assert prediction.member_logits.shape == (n_masks, 4, N_CLASSES)
    BERT.eval()
    with BANK.fixed(n_masks, seed, "balanced"), torch.no_grad():
        for i, member in enumerate(prediction.member_logits):
            with BANK.members(i, i + 1):
                alone = BERT(**inputs("bert")).logits
            torch.testing.assert_close(member, alone, rtol=1e-4, atol=1e-6)


def test_members_depend_on_seed_and_index_alone() -> None:
    def members(rows: int, n_masks: int, seed: int) -> torch.Tensor:
        x = inputs("bert", rows=4)
        x = {name: value[:rows] for name, value in x.items()}
        prediction = ensemble_predict(BERT, x, n_masks=n_masks, seed=seed, mask_law="iid")
        return prediction.member_logits

    whole = members(4, 5, 0)
    torch.testing.assert_close(members(2, 3, 0), whole[:3, :2], rtol=1e-4, atol=1e-6)
    assert torch.equal(members(4, 5, 0), whole)
    assert not torch.allclose(members(4, 5, 1), whole)
    assert float(whole.std(0).max()) > 0


@pytest.mark.parametrize("rescale", [True, False])
def test_the_mean_of_many_masked_linear_models_is_the_mean_predictor(rescale: bool) -> None:
    """Of a linear model, the mean over masks of the output is the output of the mean."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(4, 3))
        config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        model = get_peft_model(base, config)
        x = torch.randn(5, 4)
    attach_lora_dropout(model, 0.3, rescale=rescale)
    n_masks = 4000
    members = ensemble_predict(model, {"input": x}, n_masks=n_masks, seed=0).member_logits.double()
    error = members.mean(0) - mean_predict(model, {"input": x})
    assert bool((error.abs() <= 5 * members.std(0) / math.sqrt(n_masks) + 1e-6).all())


@pytest.mark.parametrize("kind", list(BASES))
def test_at_rate_zero_all_members_are_the_mean(kind: str) -> None:
    model = adapted(kind)
    attach_lora_dropout(model, 0.0)
    prediction = ensemble_predict(model, batch(kind), n_masks=3, seed=0)
    mean = mean_predict(model, batch(kind))
    for member in prediction.member_logits:
        torch.testing.assert_close(member, mean, rtol=1e-4, atol=1e-6)


def test_prediction_leaves_the_model_as_it_was() -> None:
    model = adapted("bert").train()
    bank = attach_lora_dropout(model, 0.4, seed=0)
    model.get_base_model().bert.embeddings.eval()  # a part that its user keeps in evaluation mode
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    for predict in (
        lambda: ensemble_predict(model, batch("bert"), n_masks=2, seed=0).member_logits,
        lambda: mean_predict(model, batch("bert")),
    ):
        assert not predict().requires_grad
        assert [module.training for module in model.modules()] == modes
    with pytest.raises(IndexError):
        ensemble_predict(model, {"input_ids": torch.tensor([[10**6]])}, n_masks=2, seed=0)
    assert [module.training for module in model.modules()] == modes
    assert bank.passes.n_drawn == 0
    assert torch.equal(torch.get_rng_state(), state)
    model(**inputs("bert"))
    assert bank.passes.n_drawn == 1


logits = arrays(
    "float32",
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(2, 4)),
    elements=st.floats(-60, 60, width=32),
).map(torch.from_numpy)


@given(member_logits=logits)
def test_uncertainty_obeys_its_laws(member_logits: torch.Tensor) -> None:
    prediction = EnsemblePrediction(member_logits)
    _, rows, n_classes = member_logits.shape
    probabilities = prediction.member_probabilities
    total = prediction.mean_probabilities.sum(-1)
    torch.testing.assert_close(total, torch.ones(rows, dtype=torch.float64))
    assert bool((prediction.predictive_entropy <= math.log(n_classes) + 1e-12).all())
    assert bool((prediction.mutual_information >= 0).all())
    assert bool((prediction.mutual_information <= prediction.predictive_entropy).all())
    # The mean divergence of the members from their mean, by its definition.
    mean = prediction.mean_probabilities
    divergence = torch.special.xlogy(probabilities, probabilities / mean).nansum(-1).mean(0)
    torch.testing.assert_close(prediction.mutual_information, divergence, rtol=1e-6, atol=1e-9)
    spread = (probabilities**2).mean(0) - mean**2
    torch.testing.assert_close(prediction.variance, spread, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(prediction.mean_logits, member_logits.double().mean(0))


@given(member_logits=logits)
def test_votes_and_entropies_obey_their_definitions(member_logits: torch.Tensor) -> None:
    prediction = EnsemblePrediction(member_logits)
    n_masks, rows, n_classes = member_logits.shape
    parts = prediction.mutual_information + prediction.expected_entropy
    torch.testing.assert_close(parts, prediction.predictive_entropy, rtol=1e-9, atol=1e-9)
    for row in range(rows):
        probabilities = prediction.mean_probabilities[row]
        assert probabilities[prediction.predicted_class[row]] == probabilities.max()
        votes = member_logits[:, row].argmax(-1).bincount(minlength=n_classes)
        expected = 1 - int(votes.max()) / n_masks
        assert float(prediction.variation_ratio[row]) == pytest.approx(expected)


@given(member_logits=logits)
def test_members_that_agree_leave_no_uncertainty_to_the_masks(member_logits: torch.Tensor) -> None:
    prediction = EnsemblePrediction(member_logits[:1].expand(3, -1, -1))
    assert float(prediction.mutual_information.max()) <= 1e-12
    assert float(prediction.variance.max()) <= 1e-12


@pytest.mark.parametrize("options", [{"n_masks": 0}, {"chunk": 0}, {"seed": -1}, {"seed": 0.5}])
def test_arguments_outside_their_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be a whole number"):
        ensemble_predict(BERT, batch("bert"), **{"n_masks": 2, "seed": 0, **options})


def test_an_adapter_without_masks_has_no_ensemble() -> None:
    model = adapted("bert")
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        ensemble_predict(model, batch("bert"), n_masks=2, seed=0)
    attach_lora_dropout(model, 0.5)
    detach_lora_dropout(model)
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        mean_predict(model, batch("bert"))


def vit(where: str) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = ViTForImageClassification(
            ViTConfig(
                hidden_size=8,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=12,
                image_size=8,
                patch_size=4,
                num_labels=N_CLASSES,
                initializer_range=0.4,
            )
        )
        pattern = rf".*layers\.{where}\..*(q_proj|query|fc1|dense)"
        config = LoraConfig(r=2, target_modules=pattern, init_lora_weights=False)
        model = get_peft_model(base, config).to(torch.float64)
    attach_lora_dropout(model, 0.4)
    return model


class Unknown(nn.Module):
    """Blocks that run in a strange order: the last one of the list first, and the first twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for place in (3, 0, 1, 2, 0):
            x = torch.tanh(self.blocks[place](x)) + x
        return x


def unknown(where: str) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=rf"blocks\.{where}", init_lora_weights=False)
        model = get_peft_model(Unknown(), config).to(torch.float64)
    attach_lora_dropout(model, 0.4)
    return model


def images_of(rows: int = 3) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=stream, dtype=torch.float64)}


def vectors(rows: int = 3) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(0)
    return {"x": torch.randn(rows, 6, generator=stream, dtype=torch.float64)}


def pairs() -> dict[str, Tensor]:
    return {**prompts(side="right"), "decoder_input_ids": prompts(seed=1)["input_ids"]}


STRUCTURES = [
    *(("llama", where) for where in ("2", "(1|2)", "(0|1|2)")),
    *(("gpt2", where) for where in ("2", "(0|2)")),
    *(("t5", where) for where in ("encoder", "decoder", "(encoder|decoder)", r"block\.1")),
    *(("vit", where) for where in ("[12]", "[012]")),
    *(("unknown", where) for where in ("3", "2", "[13]")),
]


def structure(kind: str, where: str) -> tuple[PeftModel, dict[str, Tensor]]:
    if kind == "vit":
        return vit(where), images_of()
    if kind == "unknown":
        return unknown(where), vectors()
    model, _ = adapted_language_model(kind, where)
    return model, pairs() if kind == "t5" else prompts(side="right")


@pytest.mark.parametrize(("kind", "where"), STRUCTURES)
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_members_of_any_structure_are_those_of_plain_passes(
    kind: str, where: str, chunk: int | None
) -> None:
    model, x = structure(kind, where)
    members = ensemble_predict(model, x, n_masks=5, seed=1, chunk=chunk).member_logits
    bank = mask_bank(model)
    model.eval()
    with torch.no_grad(), bank.fixed(5, 1, "balanced"):
        plain = model(**tile_batch(x, 5))
    plain = plain if isinstance(plain, Tensor) else plain.logits
    torch.testing.assert_close(members.flatten(0, 1), plain, rtol=1e-9, atol=1e-11)
    assert float(members.std(0).max()) > 1e-3


def rows_of_calls(model: nn.Module, suffix: str) -> dict[str, list[int]]:
    """Rows that modules read, by name, filled in as passes run."""
    seen: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if name.endswith(suffix):

            def note(module: nn.Module, args: tuple, name: str = name) -> None:
                seen.setdefault(name.split(".")[-3], []).append(args[0].shape[0])

            module.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("chunk", [4, 2, 1])
def test_what_lies_below_the_adapter_is_computed_once(chunk: int) -> None:
    model, _ = adapted_language_model("llama", "2")
    seen = rows_of_calls(model, "self_attn.o_proj")
    ensemble_predict(model, prompts(side="right"), n_masks=4, seed=0, chunk=chunk)
    assert seen == {"0": [3], "1": [3], "2": [3 * chunk] * (4 // chunk)}


@pytest.mark.parametrize(("where", "encoder", "decoder"), [("encoder", 12, 12), ("decoder", 3, 12)])
def test_an_unadapted_encoder_is_computed_once(where: str, encoder: int, decoder: int) -> None:
    model, _ = adapted_language_model("t5", where)
    rows: dict[str, int] = {}
    for part in ("encoder", "decoder"):
        last = getattr(model.get_base_model(), part).block[1].layer[-1].DenseReluDense.wo
        last.register_forward_pre_hook(lambda m, args, part=part: rows.update({part: len(args[0])}))
    ensemble_predict(model, pairs(), n_masks=4, seed=0, chunk=4)
    assert rows == {"encoder": encoder, "decoder": decoder}


class OutOfMemory:
    """A block that has memory for so many rows only."""

    def __init__(self, forward: Callable, n_rows: int, error: type[Exception], text: str) -> None:
        self.forward, self.n_rows, self.error, self.text = forward, n_rows, error, text
        self.asked: list[int] = []

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(len(x))
        if len(x) > self.n_rows:
            raise self.error(self.text)
        return self.forward(x, *args, **kwargs)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory."),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_members_that_do_not_fit_into_memory_are_taken_in_smaller_chunks(
    error: type[Exception], text: str
) -> None:
    model, bank = adapted_language_model("llama", "2")
    x = prompts(side="right")
    expected = ensemble_predict(model, x, n_masks=7, seed=0).member_logits
    block = model.get_base_model().model.layers[2]
    block.forward = limited = OutOfMemory(block.forward, 6, error, text)
    members = ensemble_predict(model, x, n_masks=7, seed=0, chunk=7).member_logits
    torch.testing.assert_close(members, expected, rtol=1e-9, atol=1e-11)
    assert limited.asked == [21, 9, 3, 3, 3, 3, 3, 3, 3]
    limited.n_rows = 2
    with pytest.raises(error, match=text[:10]):
        ensemble_predict(model, x, n_masks=7, seed=0)
    assert bank.passes.n_drawn == 0


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def run(start: int, stop: int) -> int:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(in_chunks(4, 4, run))


@given(n_masks=st.integers(1, 40), chunk=st.integers(1, 50))
def test_chunks_are_all_members_in_order(n_masks: int, chunk: int) -> None:
    chunks = list(in_chunks(n_masks, chunk, lambda start, stop: range(start, stop)))
    assert [member for part in chunks for member in part] == list(range(n_masks))
    assert max(map(len, chunks)) <= chunk


@given(n_masks=st.integers(1, 64), rows=st.integers(1, 40), tokens=st.integers(1, 200))
def test_members_per_pass_shrink_as_batches_grow(n_masks: int, rows: int, tokens: int) -> None:
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    fit = members_per_pass(BERT, {"input_ids": ids}, n_masks)
    assert 1 <= fit <= n_masks
    assert fit >= members_per_pass(BERT, {"input_ids": ids.repeat(2, 1)}, n_masks)
    embedded = torch.zeros(rows, tokens, BERT.config.hidden_size)
    assert members_per_pass(BERT, {"inputs_embeds": embedded}, n_masks) == fit


@pytest.mark.parametrize("progress", [False, True])
def test_a_data_set_is_predicted_batch_by_batch(
    progress: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = [batch("bert", rows=rows, tokens=tokens) for rows, tokens in ((4, 6), (1, 3), (3, 8))]
    options = {"n_masks": 3, "seed": 2}
    predictions = list(ensemble_predict_batches(BERT, batches, progress=progress, **options))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert bool(printed.err) == progress
    for x, prediction in zip(batches, predictions, strict=True):
        alone = ensemble_predict(BERT, x, **options).member_logits
        torch.testing.assert_close(prediction.member_logits, alone, rtol=1e-4, atol=1e-6)
    whole = EnsemblePrediction.concatenate(predictions)
    assert whole.member_logits.shape == (3, 8, N_CLASSES)
    assert torch.equal(whole.member_logits[:, 4], predictions[1].member_logits[:, 0])


def test_the_model_is_its_own_between_batches() -> None:
    model = adapted("bert").train()
    bank = attach_lora_dropout(model, 0.4)
    predictions = ensemble_predict_batches(model, [batch("bert")] * 2, n_masks=2, seed=0)
    next(predictions)
    assert model.training
    model(**inputs("bert"))
    assert bank.passes.n_drawn == 1


@pytest.mark.parametrize("mask_law", ["iid", "balanced"])
def test_the_mask_law_may_be_chosen_at_prediction(mask_law: Any) -> None:
    by_name = ensemble_predict(BERT, batch("bert"), n_masks=4, seed=0, mask_law=mask_law)
    default = ensemble_predict(BERT, batch("bert"), n_masks=4, seed=0)
    assert torch.equal(by_name.member_logits, default.member_logits) == (mask_law == "balanced")


def test_adapters_without_effect_have_no_prediction() -> None:
    model = adapted("bert")
    attach_lora_dropout(model, 0.5)
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    for predict in (ensemble_predict, mean_predict):
        options = {"n_masks": 2, "seed": 0} if predict is ensemble_predict else {}
        with pytest.raises(ValueError, match="must be an active adapter"):
            predict(model, batch("bert"), **options)
    model.set_adapter("default")
    model.merge_adapter()
    with pytest.raises(ValueError, match="is merged"):
        ensemble_predict(model, batch("bert"), n_masks=2, seed=0)
