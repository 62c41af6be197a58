"""Modules that PEFT trains in full (``modules_to_save``), one copy per replica, in one pass."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from lodrop_nn.masks.contexts import forward_replaced


def replica_heads(model: nn.Module, adapter_names: Sequence[str]) -> list[ModulesToSaveWrapper]:
    """The wrappers that hold a copy of a module for each of some adapters.

    Args:
        model: Adapted model.
        adapter_names: The adapters.

    Raises:
        ValueError: If one of the adapters has no copy of a module that another has.
        NotImplementedError: If an adapter trains single tokens.
    """
    heads = []
    for name, module in model.named_modules():
        if not isinstance(module, AuxiliaryTrainingWrapper):
            continue
        if not isinstance(module, ModulesToSaveWrapper):
            raise NotImplementedError(
                f"module {name!r} is a {type(module).__name__}; replicas train LoRA factors and "
                "`modules_to_save` only."
            )
        missing = [adapter for adapter in adapter_names if adapter not in module.modules_to_save]
        if len(missing) == len(adapter_names):
            continue
        if missing:
            raise ValueError(
                f"replicas must have the same `modules_to_save`: {name!r} has no copy for "
                f"{missing}."
            )
        heads.append(module)
    return heads


@contextmanager
def run_heads_together(
    heads: Sequence[ModulesToSaveWrapper], adapter_names: Sequence[str]
) -> Iterator[None]:
    """Let each wrapper run the copies of the adapters on the slices of its input.

    Args:
        heads: The wrappers of :func:`replica_heads`.
        adapter_names: The adapters, in the order of their slices.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for head in heads:
            stack.enter_context(forward_replaced(head, _SlicedHead(head, adapter_names)))
        yield


class _SlicedHead:
    """The forward pass of a wrapper: copy k on slice k."""

    def __init__(self, wrapper: ModulesToSaveWrapper, adapter_names: Sequence[str]) -> None:
        self.wrapper = wrapper
        self.adapter_names = tuple(adapter_names)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.wrapper.disable_adapters:
            return self.wrapper.original_module(x, *args, **kwargs)
        copies = [self.wrapper.modules_to_save[name] for name in self.adapter_names]
        n_rows = x.shape[0]
        if n_rows % len(copies):
            raise ValueError(
                f"the leading dimension of a head's input must be a multiple of {len(copies)} "
                f"replicas, got shape {tuple(x.shape)}: tile the batch (tile_batch)."
            )
        if all(type(copy) is nn.Linear for copy in copies):
            return _linears(x, copies)
        size, outputs = n_rows // len(copies), []
        for number, copy in enumerate(copies):
            rows = slice(number * size, (number + 1) * size)

            def own(value: Any, rows: slice = rows) -> Any:
                """The slice of what has the rows of the batch; the rest as it is."""
                shared = not isinstance(value, Tensor) or value.shape[:1] != (n_rows,)
                return value if shared else value[rows]

            named = {name: own(value) for name, value in kwargs.items()}
            outputs.append(copy(own(x), *map(own, args), **named))
        if not all(isinstance(output, Tensor) for output in outputs):
            raise TypeError(
                "`modules_to_save` of replicas must return one tensor, got "
                f"{type(outputs[0]).__name__} from {type(copies[0]).__name__}."
            )
        return torch.cat(outputs)


def _linears(x: Tensor, copies: Sequence[nn.Linear]) -> Tensor:
    weights: list[Tensor] = [copy.weight for copy in copies]
    grouped = x.reshape(len(copies), x.shape[:-1].numel() // len(copies), x.shape[-1])
    output = torch.bmm(grouped, torch.stack(weights).mT)
    biases: list[Tensor] = [copy.bias for copy in copies if copy.bias is not None]
    if biases:  # copies of one module: all have one, or none
        output = output + torch.stack(biases)[:, None, :]
    return output.reshape(*x.shape[:-1], output.shape[-1])
