"""The parts of a certificate before training: rows, base model, adapter, and the prior's center."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lodrop_nn.certify.config import CertifyConfig
from lodrop_nn.certify.pooling import center_on, pool_by_mean
from lodrop_nn.certify.stages import Stage, kept_stage
from lodrop_nn.data import TextClassificationData, load_base_model, load_data, tokenize
from lodrop_nn.data.examples import Examples
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.train.finetune import build_adapter, fine_tune

OnFraction = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a certificate is about, at the center of the prior.

    Attributes:
        model: Adapted model; A is frozen, the factors B and the head are trained.
        bank: The masks of its adapter.
        train: The sample.
        test: Held-out rows.
        initial: Center of the prior, by trained parameter.
        n_pool: Rows of the data set.
        n_classes: K.
        caveats: Of the data set.
        seconds: Wall-clock seconds of the prior.
    """

    model: PeftModel
    bank: MaskBank
    train: Examples
    test: Examples
    initial: dict[str, Tensor]
    n_pool: int
    n_classes: int
    caveats: tuple[str, ...]
    seconds: float


def three_ways(
    data: TextClassificationData, config: CertifyConfig
) -> tuple[TextClassificationData, TextClassificationData, TextClassificationData]:
    """Disjoint rows, drawn uniformly without replacement: sample, held-out, reference.

    The first two are those of :func:`~lodrop_nn.data.classification.split`; the reference rows come
    from the other end of the same permutation.

    Args:
        data: The pool.
        config: How many of each, and the seed.

    Raises:
        ValueError: If the pool has too few rows.
    """
    sizes = (config.n_train, config.n_test, config.n_reference)
    if sum(sizes) > len(data):
        raise ValueError(
            f"`n_train` + `n_test` + `n_reference` must be <= {len(data)}, the distinct rows of "
            f"{data.name!r}, got {' + '.join(map(str, sizes))}."
        )
    order = np.random.default_rng(config.seed).permutation(len(data))
    first = config.n_test
    return (
        data.take(order[first : first + config.n_train]),
        data.take(order[:first]),
        data.take(order[len(order) - config.n_reference :]),
    )


def build(
    config: CertifyConfig, folder: Path, device: torch.device, on_fraction: OnFraction
) -> Problem:
    """Rows, model and prior of a configuration; the prior is kept in ``folder``.

    Args:
        config: The certificate.
        folder: Where its stages are kept.
        device: Where the model goes.
        on_fraction: Called with the fraction that is done and a text.

    Raises:
        ValueError: If the configuration does not fit the data or the model.
    """
    data = load_data(config.data)
    train_rows, test_rows, reference_rows = three_ways(data, config)
    base, tokenizer = load_base_model(config.model, data.n_classes, config.seed)
    reference = tokenize(reference_rows, tokenizer)
    run = config.run_config(base.config.num_hidden_layers)
    if config.pooling == "mean":
        pool_by_mean(base)
    base.to(device)
    model, bank = build_adapter(run, base)
    model.to(device)

    def prior() -> Stage:
        start = time.perf_counter()
        on_fraction(0.0, "features of the reference rows")
        if config.pooling == "mean":
            _center(model, base, bank, reference)
        if config.prior_epochs:
            fine_tune(
                model,
                bank,
                reference,
                run,
                on_step=lambda step, n, loss: on_fraction(step / n, f"prior, step {step}/{n}"),
            )
        return Stage(_movable(model), {"seconds": time.perf_counter() - start})

    stage = kept_stage(folder, "prior", prior)
    with torch.no_grad():
        for name, tensor in _movable(model).items():
            tensor.copy_(stage.tensors[name])
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    return Problem(
        model=model,
        bank=bank,
        train=tokenize(train_rows, tokenizer),
        test=tokenize(test_rows, tokenizer),
        initial={n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad},
        n_pool=len(data),
        n_classes=data.n_classes,
        caveats=data.caveats,
        seconds=float(stage.facts["seconds"]),
    )


def _center(model: PeftModel, base: PreTrainedModel, bank: MaskBank, reference: Examples) -> None:
    # The base was adapted in place; with B = 0 and the masks off it computes what it did.
    with bank.off():
        center_on(base, reference)


def _movable(model: PeftModel) -> dict[str, Tensor]:
    """What the prior settles: factors, head, and the center of the features."""
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    buffers = {n: b for n, b in model.named_buffers() if n.endswith("pooler.center")}
    return {**named, **buffers}
