"""The bounds of the LoRA Dropout paper: Lin et al. (2024), arXiv:2404.09610v1."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    Float64Array,
    check_count,
    check_failure_probability,
    check_positive,
)
from lodrop_theory._numerics import round_up
from lodrop_theory.bounds.curvature import (
    repair_dropout_rate,
    stability_from_curvature,
    strong_convexity,
)
from lodrop_theory.inputs import CurvatureInputs, TailInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import SAME_GAP, BoundResult, StabilityResult, as_array, input_fields

SOURCE = "Lin et al. 2024, arXiv:2404.09610v1"

SAMPLE_HYPOTHESES = (
    "the training examples are independent draws from the population",
    "the loss of every example lies in one interval of length `loss_range`",
    "the algorithm is symmetric in its examples",
)


def lin2024_stability(inputs: CurvatureInputs, *, certified: bool = False) -> StabilityResult:
    r"""Pointwise hypothesis stability of the penalized objective (Proposition 4.2).

    .. math:: \beta = \frac{2\rho^2}{\bigl(\Lambda_{\min} + 2\lambda(2p - p^2)\bigr) n}

    The paper takes for rho the Lipschitz constant of the *regularized* loss, which grows with the
    penalty. The unregularized one gives the same number (proof:
    :func:`~lodrop_theory.bounds.strongconvex.remove_one_stability`), so that one is read here.

    Args:
        inputs: The curvature, in coordinates in which the objective is strongly convex.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The stability; infinite and not applicable where the strong convexity is not positive.

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, Proposition 4.2.

    Example:
        >>> from lodrop_theory.inputs import CurvatureInputs
        >>> inputs = CurvatureInputs(
        ...     n_train=100, dropout_rate=0.5, lipschitz=1, hessian_min_eig=0.5, penalty=1
        ... )
        >>> round(float(lin2024_stability(inputs).value), 12)
        0.01
    """
    return stability_from_curvature(
        inputs,
        coefficient=2.0,
        bound="lin2024-stability",
        source=f"{SOURCE}, Proposition 4.2",
        notion="pointwise: one example removed, the loss compared at that example",
        certified=certified,
    )


def lin2024_bound(
    curvature: CurvatureInputs,
    tail: TailInputs,
    *,
    predictor: Predictor = "mean",
    certified: bool = False,
) -> BoundResult:
    r"""Risk bound of the LoRA Dropout paper (Theorem 4.4).

    .. math:: R \le \hat R + \sqrt{\frac{C^2 + 24 C \rho^2 / \mu}{2 n \delta}}, \qquad
        \mu = \Lambda_{\min} + 2\lambda(2p - p^2).

    The paper derives it from its Lemma 4.3, which is false for pointwise stability alone (see
    :mod:`~lodrop_theory.bounds.bousquet2002`). The theorem survives: its stability holds at every
    point, fresh ones included, so that the repaired lemma applies and gives no more than this.

    Args:
        curvature: The curvature, in coordinates in which the objective is strongly convex.
        tail: What turns the stability into a risk bound; same ``n_train``.
        predictor: The predictor whose loss ``curvature`` and ``tail`` describe. The theorem is
            about the loss at the minimizer itself: masks off, ``mean``.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound; infinite and not applicable where mu <= 0. The gap never falls below
        :func:`theorem44_floor`.

    Raises:
        ValueError: If the two inputs disagree about ``n_train``.

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, Theorem 4.4.

    Example:
        The size of RTE, at p = 0.5:

        >>> from lodrop_theory.inputs import CurvatureInputs, TailInputs
        >>> curvature = CurvatureInputs(
        ...     n_train=2490, dropout_rate=0.5, lipschitz=1, hessian_min_eig=0, penalty=1
        ... )
        >>> tail = TailInputs(n_train=2490, loss_range=1, delta=0.05)
        >>> round(float(lin2024_bound(curvature, tail).gap), 3)
        0.261
    """
    stability = lin2024_stability(curvature, certified=certified)
    mu = np.asarray(strong_convexity(curvature))
    safe = np.where(stability.applicable, mu, 1.0)
    c, rho = np.asarray(tail.loss_range), np.asarray(curvature.lipschitz)
    with np.errstate(over="ignore"):
        # hypot and split roots: no square can overflow on the way to a finite gap.
        numerator = np.hypot(c, np.sqrt(24.0) * rho * (np.sqrt(c) / np.sqrt(safe)))
        gap = numerator / (np.sqrt(2.0 * np.asarray(tail.n_train)) * np.sqrt(tail.delta))
    return BoundResult(
        bound="lin2024",
        title="LoRA Dropout, Theorem 4.4",
        source=f"{SOURCE}, Theorem 4.4",
        statement="probability",
        predictor=predictor,
        gap=round_up(gap),
        empirical_risk=as_array(tail.empirical_risk),
        loss_range=c,
        delta=as_array(tail.delta),
        certified=certified,
        hypotheses=SAMPLE_HYPOTHESES,
        inputs=input_fields(curvature, tail),
        event=SAME_GAP,
    ).restricted_to(stability)


def theorem44_floor(loss_range: ArrayLike, n_train: ArrayLike, delta: ArrayLike) -> Float64Array:
    r"""The part of Theorem 4.4 that no dropout rate and no penalty removes.

    .. math:: C / \sqrt{2 n \delta}

    Args:
        loss_range: C > 0. Loss units.
        n_train: Training examples, >= 1.
        delta: Failure probability in (0, 1).

    Returns:
        The limit of the gap for an infinite penalty, in loss units (not rounded).

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Derived from Lin et al. (2024), arXiv:2404.09610v1, Theorem 4.4.

    Example:
        >>> float(theorem44_floor(1, 200, 0.25))
        0.1
    """
    c = check_positive("loss_range", loss_range)
    n = check_count("n_train", n_train)
    failure = check_failure_probability("delta", delta)
    with np.errstate(over="ignore"):
        floor: Float64Array = c / (np.sqrt(2.0 * n) * np.sqrt(failure))
    return floor[()]


def ensemble_bound(gibbs: BoundResult, *, certified: bool = False) -> BoundResult:
    r"""A bound on the Gibbs risk, carried over to the ensemble (Theorem 4.5).

    .. math:: \mathbb E_{(x,y)}\, \ell\bigl(\mathbb E_m f_m(x), y\bigr)
        \le \mathbb E_m \mathbb E_{(x,y)}\, \ell\bigl(f_m(x), y\bigr)

    by Jensen's inequality at each (x, y), for a loss that is convex in the averaged *output* (the
    appendix of the paper asks for convexity in the parameters, which is neither needed nor true).
    Cross-entropy is convex in averaged logits and in averaged probabilities. The theorem says
    nothing of accuracy, of calibration, or of the model with masks off.

    Args:
        gibbs: A bound for the predictor ``gibbs``. Its masks must be those of the ensemble: their
            law for the infinite ensemble, or the same N draws for an ensemble of N.
        certified: Whether the caller vouches for the convexity; the result is certified only if
            ``gibbs`` is too.

    Returns:
        The same gap, still counted from the empirical risk of the *Gibbs* predictor.

    Raises:
        ValueError: If ``gibbs`` is about another predictor.

    Source:
        Lin et al. (2024), arXiv:2404.09610v1, Theorem 4.5.

    Example:
        >>> from lodrop_theory.bounds.hold_out import hold_out_bound
        >>> from lodrop_theory.inputs import HoldOutInputs
        >>> inputs = HoldOutInputs(n_test=1000, loss_range=1, delta=0.05, held_out_risk=0.2)
        >>> gibbs = hold_out_bound(inputs, predictor="gibbs")
        >>> ensemble = ensemble_bound(gibbs)
        >>> ensemble.predictor, bool(ensemble.risk == gibbs.risk)
        ('ensemble', True)
    """
    if gibbs.predictor != "gibbs":
        raise ValueError(f"`gibbs` must be a bound for 'gibbs', got one for {gibbs.predictor!r}.")
    return replace(
        gibbs,
        bound=f"{gibbs.bound}+jensen",
        title=f"{gibbs.title}, carried to the ensemble",
        source=f"{gibbs.source}; {SOURCE}, Theorem 4.5",
        predictor="ensemble",
        certified=gibbs.certified and certified,
        hypotheses=(*gibbs.hypotheses, "the loss is convex in the averaged output"),
        caveats=(*gibbs.caveats, "the gap is counted from the risk of the Gibbs predictor"),
    )


__all__ = [
    "ensemble_bound",
    "lin2024_bound",
    "lin2024_stability",
    "repair_dropout_rate",
    "strong_convexity",
    "theorem44_floor",
]
