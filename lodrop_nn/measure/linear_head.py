r"""A Lipschitz constant that is proved, where the logits are linear in what is trained.

Let :math:`z = \Theta \varphi(x) + c(x)` with :math:`\Theta` all trained parameters, one row per
class, and features :math:`\varphi` that do not depend on them. The gradient of a loss of the logits
is :math:`\nabla_z \ell \otimes \varphi`, of norm :math:`\|\nabla_z \ell\| \|\varphi\|`, and for
the cross-entropy

.. math:: \|\nabla_z \ell\|^2 = \|\pi - e_y\|^2 = (1 - \pi_y)^2 + \sum_{k \ne y} \pi_k^2
    \le 2 (1 - \pi_y)^2 \le 2,

because the :math:`\pi_k` with :math:`k \ne y` are not negative and sum to :math:`1 - \pi_y`. The
loss of an example is therefore Lipschitz with constant :math:`\sqrt2 \|\varphi(x)\|` in *all*
parameters, however far from the solution; so is the smoothed cross-entropy, whose gradient is a
multiple in [0, 1] of it.

Such parameters are the weight and bias of the last linear map (:math:`\varphi = (h, 1)`), and the
factor B of an adapter of that map whose A is frozen (:math:`\varphi = s A h`), or both.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.measure.evaluation import (
    Batch,
    count_rows,
    mean_predictor,
    model_inputs,
    trained_parameters,
)
from lodrop_theory.records import Estimate

# Features are sums and products in the model's precision: some units of rounding, outward.
_ROUNDINGS = 64


def lipschitz_bound(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    on_batch: Callable[[int, int], None] | None = None,
) -> Estimate | None:
    r"""Proved Lipschitz constant of the loss of the rows given, masks off, over all parameters.

    .. math:: \rho = \sqrt 2 \max_i \|\varphi(x_i)\|

    See the top of this module for the proof. It applies where every trained parameter belongs to a
    linear map whose output *is* the logits, or is the factor B of an adapter of one, with A
    frozen; this is read off the model, and then confirmed in numbers: the logits are affine along
    a random direction, and their derivatives are the features' and no others.

    It holds for the rows given and for any whose features are no longer; a fresh example may have
    longer ones.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter; they are off.
        batches: The training examples.
        on_batch: Called as ``on_batch(rows_done, rows)``.

    Returns:
        The constant in nats per parameter norm, rounded upward, as the upper end of what encloses
        the smallest such constant; None where the logits are not linear in what is trained.

    Raises:
        ValueError: If nothing is trained or there is no example.

    Source:
        Derived here.
    """
    n_rows, done, largest = count_rows(batches), 0, 0.0
    outputs = _final_maps(model)
    if outputs is None:
        return None
    with mean_predictor(model, bank, batches):
        if not _make_the_logits(model, outputs, batches[0]) or not _is_linear(model, batches[0]):
            return None
        for batch in batches:
            for row in range(len(batch["labels"])):
                features = _features(model, _row(model, batch, row))
                largest = max(largest, float(features.norm()))
            done += len(batch["labels"])
            if on_batch is not None:
                on_batch(done, n_rows)
    eps = max(torch.finfo(p.dtype).eps for p in trained_parameters(model).values())
    bound = math.sqrt(2) * largest * (1 + _ROUNDINGS * eps)
    return Estimate(
        value=bound,
        low=0.0,
        high=bound,
        n_draws=n_rows,
        method="proved: the logits are linear in the trained parameters; sqrt(2) times the largest "
        "feature norm of the rows given",
    )


def _final_maps(model: PeftModel) -> list[nn.Module] | None:
    """The modules whose output is linear in what is trained, None if some parameter is no such."""
    trained = {id(p) for p in trained_parameters(model).values()}
    names = set()
    for name, module in model.named_modules():
        if not any(id(p) in trained for p in module.parameters(recurse=False)):
            continue
        if type(module) is not nn.Linear or ".lora_A." in name:
            return None
        # What an adapted layer returns is the sum of its base layer and of the update.
        names.add(name.partition(".lora_B.")[0].removesuffix(".base_layer"))
    return [model.get_submodule(name) for name in sorted(names)]


def _make_the_logits(model: PeftModel, outputs: Sequence[nn.Module], batch: Batch) -> bool:
    """Whether the modules run once each in a pass, and what each returns is the logits."""
    seen: list[Any] = []
    handles = [
        module.register_forward_hook(lambda _module, _args, output: seen.append(output))
        for module in outputs
    ]
    try:
        with torch.no_grad():
            logits = model(**model_inputs(model, batch)).logits
    finally:
        for handle in handles:
            handle.remove()
    return len(seen) == len(outputs) and all(output is logits for output in seen)


def _is_linear(model: PeftModel, batch: Batch) -> bool:
    """Whether logits are affine along a random direction, with the derivatives of a linear map."""
    inputs = _row(model, batch, 0)
    start = {name: p.detach() for name, p in trained_parameters(model).items()}
    stream = seeded_generator(0)
    step = {
        name: torch.randn(p.shape, generator=stream, dtype=torch.float64).to(p)
        for name, p in start.items()
    }

    def logits_at(distance: float) -> Tensor:
        point = {name: p + distance * step[name] for name, p in start.items()}
        logits: Tensor = functional_call(model, point, (), inputs).logits[0]
        return logits.double()

    with torch.no_grad():
        at_start, first, second = (logits_at(distance) for distance in (0.0, 1.0, 2.0))
    features = _features(model, inputs)
    # One row of the step per class: what it adds to a logit is its product with the features.
    rows = torch.cat([piece.reshape(len(first), -1) for piece in step.values()], dim=1).double()
    added = (rows.cpu() @ features).to(first)
    size = torch.cat([at_start, first, second, rows.cpu().norm(dim=1).to(first)]).abs().max()
    size = size * (1 + features.norm().to(size))
    tolerance = float(size) * 100 * max(torch.finfo(p.dtype).eps for p in start.values())
    return bool(
        torch.allclose(first - at_start, added, rtol=0, atol=tolerance)
        and torch.allclose(second - at_start, 2 * added, rtol=0, atol=2 * tolerance)
    )


def _features(model: PeftModel, inputs: dict[str, Tensor]) -> Tensor:
    """Derivative of one row's logits in the parameters of their class, on the CPU in float64."""
    parameters = list(trained_parameters(model).values())
    logits = model(**inputs).logits[0]
    # Of a linear map each logit's derivative is the features, in its own row: one of their sum
    # shows them in every row.
    gradients = torch.autograd.grad(logits.sum(), parameters)
    return torch.cat([g.reshape(len(logits), -1)[0] for g in gradients]).to("cpu", torch.float64)


def _row(model: PeftModel, batch: Batch, row: int) -> dict[str, Tensor]:
    return {name: t[row : row + 1] for name, t in model_inputs(model, batch).items()}
