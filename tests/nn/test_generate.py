"""Continuations: of each member, and of the averaged next-token distribution."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lodrop_nn.adapter import attach_lora_dropout, mask_bank
from lodrop_nn.adapter.config import LoraDropoutConfig
from lodrop_nn.predict.generate import ensemble_generate, member_generate
from tests.nn.language import EOS, KINDS, PAD, adapted_language_model, prompts
from tests.nn.tiny import llama

N_MASKS = 3
NEVER = 10**6  # an end of sequence that no model generates
PLACES = {
    "llama": ("(1|2)", "(0|1|2)", "2"),
    "gpt2": ("(1|2)", "(0|1|2)"),
    "t5": ("encoder", "decoder", "(encoder|decoder)", r"decoder\.block\.1"),
}
CASES = [(kind, where) for kind in KINDS for where in PLACES[kind]]


def next_token_average(model: Any, bank: Any, batch: dict[str, Tensor], so_far: Tensor) -> Tensor:
    """Averaged next-token probabilities by N single passes: no cache, tiling or sharing."""
    inputs = dict(batch)
    if model.get_base_model().config.is_encoder_decoder:
        inputs["decoder_input_ids"] = so_far
    else:
        n_new = so_far.shape[1] - batch["input_ids"].shape[1]
        inputs["input_ids"] = so_far
        inputs["attention_mask"] = torch.nn.functional.pad(
            batch["attention_mask"], (0, n_new), value=1
        )
        # Positions count from the first token that is not padding, as in `generate`.
        positions = inputs["attention_mask"].cumsum(-1) - 1
        inputs["position_ids"] = positions.clamp_min(0)
    members = []
    with torch.no_grad(), bank.fixed(N_MASKS, 5, "balanced"):
        for i in range(N_MASKS):
            with bank.members(i, i + 1):
                members.append(model(**inputs).logits[:, -1].softmax(-1))
    return torch.stack(members).mean(0)


@pytest.mark.parametrize("end_token", [EOS, NEVER])
@pytest.mark.parametrize(("kind", "where"), CASES)
def test_greedy_tokens_maximize_the_averaged_probability(
    kind: str, where: str, end_token: int
) -> None:
    model, bank = adapted_language_model(kind, where)
    batch = prompts()
    options = {"max_new_tokens": 6, "eos_token_id": end_token}
    sequences = ensemble_generate(model, batch, n_masks=N_MASKS, seed=5, **options)
    start = batch["input_ids"] if kind != "t5" else sequences[:, :1]
    assert end_token == EOS or sequences.shape[1] == start.shape[1] + 6
    unfinished = torch.ones(3, dtype=torch.bool)
    for end in range(start.shape[1], sequences.shape[1]):
        average = next_token_average(model, bank, batch, sequences[:, :end])
        expected = torch.where(unfinished, average.argmax(-1), PAD)
        assert torch.equal(sequences[:, end], expected)
        unfinished &= expected != end_token


@pytest.mark.parametrize(("kind", "where"), [("llama", "(1|2)"), ("t5", "(encoder|decoder)")])
def test_scores_are_the_averaged_log_probabilities(kind: str, where: str) -> None:
    """Sampling draws from what greedy search maximizes: the scores that it sees."""
    model, bank = adapted_language_model(kind, where)
    batch = prompts()
    output: Any = ensemble_generate(
        model,
        batch,
        n_masks=N_MASKS,
        seed=5,
        sampling_seed=0,
        do_sample=True,
        top_k=0,
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_scores=True,
        eos_token_id=NEVER,
    )
    start = output.sequences.shape[1] - len(output.scores)
    for step, scores in enumerate(output.scores):
        average = next_token_average(model, bank, batch, output.sequences[:, : start + step])
        torch.testing.assert_close(scores.double(), average.log(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "num_return_sequences": 2}])
def test_members_generate_what_each_generates_alone(kind: str, options: dict[str, int]) -> None:
    model, bank = adapted_language_model(kind, PLACES[kind][0])
    batch = prompts()
    options = {"max_new_tokens": 5, **options}
    together = member_generate(model, batch, n_masks=N_MASKS, seed=5, **options)
    returned = options.get("num_return_sequences", 1)
    assert together.shape[:2] == (N_MASKS, 3 * returned)
    with bank.fixed(N_MASKS, 5, "balanced"):
        for i, sequences in enumerate(together):
            with bank.members(i, i + 1):
                alone = model.generate(**batch, **options)
            width = alone.shape[1]
            assert torch.equal(sequences[:, :width], alone)
            assert bool((sequences[:, width:] == PAD).all())


def test_members_disagree_and_the_ensemble_is_none_of_them() -> None:
    model, _ = adapted_language_model("llama")
    batch = prompts()
    members = member_generate(model, batch, n_masks=8, seed=0, max_new_tokens=8)
    assert len(set(map(str, members[:, 0].tolist()))) > 1


@pytest.mark.parametrize("generate", [ensemble_generate, member_generate])
def test_sampling_is_seeded_and_global_generators_are_left_alone(generate: Any) -> None:
    model, _ = adapted_language_model("llama")
    model.train()
    options = {"n_masks": 2, "seed": 0, "do_sample": True, "max_new_tokens": 8}
    state = torch.get_rng_state()
    first, again, other = (
        generate(model, prompts(), sampling_seed=seed, **options) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert model.training
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.equal(generate(model, prompts(), **options), first)


def test_sampled_tokens_follow_the_averaged_distribution() -> None:
    model, bank = adapted_language_model("llama")
    batch = prompts(lengths=(4,))
    n_draws = 3000
    sequences = ensemble_generate(
        model,
        batch,
        n_masks=N_MASKS,
        seed=5,
        sampling_seed=0,
        do_sample=True,
        top_k=0,
        max_new_tokens=1,
        num_return_sequences=n_draws,
    )
    average = next_token_average(model, bank, batch, batch["input_ids"])[0]
    counts = sequences[:, -1].bincount(minlength=len(average)).double()
    deviation = (counts / n_draws - average).abs()
    assert bool((deviation <= 5 * (average / n_draws).sqrt() + 1 / n_draws).all())


def test_processors_and_stops_act_on_the_average() -> None:
    model, _ = adapted_language_model("llama")
    free = ensemble_generate(model, prompts(), n_masks=N_MASKS, seed=5, max_new_tokens=6)
    first = free[0, 5]
    stopped = ensemble_generate(
        model, prompts(lengths=(5,)), n_masks=N_MASKS, seed=5, max_new_tokens=6, eos_token_id=first
    )
    assert stopped.shape[1] == 6
    banned = ensemble_generate(
        model,
        prompts(lengths=(5,)),
        n_masks=N_MASKS,
        seed=5,
        max_new_tokens=6,
        bad_words_ids=[[int(first)]],
    )
    assert banned[0, 5] != first


def test_a_config_made_adapter_generates_and_its_training_goes_on() -> None:
    from peft import get_peft_model

    config = LoraDropoutConfig(
        dropout_rate=0.5,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    model = get_peft_model(llama(), config).train()
    options = {"n_masks": 2, "seed": 0, "max_new_tokens": 3}
    assert ensemble_generate(model, prompts(), **options).shape[0] == 3
    assert member_generate(model, prompts(), **options).shape[:2] == (2, 3)
    assert model.training
    assert mask_bank(model).passes.n_drawn == 0
    assert not any("forward" in vars(module) for module in model.modules())
    model(**prompts())
    assert mask_bank(model).passes.n_drawn == 1


def test_one_member_without_masks_is_the_model() -> None:
    model, _ = adapted_language_model("gpt2", dropout_rate=0.0)
    plain = model.generate(**prompts(), max_new_tokens=5)
    ensemble = ensemble_generate(model, prompts(), n_masks=2, seed=0, max_new_tokens=5)
    members = member_generate(model, prompts(), n_masks=2, seed=0, max_new_tokens=5)
    assert torch.equal(ensemble, plain)
    assert torch.equal(members, torch.stack([plain, plain]))


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 2}, {"num_beams": 2, "do_sample": True}, {"prompt_lookup_num_tokens": 2}],
)
def test_the_ensemble_refuses_what_keeps_several_continuations(options: dict[str, Any]) -> None:
    model, _ = adapted_language_model("llama")
    with pytest.raises(
        ValueError, match="`generate_kwargs` must ask for greedy search or sampling"
    ):
        ensemble_generate(model, prompts(), n_masks=2, seed=0, **options)


@pytest.mark.parametrize("generate", [ensemble_generate, member_generate])
def test_bad_arguments_are_refused_and_leave_no_hooks(generate: Any) -> None:
    model, bank = adapted_language_model("llama")
    with pytest.raises(ValueError, match="padded on the left"):
        generate(model, prompts(side="right"), n_masks=2, seed=0)
    with pytest.raises(ValueError, match="`n_masks` must be"):
        generate(model, prompts(), n_masks=0, seed=0)
    with pytest.raises(ValueError, match="`sampling_seed` must be"):
        generate(model, prompts(), n_masks=2, seed=0, sampling_seed=-1)
    with pytest.raises(ValueError, match="no_such_option"):
        generate(model, prompts(), n_masks=2, seed=0, no_such_option=1)
    assert not any("forward" in vars(module) for module in model.modules())
    plain = model.generate(**prompts(), max_new_tokens=2)
    assert plain.shape[0] == 3
    assert math.isfinite(bank.dropout_rate)


def test_prompts_are_cached_once_below_the_adapter() -> None:
    model, _ = adapted_language_model("llama", "2")
    output: Any = ensemble_generate(
        model, prompts(), n_masks=4, seed=0, max_new_tokens=3, return_dict_in_generate=True
    )
    rows = [layer.keys.shape[0] for layer in output.past_key_values.layers]
    assert rows == [3, 3, 12]


def test_inactive_and_merged_adapters_are_refused() -> None:
    model, _ = adapted_language_model("llama")
    model.add_adapter("other", model.peft_config["default"])
    attach_lora_dropout(model, 0.5, adapter_name="other")
    with pytest.raises(ValueError, match="must be an active adapter"):
        ensemble_generate(model, prompts(), n_masks=2, seed=0, adapter_name="other")
    model.merge_adapter(["default"])
    with pytest.raises(ValueError, match="is merged"):
        ensemble_generate(model, prompts(), n_masks=2, seed=0)
