r"""Regression with Gaussian inputs: the risk in closed form, leave-one-out by rank-one updates.

Inputs :math:`x \sim N(0, \Sigma)`, targets :math:`y = D^* x + s \varepsilon` with standard Gaussian
:math:`\varepsilon`, half-squared loss. The loss is unbounded, so that the bounds that read a range
do not apply; the theorem of :mod:`~lodrop_theory.bounds.l2_stability` reads a variance and does.

Training minimizes :math:`\frac1{2n} \sum_i \|y_i - D x_i\|^2 + \frac12 \operatorname{tr} D P
D^\top` for a matrix P that was fixed before the sample was seen, such as what the masks penalize on
average (:func:`mask_penalty_matrix`). With :math:`H = X^\top X + (n-1) P`, leaving example i out
gives exactly :math:`(H - x_i x_i^\top)^{-1} (X^\top Y - x_i y_i^\top)`, a rank-one change of one
inverse (Sherman and Morrison): n refits cost as much as one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lodrop_theory._checks import (
    Float64Array,
    as_float64,
    check_count,
    check_dropout_rate,
    check_nonnegative,
)


def mask_penalty_matrix(dropout_rate: ArrayLike, input_second_moment: ArrayLike) -> Float64Array:
    r"""The P for which row and column masks add half of tr(D P D') to a half-squared loss.

    .. math:: P = \frac pq \Sigma + \frac p{q^2} \operatorname{Diag}(\Sigma), \qquad q = 1 - p

    with inverted scaling. It is the Hessian of the penalty in each row of D.

    Args:
        dropout_rate: p in [0, 1), any shape.
        input_second_moment: Sigma, shape (d, d).

    Returns:
        Shape (*dropout_rate.shape, d, d).

    Raises:
        ValueError: If the rate is outside [0, 1) or Sigma is not square.

    Source:
        Derived in :mod:`lodrop_theory.mask_laws`.

    Example:
        >>> mask_penalty_matrix(0.5, [[1.0, 0.5], [0.5, 1.0]]).tolist()
        [[3.0, 0.5], [0.5, 3.0]]
    """
    p = check_dropout_rate("dropout_rate", dropout_rate)[..., None, None]
    moment = as_float64("input_second_moment", input_second_moment)
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        raise ValueError(f"`input_second_moment` must be square, got shape {moment.shape}.")
    q = 1.0 - p
    return np.asarray(p / q * moment + p / q**2 * np.diag(np.diag(moment)))


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianRegression:
    """A population whose risks are closed forms of the update.

    A frozen factor changes nothing but the names: with inputs A x in place of x and a full-rank B
    in place of D the population is of the same kind.

    Attributes:
        target: D*, shape (k, d).
        covariance: Sigma, shape (d, d), positive semidefinite.
        noise_scale: s >= 0, standard deviation of the noise of each output.

    Raises:
        ValueError: If a number is outside its range or the shapes do not fit.
    """

    target: Float64Array
    covariance: Float64Array
    noise_scale: float

    def __post_init__(self) -> None:
        target, moment = (as_float64(n, getattr(self, n)) for n in ("target", "covariance"))
        if target.ndim != 2 or moment.shape != (target.shape[1],) * 2:
            raise ValueError(
                "`target` and `covariance` must have shapes (k, d) and (d, d), "
                f"got {target.shape} and {moment.shape}."
            )
        check_nonnegative("noise_scale", self.noise_scale)
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "covariance", moment)

    def sample(self, n: int, generator: np.random.Generator) -> tuple[Float64Array, Float64Array]:
        """Independent examples: inputs, shape (n, d), and targets, shape (n, k)."""
        size = int(check_count("n", n))
        outputs, features = self.target.shape
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        x = generator.standard_normal((size, features)) @ root.T
        noise = self.noise_scale * generator.standard_normal((size, outputs))
        return x, x @ self.target.T + noise

    def _residual_covariance(self, one: Float64Array, other: Float64Array) -> Float64Array:
        # Of the residuals y - D x and y - D' x of two updates, given both.
        noise = self.noise_scale**2 * np.eye(len(self.target))
        return np.asarray(
            np.einsum(
                "...ia,ab,...jb->...ij", self.target - one, self.covariance, self.target - other
            )
            + noise
        )

    def risk(self, update: Float64Array, *, dropout_rate: float = 0.0) -> Float64Array:
        r"""Population risk of an update, exact.

        .. math:: \tfrac12 \operatorname{tr}\bigl((D - D^*) \Sigma (D - D^*)^\top\bigr)
            + \tfrac12 k s^2 + \tfrac12 \operatorname{tr} D P D^\top

        with P of :func:`mask_penalty_matrix`: the risk of the masks-off model at rate 0, and of
        one draw of the masks (inverted scaling) otherwise.

        Args:
            update: D, shape (..., k, d).
            dropout_rate: p in [0, 1) of the masks at prediction.

        Returns:
            Shape (...). Loss units.
        """
        spread = np.einsum("...ii->...", self._residual_covariance(update, update))
        matrix = mask_penalty_matrix(dropout_rate, self.covariance)
        return np.asarray(0.5 * (spread + np.einsum("...ia,ab,...ib->...", update, matrix, update)))

    def loss_variance(self, update: Float64Array) -> Float64Array:
        r"""Variance over a fresh point of the masks-off loss.

        With the covariance C of the residual, a Gaussian vector, it is :math:`\tfrac12
        \operatorname{tr} C^2`.

        Args:
            update: D, shape (..., k, d).
        """
        c = self._residual_covariance(update, update)
        return np.asarray(0.5 * np.einsum("...ij,...ji->...", c, c))

    def mean_square_change(self, update: Float64Array, other: Float64Array) -> Float64Array:
        r"""Mean square over a fresh point of the difference of two masks-off losses, exact.

        For a Gaussian vector u with covariance C, :math:`q = \tfrac12 u^\top J u` has the mean
        :math:`\tfrac12 \operatorname{tr} J C` and the variance :math:`\tfrac12 \operatorname{tr} J
        C J C`; here u holds both residuals and J is diag(I, -I).

        Args:
            update: D, shape (..., k, d).
            other: D', the same shape.
        """
        a, b = self._residual_covariance(update, update), self._residual_covariance(other, other)
        cross = self._residual_covariance(update, other)
        mean = 0.5 * np.einsum("...ii->...", a - b)
        squares = np.sum(a**2 + b**2 - 2.0 * cross**2, axis=(-2, -1))
        return np.asarray(mean**2 + 0.5 * squares)


def fit_ridge(inputs: Float64Array, targets: Float64Array, penalty: Float64Array) -> Float64Array:
    r"""Minimizer of :math:`\frac1{2n} \sum_i \|y_i - D x_i\|^2 + \frac12 \operatorname{tr} D P D'`.

    Args:
        inputs: X, shape (n, d).
        targets: Y, shape (n, k).
        penalty: P, shape (..., d, d), fixed before the sample was seen.

    Returns:
        D, shape (..., k, d).
    """
    solved = np.linalg.solve(inputs.T @ inputs + len(inputs) * penalty, inputs.T @ targets)
    return np.asarray(np.swapaxes(solved, -1, -2))


def leave_one_out_updates(
    inputs: Float64Array, targets: Float64Array, penalty: Float64Array
) -> Float64Array:
    r"""What :func:`fit_ridge` gives without example i, for every i, from one inverse.

    With :math:`H = X^\top X + (n-1) P`, :math:`D = Y^\top X H^{-1}` and :math:`h_i = x_i^\top
    H^{-1} x_i`,

    .. math:: D_{-i} = D - \frac{(y_i - D x_i)\, x_i^\top H^{-1}}{1 - h_i}.

    Args:
        inputs: X, shape (n, d).
        targets: Y, shape (n, k).
        penalty: P, shape (d, d), fixed before the sample was seen.

    Returns:
        Shape (n, k, d); its mean loss at the left-out examples is the leave-one-out risk, whose
        mean over samples is the mean risk of training on n - 1 examples.

    Example:
        Without the other, each of two examples is fitted alone:

        >>> import numpy as np
        >>> x, y = np.array([[1.0], [1.0]]), np.array([[1.0], [3.0]])
        >>> leave_one_out_updates(x, y, np.array([[1.0]])).ravel().round(12).tolist()
        [1.5, 0.5]
    """
    base = inputs.T @ inputs + (len(inputs) - 1) * penalty
    return _without(base, inputs, targets)[0]


def _without(
    base: Float64Array, inputs: Float64Array, targets: Float64Array
) -> tuple[Float64Array, Float64Array, Float64Array]:
    # Updates without each example, and what a second rank-one change needs.
    pulled = np.linalg.solve(base, inputs.T).T
    kept = 1.0 - np.einsum("na,na->n", inputs, pulled)
    update = targets.T @ pulled
    residual = (targets - inputs @ update.T) / kept[:, None]
    without = np.asarray(update - residual[:, :, None] * pulled[:, None, :])
    return without, np.asarray(pulled), np.asarray(kept)


def replace_one_updates(
    inputs: Float64Array,
    targets: Float64Array,
    penalty: Float64Array,
    new_inputs: Float64Array,
    new_targets: Float64Array,
) -> Float64Array:
    """What :func:`fit_ridge` gives with example i replaced by the i-th new one, for every i.

    A rank-one removal from X'X + n P, then a rank-one addition.

    Args:
        inputs: X, shape (n, d).
        targets: Y, shape (n, k).
        penalty: P, shape (d, d), fixed before the sample was seen.
        new_inputs: Shape (n, d).
        new_targets: Shape (n, k).

    Returns:
        Shape (n, k, d).
    """
    base = inputs.T @ inputs + len(inputs) * penalty
    without, pulled, kept = _without(base, inputs, targets)
    added = np.linalg.solve(base, new_inputs.T).T
    overlap = np.einsum("na,na->n", new_inputs, pulled) / kept
    added = added + overlap[:, None] * pulled
    weight = 1.0 + np.einsum("na,na->n", new_inputs, added)
    residual = (new_targets - np.einsum("nia,na->ni", without, new_inputs)) / weight[:, None]
    return np.asarray(without + residual[:, :, None] * added[:, None, :])
