"""Hooks that tell a mask bank where a forward pass begins and ends."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from lodrop_nn.masks.bank import MaskBank

# Names under which Hugging Face models take the tensor whose leading dimension is the batch.
_BATCH_INPUTS = (
    "input_ids",
    "inputs_embeds",
    "pixel_values",
    "input_features",
    "input_values",
    "decoder_input_ids",
)
# Names under which they take the boundaries of sequences that share a row.
_PACKED_INPUTS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


def in_backward() -> bool:
    """Whether autograd is running on this thread: a forward pass is then a recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)


def batch_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The input of a pass that shows its batch dimension and device; None if it has no tensor."""
    named = [kwargs.get(name) for name in _BATCH_INPUTS]
    for value in (*named, *args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return value
    return None


def is_packed(inputs: Mapping[str, Any]) -> bool:
    """Whether a row of the inputs of a pass holds several sequences: rows are then no examples."""
    if any(inputs.get(name) is not None for name in _PACKED_INPUTS):
        return True
    positions = inputs.get("position_ids")
    if inputs.get("attention_mask") is not None or not isinstance(positions, torch.Tensor):
        return False
    # Only a single row may restart its positions; that is how models tell without boundaries.
    if positions.dim() != 2 or positions.shape[0] != 1:
        return False
    return bool((positions.diff() != 1).any())


# Hooks are objects, not closures: `copy.deepcopy(model)` then copies the bank they point to, once
# for hooks and layers alike, instead of driving the original's.
class _PassBegins:
    def __init__(self, bank: "MaskBank", depth: int) -> None:
        self.bank, self.depth = bank, depth

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.bank.begin_pass(self.depth, module.training, args, kwargs)


class _PassEnds:
    def __init__(self, bank: "MaskBank", depth: int) -> None:
        self.bank, self.depth = bank, depth

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self.bank.end_pass(self.depth)


def hook_passes(bank: "MaskBank", roots: Sequence[nn.Module]) -> list[RemovableHandle]:
    """Report the forward passes of nested modules to a bank.

    Args:
        bank: Receives ``begin_pass`` and ``end_pass``.
        roots: Modules through which a pass may be entered, outermost first. Wrappers do not
            always call the module that they wrap (some call its ``forward`` and skip hooks), and
            callers enter at any level, so each level is hooked and the bank lets only the
            outermost call of a pass draw.

    Returns:
        Handles that remove the hooks.
    """
    handles = []
    for depth, root in enumerate(roots):
        handles.append(root.register_forward_pre_hook(_PassBegins(bank, depth), with_kwargs=True))
        handles.append(root.register_forward_hook(_PassEnds(bank, depth), always_call=True))
    return handles
