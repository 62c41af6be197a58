"""Late tiling: members of an ensemble share all that lies below the adapter.

Masks act in adapted layers only, so the hidden states that enter the first adapted block are the
same for all members, and so are the base outputs of the layers that read them. Both are computed
once per batch and repeated. Where that is possible is guessed from the structure of a model; that
it was right is seen in the data, call by call, so no model is computed wrongly.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.pytorch_utils import Conv1D

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import forward_replaced
from lodrop_nn.train.tiling import tile_batch

# Containers whose modules run one after the other.
_STACKS = (nn.ModuleList, nn.Sequential)


class FrozenPrefix:
    """The blocks of a model below its first adapted one, in each of its stacks of blocks.

    During :meth:`shared` a block whose inputs are N copies of the same rows reads one of them and
    hands on N copies of its output; any other call runs as usual. So encoders, decoders (with
    their caches), encoder-decoders and models of an unknown kind are served alike, and all that
    lies around the blocks (embeddings, attention masks, position codes, pooling) runs on the tiled
    batch. In evaluation mode a block is taken to be a function that maps each row by itself.

    Args:
        blocks: The modules, in the order in which they run.
        first_adapted: The blocks after them, of whose layers those that read equal copies are
            computed once too.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], first_adapted: Sequence[nn.Module] = ()
    ) -> None:
        self.blocks = list(blocks)
        self.first_adapted = list(first_adapted)
        self._known: dict[nn.Module, _Known] = {}

    @classmethod
    def below_the_adapter(cls, model: PeftModel, bank: MaskBank) -> "FrozenPrefix":
        """The prefix of a model: what runs, in each stack, before the first adapted block.

        A stack without any adapted layer belongs to it as a whole: the encoder of an
        encoder-decoder, say, whose decoder alone is adapted.

        Args:
            model: Adapted model.
            bank: The masks of its adapter.
        """
        prefix = cls([])
        prefix._collect(model, "", [f"{layer.name}." for layer in bank.layers])
        return prefix

    def _collect(self, module: nn.Module, path: str, adapted: Sequence[str]) -> None:
        for name, child in module.named_children():
            child_path = f"{path}{name}."
            is_adapted = any(layer.startswith(child_path) for layer in adapted)
            if isinstance(module, _STACKS):
                if not is_adapted:
                    self.blocks.append(child)
                    continue
                self.first_adapted.append(child)
            if child_path not in adapted:
                self._collect(child, child_path, adapted)
            if isinstance(module, _STACKS):
                return  # what comes after reads what differs among members

    @contextmanager
    def shared(self, n_copies: int, *, keep: bool = True) -> Iterator[None]:
        """Compute the blocks once during passes over a batch that is tiled ``n_copies`` times.

        Args:
            n_copies: N >= 1, instances of each row in the passes.
            keep: Whether to remember what the blocks computed, for later contexts in which they
                are given the same rows. They leave the key-value cache of such a pass empty: keep
                nothing where a sequence will be continued.
        """
        copies = _Copies(n_copies)
        with ExitStack() as stack:
            for block in self.blocks:
                once = _BlockOnce(block, copies, self._known, keep)
                stack.enter_context(forward_replaced(block, once))
            for block in self.first_adapted:
                for module in block.modules():
                    if type(module) in (nn.Linear, Conv1D):
                        layer = _LayerOnce(module.forward, copies)
                        stack.enter_context(forward_replaced(module, layer))
            yield


class _Copies:
    """Knows of which rows a tensor holds N copies."""

    def __init__(self, n_copies: int) -> None:
        self.n_copies = n_copies
        # Weak, or the hidden states of all blocks would stay in memory until the pass ends.
        self._known = WeakTensorKeyDictionary()

    def rows(self, tensor: Tensor) -> Tensor | None:
        """The rows whose copies the tensor holds, None if its parts differ."""
        version, rows = self._known.get(tensor, (None, None))
        if version != _version(tensor):
            rows = self._compared(tensor)
            self._note(tensor, rows)
        return rows

    def of(self, rows: Tensor) -> Tensor:
        """N copies of rows, a new tensor: a module may change its input in place."""
        tensor = rows.repeat(self.n_copies, *[1] * (rows.dim() - 1))
        self._note(tensor, rows)
        return tensor

    def _compared(self, tensor: Tensor) -> Tensor | None:
        if self.n_copies == 1:
            return tensor
        if tensor.requires_grad:
            # Equal values are not equal derivatives: with lora_B = 0 no mask shows in the values.
            return None
        parts = tensor.unflatten(0, (self.n_copies, -1))
        # Behind a mask they differ: two of them tell, and spare the full comparison.
        equal = torch.equal(parts[0], parts[-1]) and bool((parts == parts[0]).all())
        return parts[0] if equal else None

    def _note(self, tensor: Tensor, rows: Tensor | None) -> None:
        self._known[tensor] = (_version(tensor), rows)


def _version(tensor: Tensor) -> object:
    """Changes when the tensor is changed in place; equal to nothing where that is not known."""
    return object() if tensor.is_inference() else tensor._version


class _Known:
    """One call of a block: the leaves of its arguments, and what it returned."""

    def __init__(self, leaves: Sequence[Any], output: Any) -> None:
        self.leaves, self.output = leaves, output

    def fits(self, leaves: Sequence[Any]) -> bool:
        return len(leaves) == len(self.leaves) and all(map(_same, leaves, self.leaves))


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    # Objects without a value of their own (a cache that each pass makes anew) count by their type.
    return type(a) is type(b) and (not isinstance(a, bool | int | float | str) or a == b)


class _BlockOnce:
    """A block that computes N equal copies of the same rows once."""

    def __init__(
        self, block: nn.Module, copies: _Copies, known: dict[nn.Module, _Known], keep: bool
    ) -> None:
        self.block, self.forward = block, block.forward
        self.copies, self.known, self.keep = copies, known, keep

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        height = next((leaf.shape[0] for leaf in leaves if _has_rows(leaf)), 0)
        if height == 0 or height % self.copies.n_copies:
            return self.forward(*args, **kwargs)
        for place, leaf in enumerate(leaves):
            if _has_rows(leaf) and leaf.shape[0] == height:
                leaves[place] = self.copies.rows(leaf)
                if leaves[place] is None:
                    return self.forward(*args, **kwargs)
        output = self._output(leaves, structure)
        n_rows = height // self.copies.n_copies

        def repeat(tensor: Tensor) -> Tensor:
            fits = tensor.dim() > 0 and tensor.shape[0] == n_rows
            return self.copies.of(tensor) if fits else tensor

        return tree_map_only(Tensor, repeat, output)

    def _output(self, leaves: list[Any], structure: Any) -> Any:
        known = self.known.get(self.block)
        if known is not None and known.fits(leaves):
            return known.output
        args, kwargs = tree_unflatten(leaves, structure)
        output = self.forward(*args, **kwargs)
        if self.keep:
            self.known[self.block] = _Known(leaves, output)
        return output


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


class _LayerOnce:
    """A map of rows that computes N equal copies of the same rows once."""

    def __init__(self, forward: Callable[[Tensor], Tensor], copies: _Copies) -> None:
        self.forward, self.copies = forward, copies

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        (x,) = (*args, *kwargs.values())  # named `input` by some
        if self.copies.n_copies > 1 and x.dim() > 1 and x.shape[0] % self.copies.n_copies == 0:
            rows = self.copies.rows(x)
            if rows is not None:
                return self.copies.of(self.forward(rows))
        return self.forward(x)


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
    with bank.off(), prefix.shared(1):
        mean = model(**inputs).logits
    with bank.fixed(n_masks=n_masks, seed=seed), prefix.shared(n_masks):
        members = model(**tile_batch(inputs, n_masks)).logits
    return mean, torch.unflatten(members, 0, (n_masks, -1))
