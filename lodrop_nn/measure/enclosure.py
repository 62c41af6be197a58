r"""Both ends of a spectrum, enclosed by Krylov spaces of a random start vector.

Let H be symmetric of dimension n, :math:`\lambda` its largest eigenvalue, u a unit eigenvector of
it, v uniform on the unit sphere and :math:`\gamma = \langle u, v \rangle`. The law of
:math:`\gamma^2` is Beta(1/2, (n - 1)/2) whatever u is, so :math:`|\gamma| \ge g` with probability
:math:`1 - \alpha`, g the square root of the :math:`\alpha`-quantile (:func:`start_overlap`). The
two bounds of this module follow from :math:`|\gamma| \ge g` alone. They may therefore be used
together, at every number of steps and under any rule for stopping; the other end of the
spectrum, by -H, costs another :math:`\alpha`.

**From the run** (:func:`spectrum_enclosure`). Let V be any orthonormal basis with first vector v,
T symmetric tridiagonal with eigenvalues :math:`\theta_i` and off-diagonals :math:`\beta_j > 0`,
:math:`w \perp V` a unit vector and

.. math:: H V = V T + \beta_k w e_k^\top + E .

Multiply by :math:`u^\top` from the left: with :math:`c = V^\top u`,
:math:`c^\top (\lambda - T) = \beta_k \langle u, w \rangle e_k^\top + u^\top E`. For
:math:`\lambda > \theta_k` this can be solved for the first entry of c, which is :math:`\gamma`. As
:math:`[(\lambda - T)^{-1}]_{k1} = \prod_{j<k} \beta_j / \prod_i (\lambda - \theta_i)`,

.. math:: g \le |\gamma| \le \prod_{i=1}^{k} \frac{\beta_i}{\lambda - \theta_i}
          + \|E\|\, \|(\lambda - T)^{-1} e_1\| .

The right side falls in :math:`\lambda`; where it reaches g is a bound of :math:`\lambda`. (Without
E this says that the k-th Lanczos polynomial is at most 1/g at :math:`\lambda`.) E is what rounding
leaves over; it enters a proven inequality, but its norm is estimated (:func:`rounding_norm`).

**Before the run** (:func:`relative_gap`). Let :math:`\lambda_{\min} = 0` and :math:`\lambda = 1`,
which shifting and scaling achieve. If :math:`\theta_k < 1 - \epsilon`, then every polynomial p of
degree k - 1 has :math:`\langle p(H) v, (H - 1 + \epsilon) p(H) v \rangle < 0`, so
:math:`\gamma^2 \epsilon\, p(1)^2 < (1 - \gamma^2) \max_{x \in [0, 1-\epsilon]}
(1 - \epsilon - x)\, p(x)^2`. Take p as the Chebyshev polynomial of the fourth kind on
:math:`[0, 1 - \epsilon]`, :math:`W(\cos\phi) = \sin((k - \frac12)\phi) / \sin(\phi/2)`: the maximum
is :math:`1 - \epsilon`, and at 1, where :math:`\cosh\eta = (1 + \epsilon)/(1 - \epsilon)`,
:math:`\epsilon W^2 = (1 - \epsilon) \sinh^2((k - \frac12)\eta)`. With
:math:`\eta / 2 = \operatorname{artanh}\sqrt\epsilon`,

.. math:: |\gamma| < 1 / \cosh\bigl((2k - 1) \operatorname{artanh}\sqrt\epsilon\bigr) .

With :math:`1/\cosh x \le 2 e^{-x}` and :math:`P(|\gamma| < g) \le g \sqrt{2n/\pi}` its probability
is at most :math:`1.596 \sqrt n\, e^{-(2k-1)\sqrt\epsilon}`, of which Kuczynski and Wozniakowski
(1992) have the order, :math:`\sqrt n\, e^{-(2k-1)\sqrt\epsilon}`.
"""

import math

import torch
from jaxtyping import Float64
from scipy import special
from torch import Tensor

from lodrop_nn.measure.lanczos import KrylovSpace

_HALVINGS = 200


def start_overlap(dimension: int, failure: float) -> float:
    r"""The g that a random start's overlap with a fixed unit vector falls short of so rarely.

    .. math:: P(|\langle u, v \rangle| < g) = \alpha, \qquad v \text{ uniform on the unit sphere}

    Args:
        dimension: n >= 1 of the space.
        failure: alpha in (0, 1).

    Returns:
        g in (0, 1].

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        In the plane the angle is uniform, so g = sin(alpha pi / 2):

        >>> round(start_overlap(2, 1 / 3), 12)
        0.5
    """
    if dimension < 1:
        raise ValueError(f"`dimension` must be >= 1, got {dimension!r}.")
    if not 0.0 < failure < 1.0:
        raise ValueError(f"`failure` must be in (0, 1), got {failure!r}.")
    if dimension == 1:
        return 1.0
    return math.sqrt(float(special.betaincinv(0.5, (dimension - 1) / 2, failure)))


def relative_gap(dimension: int, steps: int, *, failure: float) -> float:
    r"""What Lanczos may miss of an end of any spectrum of this dimension, known before the run.

    .. math:: P\bigl(\lambda_{\max} - \theta_k > \epsilon\, (\lambda_{\max} - \lambda_{\min})\bigr)
              \le \alpha, \qquad
              \epsilon = \tanh^2\Bigl(\frac{\operatorname{arcosh}(1/g)}{2k - 1}\Bigr)

    with g of :func:`start_overlap`; proof at the top of this module. It says how many steps an
    accuracy takes in the worst case.

    Args:
        dimension: n >= 1.
        steps: k >= 1 products.
        failure: alpha in (0, 1), for one end.

    Returns:
        epsilon in [0, 1).

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Proved here; the order in n, k and epsilon is that of Kuczynski and Wozniakowski (1992),
        Estimating the largest eigenvalue by the power and Lanczos algorithms with a random start.

    Example:
        >>> [round(relative_gap(74498, steps, failure=0.025), 3) for steps in (12, 24, 48)]
        [0.161, 0.042, 0.01]
    """
    if steps < 1:
        raise ValueError(f"`steps` must be >= 1, got {steps!r}.")
    overlap = start_overlap(dimension, failure)
    return math.tanh(math.acosh(1.0 / overlap) / (2 * steps - 1)) ** 2


def spectrum_enclosure(
    space: KrylovSpace, *, dimension: int, level: float, rounding: float | None = None
) -> tuple[float, float]:
    r"""An interval that holds the whole spectrum with the stated probability.

    .. math:: P(a \le \lambda_{\min} \text{ and } \lambda_{\max} \le b) \ge \text{level}

    The probability is over the start vector alone, whatever the spectrum; proof at the top of this
    module. The Ritz values are on the other side: :math:`a \le \lambda_{\min} \le \theta_1`.

    Args:
        space: Krylov space of a start that is uniform on the unit sphere, or on that of the range
            of the projection (a normal vector, normalized).
        dimension: Dimension of the space that the operator acts on: n, less the kernel of the
            projection.
        level: Probability in (0, 1), for both ends together.
        rounding: Norm of E; None takes :func:`rounding_norm`.

    Returns:
        (a, b), finite.

    Raises:
        ValueError: If ``level`` is outside its range.

    Source:
        Proved here. Probabilistic bounds by Lanczos polynomials: van Dorsselaer, Hochstenbach and
        van der Vorst (2000), Computing probabilistic bounds for extreme eigenvalues of symmetric
        matrices with the Lanczos method; the term of E is ours.

    Example:
        >>> from lodrop_nn.measure.lanczos import krylov_space
        >>> diagonal = torch.arange(100.0, dtype=torch.float64)
        >>> stream = torch.Generator().manual_seed(0)
        >>> start = torch.randn(100, dtype=torch.float64, generator=stream)
        >>> space = krylov_space(lambda v: diagonal * v, start, steps=40)
        >>> low, high = spectrum_enclosure(space, dimension=100, level=0.99)
        >>> low <= 0 <= 99 <= high and high - low < 99.5
        True
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must be in (0, 1), got {level!r}.")
    overlap = start_overlap(dimension, (1.0 - level) / 2)
    projected = space.projected
    diagonal, beside = projected.diagonal(), _beside(projected)
    error = rounding_norm(space, dimension) if rounding is None else rounding
    lengths = [*beside.tolist(), space.next_length]
    ends = [
        _upper_end(sign * diagonal, lengths, overlap, error)  # -T has the products of T
        for sign in (-1.0, 1.0)
    ]
    return -ends[0], ends[1]


def rounding_norm(space: KrylovSpace, dimension: int) -> float:
    r"""Estimate of the norm of E: what of :math:`V^\top H V` is not symmetric and tridiagonal.

    For exact products this is zero. Rounding errors spread over all n coordinates show only about
    k/n of their squared norm inside the space, hence the factor :math:`\sqrt{n/k}`.

    Args:
        space: Krylov space of float32 or float64 products.
        dimension: n.
    """
    projected = space.projected
    beside = _beside(projected)
    tridiagonal = torch.diag(projected.diagonal())
    if len(beside):
        tridiagonal += torch.diag(beside, 1) + torch.diag(beside, -1)
    defect = float(torch.linalg.matrix_norm(projected - tridiagonal, ord=2))
    return defect * math.sqrt(max(1.0, dimension / len(projected)))


def _beside(projected: Float64[Tensor, "k k"]) -> Float64[Tensor, " k_less_1"]:
    return (projected.diagonal(1) + projected.diagonal(-1)) / 2


def _upper_end(
    diagonal: Float64[Tensor, " k"], lengths: list[float], overlap: float, error: float
) -> float:
    """The smallest bound of the largest eigenvalue that the overlap allows, rounded upward."""
    matrix = torch.diag(diagonal)
    if len(lengths) > 1:
        beside = torch.tensor(lengths[:-1], dtype=torch.float64)
        matrix += torch.diag(beside, 1) + torch.diag(beside, -1)
    values, vectors = torch.linalg.eigh(matrix)
    top, scale = float(values[-1]), max(float(values.abs().max()), lengths[-1])
    if scale == 0.0:
        return 0.0
    log_lengths = sum(math.log(max(abs(length), 1e-300)) for length in lengths)

    def reaches(gap: float) -> bool:
        distances = top + gap - values
        exact = math.exp(min(0.0, log_lengths - float(distances.log().sum())))
        rounded = error * float((vectors[0] / distances).norm())
        return exact + rounded >= overlap

    # Eigenvalues of T are known to a few units of rounding; below, distances mean nothing.
    small = large = 1e-14 * scale
    while reaches(large):
        small, large = large, 2 * large
    for _ in range(_HALVINGS):
        middle = (small + large) / 2
        if not small < middle < large:
            break
        small, large = (middle, large) if reaches(middle) else (small, middle)
    return top + large + 1e-14 * scale
