r"""From stability to risk, after Bousquet and Elisseeff (2002), with the printed step repaired.

Write :math:`\ell_S(z)` for the loss at :math:`z` of what was learned from :math:`S`, :math:`S'`
for :math:`S` with :math:`z_1` replaced by a fresh :math:`z`, :math:`\Phi = R - \hat R`. The loss
lies in an interval of length :math:`C`; only differences matter, so let it be :math:`[-C/2, C/2]`.

**Second moment.** By symmetry :math:`\mathbb E\Phi^2 = \mathbb E\,\Phi(S)(\ell_S(z) -
\ell_S(z_1))`, and exchanging :math:`z` and :math:`z_1` in the first term,

.. math:: \mathbb E\Phi^2 = \mathbb E\,\Phi(S')\,(\ell_{S'}(z_1) - \ell_S(z_1))
    + \mathbb E\,(\Phi(S') - \Phi(S))\,\ell_S(z_1).

The first term is at most :math:`C g`, :math:`g = \mathbb E|\ell_{S'}(z_1) - \ell_S(z_1)|`. In the
second, :math:`\Phi(S') - \Phi(S)` consists of the change of :math:`R`, at most
:math:`g_{\mathrm{out}}` in mean (replacement, seen at a fresh point); the change at the other
training points, at most :math:`g_{\mathrm{other}}`; and :math:`-(\ell_{S'}(z) - \ell_S(z_1))/n`,
whose contribution is, by the antisymmetry under :math:`z \leftrightarrow z_1`, :math:`\mathbb
E(\ell_{S'}(z) - \ell_S(z_1))^2/(2n) \le C^2/(2n)`. With :math:`|\ell| \le C/2`,

.. math:: \mathbb E\Phi^2 \le \frac{C^2}{2n} + C g + \frac C2 (g_{\mathrm{out}} +
    g_{\mathrm{other}}).

Let :math:`b_1` be the mean change at a *fresh* point and :math:`b_2` at the *removed* point when
one example is removed. Passing through the sample without :math:`z_1`: :math:`g \le b_1 + b_2` and
:math:`g_{\mathrm{out}} \le 2 b_1`. Passing from :math:`\{z_1, z_2, \dots\}` over :math:`\{z_1, z,
\dots\}` to :math:`\{z_2, z, \dots\}`, each step replaces or inserts the point :math:`z_2` that is
looked at: :math:`g_{\mathrm{other}} \le 2 g \le 2(b_1 + b_2)`. Hence

.. math:: \mathbb E(R - \hat R)^2 \le \frac{C^2}{2n} + C(3 b_1 + 2 b_2).

The printed proof (Lemma 9 and Theorem 11) arrives at :math:`6 C b_2` by bounding :math:`g` by
:math:`2 b_2`; that is false. An exact memorizer for even sample sizes that is right everywhere for
odd ones has :math:`b_2 = 0` and :math:`R - \hat R = 1`; the tests keep it as a negative control.

**Tail.** See :func:`uniform_bound`.
"""

import numpy as np

from lodrop_theory._numerics import round_up
from lodrop_theory.bounds.lin2024 import SAMPLE_HYPOTHESES
from lodrop_theory.inputs import TwoStabilityInputs, UniformStabilityInputs
from lodrop_theory.records import Predictor
from lodrop_theory.results import SAME_GAP, BoundResult, as_array, input_fields


def two_stability_bound(
    inputs: TwoStabilityInputs, *, predictor: Predictor = "mean", certified: bool = False
) -> BoundResult:
    r"""Risk bound from hypothesis stability and pointwise stability together.

    .. math:: R \le \hat R + \sqrt{\frac{C^2 + 2 C n (3 b_1 + 2 b_2)}{2 n \delta}}

    by Chebyshev's inequality and the second moment proved at the top of this module. There is no
    form for the pointwise stability alone: it would be false.

    Args:
        inputs: Both stabilities (one example removed), means over training sets.
        predictor: The predictor whose loss they compare.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, with probability at least 1 - delta over training sets.

    Source:
        Bousquet and Elisseeff (2002), JMLR 2, Theorem 11, corrected; constants proved here.

    Example:
        >>> from lodrop_theory.inputs import TwoStabilityInputs
        >>> inputs = TwoStabilityInputs(
        ...     n_train=100, loss_range=1, delta=0.5, hypothesis_stability=0, pointwise_stability=0
        ... )
        >>> round(float(two_stability_bound(inputs).gap), 12)
        0.1
    """
    c, n = np.asarray(inputs.loss_range), np.asarray(inputs.n_train)
    b1, b2 = np.asarray(inputs.hypothesis_stability), np.asarray(inputs.pointwise_stability)
    with np.errstate(over="ignore"):
        second_moment_root = np.hypot(c / np.sqrt(2.0 * n), np.sqrt(c) * np.sqrt(3 * b1 + 2 * b2))
        gap = second_moment_root / np.sqrt(inputs.delta)
    return BoundResult(
        bound="two-stability",
        title="Two stabilities, Chebyshev",
        source="Bousquet and Elisseeff 2002, JMLR 2, Theorem 11, corrected (proof in the source)",
        statement="probability",
        predictor=predictor,
        gap=round_up(gap),
        empirical_risk=as_array(inputs.empirical_risk),
        loss_range=c,
        delta=as_array(inputs.delta),
        certified=certified,
        hypotheses=(
            *SAMPLE_HYPOTHESES,
            "the two stabilities are means over training sets of n_train examples",
        ),
        inputs=input_fields(inputs),
        event=SAME_GAP,
    )


def uniform_bound(
    inputs: UniformStabilityInputs, *, predictor: Predictor = "mean", certified: bool = False
) -> BoundResult:
    r"""Risk bound with an exponential tail, from uniform replace-one stability g.

    .. math:: R \le \hat R + g + (2 n g + C) \sqrt{\frac{\ln(1/\delta)}{2n}}

    Proof. :math:`\mathbb E[R - \hat R] = \mathbb E[\ell_{S'}(z_1) - \ell_S(z_1)] \le g`. When one
    example is replaced, R changes by at most g; the mean of the other n - 1 training losses by at
    most g; and the term of the replaced example by at most C/n: :math:`R - \hat R` has bounded
    differences :math:`2g + C/n`. McDiarmid's inequality adds :math:`(2g + C/n) \sqrt{n
    \ln(1/\delta)/2}`. With remove-one stability b, g is at most 2b, and this is the theorem as
    printed.

    Args:
        inputs: The stability, a supremum over training sets and points.
        predictor: The predictor whose loss it compares.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound, with probability at least 1 - delta over training sets.

    Source:
        Bousquet and Elisseeff (2002), JMLR 2, Theorem 12, with b = g / 2.

    Example:
        A constant algorithm has g = 0, which leaves Hoeffding's inequality:

        >>> import math
        >>> from lodrop_theory.inputs import UniformStabilityInputs
        >>> inputs = UniformStabilityInputs(
        ...     n_train=200, loss_range=1, delta=math.exp(-4), uniform_stability=0
        ... )
        >>> round(float(uniform_bound(inputs).gap), 12)
        0.1
    """
    c, n = np.asarray(inputs.loss_range), np.asarray(inputs.n_train)
    g = np.asarray(inputs.uniform_stability)
    with np.errstate(over="ignore"):
        spread = g * np.sqrt(2.0 * n) + c / np.sqrt(2.0 * n)
        gap = g + spread * np.sqrt(-np.log(inputs.delta))
    return BoundResult(
        bound="uniform-tail",
        title="Uniform stability, exponential tail",
        source="Bousquet and Elisseeff 2002, JMLR 2, Theorem 12 (replace-one form)",
        statement="probability",
        predictor=predictor,
        gap=round_up(gap),
        empirical_risk=as_array(inputs.empirical_risk),
        loss_range=c,
        delta=as_array(inputs.delta),
        certified=certified,
        hypotheses=(
            *SAMPLE_HYPOTHESES,
            "the stability is a supremum over training sets, replacements and points",
        ),
        inputs=input_fields(inputs),
        event=SAME_GAP,
    )


def expectation_bound(
    inputs: UniformStabilityInputs, *, predictor: Predictor = "mean", certified: bool = False
) -> BoundResult:
    r"""Bound on the mean gap over training sets: :math:`|\mathbb E[R - \hat R]| \le g`.

    Proof. Exchanging a training example with a fresh one, :math:`\mathbb E[R - \hat R] = \mathbb
    E[\ell_{S'}(z_1) - \ell_S(z_1)]`. With the curvature's g it is of order 1/n, with no floor.

    Args:
        inputs: The stability; ``delta`` and ``empirical_risk`` play no part.
        predictor: The predictor whose loss it compares.
        certified: Whether the caller vouches for ``hypotheses`` and for the inputs.

    Returns:
        The bound in expectation. It has no empirical risk, and so no risk: the number observed in
        one run is not the mean that the statement is about.

    Source:
        Bousquet and Elisseeff (2002), JMLR 2, Lemma 7.

    Example:
        >>> from lodrop_theory.inputs import UniformStabilityInputs
        >>> inputs = UniformStabilityInputs(
        ...     n_train=200, loss_range=1, delta=0.05, uniform_stability=0.01
        ... )
        >>> float(expectation_bound(inputs).gap)
        0.01
    """
    return BoundResult(
        bound="expectation",
        title="Uniform stability, in expectation",
        source="Bousquet and Elisseeff 2002, JMLR 2, Lemma 7",
        statement="expectation",
        predictor=predictor,
        gap=np.asarray(inputs.uniform_stability),
        loss_range=np.asarray(inputs.loss_range),
        certified=certified,
        hypotheses=(
            SAMPLE_HYPOTHESES[0],
            SAMPLE_HYPOTHESES[2],
            "the stability is a supremum over training sets, replacements and points",
        ),
        caveats=("about the mean gap over training sets, not about the gap of one run",),
        inputs={**input_fields(inputs), "delta": None, "empirical_risk": None},
    )
