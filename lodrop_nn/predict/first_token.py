"""Encoders that are read at their first token need no other token past their last attention."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def first_token_only(model: nn.Module, probe: Mapping[str, Tensor]) -> Iterator[bool]:
    """Compute the last block of a BERT-like encoder, past its attention, at the first token alone.

    The classifiers of these encoders read one token. In the last block the others matter as keys
    and values only; its output projection and its feed-forward layers, three quarters of the
    block, are spent on tokens that nobody reads. Values and derivatives do not change.

    Whether a model is of this kind is tried out: the context has an effect only if the logits of
    ``probe`` come out the same, and differ from row to row, as they would not under a head of
    zeros, which proves nothing.

    Args:
        model: A classifier in evaluation mode.
        probe: What the model reads: two rows or more, as wide as any that will come.

    Yields:
        Whether the context has an effect.
    """
    output = _last_attention_output(model)
    if output is None:
        yield False
        return
    with torch.no_grad():
        expected = model(**probe).logits
    if not _differ_from_row_to_row(expected):
        yield False
        return
    handle = output.register_forward_pre_hook(_keep_first_token)
    try:
        with torch.no_grad():
            effective = _agrees(lambda: model(**probe).logits, expected)
        if not effective:
            handle.remove()
        yield effective
    finally:
        handle.remove()


def _last_attention_output(model: nn.Module) -> nn.Module | None:
    """The part of the last block that maps (context, residual) to hidden states, as BERT has it."""
    blocks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if len(blocks) != 1 or not len(blocks[0]):
        return None
    output = getattr(getattr(blocks[0][-1], "attention", None), "output", None)
    return output if isinstance(output, nn.Module) else None


def _keep_first_token(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(states[:, :1] if isinstance(states, Tensor) else states for states in args)


def _differ_from_row_to_row(logits: Tensor) -> bool:
    return not torch.allclose(logits, logits[:1].expand_as(logits), rtol=1e-3, atol=1e-4)


def _agrees(compute: Callable[[], Tensor], expected: Tensor) -> bool:
    try:
        logits = compute()
    except (RuntimeError, IndexError):  # a model that reads tokens which are not there any more
        return False
    if logits.shape != expected.shape:
        return False
    return bool(torch.allclose(logits, expected, rtol=1e-4, atol=1e-5))
