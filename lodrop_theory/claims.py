"""The claims of the LoRA Dropout paper as contracts: each with its verdict, evidence and test.

A verdict is one of four. *holds*: as stated. *holds, restricted*: under hypotheses that the paper
does not state or that its own setting does not meet. *false as stated*: there is an exact
counterexample; ``repair`` says what is true instead. *not a theorem*: a matter of measurement.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

_PAPER = "Lin et al. 2024, arXiv:2404.09610v1"

ClaimVerdict = Literal["holds", "holds, restricted", "false as stated", "not a theorem"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the paper.

    Attributes:
        name: C1 to C7.
        claim: What the paper says, in one sentence.
        source: Where it says so.
        hypotheses: What the verdict needs, one line each.
        verdict: One of four: top of this module.
        evidence: Why, in a sentence or two: a proof, an identity or a counterexample.
        repair: What is true instead, or None.
        test: The test that asserts the evidence, a pytest node relative to the repository.
    """

    name: str
    claim: str
    source: str
    hypotheses: tuple[str, ...]
    verdict: ClaimVerdict
    evidence: str
    repair: str | None
    test: str


def _test(name: str) -> str:
    return f"tests/theory/test_claims.py::{name}"


CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="C1",
        claim="Masking rows and columns at rate p drops an entry of the update with probability "
        "2p - p^2.",
        source=f"{_PAPER}, Section 4.1",
        hypotheses=("row and column masks are independent Bernoulli(1 - p)",),
        verdict="holds",
        evidence="Exact over all masks. The entries are dependent, which changes no mean: "
        "E ||masked D||^2 = (1 - p)^2 ||D||^2.",
        repair=None,
        test=_test("test_c1_sparsity"),
    ),
    Claim(
        name="C2",
        claim="The pointwise stability is at most 2 lipschitz^2 / "
        "((hessian_min_eig + 2 penalty (2p - p^2)) n).",
        source=f"{_PAPER}, Proposition 4.2",
        hypotheses=(
            "frozen A of full row rank, or an update of full rank",
            "strong convexity on the segment between the minimizers, for every training set",
            "exact minimizers",
        ),
        verdict="holds, restricted",
        evidence="Exact stability is within the bound on every enumerated problem with a frozen A, "
        "at every point and not only at the removed one. In the factors (A, B) the objective is "
        "constant along (B G, G^-1 A): its Hessian has at least r^2 zero eigenvalues at every "
        "dropout rate, so that the bound does not apply.",
        repair="train B alone or a full-rank update; or count the curvature across the orbit",
        test=_test("test_c2_stability"),
    ),
    Claim(
        name="C3",
        claim="Pointwise stability beta gives R <= R_hat + sqrt((C^2 + 12 C n beta) / "
        "(2 n delta)) with probability 1 - delta.",
        source=f"{_PAPER}, Lemma 4.3 (after Bousquet and Elisseeff 2002, Theorem 11)",
        hypotheses=("symmetric algorithm", "loss in an interval of length C"),
        verdict="false as stated",
        evidence="An algorithm that memorizes even samples and is right everywhere on odd ones has "
        "beta = 0 and breaks it: on 16 atoms, n = 4, delta = 1/2 the gap exceeds the bound with "
        "probability 1.",
        repair="R <= R_hat + sqrt((C^2 + 2 C n (3 b1 + 2 b2)) / (2 n delta)), with the stability "
        "b1 at a fresh point beside b2 at the removed one",
        test=_test("test_c3_lemma"),
    ),
    Claim(
        name="C4",
        claim="R <= R_hat + sqrt((C^2 + 24 C lipschitz^2 / mu) / (2 n delta)), "
        "mu = hessian_min_eig + 2 penalty (2p - p^2).",
        source=f"{_PAPER}, Theorem 4.4",
        hypotheses=("those of C2", "symmetric algorithm", "loss in an interval of length C"),
        verdict="holds, restricted",
        evidence="Though its lemma is false: the stability of C2 is uniform, so that the repaired "
        "lemma applies and gives no more. No violation on enumerated problems; the bound is about "
        "100 times the exact quantile there in the median (paper_figures/records/theory) and never "
        "below C / sqrt(2 n delta).",
        repair="wherever it is not vacuous, the mean-square bound of the same inputs is smaller",
        test=_test("test_c4_theorem"),
    ),
    Claim(
        name="C5",
        claim="The generalization gap falls as the dropout rate grows.",
        source=f"{_PAPER}, after Theorem 4.4",
        hypotheses=("lipschitz, C and the penalty weight do not depend on p",),
        verdict="false as stated",
        evidence="The bound falls, the gap need not: for y = x on inputs 1 and 1/2 it is 0 without "
        "dropout and positive with the penalty, at every rate; with real masks and a useless "
        "second feature it more than doubles from p = 0.001 to p = 0.3.",
        repair="for a fixed design and noise s the expected optimism of ridge, s^2 tr(S_p) / n, "
        "falls strictly; at any rate the expected gap is at most 2 lipschitz^2 / (mu n)",
        test=_test("test_c5_gap_in_p"),
    ),
    Claim(
        name="C6",
        claim="The loss of the mask ensemble is at most the mean loss of its members.",
        source=f"{_PAPER}, Theorem 4.5",
        hypotheses=("the loss is convex in the averaged output",),
        verdict="holds",
        evidence="Jensen's inequality at each example; for the half-squared loss the difference is "
        "exactly tr Cov / 2. Convexity in the parameters, which the appendix asks for, is neither "
        "needed nor true, and the theorem says nothing of the model with its masks off.",
        repair=None,
        test=_test("test_c6_jensen"),
    ),
    Claim(
        name="C7",
        claim="The mask ensemble is better calibrated than its members.",
        source=f"{_PAPER}, experiments (expected calibration error)",
        hypotheses=(),
        verdict="not a theorem",
        evidence="Two members that are each calibrated can average to an ensemble that is not: on "
        "two fair bits the calibration error goes from 0 to 1/8 while the squared loss falls, as "
        "C6 says. Whether a given ensemble gains is measured.",
        repair="measure it on held-out examples, with an interval",
        test=_test("test_c7_calibration"),
    ),
)


def claims_table(claims: Iterable[Claim] = CLAIMS) -> str:
    """The claims as a Markdown table, one row each, for the README and the notebooks.

    Args:
        claims: Which claims, in order.

    Returns:
        Lines that end with a newline; vertical bars in the texts are escaped.

    Example:
        >>> print(claims_table(CLAIMS[:1]))  # doctest: +ELLIPSIS
        | | claim | verdict | evidence | instead | test |
        |---|---|---|---|---|---|
        | C1 | Masking rows ... | holds | Exact over all masks. ... | | `test_c1_sparsity` |
        <BLANKLINE>
    """
    rows = ["| | claim | verdict | evidence | instead | test |", "|---|---|---|---|---|---|"]
    for each in claims:
        cells = (
            each.name,
            each.claim,
            each.verdict,
            each.evidence,
            each.repair or "",
            f"`{each.test.rpartition('::')[2]}`",
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(row.replace("|  |", "| |") for row in rows) + "\n"
