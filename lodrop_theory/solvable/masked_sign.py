r"""Gibbs risk of a masked, noisy linear classifier: PAC-Bayes held against exact truth.

One draw of the predictor masks the inputs and the output and perturbs the kept weights, :math:`f(x)
= m_B \, (w + \sigma \xi)^\top (m_A \odot x)`, and errs unless :math:`y f(x) > 0`. Given the masks,
:math:`y f(x)` is Gaussian with mean :math:`y\, w^\top (m_A \odot x)` and standard deviation
:math:`\sigma \|m_A \odot x\|`, so that the probability of an error is a finite sum over the masks,

.. math:: p + q \sum_{m_A} \Pr(m_A)\, \Phi\Bigl(-\frac{y\, w^\top (m_A \odot x)}
    {\sigma \|m_A \odot x\|}\Bigr),

with an error for certain where :math:`m_A \odot x = 0`. Inverted scaling changes no sign. From the
same law around 0 it diverges by :math:`(1-p) \|w\|^2 / (2\sigma^2)` nats
(:func:`~lodrop_theory.bounds.gaussian_masks.masked_factors_kl`): with probability p the output mask
removes the weights from both laws, and the input mask has one law on both sides.
"""

from itertools import product

import numpy as np

from lodrop_theory._checks import (
    Float64Array,
    as_float64,
    check_dropout_rate,
    check_positive,
)

_MOST_FEATURES = 12


def masked_sign_risk(
    weights: Float64Array,
    inputs: Float64Array,
    labels: Float64Array,
    *,
    dropout_rate: float,
    noise_scale: float,
) -> Float64Array:
    r"""Probability of an error at each atom, over masks and noise: top of this module.

    Args:
        weights: w, shape (m, d).
        inputs: The atoms x, shape (K, d), with d at most 12.
        labels: y of each atom, -1 or 1, shape (K,).
        dropout_rate: p in [0, 1), of inputs and output alike.
        noise_scale: sigma > 0.

    Returns:
        Shape (m, K), in [0, 1].

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        No weights: the noise decides, if the output and the one input survive.

        >>> masked_sign_risk(
        ...     np.zeros((1, 1)), np.ones((1, 1)), np.ones(1), dropout_rate=0.5, noise_scale=1.0
        ... ).tolist()
        [[0.875]]
    """
    from scipy.special import ndtr

    p = float(check_dropout_rate("dropout_rate", dropout_rate))
    sigma = float(check_positive("noise_scale", noise_scale))
    x, y, w = (as_float64(n, v) for n, v in zip("xyw", (inputs, labels, weights), strict=True))
    features = x.shape[1]
    if features > _MOST_FEATURES:
        raise ValueError(f"`inputs` must have at most {_MOST_FEATURES} features, got {features}.")
    if not np.isin(y, (-1.0, 1.0)).all():
        raise ValueError(f"`labels` must be -1 or 1, got {labels!r}.")
    error = np.zeros((len(w), len(x)))
    for bits in product((0.0, 1.0), repeat=features):
        mask = np.array(bits)
        kept = x * mask
        length = np.linalg.norm(kept, axis=1)
        margin = y * (w @ kept.T) / (sigma * np.where(length > 0, length, 1.0))
        chance = p ** (features - mask.sum()) * (1.0 - p) ** mask.sum()
        error += chance * np.where(length > 0, ndtr(-margin), 1.0)
    return np.asarray(np.minimum(p + (1.0 - p) * error, 1.0))
