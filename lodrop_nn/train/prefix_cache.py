"""The frozen part of a model below its first adapted block, computed once for a data set.

No adapter reaches that part, so what it hands on for a row is the same in every epoch, for every
mask, and for every adapter of the model.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor

from lodrop_nn.data.examples import Batch, Examples, batches
from lodrop_nn.masks.contexts import evaluation_mode, forward_replaced
from lodrop_nn.masks.settings import check_count
from lodrop_nn.train.frozen_prefix import blocks_below, check_frozen, check_undisturbed, enter


class PrefixCache:
    """The hidden states that enter the first adapted block, for each row of a data set.

    Passes inside :meth:`replay` start from them: the blocks below are skipped, all that lies
    around the blocks (embeddings, attention masks, position codes, pooling, head) runs as usual.
    With f the share of those blocks in a forward pass F, a training step then costs 2 (1 - f) F
    instead of (2 - f) F. The states stay right as long as the base does not change; they serve
    every adapter that begins no lower.

    Args:
        model: Adapted model whose blocks lie in one ``ModuleList`` and map hidden states, their
            first argument, to hidden states.
        examples: The rows. Memory is that of one hidden state per token.
        batch_size: Rows per pass while the states are computed, >= 1.

    Raises:
        ValueError: If nothing lies below the first adapted block, or states of the part below are
            not constant: it is trained, it has an active dropout, or a pass that starts from
            stored states gives another result.

    Example:
        >>> cache = PrefixCache(model, examples)                  # doctest: +SKIP
        >>> for batch in batches(examples, 16, order="length"):   # doctest: +SKIP
        ...     with cache.replay(batch):
        ...         logits = model(batch["input_ids"], batch["attention_mask"]).logits
    """

    def __init__(self, model: PeftModel, examples: Examples, *, batch_size: int = 32) -> None:
        check_count("batch_size", batch_size)
        if not len(examples):
            raise ValueError("`examples` must have at least one row, got none.")
        self._blocks, self._first_adapted = blocks_below(model)
        self._device = next(model.parameters()).device
        order = sorted(range(len(examples)), key=lambda row: len(examples.input_ids[row]))
        probe = self._inputs(_some_rows(examples, [order[0], order[-1]]))
        check_frozen(model, self._first_adapted, probe)
        self._store(model, examples, batch_size)
        # Row numbers of the data set, not of the probe.
        self._check_equal(model, {**probe, "index": torch.tensor([order[0], order[-1]])})

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._lengths)

    @property
    def n_blocks(self) -> int:
        """Blocks that a pass skips."""
        return len(self._blocks)

    @property
    def n_bytes(self) -> int:
        """Memory of the states."""
        return self._states.numel() * self._states.element_size()

    def states(
        self, index: Int[Tensor, "b"], attention_mask: Int[Tensor, "b tokens"]
    ) -> Float[Tensor, "b tokens hidden"]:
        """The stored states of some rows; 0 where a row is padded.

        Args:
            index: Positions of the rows in the data set, repeated ones allowed.
            attention_mask: Their padding, which must lie at their ends.

        Returns:
            A new tensor that requires no gradient.

        Raises:
            ValueError: If a row does not exist or is not as long as the stored one.
        """
        index, mask = index.to(self._device), attention_mask.to(self._device).bool()
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(f"`index` must be rows in [0, {len(self)}), got {index.tolist()}.")
        places = torch.arange(mask.shape[1], device=self._device)
        if mask.shape[0] != len(index) or not torch.equal(
            mask, places < self._lengths[index][:, None]
        ):
            raise ValueError(
                "`attention_mask` must be 1 on the tokens of each row of `index` as stored and 0 "
                "on padding at its end: were rows truncated, padded on the left or reordered?"
            )
        packed = self._starts[index][:, None] + places
        states = self._states[packed.where(mask, 0)]
        return states * mask[..., None].to(states.dtype)

    @contextmanager
    def replay(self, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Let passes over a batch start from the stored states.

        Args:
            batch: ``index`` and ``attention_mask`` of the rows that the passes inside the context
                read, as :func:`~lodrop_nn.data.examples.batches` makes them; tiled if theirs are.

        Yields:
            Nothing.

        Raises:
            ValueError: If the rows are not those that were stored, or a pass reads others.
        """
        states = self.states(batch["index"], batch["attention_mask"])
        with ExitStack() as stack:
            stack.enter_context(forward_replaced(self._blocks[0], _Stored(states)))
            for block in self._blocks[1:]:
                stack.enter_context(forward_replaced(block, _passed_on))
            yield

    def _inputs(self, batch: Batch) -> Batch:
        return {name: batch[name].to(self._device) for name in ("input_ids", "attention_mask")}

    def _store(self, model: PeftModel, examples: Examples, batch_size: int) -> None:
        lengths = [len(row) for row in examples.input_ids]
        starts, pieces, n_tokens = [0] * len(examples), [], 0
        with torch.no_grad(), evaluation_mode(model):
            for batch in batches(examples, batch_size, order="length"):
                entering = enter(model, self._first_adapted, self._inputs(batch))
                for row, states in zip(batch["index"].tolist(), entering, strict=True):
                    starts[row], n_tokens = n_tokens, n_tokens + lengths[row]
                    pieces.append(states[: lengths[row]])
        self._states = torch.cat(pieces)
        self._starts = torch.tensor(starts, device=self._device)
        self._lengths = torch.tensor(lengths, device=self._device)

    def _check_equal(self, model: PeftModel, batch: Batch) -> None:
        inputs = self._inputs(batch)
        with torch.no_grad(), evaluation_mode(model):
            whole = _first_tensor(model(**inputs))
            with self.replay(batch):
                shortened = _first_tensor(model(**inputs))
        check_undisturbed(whole, shortened, inputs["attention_mask"])


class _Stored:
    """Stands for the first block: hands on stored states instead of computing them."""

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if hidden_states.shape != self.states.shape:
            raise ValueError(
                "a pass inside `replay` must read the rows of its `batch`: their states have shape "
                f"{tuple(self.states.shape)}, got a pass of shape {tuple(hidden_states.shape)}."
            )
        return self.states


def _passed_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _some_rows(examples: Examples, rows: list[int]) -> Batch:
    some = Examples(
        input_ids=tuple(examples.input_ids[row] for row in rows),
        labels=tuple(examples.labels[row] for row in rows),
        pad_token_id=examples.pad_token_id,
    )
    return batches(some, len(rows), order="given")[0]


def _first_tensor(output: Any) -> Tensor:
    """The logits, or what the model returns first."""
    return output if isinstance(output, Tensor) else output[0]
