"""Whether the logits are linear in what is trained, so that a ridge makes the risk convex."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.func import functional_call

from lodrop_nn.adapter.replica_variant import check_replicas
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.measure.evaluation import (
    Batch,
    mean_predictor,
    model_inputs,
    trained_parameters,
)
from lodrop_nn.measure.stability.jacobian import point_of

_PROBE = 12  # key of the random stream of the numerical check


@dataclass(frozen=True, kw_only=True)
class Convexity:
    """Whether the cross-entropy is convex in the trained parameters.

    Attributes:
        is_linear: Whether the logits are linear in them, by structure and by a numerical check.
            The cross-entropy is then convex, and with a ridge tau the objective is 2 tau-strongly
            convex everywhere.
        reason: Why, or why not.
    """

    is_linear: bool
    reason: str


def strongly_convex(model: PeftModel, bank: MaskBank, batches: Sequence[Batch]) -> Convexity:
    """Whether a ridge makes the training objective strongly convex in the trained parameters.

    It does where the logits are linear in them: what is trained lies in one last linear layer, its
    head itself or a LoRA factor B there with A frozen. This is read off the structure (the layer's
    output is the logits, no other parameter is trained) and confirmed by second differences. A
    ``False`` is no proof of the opposite.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter; they are off.
        batches: Rows to try, at least one.

    Returns:
        The verdict and its reason.

    Raises:
        ValueError: If nothing is trained or there is no row.
    """
    with mean_predictor(model, bank, batches), torch.no_grad():
        inputs = model_inputs(model, batches[0])
        try:
            layers = {_layer_of(model, name) for name in trained_parameters(model)}
            if len(layers) > 1:
                raise ValueError(f"several layers are trained, {sorted(layers)[:2]} among them")
            _check_last(model, next(iter(layers)), inputs)
            _check_differences(model, inputs)
        except (ValueError, NotImplementedError) as error:
            return Convexity(is_linear=False, reason=str(error).rstrip("."))
    return Convexity(
        is_linear=True, reason=f"all that is trained lies in the last layer, {layers.pop()!r}"
    )


def _layer_of(model: PeftModel, parameter: str) -> str:
    """Path of the linear layer that a parameter enters linearly.

    Raises:
        ValueError: If it does not.
    """
    modules = dict(model.named_modules())
    parts = parameter.split(".")
    for depth in range(len(parts), 0, -1):
        path = ".".join(parts[:depth])
        module = modules.get(path)
        if isinstance(module, LoraLayer):
            kind, adapter = parts[depth], parts[depth + 1]
            if kind != "lora_B":
                raise ValueError(f"{parameter!r} is trained, and the update is a product with it")
            check_replicas(module, path, [adapter])
            return path
        if isinstance(module, ModulesToSaveWrapper):
            if type(module.modules_to_save[parts[depth + 1]]) is not nn.Linear:
                raise ValueError(f"{path!r} is no nn.Linear")
            return path
    raise ValueError(f"{parameter!r} is neither a LoRA factor nor in `modules_to_save`")


def _check_last(model: PeftModel, path: str, inputs: dict[str, Tensor]) -> None:
    outputs: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda module, args, output: outputs.append(output)
    )
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    if len(outputs) != 1 or outputs[0] is not logits:
        raise ValueError(f"the output of {path!r} is not the logits")


def _check_differences(model: PeftModel, inputs: dict[str, Tensor]) -> None:
    stream = seeded_generator(0, _PROBE)
    here = point_of(model, None)
    sizes = sum(p.numel() for p in here.values())
    length = 1.0 + float(torch.stack([p.norm() for p in here.values()]).norm())
    vector = torch.randn(sizes, dtype=torch.float64, generator=stream)
    vector *= length / vector.norm()
    below, middle, above = (
        functional_call(model, point_of(model, t * vector), (), inputs).logits.to(torch.float64)
        for t in (-1.0, 0.0, 1.0)
    )
    scale = float(torch.stack([below, middle, above]).abs().max())
    if float((below + above - 2 * middle).abs().max()) > 1e-4 * scale:
        raise ValueError("second differences of the logits do not vanish")
