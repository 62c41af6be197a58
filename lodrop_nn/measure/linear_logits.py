r"""Whether the logits are linear in what is trained: :math:`z = \Theta \varphi(x) + c(x)`.

:math:`\Theta` holds all trained parameters, one row per class, and the features :math:`\varphi` do
not depend on them. Such parameters are the weight and bias of the last linear map
(:math:`\varphi = (h, 1)`), and the factor B of an adapter of that map whose A is frozen
(:math:`\varphi = s A h`), or both. The cross-entropy is convex in them, and Lipschitz with a
constant that can be proved (:mod:`~lodrop_nn.measure.linear_head`).

This is read off the model: every trained parameter belongs to a linear map whose output *is* the
logits, or is such a B. Wrappers and hooks can hide more than the structure shows, so it is then
confirmed in numbers: the logits are affine along a random direction, and their derivatives are the
features' and no others.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call

from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.measure.evaluation import Batch, model_inputs, trained_parameters


def why_not_linear(model: PeftModel, batch: Batch) -> str | None:
    """Why the logits are not linear in the trained parameters, or None if they are.

    A reason is no proof of the opposite. The caller sets evaluation mode and masks.

    Args:
        model: Adapted classifier.
        batch: Rows to try, at least one.

    Raises:
        ValueError: If nothing is trained.
    """
    trained = {id(p) for p in trained_parameters(model).values()}
    names = set()
    for name, module in model.named_modules():
        if not any(id(p) in trained for p in module.parameters(recurse=False)):
            continue
        if ".lora_A." in name:
            return f"{name!r} is trained, and the update is a product with it"
        if type(module) is not nn.Linear:
            return f"{name!r} is trained, and no plain nn.Linear"
        # What an adapted layer returns is the sum of its base layer and of the update.
        names.add(name.partition(".lora_B.")[0].removesuffix(".base_layer"))
    for name, is_logits in _make_the_logits(model, sorted(names), batch).items():
        if not is_logits:
            return f"the output of {name!r} is not the logits"
    if not _is_affine(model, batch):
        return "the logits are not affine along a random direction of the trained parameters"
    return None


def feature_vector(model: PeftModel, inputs: dict[str, Tensor]) -> Tensor:
    """The features of one row, where the logits are linear; on the CPU in float64."""
    parameters = list(trained_parameters(model).values())
    with torch.enable_grad():
        logits = model(**inputs).logits[0]
        # Of a linear map each logit's derivative is the features, in its own row: one of their sum
        # shows them in every row.
        gradients = torch.autograd.grad(logits.sum(), parameters)
    return torch.cat([g.reshape(len(logits), -1)[0] for g in gradients]).to("cpu", torch.float64)


def single_row(model: PeftModel, batch: Batch, row: int) -> dict[str, Tensor]:
    """What the model reads of one row."""
    return {name: t[row : row + 1] for name, t in model_inputs(model, batch).items()}


def _make_the_logits(model: PeftModel, names: Sequence[str], batch: Batch) -> dict[str, bool]:
    """Whether each module runs once in a pass and returns the logits themselves."""
    seen: dict[str, list[Any]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, found=found: found.append(output)
        )
        for name, found in seen.items()
    ]
    try:
        with torch.no_grad():
            logits = model(**model_inputs(model, batch)).logits
    finally:
        for handle in handles:
            handle.remove()
    return {name: len(found) == 1 and found[0] is logits for name, found in seen.items()}


def _is_affine(model: PeftModel, batch: Batch) -> bool:
    """Whether logits are affine along a random direction, with the derivatives of a linear map."""
    inputs = single_row(model, batch, 0)
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
    features = feature_vector(model, inputs)
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
