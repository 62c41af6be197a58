"""Late tiling: members of an ensemble share all that lies below the adapter.

Masks act in adapted layers only, so the hidden states that enter the first adapted block are the
same for all members, and so are the base outputs of the layers that read them. Both are computed
once per batch and repeated.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.train.tiling import tile_batch


class FrozenPrefix:
    """The blocks of a transformer below its first adapted one.

    :meth:`record` keeps what they hand on during one pass over a batch; :meth:`replay` makes the
    next pass, over the same batch tiled N times, start from N copies of it. All that lies around
    the blocks (embeddings, attention masks, position codes, pooling) runs as usual on the tiled
    batch, so any model built of blocks in sequence is served. An empty prefix does nothing.

    Args:
        blocks: The modules, in the order in which they run; each maps hidden states, its first
            argument, to hidden states.
        first_adapted: The block after them, or None.
    """

    def __init__(self, blocks: list[nn.Module], first_adapted: nn.Module | None = None) -> None:
        self.blocks = blocks
        self.first_adapted = first_adapted
        self._states: Tensor | None = None

    @classmethod
    def below_the_adapter(cls, model: PeftModel, bank: MaskBank) -> "FrozenPrefix":
        """The prefix of a model, empty where its structure is not known.

        Known is: all adapted layers lie in one list of blocks, from which those below the first
        adapted one are taken.

        Args:
            model: Adapted model.
            bank: The masks of its adapter.
        """
        adapted = [layer.name for layer in bank.layers]
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and all(
                other.startswith(f"{name}.") for other in adapted
            ):
                places = [other.removeprefix(f"{name}.").split(".")[0] for other in adapted]
                first = min(map(int, places), default=0)
                return cls(list(module[:first]), module[first])
        return cls([])

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keep the output of the last block during one pass."""
        if not self.blocks:
            yield
            return

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._states = output if isinstance(output, Tensor) else None

        handle = self.blocks[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def replay(self, n_masks: int) -> Iterator[None]:
        """Skip the blocks during the next pass and hand on N copies of the recorded output."""
        states, self._states = self._states, None
        if states is None:  # no blocks, or blocks that return something else than hidden states
            yield
            return
        copies = _repeat(states, n_masks)
        with ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(_forward_replaced(block, lambda *args, **kwargs: copies))
            if self.first_adapted is not None:
                for module in self.first_adapted.modules():
                    if type(module) is nn.Linear:
                        once = _OncePerCopy(module.forward, n_masks)
                        stack.enter_context(_forward_replaced(module, once))
            yield


class _OncePerCopy:
    """A map of rows that computes N equal copies of the same rows once."""

    def __init__(self, forward: Callable[[Tensor], Tensor], n_masks: int) -> None:
        self.forward, self.n_masks = forward, n_masks

    def __call__(self, rows: Tensor) -> Tensor:
        if rows.shape[0] % self.n_masks == 0:
            copies = rows.unflatten(0, (self.n_masks, -1))
            # Behind a mask the copies differ: two of them tell, and spare the full comparison.
            if torch.equal(copies[0], copies[-1]) and bool((copies == copies[0]).all()):
                return _repeat(self.forward(copies[0]), self.n_masks)
        return self.forward(rows)


def _repeat(rows: Tensor, n_masks: int) -> Tensor:
    return rows.repeat(n_masks, *[1] * (rows.dim() - 1))


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """An instance attribute shadows the method of the class; one that was there comes back."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


def mean_and_member_logits(
    model: PeftModel,
    bank: MaskBank,
    inputs: Mapping[str, Tensor],
    *,
    n_masks: int,
    seed: int,
    prefix: FrozenPrefix,
) -> tuple[Float[Tensor, "b K"], Float[Tensor, "n_masks b K"]]:
    r"""Logits of one batch with the masks off, and under each of N masks.

    With f the share of the frozen prefix in a forward pass, N members and the mean cost
    1 + N (1 - f) passes over the batch instead of 1 + N.

    Args:
        model: Adapted classifier, in evaluation mode.
        bank: The masks of its adapter.
        inputs: What the model reads, leading dimension b.
        n_masks: N >= 1.
        seed: Seed >= 0 of the masks; with N it determines them.
        prefix: The model's :meth:`FrozenPrefix.below_the_adapter`, or an empty one.

    Returns:
        Logits of the mean predictor and of the members.
    """
    with bank.off(), prefix.record():
        mean = model(**inputs).logits
    with bank.fixed(n_masks=n_masks, seed=seed), prefix.replay(n_masks):
        members = model(**tile_batch(inputs, n_masks)).logits
    return mean, torch.unflatten(members, 0, (n_masks, -1))
