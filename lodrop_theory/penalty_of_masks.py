"""The penalty weight that masks imply: in closed form for one layer, to second order for more."""

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    Float64Array,
    as_float64,
    check_dropout_rate,
    check_nonnegative,
)
from lodrop_theory.placements import Placement, check_second_moment, penalty_curvatures


def frozen_a_hessian(
    placement: Placement,
    dropout_rate: ArrayLike,
    lora_a: ArrayLike,
    input_second_moment: ArrayLike,
    *,
    rescale: bool,
) -> tuple[Float64Array, Float64Array]:
    r"""Hessian of an expected half-squared loss in one row of B, with A frozen.

    .. math:: H = \bar m^2 A \Sigma A^\top + \underbrace{a_{\mathrm{out}} A \Sigma A^\top +
        (a_{\mathrm{sum}} + a_{\mathrm{own}}) A \Sigma_d A^\top + a_{\mathrm{rank}}
        \operatorname{Diag}(A \Sigma A^\top)}_{\text{what the masks add}}

    with the mean factor :math:`\bar m`. It does not depend on the row: the expected dropout
    objective is quadratic, and its strong convexity is the smallest eigenvalue of H. No
    :math:`\lambda` is chosen, and no gauge is left because A does not move.

    Args:
        placement: Where the masks act.
        dropout_rate: p in [0, 1), a scalar.
        lora_a: A, shape (r, in_features); the identity for an update without factors.
        input_second_moment: Sigma = E x x^T over the sample, shape (in_features, in_features).
        rescale: Whether kept coordinates are divided by 1 - p.

    Returns:
        The whole Hessian and the part that the masks add, both of shape (r, r).

    Raises:
        ValueError: If the rate is outside [0, 1) or the shapes do not fit.

    Source:
        Derived here.

    Example:
        Whitened inputs: 1 / q + p / q^2 = 1 / q^2 in every direction.

        >>> from lodrop_theory.placements import LORA_DROPOUT
        >>> whole, added = frozen_a_hessian(LORA_DROPOUT, 0.5, [[1.0]], [[1.0]], rescale=True)
        >>> whole.item(), added.item()
        (4.0, 3.0)
    """
    a = as_float64("lora_a", lora_a)
    if a.ndim != 2:
        raise ValueError(f"`lora_a` must have shape (r, in_features), got {a.shape}.")
    sigma = check_second_moment(input_second_moment, a.shape[1])
    terms = placement.at(dropout_rate, rescale=rescale)
    joint, own = penalty_curvatures(terms, a, sigma)
    added = joint + np.diag(own)
    return terms.mean**2 * (a @ sigma @ a.T) + added, added


def implied_penalty(
    placement: Placement,
    dropout_rate: ArrayLike,
    input_second_moment: ArrayLike,
    *,
    output_curvature: float,
    lora_a: ArrayLike | None = None,
) -> float:
    r"""The largest lambda for which lambda s(p) ||D||^2 never exceeds what the masks add.

    .. math:: \lambda = \frac{h}{2 s(p)}\, \lambda_{\min}(\text{what the masks add}), \qquad
        s(p) = 2p - p^2,

    for an output Hessian of at least :math:`h I` and inverted scaling. Put it, with the same
    ``dropout_rate``, in ``CurvatureInputs.penalty``: the curvature :math:`2 \lambda s` that the
    theorem adds is then one that the masks really have, in every direction. For isotropic inputs
    and masks on both sides it is :func:`~lodrop_theory.mask_laws.isotropic_penalty`.

    Args:
        placement: Where the masks act; ``dropout_rate`` is that of one mask entry.
        dropout_rate: p in (0, 1), a scalar.
        input_second_moment: Sigma = E x x^T over the sample, shape (in_features, in_features).
        output_curvature: h >= 0, a *lower* bound on the Hessian of the loss in the output: 1 for
            the half-squared loss, 2 for the squared one, 0 for cross-entropy without more.
        lora_a: The frozen A, shape (r, in_features), for lambda in the coordinates of B, with
            ``min_singular_value`` 1; None for the coordinates of D.

    Returns:
        lambda >= 0, in loss per parameter^2 (not rounded).

    Raises:
        ValueError: If an argument is outside its range, or for masks on the rank without A.

    Source:
        Derived here.

    Example:
        The design values of the orthogonal case are 1 / (2 q^2):

        >>> from lodrop_theory.placements import LORA_DROPOUT
        >>> implied_penalty(LORA_DROPOUT, 0.5, [[1.0, 0.0], [0.0, 1.0]], output_curvature=1.0)
        2.0
    """
    p = check_dropout_rate("dropout_rate", dropout_rate)
    h = float(check_nonnegative("output_curvature", output_curvature))
    if p.ndim or p == 0.0:
        raise ValueError(f"`dropout_rate` must be one number in (0, 1), got {dropout_rate!r}.")
    sigma = as_float64("input_second_moment", input_second_moment)
    if lora_a is None:
        if np.any(placement.at(p, rescale=True).rank > 0):
            raise ValueError("`lora_a` must be given for masks on the rank, got None.")
        lora_a = np.eye(len(np.atleast_1d(sigma)))
    _, added = frozen_a_hessian(placement, p, lora_a, sigma, rescale=True)
    smallest = float(np.linalg.eigvalsh(added)[0])
    return max(0.5 * h * smallest / float(p * (2.0 - p)), 0.0)


def softmax_hessian(probabilities: ArrayLike) -> Float64Array:
    r"""Hessian of the cross-entropy in the logits: :math:`\operatorname{Diag}(\pi) - \pi\pi^\top`.

    Args:
        probabilities: pi, shape (..., n_classes), on the simplex.

    Returns:
        Shape (..., n_classes, n_classes); its eigenvalues are in [0, 1/2].

    Raises:
        ValueError: If a probability is negative.

    Example:
        >>> softmax_hessian([0.5, 0.5]).tolist()
        [[0.25, -0.25], [-0.25, 0.25]]
    """
    pi = check_nonnegative("probabilities", probabilities)
    return np.asarray(pi[..., None] * np.eye(pi.shape[-1]) - pi[..., None] * pi[..., None, :])


def second_order_penalty(
    jacobian: ArrayLike, output_hessian: ArrayLike, covariance: ArrayLike
) -> Float64Array:
    r"""What the masks of one layer add to the loss of a deep network, to second order.

    .. math:: \tfrac12 \operatorname{tr}\bigl(J^\top H J \operatorname{Cov} z\bigr)

    Exact for a quadratic loss of a network that is linear after the layer; otherwise the leading
    term for small noise, which on a small transformer was 0.4 to 1.2 times the exact value.
    Independent masks of several layers add up.

    Args:
        jacobian: J of the network's output in the layer's output, shape (..., n_outputs,
            out_features).
        output_hessian: H of the loss in the network's output, shape (..., n_outputs, n_outputs);
            :func:`softmax_hessian` for cross-entropy.
        covariance: Cov z of the layer, shape (..., out_features, out_features); see
            :func:`placement_covariance`.

    Returns:
        The term per example, shape (...), in loss units. Its mean over :math:`s(p) \|D\|^2` is
        the energy estimate of lambda.

    Raises:
        ValueError: If the shapes do not fit.

    Source:
        Wager, Wang and Liang (2013), arXiv:1307.1493; Wei, Kakade and Ma (2020),
        arXiv:2002.12915; covariance of both masks derived in lodrop.

    Example:
        >>> float(second_order_penalty([[1.0]], [[2.0]], [[3.0]]))
        3.0
    """
    j, h = as_float64("jacobian", jacobian), as_float64("output_hessian", output_hessian)
    cov = as_float64("covariance", covariance)
    if j.ndim < 2 or h.shape[-2:] != (j.shape[-2],) * 2 or cov.shape[-2:] != (j.shape[-1],) * 2:
        raise ValueError(
            "`jacobian` must have shape (..., n_outputs, out_features) that fits `output_hessian` "
            f"and `covariance`, got {j.shape}, {h.shape} and {cov.shape}."
        )
    carried = np.matmul(j, cov)
    return np.asarray(0.5 * np.einsum("...ab,...bk,...ak->...", h, carried, j))[()]


__all__ = ["frozen_a_hessian", "implied_penalty", "second_order_penalty", "softmax_hessian"]
