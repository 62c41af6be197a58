"""The comparison of quality: its AdaLoRA arms, and dropout in training against dropout at test."""

from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import BertForSequenceClassification

from lodrop_nn.data import Examples
from lodrop_nn.masks import MaskBank
from tests.benchmarks.quality import (
    ablation,
    adalora,
    adapters,
    evaluate,
    masked,
    problem,
    records,
    train,
)
from tests.benchmarks.quality.__main__ import config_of
from tests.benchmarks.quality.arms import ARMS, Arm, P
from tests.benchmarks.quality.problem import Problem, Rows
from tests.nn import tiny

BLOCKS = (1, 2)


def bert(head_seed: int) -> BertForSequenceClassification:
    """Three blocks, of which the first is frozen."""
    config = tiny.bert().config
    config.num_hidden_layers = 3
    with torch.random.fork_rng():
        torch.manual_seed(head_seed)
        return BertForSequenceClassification(config)


class TinyProblem(Problem):
    """A problem without files."""

    def base(self, head_seed: int) -> BertForSequenceClassification:
        return bert(head_seed)


def rows(n: int, seed: int) -> Rows:
    stream = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (n,), generator=stream).tolist()
    examples = Examples(
        input_ids=tuple(
            tuple(torch.randint(3, tiny.VOCABULARY, (size,), generator=stream).tolist())
            for size in lengths
        ),
        labels=tuple(torch.randint(0, tiny.N_CLASSES, (n,), generator=stream).tolist()),
        pad_token_id=0,
    )
    return Rows(examples=examples, frozen=problem.frozen_parts(bert(0), examples, min(BLOCKS)))


@pytest.fixture(scope="module")
def small() -> TinyProblem:
    parts = {name: rows(n, n) for name, n in (("train", 32), ("validation", 5), ("test", 6))}
    return TinyProblem(data="none", seed=0, n_classes=tiny.N_CLASSES, blocks=BLOCKS, **parts)


def randomized(arm: Arm, small: Problem) -> tuple[PeftModel, MaskBank | None]:
    model, bank = adapters.build(small, arm, n_steps=12)
    stream = torch.Generator().manual_seed(0)
    for parameter in adapters.trained(model).values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=stream)
    return model, bank


# -- AdaLoRA -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["example-balanced", "adalora", "adalora-dropout"])
def test_the_short_way_is_the_whole_model(name: str, small: TinyProblem) -> None:
    """Logits and gradients, masks on where there are any."""
    found = []
    for shortened in (True, False):
        model, bank = randomized(ARMS[name], small)
        short = adapters.ShortModel(model)
        masks = bank.fixed(1, 3) if bank is not None else nullcontext()
        ways = short.shortened(BLOCKS) if shortened else nullcontext()
        with masks, ways:
            batches = small.test.batches(4)
            logits = torch.cat(
                [
                    short(batch)
                    if shortened
                    else model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                    for batch in batches
                ]
            )
        cross_entropy(logits, torch.cat([batch["labels"] for batch in batches])).backward()
        found.append([logits, *(p.grad for p in adapters.trained(model).values())])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    assert found[0][0].std(0).min() > 0.01  # rows differ: there is something to get wrong


def test_the_penalty_is_that_of_peft(small: TinyProblem) -> None:
    model, _ = randomized(ARMS["adalora-dropout"], small)
    batch = small.test.batches(6)[0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    output = model(**inputs)
    added = output.loss - cross_entropy(output.logits, batch["labels"])
    torch.testing.assert_close(adalora.orthogonality(model), added)
    assert added > 1


@pytest.mark.parametrize("name", ["adalora", "adalora-dropout"])
def test_training_brings_the_ranks_down(name: str, small: TinyProblem) -> None:
    finished = train.run(small, ARMS[name], epochs=6)
    singular = torch.stack([w for key, w in finished.weights.items() if ".lora_E." in key])
    assert len(singular) == 4 * len(BLOCKS)
    assert int((singular != 0).sum()) == adapters.RANK * len(singular)
    assert {key.rpartition(".")[2] for key in finished.logits} == {"6"}  # scored once
    assert finished.rows_trained == 6 * 32
    assert finished.update_square > 0


def test_runs_that_were_made_keep_their_names() -> None:
    config = config_of("trec", 0, ARMS["batch"], 12)
    assert records.run_id(config) == "e863ccf6b05c"
    config = config_of("trec", 0, ARMS["adalora"], 12)
    assert config["adalora"] == {
        "init_r": 12,
        "target_r": 8,
        "tinit": 32,
        "tfinal": 96,
        "deltaT": 1,
        "total_step": 192,
    }


# -- dropout at test time ------------------------------------------------------------------------


def test_masks_put_on_a_trained_adapter_are_those_of_its_run(small: TinyProblem) -> None:
    run = train.run(small, ARMS["example-balanced"], epochs=1)
    mean = run.logits["test.mean.1"]
    low, high = (masked.predict(small, run.weights, mean, rate) for rate in (0.1, P))
    assert set(low) == {"test"}
    assert len(low["test"]) == train.MEMBERS
    for rows, found in high.items():
        torch.testing.assert_close(found, run.logits[f"{rows}.members.1"])
    near, far = (abs(found["test"] - mean).mean() for found in (low, high))
    assert 0 < near < far  # fewer masked coordinates, smaller steps from the mean predictor
    with pytest.raises(RuntimeError, match="must give the logits of their run: off by 1;"):
        masked.predict(small, run.weights, mean + 1, P)


@given(seed=st.integers(0, 2**31), n=st.integers(1, 5), scale=st.floats(0.1, 5))
@settings(max_examples=20)
def test_more_members_never_cost_likelihood(seed: int, n: int, scale: float) -> None:
    """Averaged over subsets, NLL falls with their size (Jensen); its ends are known."""
    stream = np.random.default_rng(seed)
    members = scale * stream.standard_normal((4, n, 3)).astype(np.float32)
    labels = stream.integers(0, 3, n)
    risks = [ablation.subset_nll(members, labels, size) for size in (1, 2, 3, 4)]
    assert all(more <= fewer + 1e-12 for fewer, more in pairwise(risks))
    assert risks[0] == pytest.approx(
        np.mean([evaluate.nll(evaluate.probabilities(each), labels) for each in members])
    )
    assert risks[-1] == pytest.approx(evaluate.nll(evaluate.probabilities(members), labels))


def test_differences_are_paired() -> None:
    rows = [
        {"data": data, "seed": seed, "arm": arm, "n_masks": k, "nll": value + seed**2}
        for data in ("a", "b", "a, 36 epochs")
        for seed in range(3)
        for arm, k, value in (("lora", 0, 1.0), ("lora", 16, 3.0), ("x", 16, 6.0))
    ]
    references = {"minus neither": {"arm": "lora", "n_masks": 0}}
    table = ablation.summary(rows, ("arm", "n_masks"), ("nll", "gap"), references)
    assert [r["data"] for r in table[::3]] == ["a", "b", "a, 36 epochs", "pooled"]
    pooled = table[-1]["measures"]["nll"]
    assert "minus neither" not in table[-3]["measures"]["nll"]  # the reference itself
    assert pooled["minus neither"] == {"mean": 5.0, "low": 5.0, "high": 5.0, "n": 6}
    assert pooled["value"]["n"] == 6
    assert pooled["value"]["mean"] == pytest.approx(6 + 5 / 3)
