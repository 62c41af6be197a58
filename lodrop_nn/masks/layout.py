"""Passes whose rows cannot be dealt out to several masks."""

from collections.abc import Sequence


class InstanceLayoutError(ValueError):
    """A layer of a tiled pass does not tell which rows belong to which mask.

    Tiling the batch cannot help: all rows share an input (the relative positions of DeBERTa-v2 and
    -v3 with shared attention keys), or a router regroups them (expert tensors). Such a model takes
    one mask per pass. Training with ``mask_passes="auto"`` and ensembles with ``chunk=None`` turn
    to that by themselves when they meet this error.
    """


def why_one_mask(layer: str, n_masks: int, shape: Sequence[int] | None, n_rows: int | None) -> str:
    """What is wrong with several masks in a layer, and the ways out.

    Args:
        layer: Its path in the model.
        n_masks: Masks of the pass, >= 2.
        shape: Shape of the layer's input; None if the layer computes for all rows at once.
        n_rows: Rows of the pass; None if they are not known.
    """
    if shape is None:
        reason = "it computes once for all rows, which a router regroups"
    else:
        reason = (
            f"of the {n_rows} rows of the pass its input has lost track, got shape {tuple(shape)} "
            "(all rows share it, as DeBERTa's relative positions, or they are regrouped)"
        )
    return (
        f"layer {layer!r} must have one mask per pass, got {n_masks}: {reason}. Let the masks pass "
        "one after the other: train with `mask_passes='auto'` or 'micro' (LoraDropoutTrainerMixin, "
        "backward_over_masks) and mask_scope='batch', not 'example'; predict with `chunk=None` or "
        "`chunk=1`; generate with one member at a time (`bank.members`)."
    )
