"""Parsers of the data sets beside the movie reviews."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_nn.data import DATA_SETS, load_data
from lodrop_nn.data.sarcasm import parse_sarcasm
from lodrop_nn.data.trec import CLASSES, parse_trec

# No line break of any kind, no space at an end, and the separator of the source inside.
TEXTS = st.lists(
    st.text("abc :é\x85\u2028'", min_size=1, max_size=9).map(str.strip).filter(bool),
    min_size=1,
    max_size=12,
)


@given(texts=TEXTS, data=st.data())
def test_each_distinct_question_keeps_its_first_coarse_class(texts, data) -> None:
    labels = data.draw(st.lists(st.integers(0, 5), min_size=len(texts), max_size=len(texts)))
    rows = zip(labels, texts, strict=True)
    parsed = parse_trec("\n".join(f"{CLASSES[label]}:fine {text}" for label, text in rows) + "\n")
    first = dict(reversed(list(zip(texts, labels, strict=True))))
    assert parsed.texts == tuple(dict.fromkeys(texts))
    assert parsed.labels.tolist() == [first[text] for text in parsed.texts]
    assert parsed.n_classes == 6


@given(texts=TEXTS, data=st.data(), end=st.sampled_from(["\n", "\r\n"]))
def test_each_distinct_headline_keeps_its_first_label(texts, data, end: str) -> None:
    labels = data.draw(st.lists(st.integers(0, 1), min_size=len(texts), max_size=len(texts)))
    lines = [
        json.dumps(
            {"input": [{"content": "ask"}, {"content": text}], "ideal": str(label)},
            ensure_ascii=False,
        )
        for text, label in zip(texts, labels, strict=True)
    ]
    parsed = parse_sarcasm(end.join(lines))
    first = dict(reversed(list(zip(texts, labels, strict=True))))
    assert parsed.texts == tuple(dict.fromkeys(texts))
    assert parsed.labels.tolist() == [first[text] for text in parsed.texts]


def test_labels_outside_the_known_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="'ANIMAL'"):
        parse_trec("ANIMAL:cat Who purrs ?")
    with pytest.raises(ValueError, match="'maybe'"):
        parse_sarcasm('{"input": [{"content": "a"}], "ideal": "maybe"}')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "counts", "first"),
    [
        ("trec", [86, 1153, 1245, 1215, 824, 858], "How did serfdom develop in"),
        ("sarcasm", [14_950, 13_548], "thirtysomething scientists unveil"),
    ],
)
def test_the_real_rows_download_and_have_their_known_counts(
    name, counts, first, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("LODROP_CACHE", str(tmp_path))
    data = load_data(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the second time comes from the cache
    again = DATA_SETS[name]()
    assert data.name == name
    assert np.bincount(data.labels, minlength=data.n_classes).tolist() == counts
    assert len(set(data.texts)) == len(data)
    assert data.texts[0].startswith(first)
    assert again.texts == data.texts
