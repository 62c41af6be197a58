"""From logits of the first and last token of an answer to the answer's text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_N_BEST = 20  # starts and ends that are combined, in each window
_LONGEST = 30  # tokens of an answer


@dataclass(frozen=True, kw_only=True)
class AnswerWindow:
    """One window over the context of a question.

    Attributes:
        row: Index of the question.
        offsets: First and last-but-one character of each token in the context; None for tokens
            that are not of the context.
        null_token: The token that stands for "no answer here": the first.
    """

    row: int
    offsets: tuple[tuple[int, int] | None, ...]
    null_token: int

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """First and last token of the characters [start, end); None if the window lacks any.

        Example:
            >>> window = AnswerWindow(row=0, offsets=(None, (0, 5), (5, 8)), null_token=0)
            >>> window.tokens_of(6, 8), window.tokens_of(6, 9)
            ((2, 2), None)
        """
        spans = [(i, *span) for i, span in enumerate(self.offsets) if span is not None]
        if not spans or start < spans[0][1] or end > spans[-1][2]:
            return None
        touched = [i for i, first, last in spans if first < end and last > start]
        return (touched[0], touched[-1]) if touched else None


def best_answers(
    contexts: Sequence[str],
    windows: Sequence[AnswerWindow],
    logits: Sequence[NDArray[np.float64]],
    *,
    may_abstain: bool,
) -> list[str]:
    """The answer to each question: the span of the largest sum of start and end logit.

    Spans lie in the context, are of 1 to 30 tokens, and combine the 20 best starts and ends of
    each window. With ``may_abstain`` a question has no answer if the null token's sum, in the
    window where it is smallest, is larger (threshold 0: it is not tuned on the evaluation rows).

    Args:
        contexts: Context of each question.
        windows: Windows of all questions.
        logits: For each window, shape (tokens, 2): start and end; padding at the end is ignored.
        may_abstain: Whether the answer may be empty (SQuAD v2.0).

    Returns:
        One text per question.

    Source:
        The rule of the question-answering examples of transformers, which AdaLoRA's scripts use.

    Example:
        >>> window = AnswerWindow(row=0, offsets=(None, (0, 5), (5, 8)), null_token=0)
        >>> logits = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
        >>> best_answers(["Paris is"], [window], [logits], may_abstain=True)
        ['Paris is']
    """
    best = np.full(len(contexts), -np.inf)
    null = np.full(len(contexts), np.inf)
    texts = [""] * len(contexts)
    for window, each in zip(windows, logits, strict=True):
        row = window.row
        null[row] = min(null[row], each[window.null_token].sum())
        score, span = _best_span(window, each[: len(window.offsets)])
        if span is not None and score > best[row]:
            best[row], texts[row] = score, contexts[row][span[0] : span[1]].strip()
    if not may_abstain:
        return texts
    return ["" if null[i] > best[i] else text for i, text in enumerate(texts)]


def _best_span(
    window: AnswerWindow, logits: NDArray[np.float64]
) -> tuple[float, tuple[int, int] | None]:
    """Score and characters of the best span; None where no token is of the context."""
    allowed = np.array([span is not None for span in window.offsets])
    if not allowed.any():
        return -np.inf, None
    masked = np.where(allowed[:, None], logits, -np.inf)
    order = np.argsort(-masked, axis=0, kind="stable")[:_N_BEST]
    starts, ends = (order[np.isfinite(masked[order[:, k], k]), k] for k in (0, 1))
    sums = masked[starts, 0][:, None] + masked[ends, 1][None, :]
    lengths = ends[None, :] - starts[:, None] + 1
    sums = np.where((lengths >= 1) & (lengths <= _LONGEST), sums, -np.inf)
    at = np.unravel_index(int(sums.argmax()), sums.shape)
    first, last = window.offsets[starts[at[0]]], window.offsets[ends[at[1]]]
    if not np.isfinite(sums[at]) or first is None or last is None:
        return -np.inf, None
    return float(sums[at]), (first[0], last[1])
