"""Gradients of the training loss, example by example, at the solution."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.settings import check_count
from lodrop_nn.measure.checks import check_finite, check_labels
from lodrop_nn.measure.evaluation import (
    Batch,
    count_rows,
    flatten,
    mean_predictor,
    model_inputs,
    trained_parameters,
)
from lodrop_nn.measure.predictions import original_order
from lodrop_theory.records import Estimate

# Rows of the gradients of one batch, and the losses of its examples.
_BatchGradients = tuple[Float64[Tensor, "b n_parameters"], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class ExampleGradients:
    """Gradients of the cross-entropy of single examples in the trained parameters, masks off.

    Attributes:
        norms: Euclidean norm of each example's gradient, shape (n,), in the order of the batches.
        mean: Their mean, the gradient of the training risk, by parameter name; float64.
        method: How they were computed.
    """

    norms: Float64[Tensor, " n"]
    mean: dict[str, Tensor]
    method: str


def example_gradients(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    on_batch: Callable[[int, int], None] | None = None,
) -> ExampleGradients:
    """Per-example gradients of the plain cross-entropy, masks off.

    All examples of a batch are differentiated in one vectorized pass. Models build attention masks
    in ways that cannot be vectorized, so the pass is given the additive 4-D mask that they accept
    ready-made. That mask is right for bidirectional attention only: the losses on the most padded
    batch are therefore compared with those of an ordinary pass, and where they differ, or where
    the model cannot be vectorized, examples are differentiated one by one.

    Args:
        model: Adapted classifier; its trained parameters are the coordinates.
        bank: The masks of its adapter; they are off during the measurement.
        batches: The examples.
        on_batch: Called as ``on_batch(rows_done, rows)``.

    Returns:
        Norms and mean.

    Raises:
        ValueError: If nothing is trained, there is no example, a label is outside its range, or a
            gradient is not finite; the first such row of the original order is named.
    """
    n_rows, done = count_rows(batches), 0
    parameters = trained_parameters(model)
    norms = []
    total = torch.zeros(sum(p.numel() for p in parameters.values()), dtype=torch.float64)
    with mean_predictor(model, bank, batches):
        gradients, method = _fastest(model, batches)
        for batch in batches:
            rows, _ = gradients(model, batch)
            norms.append(rows.norm(dim=1))
            total += rows.sum(0)
            done += len(rows)
            if on_batch is not None:
                on_batch(done, n_rows)
    _check_gradients(batches, torch.cat(norms))
    pieces = (total / n_rows).split([p.numel() for p in parameters.values()])
    return ExampleGradients(
        norms=torch.cat(norms),
        mean={
            name: piece.reshape(p.shape)
            for (name, p), piece in zip(parameters.items(), pieces, strict=True)
        },
        method=method,
    )


def lipschitz(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    gradients: ExampleGradients | None = None,
) -> Estimate:
    r"""Largest gradient norm of the loss of one training example at the solution, masks off.

    .. math:: \max_i \bigl\|\nabla_\theta \bigl(-\ln \pi_\theta(y_i \mid x_i)\bigr)\bigr\|_2

    A *lower* estimate of the constant that the stability proof needs, which is a supremum over the
    segments between minimizers of neighboring training sets and over fresh points. It bounds the
    same maximum for the smoothed cross-entropy, whose gradients are shorter.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        gradients: Their gradients, where they have been computed already.

    Returns:
        Nats per parameter norm, >= 0, without an interval.

    Raises:
        ValueError: If nothing is trained or there is no example.

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, Proposition 4.2 (there eta).
    """
    gradients = gradients or example_gradients(model, bank, batches)
    return Estimate(
        value=float(gradients.norms.max()),
        n_draws=len(gradients.norms),
        method=f"largest gradient norm of one training example, masks off ({gradients.method})",
    )


def dropout_lipschitz(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    n_masks: int,
    seed: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> Estimate:
    r"""Largest gradient norm of the loss of one training example, a mean over masks.

    .. math:: \max_i \Bigl\|\frac1N \sum_m \nabla_\theta \bigl(-\ln \pi^m_\theta(y_i \mid
        x_i)\bigr)\Bigr\|_2

    What :func:`lipschitz` is to the loss with masks off, this is to the loss that training sees:
    the value at one point, and a lower estimate of a supremum. The N masks stand for all: their
    noise adds to each norm, so that the mean over more masks tends to be smaller.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        n_masks: N >= 1 masks, the same for all examples; each costs one pass over the gradients.
        seed: Seed >= 0 of the masks.
        on_batch: Called as ``on_batch(rows_done, rows)``.

    Returns:
        Nats per parameter norm, >= 0, without an interval. Without dropout it is
        :func:`lipschitz`.

    Raises:
        ValueError: If nothing is trained, there is no example, an argument is outside its range,
            or a gradient is not finite.
    """
    check_count("n_masks", n_masks)
    if bank.dropout_rate == 0.0:
        n_masks = 1  # all masks are the same
    n_rows, done, norms = count_rows(batches), 0, []
    with mean_predictor(model, bank, batches), bank.fixed(n_masks=n_masks, seed=seed):
        with bank.members(0, 1):
            gradients, method = _fastest(model, batches)
        for batch in batches:
            total: Tensor | float = 0.0
            for mask in range(n_masks):
                with bank.members(mask, mask + 1):
                    total = total + gradients(model, batch)[0]
            norms.append((torch.as_tensor(total) / n_masks).norm(dim=1))
            done += len(batch["labels"])
            if on_batch is not None:
                on_batch(done, n_rows)
    _check_gradients(batches, torch.cat(norms))
    return Estimate(
        value=float(torch.cat(norms).max()),
        n_draws=n_rows,
        method=f"largest gradient norm of one training example, loss averaged over {n_masks} masks "
        f"({method})",
    )


def gradient_norm(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    gradients: ExampleGradients | None = None,
) -> Estimate:
    r"""Norm of the gradient of the training risk, masks off: zero at a stationary point.

    .. math:: \Bigl\|\frac1n \sum_i \nabla_\theta \bigl(-\ln \pi_\theta(y_i \mid x_i)\bigr)\Bigr\|_2

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        gradients: Their gradients, where they have been computed already.

    Returns:
        Nats per parameter norm, >= 0, without an interval.

    Raises:
        ValueError: If nothing is trained or there is no example.
    """
    gradients = gradients or example_gradients(model, bank, batches)
    return Estimate(
        value=float(flatten(list(gradients.mean.values())).norm()),
        n_draws=len(gradients.norms),
        method="gradient norm of the training risk, masks off",
    )


def _fastest(
    model: PeftModel, batches: Sequence[Batch]
) -> tuple[Callable[[PeftModel, Batch], _BatchGradients], str]:
    """The vectorized pass where it reproduces the losses of an ordinary one."""
    probe = max(batches, key=lambda batch: int((batch["attention_mask"] == 0).sum()))
    with torch.no_grad():
        logits = model(**model_inputs(model, probe)).logits
    for batch in batches:
        check_labels(batch["labels"].cpu().numpy(), logits.shape[-1])
    expected = cross_entropy(logits, probe["labels"].to(logits.device), reduction="none")
    try:
        _, losses = _vectorized(model, probe)
    except (RuntimeError, ValueError, TypeError):  # what torch.func and models raise here
        return _one_by_one, "loop"
    same = torch.allclose(losses, expected, rtol=1e-3, atol=1e-4)
    return (_vectorized, "torch.func.vmap") if same else (_one_by_one, "loop")


def _check_gradients(batches: Sequence[Batch], norms: Tensor) -> None:
    in_order = norms.numpy()[original_order(batches, len(norms))]
    check_finite("gradients of the loss", in_order, rows_axis=0)


def _vectorized(model: PeftModel, batch: Batch) -> _BatchGradients:
    parameters = {name: p.detach() for name, p in trained_parameters(model).items()}
    inputs = model_inputs(model, batch)
    dtype = next(iter(parameters.values())).dtype
    hidden = 1 - inputs["attention_mask"].to(dtype)
    inputs["attention_mask"] = (hidden * torch.finfo(dtype).min)[:, None, None, :]

    def loss(point: dict[str, Tensor], example: dict[str, Tensor], label: Tensor) -> Tensor:
        one_row = {name: tensor[None] for name, tensor in example.items()}
        return cross_entropy(functional_call(model, point, (), one_row).logits[0], label)

    gradients, losses = vmap(grad_and_value(loss), in_dims=(None, 0, 0))(
        parameters, inputs, batch["labels"].to(model.device)
    )
    rows = [gradients[name].flatten(1).to("cpu", torch.float64) for name in parameters]
    return torch.cat(rows, dim=1), losses


def _one_by_one(model: PeftModel, batch: Batch) -> _BatchGradients:
    parameters = list(trained_parameters(model).values())
    inputs, labels = model_inputs(model, batch), batch["labels"].to(model.device)
    losses, rows = [], []
    for i in range(len(labels)):
        one_row = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
        losses.append(cross_entropy(model(**one_row).logits, labels[i : i + 1]))
        gradient = torch.autograd.grad(losses[-1], parameters, materialize_grads=True)
        rows.append(flatten(gradient))
    return torch.stack(rows), torch.stack(losses).detach()
