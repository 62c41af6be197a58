"""The masks of one adapter, and who decides which of them are on."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Real
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lodrop_nn.config import MaskLaw
from lodrop_nn.masks.contexts import Overridden
from lodrop_nn.masks.draw import Coordinates, Draw, LayerFactors
from lodrop_nn.masks.hooks import batch_input, hook_passes, is_packed
from lodrop_nn.masks.layout import InstanceLayoutError, why_one_mask
from lodrop_nn.masks.passes import TrainingPasses
from lodrop_nn.masks.settings import MaskSettings
from lodrop_nn.masks.table import MaskedLayers


class MaskBank(MaskedLayers):
    """The masks of one LoRA adapter.

    While the model trains, each forward pass draws new masks: ``n_masks`` of them (scope
    ``"batch"``) or one per example (scope ``"example"``). In evaluation mode there are none, and
    the adapter acts as the mean of its masked versions. :meth:`fixed` and :meth:`off` override
    both for a block of code, :meth:`freeze` until further notice.

    Args:
        settings: The law of the masks. With ``n_masks`` = N > 1, a training batch holds N
            instances of the same examples, instance after instance (see
            :func:`lodrop_nn.train.tiling.tile_batch`). With a ``seed``, training masks depend on
            it and on ``passes.n_drawn`` only, so the ranks of a distributed training share them
            and a resumed one continues them; without, they come from torch's default CPU
            generator, as those of ``torch.nn.Dropout`` on the CPU do.

    Attributes:
        settings: The law of the masks.
        passes: The training passes seen and their masks.
        one_mask_per_pass: Whether a layer was seen that cannot deal out the rows of a pass to
            several masks (:class:`~lodrop_nn.masks.layout.InstanceLayoutError`): those who may
            choose then give each mask a pass of its own.

    Example:
        >>> bank = MaskBank(MaskSettings(0.5))
        >>> slot = bank.register("query", in_features=3, out_features=2)
        >>> columns, rows = bank.split(bank.draw(4, seed=0), slot)
        >>> columns.shape, rows.shape
        (torch.Size([4, 3]), torch.Size([4, 2]))
    """

    def __init__(self, settings: MaskSettings) -> None:
        super().__init__(settings)
        self.passes = TrainingPasses(settings, self._layers)
        self.one_mask_per_pass = False
        self._off = False
        self._frozen = False
        self._fixed: Draw | None = None
        self._hooks: list[RemovableHandle] = []
        self._takers: WeakSet[object] = WeakSet()
        self._had_takers = False

    def __getstate__(self) -> dict[str, Any]:
        # `merge_and_unload` leaves hooks on the base model, and so the bank; the handles of those
        # on PEFT's wrappers, which are gone by then, can be neither copied nor pickled.
        alive = [handle for handle in self._hooks if handle.hooks_dict_ref() is not None]
        state = {**vars(self), "_hooks": alive}
        del state["_takers"]  # their copies tell the copy of the bank
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # Takers may come before the rest, where hooks on a module lead to its layers.
        vars(self).setdefault("_takers", WeakSet())
        vars(self).update(state)

    def __repr__(self) -> str:
        return f"MaskBank({self.settings}, n_layers={len(self._layers)})"

    @property
    def rate_multiplier(self) -> float:
        """Number in [0, 1] that multiplies the rates of training masks: 1 unless scheduled.

        Members of ensembles always have the full rates.

        Raises:
            ValueError: On setting, if the value is outside its range, or masks are not rescaled:
                the mean of the masked update would change with it.
        """
        return self.passes.rate_multiplier

    @rate_multiplier.setter
    def rate_multiplier(self, value: float) -> None:
        if not isinstance(value, Real) or not 0.0 <= value <= 1.0:  # false for NaN
            raise ValueError(f"`rate_multiplier` must be in [0, 1], got {value!r}.")
        if not self.rescale and value != self.passes.rate_multiplier:
            raise ValueError(
                "`rate_multiplier` must stay 1 for masks that are not rescaled (the mean of the "
                f"masked update would change with it), got {value!r}: use `rescale=True`."
            )
        self.passes.rate_multiplier = float(value)

    @contextlib.contextmanager
    def fixed(
        self, n_masks: int = 16, seed: int = 0, mask_law: MaskLaw = "iid"
    ) -> Iterator["MaskBank"]:
        """Hold ``n_masks`` masks for the whole context, also in evaluation mode.

        Inputs hold ``n_masks`` instances of a batch, instance after instance; instance i sees
        member i of the ensemble that ``seed`` names. The members are well-defined adapters: the
        same for every batch, through all steps of ``generate()``, and on every device. A backward
        pass through checkpointed blocks belongs inside the context.

        Args:
            n_masks: Number of members, >= 1.
            seed: Seed >= 0; see :meth:`draw`.
            mask_law: How the members depend on each other; ``ensemble_predict`` and its like take
                ``"balanced"`` unless told otherwise.

        Yields:
            The bank.

        Raises:
            ValueError: If an argument is outside its range.
        """
        kept_factors = Coordinates.of(self._layers).kept_factors
        masks = Draw(self.draw(n_masks, seed, mask_law), kept_factors)
        with Overridden((self, {"_off": False, "_fixed": masks})):
            yield self

    @contextlib.contextmanager
    def members(self, start: int, stop: int) -> Iterator["MaskBank"]:
        """Inside :meth:`fixed`: only members ``start`` to ``stop - 1``, to take them in chunks.

        Args:
            start: First member, >= 0.
            stop: One past the last member, at most the number of fixed masks.

        Yields:
            The bank.

        Raises:
            RuntimeError: If no masks are fixed.
            ValueError: If the range is empty or reaches beyond the fixed masks.
        """
        if self._fixed is None:
            raise RuntimeError("`members` chooses among fixed masks: enter `bank.fixed()` first.")
        n_masks = self._fixed.masks.shape[0]
        if not 0 <= start < stop <= n_masks:
            raise ValueError(
                f"`start` and `stop` must satisfy 0 <= start < stop <= {n_masks}, "
                f"got start={start!r}, stop={stop!r}."
            )
        with Overridden((self, {"_fixed": self._fixed.rows(start, stop)})):
            yield self

    @contextlib.contextmanager
    def off(self) -> Iterator["MaskBank"]:
        """Apply no masks, also in training mode: the adapter acts as its mean.

        For the mean predictor, and for log-probabilities that must be reproducible in training
        mode (preference and RL training, whose ``disable_dropout`` does not find these masks).

        Yields:
            The bank.
        """
        with Overridden((self, {"_off": True})):
            yield self

    def freeze(self) -> None:
        """Apply no masks until :meth:`unfreeze`: :meth:`off` for loops that cannot be wrapped.

        The adapter acts and trains as its mean, plain LoRA with rescaled masks. Ensembles
        (:meth:`fixed`) keep their masks.
        """
        self._frozen = True

    def unfreeze(self) -> None:
        """End what :meth:`freeze` began."""
        self._frozen = False

    @contextlib.contextmanager
    def micro_pass(self, index: int) -> Iterator["MaskBank"]:
        """Let a training pass show one of its N masks, so that N passes stand for a tiled one.

        Pass 0 draws N masks and shows the first of them to a batch that is not tiled; passes 1 to
        N - 1 show the others to the same batch. Backward passes belong inside the context. See
        :func:`lodrop_nn.train.micro_steps.backward_over_masks`.

        Args:
            index: Which mask, in [0, n_masks).

        Yields:
            The bank.

        Raises:
            RuntimeError: If pass 0 has not drawn.
            ValueError: If ``index`` is outside its range.
        """
        if not 0 <= index < self.n_masks:
            raise ValueError(f"`index` must be in [0, {self.n_masks}), got {index!r}.")
        with self.passes.micro_pass(index):
            yield self

    def checkpoint_contexts(
        self,
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """A ``context_fn`` for ``torch.utils.checkpoint``: recompute under the masks of now.

        Without it, recomputation sees the masks of the latest forward pass. That is right for the
        usual forward-backward rhythm and wrong when several forward passes precede one backward
        pass (contrastive and preference losses). Pass it on as
        ``gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": ...}``.

        Returns:
            The context of the forward pass (empty) and of its recomputation.
        """
        now = {"draw": self.passes.draw, "alone": self.passes.alone}
        served = (self, {"_off": self._off, "_fixed": self._fixed}), (self.passes, now)
        return nullcontext(), Overridden(*served)

    def masks(
        self, slot: int, *, training: bool, n_rows: int, device: torch.device, dtype: torch.dtype
    ) -> LayerFactors | None:
        """Masks that a layer must apply now, as factors, or None for the mean update.

        Args:
            slot: What :meth:`register` returned for the layer.
            training: Whether the layer is in training mode.
            n_rows: Leading dimension of the layer's input.
            device: Where the factors are needed.
            dtype: Of the layer's weights; factors are in float32 at least.

        Returns:
            Factors of the columns of A and of the rows of B (0 where dropped), or None.
        """
        if not self._is_active(training):
            return None
        dtype = torch.promote_types(dtype, torch.float32)
        if self._fixed is not None:
            return self._layers[slot].split(self._fixed.to(device, dtype))
        return self.passes.masks(slot, n_rows, device, dtype)

    def check_layout(self, slot: int, n_masks: int, shape: Sequence[int] | None) -> None:
        """Refuse a layer whose input has lost the instances of a tiled pass, and remember it.

        A batch that was not tiled is another matter: nothing happens then.

        Args:
            slot: What :meth:`register` returned for the layer.
            n_masks: Masks that the layer is given, >= 1.
            shape: Shape of its input, the rows first; None if it computes for all rows at once.

        Raises:
            InstanceLayoutError: If the layer cannot tell which rows belong to which mask.
        """
        if n_masks == 1 or (shape is not None and len(shape) > 1 and shape[0] % n_masks == 0):
            return
        # Read in this case only: a compiled layer would be compiled anew for other batches.
        n_rows = self.passes.n_rows
        if shape is None or (n_rows is not None and n_rows % n_masks == 0):
            self.one_mask_per_pass = True
            name = self._layers[slot].name
            raise InstanceLayoutError(why_one_mask(name, n_masks, shape, n_rows))

    def add_taker(self, taker: object) -> None:
        """Remember an object as long as it lives: when the last is gone, no layer asks any more.

        A bank that ever had one then stops watching by itself, since PEFT says nothing to it when
        it merges, unloads or deletes the adapter.

        Args:
            taker: Through which a layer takes its masks from here.
        """
        vars(self).setdefault("_takers", WeakSet()).add(taker)
        self._had_takers = True

    def watch(self, roots: Sequence[nn.Module]) -> None:
        """Draw when a forward pass enters one of these modules, given outermost first.

        A bank that watches nothing still works: each layer then draws for itself.
        """
        self._hooks += hook_passes(self, roots)

    def unwatch(self) -> None:
        """Remove the hooks that :meth:`watch` placed."""
        while self._hooks:
            self._hooks.pop().remove()

    @property
    def is_watching(self) -> bool:
        """Whether masks are drawn once per pass for all layers."""
        return bool(self._hooks)

    def begin_pass(
        self, depth: int, training: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Called by the hooks before the forward pass of a root.

        Raises:
            ValueError: If the pass cannot be masked: it mixes adapters in one batch, or has no
                batch dimension although each example needs a mask.
        """
        if self._had_takers and not self._takers:  # the adapter is merged, unloaded or deleted
            self.unwatch()
            return
        if not self.passes.begin(depth) or not self._is_active(training):
            return
        batch = batch_input(args, kwargs)
        self.passes.n_rows = None if batch is None else batch.shape[0]
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "`adapter_names` (adapters mixed in one batch) regroups the rows that masks are "
                "assigned to: use it in evaluation mode and outside `bank.fixed()`."
            )
        if self._fixed is None:
            if self.mask_scope == "example" and is_packed(kwargs):
                raise ValueError(
                    "`mask_scope='example'` needs one row per example, got packed inputs, whose "
                    "rows hold several: use `mask_scope='batch'`, or pad instead of packing."
                )
            self.passes.draw_pass(batch)

    def end_pass(self, depth: int) -> None:
        """Called by the hooks after the forward pass of a root, also after one that raised."""
        self.passes.end(depth)

    def _is_active(self, training: bool) -> bool:
        if self._off or self._is_zero:
            return False
        return self._fixed is not None or (training and not self._frozen)
