r"""Choosing a dropout rate: by leave-one-out risk, never by a bound.

A bound :math:`\hat R(p) + G(p)` of the stability type reads constants that hold for all training
sets. With them G is many times the gap itself, so that the slope of the sum in p is the slope of G,
which falls in p all the way: the minimizer is the last rate of the grid, whatever the data. The
tests show it for four bounds on data sets of known risk whose best rate is inside the grid. If the
constants are measured anew at each rate instead, the minimizer does move inside; but it is then the
measured largest residual that selects, the theorem covers none of it, and a :math:`\lambda` that
nobody knows moves the choice.

The leave-one-out risk is an unbiased estimate of the thing wanted: :math:`\mathbb E
R_{\mathrm{loo}, n} = \mathbb E R(A_{n-1})`, exactly. So a rate is chosen by it, and a bound is
quoted afterwards, at delta / G when G rates were tried.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    Float64Array,
    as_float64,
    check_dropout_rate,
    check_failure_probability,
    check_finite,
    check_nonnegative,
)
from lodrop_theory.placements import LORA_DROPOUT, Placement


@dataclass(frozen=True, kw_only=True, eq=False)
class RateSelection:
    """The dropout rate of smallest leave-one-out risk, with how sure that is.

    Attributes:
        dropout_rate: The selected rate.
        rates: All rates that were tried.
        leave_one_out_risk: Mean leave-one-out loss at each of them. Loss units.
        excess: ``leave_one_out_risk`` above that of the selected rate, >= 0. Loss units.
        excess_standard_error: Standard error of ``excess`` from the paired differences; 0 at the
            selected rate. The leave-one-out losses share training examples, so that it is a guide
            and not a certificate. Loss units.
    """

    dropout_rate: float
    rates: Float64Array
    leave_one_out_risk: Float64Array
    excess: Float64Array
    excess_standard_error: Float64Array

    @property
    def indistinguishable(self) -> Float64Array:
        """The rates whose excess is within one standard error, the selected one included."""
        return self.rates[self.excess <= self.excess_standard_error]

    def delta_per_rate(self, delta: float) -> float:
        """Failure probability at which to quote a bound for the selected rate: delta / G.

        The selection looked at the training set, so that the bound must hold for all G rates at
        once.

        Args:
            delta: Failure probability of the statement that is quoted, in (0, 1).

        Raises:
            ValueError: If ``delta`` is outside (0, 1).
        """
        return float(check_failure_probability("delta", delta)) / len(self.rates)


def select_dropout_rate(rates: ArrayLike, leave_one_out_losses: ArrayLike) -> RateSelection:
    """The rate of smallest leave-one-out risk; the smallest such rate if several tie.

    Args:
        rates: Dropout rates that were tried, in [0, 1), shape (n_rates,).
        leave_one_out_losses: Loss at each training example of what was learned without it, shape
            (n_rates, n_train), n_train >= 2; see :func:`leave_one_out_losses`.

    Returns:
        The selection.

    Raises:
        ValueError: If the shapes do not fit or a number is outside its range.

    Example:
        >>> chosen = select_dropout_rate([0.0, 0.1, 0.3], [[2.0, 4.0], [1.0, 3.0], [2.0, 2.5]])
        >>> chosen.dropout_rate, chosen.leave_one_out_risk.tolist()
        (0.1, [3.0, 2.0, 2.25])
    """
    grid = check_dropout_rate("rates", rates)
    losses = check_finite("leave_one_out_losses", leave_one_out_losses)
    if grid.ndim != 1 or losses.ndim != 2 or len(losses) != len(grid) or losses.shape[1] < 2:
        raise ValueError(
            "`leave_one_out_losses` must have shape (n_rates, n_train), n_train >= 2, "
            f"got {losses.shape} for rates of shape {grid.shape}."
        )
    risk = losses.mean(axis=1)
    tied = np.flatnonzero(risk == risk.min())
    best = int(tied[np.argmin(grid[tied])])
    paired = losses - losses[best]
    return RateSelection(
        dropout_rate=float(grid[best]),
        rates=grid,
        leave_one_out_risk=risk,
        excess=risk - risk[best],
        excess_standard_error=paired.std(axis=1, ddof=1) / np.sqrt(losses.shape[1]),
    )


def leave_one_out_losses(
    rates: ArrayLike,
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    lora_a: ArrayLike | None = None,
    weight_decay: float = 0.0,
    placement: Placement = LORA_DROPOUT,
) -> Float64Array:
    r"""Exact leave-one-out losses of LoRA Dropout on a linear model with frozen A.

    What is minimized without example i is the expected half-squared loss over masks (inverted
    scaling) plus a ridge, :math:`\frac{1}{n-1} \sum_{j \ne i} \tfrac12 \mathbb E_m (y_j - z_j)^2 +
    \tfrac\kappa2 \|b\|^2`; its minimizer solves :math:`(\sum_{j \ne i} H_j + (n-1) \kappa I)\, b =
    \sum_{j \ne i} y_j A x_j` with the per-example Hessians of
    :func:`~lodrop_theory.penalty_of_masks.frozen_a_hessian`. The losses are those of the masks-off
    model.

    The per-example penalty of row and column masks has full rank, so that this is one r x r solve
    per example and not a rank-one update.

    Args:
        rates: Dropout rates in [0, 1), shape (n_rates,).
        inputs: x, shape (n_train, in_features), n_train >= 2.
        targets: y, what the update should produce, shape (n_train,).
        lora_a: The frozen A, shape (r, in_features); None for the identity.
        weight_decay: kappa >= 0.
        placement: Where the masks act.

    Returns:
        Half-squared losses, shape (n_rates, n_train).

    Raises:
        ValueError: If the shapes do not fit, a number is outside its range, or an objective has no
            unique minimizer (more columns than examples, no dropout, no ridge).

    Example:
        Two equal examples (x, y) = (1, 1): without dropout each predicts the other exactly, and at
        p = 1/2 the solution shrinks to q^2 = 1/4.

        >>> leave_one_out_losses([0.0, 0.5], [[1.0], [1.0]], [1.0, 1.0]).tolist()
        [[0.0, 0.0], [0.28125, 0.28125]]
    """
    grid = check_dropout_rate("rates", rates)
    points, answers = as_float64("inputs", inputs), check_finite("targets", targets)
    ridge = float(check_nonnegative("weight_decay", weight_decay))
    if points.ndim != 2 or answers.shape != points.shape[:1] or len(points) < 2 or grid.ndim != 1:
        raise ValueError(
            "`inputs` must have shape (n_train, in_features), n_train >= 2, `targets` (n_train,) "
            f"and `rates` (n_rates,), got {points.shape}, {answers.shape} and {grid.shape}."
        )
    a = np.eye(points.shape[1]) if lora_a is None else as_float64("lora_a", lora_a)
    if a.ndim != 2 or a.shape[1] != points.shape[1]:
        raise ValueError(f"`lora_a` must have shape (r, {points.shape[1]}), got {a.shape}.")
    features = points @ a.T
    outer = features[:, :, None] * features[:, None, :]
    by_input = np.einsum("kj,nj,lj->nkl", a, points**2, a)
    own = (features**2)[:, :, None] * np.eye(len(a))
    pulls = answers[:, None] * features
    losses = np.empty((len(grid), len(points)))
    for at, rate in enumerate(grid):
        terms = placement.at(rate, rescale=True)
        each = (1.0 + terms.outputs) * outer + (terms.sums + terms.own) * by_input
        each = each + terms.rank * own
        hessians = each.sum(axis=0) - each + (len(points) - 1) * ridge * np.eye(len(a))
        smallest = np.linalg.eigvalsh(hessians)[:, 0]
        if not np.all(smallest > 1e-12 * np.abs(hessians).max()):
            raise ValueError(
                f"`weight_decay` must be positive at dropout rate {float(rate):.6g}: without some "
                f"example the minimizer is not unique, got {weight_decay!r}."
            )
        rows = np.linalg.solve(hessians, (pulls.sum(axis=0) - pulls)[:, :, None])[:, :, 0]
        losses[at] = 0.5 * (answers - np.einsum("nk,nk->n", rows, features)) ** 2
    return losses
