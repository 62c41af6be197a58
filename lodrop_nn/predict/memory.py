"""How many members of an ensemble go into one forward pass."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lodrop_nn.masks.layout import InstanceLayoutError
from lodrop_nn.masks.settings import check_count

T = TypeVar("T")

# On a CPU a pass only has to be large enough to hide the cost of calling the layers; beyond, its
# hidden states fall out of the cache. (MiniLM, one thread, 16 members: for 8 examples of 23 tokens
# 4 to 8 members per pass are the fastest, for 16 of 26 tokens 2 to 4, for 32 of 26 tokens 1 to 2.)
_CPU_TOKENS = 1024
# Activations that are alive at once, in units of the widest layer's output, and the share of the
# free memory that they may take. A guess: when it is wrong, `in_chunks` takes fewer members.
_WIDEST_OUTPUTS, _SHARE = 4, 0.5


def members_per_pass(model: nn.Module, inputs: Mapping[str, Any], n_masks: int) -> int:
    """A number of members that one pass over a tiled batch should hold.

    On CUDA as many as half of the free memory is expected to hold; on a CPU as many as keep the
    pass small enough for its cache; elsewhere all of them.

    Args:
        model: The model that will read them.
        inputs: A batch that is not tiled yet.
        n_masks: Members that are wanted, >= 1.

    Returns:
        A whole number in [1, n_masks].
    """
    device = next(model.parameters()).device
    n_tokens = max(1, _count_tokens(model, inputs))
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        fit = int(_SHARE * free / (n_tokens * _bytes_per_token(model)))
    elif device.type == "cpu":
        fit = _CPU_TOKENS // n_tokens
    else:
        fit = n_masks
    n_passes = -(-n_masks // max(1, fit))
    return -(-n_masks // n_passes)  # passes of about equal size


def in_chunks(
    n_masks: int, chunk: int, run: Callable[[int, int], T], *, keep_chunk: bool = True
) -> Iterator[T]:
    """Results of chunks of members; a chunk that does not fit into memory is halved.

    Args:
        n_masks: Members, >= 1.
        chunk: Members per chunk, >= 1.
        run: Called with the first member of a chunk and one past its last.
        keep_chunk: Whether a model that takes one mask per pass is an error for larger chunks; if
            not, members go one by one from there on.

    Yields:
        What ``run`` returned, in the order of the members.

    Raises:
        InstanceLayoutError: If the model takes one mask per pass, and chunks are to be kept.
        RuntimeError: If memory does not even suffice for one member (on CUDA
            ``torch.OutOfMemoryError``).
        MemoryError: The same, where the memory was Python's.

    Example:
        >>> list(in_chunks(5, 2, lambda start, stop: (start, stop)))
        [(0, 2), (2, 4), (4, 5)]
    """
    check_count("chunk", chunk)
    start = 0
    while start < n_masks:
        stop = min(start + chunk, n_masks)
        try:
            result = run(start, stop)
        except (RuntimeError, MemoryError) as error:
            if stop - start == 1 or not _is_out_of_memory(error):
                raise
            chunk = (stop - start) // 2
        except InstanceLayoutError:
            if keep_chunk:
                raise
            chunk = 1
        else:
            yield result
            start = stop
            continue
        # Outside the `except`, whose traceback holds on to the tensors of the failed pass.
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator" in str(error)


def _count_tokens(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    first = next((value for value in inputs.values() if isinstance(value, Tensor)), None)
    if first is None:
        return 0
    if not first.is_floating_point():
        return first.numel()
    # Embeddings; and of images about as many numbers as their patches have coordinates.
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    return first.numel() // width if isinstance(width, int) else first.shape[0]


def _bytes_per_token(model: nn.Module) -> int:
    layers = (module for module in model.modules() if isinstance(module, nn.Linear))
    widest = max((layer.out_features for layer in layers), default=1024)
    return _WIDEST_OUTPUTS * widest * next(model.parameters()).element_size()
