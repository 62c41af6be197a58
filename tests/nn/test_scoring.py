"""Scores of given continuations, against plain passes of each member."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from lodrop_nn.adapter import attach_lora_dropout, detach_lora_dropout
from lodrop_nn.predict.scoring import SequenceScores, score_sequences
from tests.nn.language import KINDS, PAD, adapted_language_model, prompts

N_MASKS = 4


def labelled(kind: str, *, n_context: int = 2, side: str = "right") -> dict[str, Tensor]:
    """Rows whose first tokens are context; of T5 targets of their own."""
    batch = prompts((6, 4, 5), side=side)
    if kind == "t5":
        targets = prompts((4, 2, 3), side="right", seed=1)["input_ids"]
        return {**batch, "labels": torch.where(targets == PAD, -100, targets)}
    labels = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)
    labels[:, :n_context] = -100
    return {**batch, "labels": labels}


def loss_of(model: Any, batch: dict[str, Tensor], row: int) -> Tensor:
    """Log-likelihood of one row from the loss that transformers computes, partly in float32."""
    one = {name: value[row : row + 1] for name, value in batch.items()}
    labels = (
        one["labels"] if model.get_base_model().config.is_encoder_decoder else one["labels"][:, 1:]
    )
    return -model(**one).loss.double() * (labels != -100).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize("n_context", [0, 2])
def test_likelihoods_are_those_of_the_training_loss(
    kind: str, chunk: int | None, n_context: int
) -> None:
    model, bank = adapted_language_model(kind, "(1|2)" if kind != "t5" else r"decoder\.block\.1")
    batch = labelled(kind, n_context=n_context)
    scores = score_sequences(model, batch, n_masks=N_MASKS, seed=3, chunk=chunk)
    assert scores.member_token_log_probs.shape == (N_MASKS, *batch["labels"].shape)
    with torch.no_grad(), bank.fixed(N_MASKS, 3, "balanced"):
        for row in range(3):
            with bank.off():
                mean = loss_of(model, batch, row)
            torch.testing.assert_close(scores.mean_log_likelihood[row], mean, rtol=1e-5, atol=1e-5)
            for i in range(N_MASKS):
                with bank.members(i, i + 1):
                    expected = loss_of(model, batch, row)
                member = scores.member_log_likelihood[i, row]
                torch.testing.assert_close(member, expected, rtol=1e-5, atol=1e-5)
    assert float(scores.member_log_likelihood.std(0).min()) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_labels_that_are_ignored_change_nothing(kind: str) -> None:
    model, _ = adapted_language_model(kind, "1" if kind != "t5" else "encoder")
    batch = labelled(kind)
    whole = score_sequences(model, batch, n_masks=2, seed=0)
    batch["labels"][:, -3:] = -100
    part = score_sequences(model, batch, n_masks=2, seed=0)
    kept = part.is_scored
    assert bool((kept <= whole.is_scored).all())
    torch.testing.assert_close(
        part.member_token_log_probs,
        torch.where(kept, whole.member_token_log_probs, 0.0),
        rtol=1e-6,
        atol=1e-9,
    )
    assert torch.equal(part.n_tokens, (kept.sum(-1)))


token_log_probs = arrays(
    "float64",
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)),
    elements=st.floats(-30, 0),
).map(torch.from_numpy)


@given(log_probs=token_log_probs)
def test_averages_over_members_obey_their_laws(log_probs: Tensor) -> None:
    n_masks, rows, tokens = log_probs.shape
    scores = SequenceScores(
        member_token_log_probs=log_probs,
        mean_token_log_probs=log_probs[0],
        is_scored=torch.ones(rows, tokens, dtype=torch.bool),
    )
    by_definition = log_probs.exp().mean(0).log().sum(-1)
    torch.testing.assert_close(scores.ensemble_log_likelihood, by_definition)
    by_definition = log_probs.sum(-1).exp().mean(0).log()
    torch.testing.assert_close(scores.mixture_log_likelihood, by_definition)
    # Jensen, twice: averages of probabilities are better than the average of their logarithms.
    average = log_probs.sum(-1).mean(0) - 1e-9
    assert bool((scores.mixture_log_likelihood >= average).all())
    assert bool((scores.ensemble_log_likelihood >= average).all())
    assert float(scores.ensemble_perplexity) >= 1 - 1e-12
    if tokens == 1:
        torch.testing.assert_close(scores.mixture_log_likelihood, scores.ensemble_log_likelihood)
    if n_masks == 1:
        torch.testing.assert_close(scores.mixture_log_likelihood, scores.mean_log_likelihood)
        torch.testing.assert_close(scores.ensemble_perplexity, scores.member_perplexity[0])


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    uniform = torch.full((2, 3, 5), -math.log(7), dtype=torch.float64)
    is_scored = torch.ones(3, 5, dtype=torch.bool)
    is_scored[0, 1:] = False
    scores = SequenceScores(
        member_token_log_probs=uniform * is_scored,
        mean_token_log_probs=uniform[0] * is_scored,
        is_scored=is_scored,
    )
    for perplexity in (scores.mean_perplexity, scores.ensemble_perplexity):
        assert float(perplexity) == pytest.approx(7)
    assert scores.member_perplexity.tolist() == pytest.approx([7, 7])


def test_the_model_and_its_modes_come_back() -> None:
    model, bank = adapted_language_model("llama")
    model.train()
    scores = score_sequences(model, labelled("llama"), n_masks=2, seed=0)
    assert not scores.member_token_log_probs.requires_grad
    assert model.training
    assert bank.passes.n_drawn == 0


def test_what_cannot_be_scored_is_refused() -> None:
    model, _ = adapted_language_model("llama")
    batch = labelled("llama")
    for changed, message in (
        ({"labels": None}, "must hold `labels`"),
        ({"labels": torch.full_like(batch["labels"], -100)}, "a label to score"),
        ({"labels": batch["labels"][:, 1:]}, "must have the shape of `input_ids`"),
    ):
        with pytest.raises(ValueError, match=message):
            score_sequences(model, {**batch, **changed}, n_masks=2, seed=0)
    detach_lora_dropout(model)
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        score_sequences(model, batch, n_masks=2, seed=0)
    attach_lora_dropout(model, 0.5)
    with pytest.raises(ValueError, match="`chunk` must be"):
        score_sequences(model, batch, n_masks=2, seed=0, chunk=0)
