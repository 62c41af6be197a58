"""What averaging over masks is worth, as numbers."""

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    Float64Array,
    as_float64,
    check_count,
    check_nonnegative,
    check_positive,
)

_MOST_SUBSETS = 100_000


def jensen_gap(member_losses: ArrayLike, ensemble_loss: ArrayLike) -> Float64Array:
    r"""What the ensemble gains over its members, per example.

    .. math:: \frac1N \sum_i \ell(f_i(x), y) - \ell\Bigl(\frac1N \sum_i f_i(x), y\Bigr)

    Not negative where the loss is convex in the averaged output.

    Args:
        member_losses: Shape (n_members, ...).
        ensemble_loss: The loss of the averaged output, shape (...).

    Returns:
        The gap, shape (...), in loss units.

    Raises:
        ValueError: If the shapes do not fit.

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, Theorem 4.5, as a difference.

    Example:
        Squared losses of the members 0 and 2 and of their mean 1, for the target 0:

        >>> jensen_gap([[0.0], [4.0]], [1.0]).tolist()
        [1.0]
    """
    members = as_float64("member_losses", member_losses)
    ensemble = as_float64("ensemble_loss", ensemble_loss)
    if members.ndim < 1 or members.shape[0] < 1 or members.shape[1:] != ensemble.shape:
        raise ValueError(
            "`member_losses` must have shape (n_members, *ensemble_loss.shape), "
            f"got {members.shape} and {ensemble.shape}."
        )
    gap: Float64Array = members.mean(axis=0) - ensemble
    return gap[()]


def log_loss_curvature(member_probabilities: ArrayLike) -> Float64Array:
    r"""Sensitivity of the log loss of averaged probabilities to the number of masks.

    .. math:: \frac{\operatorname{Var}_m \pi_y}{(\mathbb E_m \pi_y)^2} =
        \ell''(\bar\pi_y) \operatorname{Var}_m \pi_y, \qquad \ell = -\ln

    Args:
        member_probabilities: Probability of the right answer under each member, in (0, 1], shape
            (n_members, ...), at least two members.

    Returns:
        The unbiased variance over the squared mean, shape (...). Unitless, >= 0.

    Raises:
        ValueError: If a probability is outside (0, 1] or there are fewer than two members.

    Example:
        >>> log_loss_curvature([[0.25], [0.75]]).tolist()
        [0.5]
    """
    members = check_positive("member_probabilities", member_probabilities)
    if members.ndim < 1 or members.shape[0] < 2 or np.any(members > 1):
        raise ValueError(
            "`member_probabilities` must be in (0, 1], with at least two members on the first axis."
        )
    curvature: Float64Array = members.var(axis=0, ddof=1) / members.mean(axis=0) ** 2
    return curvature[()]


def finite_n_excess(curvature_trace: ArrayLike, n_masks: ArrayLike) -> Float64Array:
    r"""Loss of an ensemble of N masks above that of infinitely many, to second order.

    .. math:: \frac{\operatorname{tr}\bigl(\ell''(\bar z) \operatorname{Cov}_m z\bigr)}{2N}

    Exact for the squared loss; to leading order in 1/N otherwise.

    Args:
        curvature_trace: tr(l''(z) Cov z) of one member, >= 0, for example
            :func:`log_loss_curvature`. Loss units.
        n_masks: N, whole and >= 1.

    Returns:
        The expected excess, in loss units.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Delta method; derived here.

    Example:
        >>> float(finite_n_excess(0.32, 16))
        0.01
    """
    trace = check_nonnegative("curvature_trace", curvature_trace)
    return (trace / (2.0 * check_count("n_masks", n_masks)))[()]


def n_masks_for_tolerance(curvature_trace: ArrayLike, tolerance: ArrayLike) -> Float64Array:
    r"""Number of masks at which :func:`finite_n_excess` is within a tolerance.

    .. math:: N = \max\Bigl(1, \Bigl\lceil \frac{\operatorname{tr}(\ell'' \operatorname{Cov}_m
        z)}{2\tau} \Bigr\rceil\Bigr)

    Args:
        curvature_trace: As in :func:`finite_n_excess`; its mean over examples for the risk.
        tolerance: tau > 0. Loss units.

    Returns:
        A whole number >= 1, as float64.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Delta method; derived here.

    Example:
        >>> float(n_masks_for_tolerance(0.32, 0.01))
        16.0
    """
    trace = check_nonnegative("curvature_trace", curvature_trace)
    allowed = check_positive("tolerance", tolerance)
    with np.errstate(over="ignore"):
        return np.maximum(1.0, np.ceil(trace / (2.0 * allowed)))[()]


def mean_over_subsets(
    loss: Callable[[Float64Array], ArrayLike], members: ArrayLike, size: int
) -> Float64Array:
    r"""Mean loss of the averaged output over all subsets of a fixed pool of members.

    For a convex loss it is non-increasing in the size, without noise: the mean over a subset of
    size N + 1 is the average of the means over its N + 1 subsets of size N.

    Args:
        loss: Maps an averaged output, shape (...), to its loss.
        members: Outputs of the pool, shape (n_members, ...).
        size: Members per ensemble, in [1, n_members].

    Returns:
        The mean of ``loss`` over the binomial(n_members, size) ensembles.

    Raises:
        ValueError: If ``size`` is outside its range or there are more than 100000 subsets.

    Example:
        >>> pool = [0.0, 1.0, 5.0]
        >>> [round(float(mean_over_subsets(lambda f: f**2, pool, size)), 4) for size in (1, 2, 3)]
        [8.6667, 5.1667, 4.0]
    """
    pool = as_float64("members", members)
    if pool.ndim < 1 or size not in range(1, pool.shape[0] + 1):
        raise ValueError(f"`size` must be a whole number in [1, {len(pool)}], got {size!r}.")
    if comb(pool.shape[0], size) > _MOST_SUBSETS:
        raise ValueError(
            f"`size` must give at most {_MOST_SUBSETS} subsets, "
            f"got {comb(pool.shape[0], size)} of size {size} from {pool.shape[0]} members."
        )
    subsets = combinations(range(pool.shape[0]), size)
    losses = [as_float64("loss", loss(pool[list(chosen)].mean(axis=0))) for chosen in subsets]
    mean: Float64Array = np.mean(losses, axis=0)
    return mean
