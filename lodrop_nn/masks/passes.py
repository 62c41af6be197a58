"""Masks of training passes: one draw per pass, for all layers, outside of them."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lodrop_nn.masks.contexts import Overridden
from lodrop_nn.masks.draw import Coordinates, Draw, LayerFactors, MaskedLayer
from lodrop_nn.masks.hooks import in_backward
from lodrop_nn.masks.laws import draw_masks, seeded_generator
from lodrop_nn.masks.settings import MaskSettings

# First element of the key of a random stream: members of an ensemble never share a stream with
# training, even under the same seed.
PASS_STREAM, ALONE_STREAM, MEMBER_STREAM = range(3)
# Of members that depend on each other and so have one stream together: (2,) and (3,), the keys of
# the initialization and the order of a run, are taken.
JOINT_STREAM = 4


class TrainingPasses:
    """Follows the forward passes of a model in training and serves their masks.

    Drawing at the start of a pass rather than in the layers makes recomputation under gradient
    checkpointing right whether or not it restores the random state, and gives compiled layers
    masks that are plain inputs.

    Args:
        settings: The law of the masks.
        layers: The layers served; the list may still grow.

    Attributes:
        rate_multiplier: Number in [0, 1] that all rates are multiplied with.
        n_drawn: Passes drawn so far, all that seeded masks depend on beside the seed.
        data_rank: Which share of each batch this process trains on, >= 0. Masks of scope
            ``"example"`` depend on it: different examples should not get the same masks.
        n_rows: Leading dimension of the batch of the pass under way; None if it is not known.
        draw: Masks of the latest pass in which a layer asked for some.
        alone: Masks of layers that were called outside any pass since then, by slot.
    """

    def __init__(self, settings: MaskSettings, layers: Sequence[MaskedLayer]) -> None:
        self._settings = settings
        self._layers = layers
        self.rate_multiplier = 1.0
        self.n_drawn = 0
        self.data_rank = 0
        self.n_rows: int | None = None
        self.draw: Draw | None = None
        self.alone: dict[int, Draw] = {}
        self._n_alone = 0
        self._coordinates: tuple[int, float, Coordinates] | None = None  # of how many layers
        self._depth: int | None = None  # of the outermost root of the pass under way
        self._is_drawn = False  # whether that root's call drew masks
        self._is_asked = False  # whether a layer has asked for them
        self._before: tuple[Draw | None, dict[int, Draw]] = (None, {})  # what they replaced
        self._micro: int | None = None  # which mask a pass shows, where it shows one at a time
        self._joint: list[Draw] | None = None  # what the passes of the first micro-step drew
        self._n_micro = 0  # passes of the micro-step under way

    def state_dict(self) -> dict[str, int]:
        """What a resumed training needs to continue seeded masks, as accelerate saves it."""
        return {"n_drawn": self.n_drawn, "n_alone": self._n_alone}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.n_drawn, self._n_alone = int(state["n_drawn"]), int(state["n_alone"])

    def begin(self, depth: int) -> bool:
        """A root is entered; whether that begins a pass."""
        # A deeper root is part of the pass under way. Depths are compared, not counted: a pass
        # that an interrupt left open is simply begun again.
        if self._depth is not None and depth > self._depth:
            return False
        self._depth, self._is_drawn, self.n_rows = depth, False, None
        return True

    def end(self, depth: int) -> None:
        """A root is left, be it by an error."""
        if depth == self._depth:
            # A preference loss runs its reference, with the adapter disabled, between the forward
            # and the backward pass of its policy, whose masks recomputation must see.
            if self._is_drawn and not self._is_asked:
                self.draw, self.alone = self._before
            self._before = (None, {})
            self._depth, self._is_drawn, self.n_rows = None, False, None

    def draw_pass(self, batch: Tensor | None) -> None:
        """Draw the masks of the pass that has begun.

        Args:
            batch: An input of the pass, for its leading dimension and device; None if none is
                known.

        Raises:
            ValueError: If each example needs a mask and the number of examples is not known.
        """
        if in_backward():
            return  # recomputation must see the masks that the pass saw
        if self.draw is not None:
            places = self.draw.places
        else:
            places = () if batch is None else ((batch.device, torch.float32),)
        self._before, self._is_asked = (self.draw, self.alone), False
        self.draw = self._next_draw(None if batch is None else batch.shape[0])
        self.alone = {}
        self._is_drawn = True
        for place in places:  # ahead of time: compiled layers find their factors in place
            self.draw.to(*place)

    def masks(
        self, slot: int, n_rows: int, device: torch.device, dtype: torch.dtype
    ) -> LayerFactors:
        """Masks of one layer in the pass under way, as factors.

        Args:
            slot: Index of the layer.
            n_rows: Leading dimension of the layer's input.
            device: Where the factors are needed.
            dtype: Their precision.

        Returns:
            Factors of the columns of A and of the rows of B.

        Raises:
            RuntimeError: If a recomputed layer finds no masks of the pass that it belongs to.
        """
        layer = self._layers[slot]
        self._is_asked = True
        if not self._is_drawn and not in_backward():
            # Called past all roots (a bare block, a sub-module put in training mode by hand): the
            # layer draws for itself, and keeps the draw for a recomputation.
            n_masks = 1 if self._micro is not None else self._n_masks(n_rows)
            self.alone[slot] = self._new_draw(n_masks, [layer], ALONE_STREAM, slot, self._n_alone)
            self._n_alone += 1
        if slot in self.alone:
            return layer.halves(self.alone[slot].to(device, dtype))
        if self.draw is None:
            raise RuntimeError(
                f"layer {layer.name!r} is recomputed, but the masks of its forward pass are gone: "
                "run the backward pass inside the same context, or give "
                "`bank.checkpoint_contexts` to the checkpoint as its `context_fn`."
            )
        return layer.split(self.draw.to(device, dtype))

    @contextlib.contextmanager
    def micro_pass(self, index: int) -> Iterator[None]:
        """Let passes show one of their N masks; see ``MaskBank.micro_pass``.

        Raises:
            RuntimeError: If pass 0 has not drawn.
        """
        if index == 0:
            self._joint = []
        elif self._joint is None:
            raise RuntimeError(
                "`micro_pass` 0 draws the masks that later ones show: begin with it, got "
                f"index={index!r}."
            )
        with Overridden((self, {"_micro": index, "_n_micro": 0})):
            yield

    @contextlib.contextmanager
    def rewound_on(self, error: type[Exception]) -> Iterator[None]:
        """After an error of this kind, passes draw the masks again that they drew in the context.

        Args:
            error: The kind of error, which is raised on.
        """
        before = self.n_drawn, self._n_alone
        state = torch.get_rng_state()  # read by masks without a seed
        try:
            yield
        except error:
            self.n_drawn, self._n_alone = before
            torch.set_rng_state(state)
            raise

    def _next_draw(self, n_rows: int | None) -> Draw:
        n_masks = self._n_masks(n_rows)
        if self._micro is None:
            return self._pass_draw(n_masks)
        # A micro-step may hold several passes: each shows its mask of what that pass drew.
        joints = self._joint or []
        if self._n_micro == len(joints):
            self._joint = joints = [*joints, self._pass_draw(n_masks)]
        joint = joints[self._n_micro]
        self._n_micro += 1
        return joint.rows(self._micro, self._micro + 1)

    def _pass_draw(self, n_masks: int) -> Draw:
        # Masks of a whole batch are the same on all ranks, which train on one joined batch.
        rank = (
            (self.data_rank,) if self._settings.mask_scope == "example" and self.data_rank else ()
        )
        draw = self._new_draw(n_masks, self._layers, PASS_STREAM, self.n_drawn, *rank)
        self.n_drawn += 1
        return draw

    def _n_masks(self, n_rows: int | None) -> int:
        if self._settings.mask_scope == "batch":
            return self._settings.n_masks
        if n_rows is None:
            raise ValueError(
                "`mask_scope='example'` needs a tensor among the model's inputs whose leading "
                "dimension is the batch, got none."
            )
        return n_rows

    def _new_draw(self, n_masks: int, layers: Sequence[MaskedLayer], *key: int) -> Draw:
        seed = self._settings.seed
        generator = None if seed is None else seeded_generator(seed, *key)
        coordinates = self._coordinates_of(layers)
        masks = draw_masks(self._settings.mask_law, n_masks, coordinates, generator)
        return Draw(masks, coordinates.kept_factors)

    def _coordinates_of(self, layers: Sequence[MaskedLayer]) -> Coordinates:
        """Those of all layers are kept: they change with the schedule of the rates alone."""
        if layers is not self._layers:
            return Coordinates.of(layers, self.rate_multiplier)
        state = (len(layers), self.rate_multiplier)
        if self._coordinates is None or self._coordinates[:2] != state:
            self._coordinates = (*state, Coordinates.of(layers, self.rate_multiplier))
        return self._coordinates[2]
