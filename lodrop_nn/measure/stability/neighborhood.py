"""The solution, its rows and its derivatives: what all methods share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from peft import PeftModel
from torch import Tensor

from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.measure.evaluation import Batch, trained_parameters
from lodrop_nn.measure.stability.changes import Float64Array, smoothed_losses
from lodrop_nn.measure.stability.curvature import ExactHessians
from lodrop_nn.measure.stability.dual import Span
from lodrop_nn.measure.stability.jacobian import ContrastJacobian, contrast_jacobian
from lodrop_nn.measure.stability.neighbors import DRAW, Draw, draw_neighbors
from lodrop_nn.measure.stability.rows import Rows
from lodrop_nn.measure.stability.settings import StabilitySettings
from lodrop_theory.records import Estimate

_POOL, _OTHERS = 1, 2  # keys of the draws of fresh rows and of rows for the preconditioner


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighborhood:
    """A solution with all that is computed once; the caller sets evaluation mode and masks.

    Attributes:
        model: Adapted classifier.
        rows: Training rows and the fresh ones that were drawn.
        draw: What is left out, replaced, and where it is felt.
        logits: Of all rows, shape (rows, K).
        losses: Smoothed losses of all rows.
        curvature: The exact Hessians.
        jacobian: Contrast Jacobians of the rows of ``span``.
        span: Their span.
        is_complete: Whether that is all rows, or those alone that memory allows.
    """

    model: PeftModel
    rows: Rows
    draw: Draw
    logits: Float64[Tensor, "rows K"]
    losses: Float64Array
    curvature: ExactHessians
    jacobian: ContrastJacobian
    span: Span
    is_complete: bool

    @property
    def base(self) -> list[int]:
        """The training rows in the span."""
        return [row for row in self.span.numbers if row < self.rows.n_train]


def neighborhood(
    model: PeftModel, train: Sequence[Batch], fresh: Sequence[Batch], settings: StabilitySettings
) -> Neighborhood:
    """What all methods share, computed.

    Raises:
        ValueError: If a logit is not finite, padding matters to the model, or the Jacobian of the
            rows that are needed at least does not fit ``max_bytes``.
    """
    rows = Rows(model, train, fresh)
    n = rows.n_train
    stream = seeded_generator(settings.seed, DRAW, _POOL)
    pool = torch.randperm(len(rows) - n, generator=stream)[: settings.n_fresh].sort().values
    rows.keep((pool + n).tolist())
    rows.store_states()
    rows.check(train)
    logits = rows.logits(range(len(rows)))
    bad = (~torch.isfinite(logits).all(-1)).nonzero().flatten().tolist()
    if bad:  # training rows were checked
        raise ValueError(
            f"`model` must give finite logits, got others for row {int(pool[bad[0] - n])} of "
            "`fresh`."
        )
    draw = draw_neighbors(
        n,
        settings.n_left_out or n,
        len(pool),
        settings.fresh_per_example,
        settings.seed,
    )
    parameters = list(trained_parameters(model).values())
    n_parameters = sum(p.numel() for p in parameters)
    bytes_of_row = (logits.shape[1] - 1) * n_parameters * parameters[0].element_size()
    numbers = _rows_that_fit(rows, draw, settings, settings.max_bytes // bytes_of_row)
    jacobian = contrast_jacobian(model, rows, numbers)
    return Neighborhood(
        model=model,
        rows=rows,
        draw=draw,
        logits=logits,
        losses=smoothed_losses(logits, rows.labels, settings.smoothing),
        curvature=ExactHessians(model, rows, dense=n_parameters <= settings.dense_up_to),
        jacobian=jacobian,
        span=Span(jacobian, numbers),
        is_complete=len(numbers) == len(rows),
    )


def dense_eigenvalues(matrix: Float64[Tensor, "n n"]) -> tuple[Estimate, Estimate]:
    """Smallest and largest eigenvalue of the Hessian of the risk."""
    values = torch.linalg.eigvalsh(matrix)
    smallest, largest = (
        Estimate(
            value=float(value),
            low=float(value),
            high=float(value),
            n_draws=len(values),
            method="dense Hessian of the training risk, masks off, up to rounding",
            provenance="plug-in",
        )
        for value in (values[0], values[-1])
    )
    return smallest, largest


def _rows_that_fit(rows: Rows, draw: Draw, settings: StabilitySettings, most: int) -> list[int]:
    """All rows, or those that the exact methods need and some training rows beside them.

    Raises:
        ValueError: If these are too many.
    """
    if len(rows) <= most:
        return list(range(len(rows)))
    exact = {"newton", "refit"} & set(settings.methods)
    needed = draw.rows(settings.n_exact) if exact else []
    if not exact or len(needed) + settings.n_exact > most:
        raise ValueError(
            f"`max_bytes` must hold the Jacobian of {len(needed) or len(rows)} rows at least, got "
            f"{settings.max_bytes}, which holds {most}."
        )
    stream = seeded_generator(settings.seed, DRAW, _OTHERS)
    order = torch.randperm(rows.n_train, generator=stream).tolist()
    others = [row for row in order if row not in set(needed)]
    return sorted([*needed, *others[: most - len(needed)]])
