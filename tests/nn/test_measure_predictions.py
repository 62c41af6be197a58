"""Predictions of data that cannot be measured, and of models that do not fit into memory."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lodrop_nn.measure.predictions import Predictions, predict_all
from tests.nn.classifiers import adapted_classifier, padded_batches

ROWS = padded_batches(8, batch_size=2, shuffle=True)


def changed(place: int, **entries: Tensor | None) -> list[dict[str, Tensor]]:
    """The batches with entries of one of them replaced, or taken out."""
    rows = [dict(batch) for batch in ROWS]
    rows[place] |= entries
    rows[place] = {name: t for name, t in rows[place].items() if t is not None}
    return rows


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"`batches\[1\]` must have `labels` to be measured by, got \['attention_mask', "),
        (
            torch.tensor([0, -100]),
            r"must be in \[0, K\), got -100 \(a row without a label\) in row",
        ),
        (torch.tensor([-1, 0]), r"`batches\[1\]\['labels'\]` must be in \[0, K\), got -1 in row 0"),
        (torch.tensor([0.0, 1.0]), r"must be whole numbers of shape \(b,\), got torch.float32"),
        (torch.zeros(2, 3).long(), r"of shape \(b,\), got torch.int64 of shape \(2, 3\)"),
    ],
)
def test_rows_without_a_class(labels: Tensor | None, message: str) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    with pytest.raises(ValueError, match=message):
        predict_all(model, bank, changed(1, labels=labels), n_masks=2, seed=0)


def test_the_first_row_of_a_class_too_many_is_named_in_the_original_order() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    rows = [{**batch, "labels": torch.full((2,), 3)} for batch in ROWS]
    rows[0]["labels"] = torch.zeros(2).long()
    first = min(row for batch in ROWS[1:] for row in batch["index"].tolist())

    with pytest.raises(ValueError, match=rf"in \[0, 3\), got 3 in row {first}"):
        predict_all(model, bank, rows, n_masks=2, seed=0)


def test_a_model_that_is_not_finite_is_told_by_its_row() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    token = 22
    rows = [{name: t.clone() for name, t in batch.items()} for batch in ROWS]
    for batch in rows:
        batch["input_ids"][batch["input_ids"] == token] = 3
    for place in (1, 3):
        rows[place]["input_ids"][0, 0] = token
    with torch.no_grad():
        model.get_base_model().bert.embeddings.word_embeddings.weight[token] = torch.nan
    first = min(int(ROWS[place]["index"][0]) for place in (1, 3))

    with pytest.raises(
        ValueError, match=rf"finite logits with masks off, .* 2 of 8 rows, .* row {first}\."
    ):
        predict_all(model, bank, rows, n_masks=2, seed=0)


def test_members_that_are_not_finite() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    head = model.get_submodule("base_model.model.classifier.modules_to_save.default")
    passes = []

    def spoil(_module: Any, _args: Any, output: Tensor) -> Tensor:
        passes.append(len(output))
        return output if len(output) <= 4 else output * torch.inf  # a tiled pass

    head.register_forward_hook(spoil)
    with pytest.raises(ValueError, match=r"finite logits under masks, .* 8 of 8 rows"):
        predict_all(model, bank, ROWS, n_masks=4, seed=0)
    assert 8 in passes


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. (injected)")


def of_the_cpu() -> Exception:
    return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory (injected)")


@pytest.mark.parametrize("error", [out_of_memory, of_the_cpu, MemoryError])
def test_memory_that_does_not_suffice(error: Callable[[], Exception]) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    expected = predict_all(model, bank, ROWS, n_masks=6, seed=0)
    head = model.get_submodule("base_model.model.classifier.modules_to_save.default")
    refused, served = [], []

    def short_of_memory(_module: Any, args: tuple[Tensor]) -> None:
        if len(args[0]) > 4:  # two rows under more than two masks
            refused.append(len(args[0]))
            raise error()
        served.append(len(args[0]))

    handle = head.register_forward_pre_hook(short_of_memory)
    found = predict_all(model, bank, ROWS, n_masks=6, seed=0)
    handle.remove()

    assert refused
    assert max(served) <= 4
    np.testing.assert_allclose(
        found.member_probabilities, expected.member_probabilities, atol=1e-12
    )


@pytest.mark.parametrize("error", [out_of_memory, MemoryError])
def test_memory_that_does_not_suffice_for_one_member(error: Callable[[], Exception]) -> None:
    model, bank = adapted_classifier("bert", 0.4)
    head = model.get_submodule("base_model.model.classifier.modules_to_save.default")

    def no_memory(_module: Any, args: tuple[Tensor]) -> None:
        raise error()

    head.register_forward_pre_hook(no_memory)
    with pytest.raises(type(error())):
        predict_all(model, bank, [ROWS[0] | {"index": torch.arange(2)}], n_masks=2, seed=0)
    assert not bank._off


def test_refusals() -> None:
    model, bank = adapted_classifier("bert", 0.4)
    with pytest.raises(ValueError, match="`n_masks` must be a whole number >= 1, got 0"):
        predict_all(model, bank, ROWS, n_masks=0, seed=0)
    empty = {name: tensor[:0] for name, tensor in ROWS[0].items()}
    with pytest.raises(ValueError, match="`batches` must hold at least one example, got none"):
        predict_all(model, bank, [empty], n_masks=2, seed=0)

    rows, labels = np.full((2, 2), 0.5), np.array([0, 1])
    with pytest.raises(ValueError, match="must hold at least one member"):
        Predictions(
            member_probabilities=np.zeros((0, 2, 2)), mean_probabilities=rows, labels=labels
        )
    with pytest.raises(ValueError, match=r"must be whole numbers in \[0, 2\), got 2 in row 1"):
        Predictions(member_probabilities=rows[None], mean_probabilities=rows, labels=labels + 1)
    bad = np.array([[0.5, 0.5], [np.nan, 0.5]])
    for members, mean in ((bad[None], rows), (rows[None], bad)):
        with pytest.raises(ValueError, match=r"finite probabilities, .* 1 of 2 rows, .* row 1"):
            Predictions(member_probabilities=members, mean_probabilities=mean, labels=labels)
