"""What can be measured besides, where the run that trained an adapter is known."""

from collections.abc import Callable
from dataclasses import replace

import torch
from peft import PeftModel
from torch import Tensor

from lodrop_nn.config import RunConfig
from lodrop_nn.data import Examples, load_base_model
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.measure.retraining import retraining_stability
from lodrop_nn.train.finetune import build_adapter
from lodrop_theory.records import RunRecord

_LEFT_OUT = 6  # key of the random stream; 0 to 5 are those of masks, of a run and of a posterior


def initial_adapter(run: RunConfig, n_classes: int) -> tuple[PeftModel, MaskBank]:
    """The adapter as it was before the run: all of it follows from the seed.

    Args:
        run: The run.
        n_classes: K >= 2.

    Returns:
        (model in evaluation mode, its mask bank).
    """
    base, _ = load_base_model(run.model, n_classes, run.seed)
    return build_adapter(run, base)


def initial_parameters(run: RunConfig, n_classes: int) -> dict[str, Tensor]:
    """The trained parameters before the run, by name: a center for a prior that saw no row."""
    model, _ = initial_adapter(run, n_classes)
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def check_enough(n_retrained: int, n_train: int, n_test: int) -> None:
    """Refuse more runs without an example than there are examples and replacements.

    Raises:
        ValueError: If there are too few rows on a side.
    """
    if n_retrained > n_train or n_retrained >= n_test:
        raise ValueError(
            f"`n_retrained` must be at most the {n_train} training rows and below the {n_test} "
            f"held-out rows, got {n_retrained!r}."
        )


def with_retraining(
    record: RunRecord,
    run: RunConfig,
    train: Examples,
    test: Examples,
    n_classes: int,
    *,
    n_retrained: int,
    n_fresh: int,
    seed: int,
    level: float,
    on_step: Callable[[int, int], None] | None = None,
) -> RunRecord:
    """The record with the stability of the training run itself beside the others.

    Args:
        record: A record with a measured stability.
        run: The run that trained the adapter.
        train: Its training rows.
        test: Its held-out rows; ``n_retrained`` of them, drawn with ``seed``, serve as
            replacements, and the losses are compared at ``n_fresh`` others.
        n_classes: K >= 2.
        n_retrained: Training examples that are left out, >= 2, drawn with ``seed``.
        n_fresh: Held-out rows at which the losses are compared, >= 1.
        seed: Seed >= 0 of the draw.
        level: Coverage of the intervals, in (0, 1).
        on_step: Called as ``on_step(steps_done, steps)``.

    Raises:
        ValueError: If there is no stability to stand beside, or there are too few rows.
    """
    if record.stability is None:
        raise ValueError("`record` must have a measured stability, got none.")
    check_enough(n_retrained, len(train), len(test))
    stream = seeded_generator(seed, _LEFT_OUT)
    left_out = torch.randperm(len(train), generator=stream)[:n_retrained].tolist()
    drawn = torch.randperm(len(test), generator=stream)[: n_retrained + n_fresh].tolist()
    fresh = replace(
        test,
        input_ids=tuple(test.input_ids[row] for row in drawn),
        labels=tuple(test.labels[row] for row in drawn),
    )
    model, bank = initial_adapter(run, n_classes)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    estimates, _ = retraining_stability(
        model, bank, train, fresh, run, left_out=left_out, level=level, on_step=on_step
    )
    methods = {**record.stability.estimates, "retrain": estimates}
    return replace(record, stability=replace(record.stability, estimates=methods))
