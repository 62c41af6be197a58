r"""The one regime of a network in which a stability can be proved: frozen A, and a ridge.

Where every trained parameter enters the logits linearly (B above a frozen A in the last layer, the
head), cross-entropy is convex in them, and with a ridge :math:`\tau \|\theta\|^2` around a point
fixed in advance the objective is :math:`2\tau`-strongly convex *everywhere*, for every training
set. Nothing is left to measure but the Lipschitz constant, which is :math:`\sqrt 2` times the
longest feature vector, and how far training stopped from the minimum.
"""

from lodrop_theory.bounds.from_stability import stability_bounds
from lodrop_theory.bounds.strongconvex import replace_one_stability
from lodrop_theory.inputs import CurvatureInputs
from lodrop_theory.measured_stability import named, tail_of_record
from lodrop_theory.records import RunRecord
from lodrop_theory.results import BoundResult, StabilityResult


def ridge_stability(record: RunRecord, *, features_bounded: bool = False) -> StabilityResult | None:
    r"""Replace-one stability of a ridge minimizer whose logits are linear in what is trained.

    .. math:: g = \frac{2\rho^2}{2\tau n} + 2\rho\, \frac{\|\nabla F\|}{2\tau}

    The second term pays for a gradient that training has left: a point of a
    :math:`\mu`-strongly convex F exceeds its minimum by at most :math:`\|\nabla F\|^2 / (2\mu)`.

    Args:
        record: A record whose stability was measured with the ridge that the adapter was trained
            with.
        features_bounded: Whether the caller vouches that no example of the population has longer
            features than the training examples (normalized features have one length), and that
            on other training sets training stops as near to the minimum. Then the result is a
            certificate; without, plug-in.

    Returns:
        The stability of the mean predictor; None where the record does not show the regime: no
        ridge around the origin, no proof of convexity, or no proved Lipschitz constant.

    Source:
        Bousquet and Elisseeff (2002), JMLR 2, Theorem 22, in the form of
        :func:`~lodrop_theory.bounds.strongconvex.replace_one_stability`.
    """
    measured, rho = record.stability, record.lipschitz_bound
    if measured is None or rho is None or measured.center != "origin" or measured.ridge <= 0:
        return None
    if measured.objective_min_eig.provenance != "certified":
        return None
    mu = 2.0 * measured.ridge
    inputs = CurvatureInputs(
        n_train=record.n_train,
        dropout_rate=record.dropout_rate,
        lipschitz=rho.upper,
        hessian_min_eig=mu,
        penalty=0.0,
    )
    left = measured.gradient_norm.upper**2 / (2.0 * mu)
    return replace_one_stability(inputs, suboptimality=left, certified=features_bounded)


def ridge_bounds(
    record: RunRecord, *, delta: float, features_bounded: bool = False
) -> list[BoundResult]:
    """Every bound that follows from :func:`ridge_stability`.

    Args:
        record: As there.
        delta: Failure probability of each bound, in (0, 1).
        features_bounded: As there.

    Returns:
        The results of :func:`~lodrop_theory.bounds.from_stability.stability_bounds`, named
        ``uniform-tail/ridge`` and so on; none where the record does not show the regime.

    Raises:
        ValueError: If ``delta`` is outside (0, 1).
    """
    stability = ridge_stability(record, features_bounded=features_bounded)
    if stability is None:
        return []
    tail = tail_of_record(record, delta=delta, predictor="mean")
    results = stability_bounds(stability, tail, predictor="mean", certified=features_bounded)
    return [named(each, "ridge", "of a ridge minimizer with A frozen") for each in results]


__all__ = ["ridge_bounds", "ridge_stability"]
