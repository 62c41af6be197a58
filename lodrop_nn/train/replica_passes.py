"""Passes of K replicas as their mask banks are to see them: one slice of the batch each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import nn

from lodrop_nn.adapter.variant import pass_roots
from lodrop_nn.masks import MaskBank
from lodrop_nn.masks.hooks import batch_input


@contextmanager
def draw_for_slices(model: PeftModel, banks: Sequence[MaskBank], n_replicas: int) -> Iterator[None]:
    """Let banks draw the masks of a slice, where their own hooks would see the whole batch.

    Args:
        model: The model that the banks watch.
        banks: The masks of the replicas.
        n_replicas: K, slices of the batch.

    Yields:
        Nothing.
    """
    roots = pass_roots(model)
    handles = []
    try:
        for depth, root in enumerate(roots):
            # Negative depths lie outside those of the banks' own hooks, which then do not draw.
            passes = _Passes(banks, n_replicas, depth - len(roots))
            handles += [
                root.register_forward_pre_hook(passes.begin, prepend=True, with_kwargs=True),
                root.register_forward_hook(passes.end, always_call=True),
            ]
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Passes:
    def __init__(self, banks: Sequence[MaskBank], n_replicas: int, depth: int) -> None:
        self.banks, self.n_replicas, self.depth = banks, n_replicas, depth

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = batch_input(args, kwargs)
        if rows is None or len(rows) % self.n_replicas:
            raise ValueError(
                f"the batch of a pass must hold a multiple of {self.n_replicas} rows, as many for "
                f"each replica, got {None if rows is None else len(rows)}: use "
                f"`tile_batch(batch, {self.n_replicas})`."
            )
        if kwargs.get("adapter_names") is not None:
            raise ValueError("`adapter_names` must be None: replicas deal the rows out themselves.")
        one_slice = rows[: len(rows) // self.n_replicas]
        for bank in self.banks:
            bank.begin_pass(self.depth, module.training, (one_slice,), {})

    def end(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        for bank in self.banks:
            bank.end_pass(self.depth)
