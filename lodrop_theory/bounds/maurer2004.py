r"""PAC-Bayes-kl and what follows from it: Maurer (2004), arXiv:cs/0411099, Theorem 5.

For a prior that does not depend on the sample, with probability at least :math:`1 - \delta`, for
*all* posteriors at once,

.. math:: \mathrm{kl}(\hat R \,\|\, R) \le
    B = \frac{\mathrm{KL} + \ln(2\sqrt n / \delta)}{n}.

The theorem is stated for :math:`n \ge 8`; its constant is :math:`\mathbb E\, e^{n\,
\mathrm{kl}(\hat R \| R)} \le \sum_k \binom nk (k/n)^k (1 - k/n)^{n-k} \le 2\sqrt n`, and the last
inequality holds for n = 1 (with equality) to 7 as well (tested).

:math:`\mathrm{kl}(q\|p) \ge (p - q)^2 / (2p)` and :math:`\mathrm{kl}(q\|p) \ge 2 (p - q)^2` turn
it into two closed forms. They fail by the same event, so that quoting the smallest costs nothing;
it is always the first. (The bound of Thiemann et al. (2017) at its best lambda *is* the quadratic
form: tested.)

Examples drawn without replacement from a finite population do as well. The proof uses the examples
through :math:`\mathbb E\, e^{n\, \mathrm{kl}(\hat R_h \| R_h)}` of each fixed h alone, and
:math:`x \mapsto e^{n\, \mathrm{kl}(x \| R)}` is convex: its expectation at a sample mean is never
larger without replacement than with (Hoeffding 1963, Theorem 4). The risk is then the mean over
that population, of which the sample is a part.
"""

import numpy as np

from lodrop_theory._checks import Float64Array
from lodrop_theory._numerics import round_down, round_up
from lodrop_theory.inputs import PacBayesInputs
from lodrop_theory.kl_inverse import binary_kl_inverse
from lodrop_theory.results import BoundResult, input_fields

PAC_BAYES_HYPOTHESES = (
    "the training examples are independent draws from the population",
    "the loss of every example lies in [loss_min, loss_min + loss_range]",
    "the prior (and the grid it was chosen from) was fixed before the training sample was seen",
)
_DRAWS = (
    "the draws behind `empirical_risk` are independent and were made after the posterior was chosen"
)
PAC_BAYES_CAVEAT = (
    "about the predictor that draws from the posterior: masks, and noise wherever `kl_nats` has it"
)
_SOURCE = "Maurer 2004, arXiv:cs/0411099, Theorem 5"


def scaled_risk(inputs: PacBayesInputs) -> Float64Array:
    """Training risk of the posterior, as a share of the loss interval, rounded upward.

    Behind a Monte Carlo mean it is the kl inverse at ``ln(1/delta_draws) / n_draws``: the risks of
    the draws are independent, lie in [0, 1] and have expectations whose mean is the exact one.
    They need not be alike (Hoeffding 1963, Theorem 1): a draw may serve a part of the examples, if
    the parts are equal and each pass covers all examples; for unequal parts, ``n_draws`` is the
    number of examples served over the largest part, rounded down
    (:mod:`lodrop_nn.certify.risk` has the proof).
    """
    low = np.asarray(0.0 if inputs.loss_min is None else inputs.loss_min)
    risk, length = np.asarray(inputs.empirical_risk), np.asarray(inputs.loss_range)
    share = round_up(round_up(risk - low, np.abs(risk) + np.abs(low)) / length)
    share = np.minimum(np.maximum(share, 0.0), 1.0)
    if inputs.n_draws is None or inputs.delta_draws is None:
        return share
    nats = round_up(-np.log(inputs.delta_draws) / np.asarray(inputs.n_draws))
    return np.asarray(binary_kl_inverse(share, nats))


def complexity_nats(inputs: PacBayesInputs) -> Float64Array:
    """KL + ln(n_priors) + ln(1/delta'), delta' being what the draws leave; rounded upward."""
    left = np.asarray(inputs.delta)
    if inputs.delta_draws is not None:
        left = np.maximum(round_down(left - inputs.delta_draws, left), np.finfo(np.float64).tiny)
    priors = np.asarray(1.0 if inputs.n_priors is None else inputs.n_priors)
    terms = np.asarray(inputs.kl_nats) + np.log(priors) - np.log(left)
    return round_up(terms)


def pac_bayes_result(
    inputs: PacBayesInputs,
    share: Float64Array,
    *,
    bound: str,
    title: str,
    source: str,
    event: str,
    certified: bool,
    extra: dict[str, Float64Array | None] | None = None,
    hypotheses: tuple[str, ...] = (),
) -> BoundResult:
    """The bound on the risk as a share of the loss interval, as a result in loss units."""
    low = np.asarray(0.0 if inputs.loss_min is None else inputs.loss_min)
    risk, length = np.asarray(inputs.empirical_risk), np.asarray(inputs.loss_range)
    with np.errstate(over="ignore"):
        top = length * share
        gap = round_up(top + (low - risk), top + np.abs(low) + np.abs(risk))
    drawn = () if inputs.n_draws is None else (_DRAWS,)
    return BoundResult(
        bound=bound,
        title=title,
        source=source,
        statement="probability",
        predictor="gibbs",
        gap=gap,
        empirical_risk=risk,
        loss_range=length,
        delta=np.asarray(inputs.delta),
        certified=certified,
        hypotheses=(*PAC_BAYES_HYPOTHESES, *drawn, *hypotheses),
        caveats=(PAC_BAYES_CAVEAT,),
        inputs={**input_fields(inputs), **(extra or {})},
        event=event,
    )


def _budget(inputs: PacBayesInputs) -> Float64Array:
    n = np.asarray(inputs.n_train)
    return round_up((complexity_nats(inputs) + (np.log(2.0) + 0.5 * np.log(n))) / n)


def pac_bayes_kl_bound(inputs: PacBayesInputs, *, certified: bool = False) -> BoundResult:
    r"""Risk bound of a randomized adapter by the inverse of the binary divergence.

    .. math:: R \le \sup\{p : \mathrm{kl}(\hat R \,\|\, p) \le B\}, \qquad
        B = \frac{\mathrm{KL} + \ln(2 \sqrt n\, G / (\delta - \delta'))}{n},

    G priors tried, :math:`\delta'` paid for the Monte Carlo estimate of :math:`\hat R`; losses
    scaled to [0, 1]. With :func:`~lodrop_theory.bounds.gaussian_masks.masked_factors_kl` this is
    a certificate for LoRA Dropout that needs no convexity at all.

    Args:
        inputs: Training risk of the posterior, its divergence from the prior, and what pays.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound for the predictor ``gibbs``. Never more than the whole loss interval.

    Source:
        Maurer (2004), arXiv:cs/0411099, Theorem 5; constant checked for n < 8 here.

    Example:
        >>> from lodrop_theory.inputs import PacBayesInputs
        >>> inputs = PacBayesInputs(
        ...     n_train=1000, loss_range=1, delta=0.05, empirical_risk=0, kl_nats=2
        ... )
        >>> exact = 1 - np.exp(-(2 + np.log(2 * np.sqrt(1000) / 0.05)) / 1000)
        >>> bool(exact <= pac_bayes_kl_bound(inputs).risk <= exact * (1 + 1e-12))
        True
    """
    return pac_bayes_result(
        inputs,
        np.asarray(binary_kl_inverse(scaled_risk(inputs), _budget(inputs))),
        bound="pac-bayes-kl",
        title="PAC-Bayes, kl inverse",
        source=_SOURCE,
        event=_SOURCE,
        certified=certified,
    )


def pac_bayes_quadratic_bound(inputs: PacBayesInputs, *, certified: bool = False) -> BoundResult:
    r"""The same inequality in closed form, fast where the training risk is small.

    .. math:: R \le \Bigl(\sqrt{\hat R + B/2} + \sqrt{B/2}\Bigr)^2

    from :math:`\mathrm{kl}(q\|p) \ge (p - q)^2/(2p)`.

    Args:
        inputs: As in :func:`pac_bayes_kl_bound`.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound for the predictor ``gibbs``; never below :func:`pac_bayes_kl_bound`.

    Source:
        Rivasplata et al. (2019), arXiv:1908.07380, PAC-Bayes-quadratic.

    Example:
        >>> from lodrop_theory.inputs import PacBayesInputs
        >>> inputs = PacBayesInputs(
        ...     n_train=1000, loss_range=1, delta=0.05, empirical_risk=0, kl_nats=2
        ... )
        >>> twice = 2 * (2 + np.log(2 * np.sqrt(1000) / 0.05)) / 1000
        >>> bool(twice <= pac_bayes_quadratic_bound(inputs).risk <= twice * (1 + 1e-12))
        True
    """
    half = _budget(inputs) / 2.0
    share = round_up((np.sqrt(scaled_risk(inputs) + half) + np.sqrt(half)) ** 2)
    return pac_bayes_result(
        inputs,
        share,
        bound="pac-bayes-quadratic",
        title="PAC-Bayes, quadratic",
        source=f"Rivasplata et al. 2019, arXiv:1908.07380; {_SOURCE}",
        event=_SOURCE,
        certified=certified,
    )


def pac_bayes_root_bound(inputs: PacBayesInputs, *, certified: bool = False) -> BoundResult:
    r"""The same inequality in the form of McAllester (1999): :math:`R \le \hat R + \sqrt{B/2}`.

    By Pinsker's inequality :math:`\mathrm{kl}(q\|p) \ge 2(p - q)^2`.

    Args:
        inputs: As in :func:`pac_bayes_kl_bound`.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound for the predictor ``gibbs``; never below :func:`pac_bayes_kl_bound`.

    Source:
        McAllester (1999), COLT; with the constant of Maurer (2004), arXiv:cs/0411099.

    Example:
        >>> from lodrop_theory.inputs import PacBayesInputs
        >>> kl_nats = 8 - np.log(2 * np.sqrt(400) / 0.05)  # B = 8 / 400
        >>> inputs = PacBayesInputs(
        ...     n_train=400, loss_range=1, delta=0.05, empirical_risk=0.1, kl_nats=kl_nats
        ... )
        >>> round(float(pac_bayes_root_bound(inputs).gap), 12)
        0.1
    """
    share = round_up(scaled_risk(inputs) + np.sqrt(_budget(inputs) / 2.0))
    return pac_bayes_result(
        inputs,
        share,
        bound="pac-bayes-root",
        title="PAC-Bayes, square root",
        source=f"McAllester 1999, COLT; {_SOURCE}",
        event=_SOURCE,
        certified=certified,
    )


__all__ = ["pac_bayes_kl_bound", "pac_bayes_quadratic_bound", "pac_bayes_root_bound"]
