"""Files of labelled texts: what is read is what stands there, and what cannot be is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_nn.data import load_rows, load_split

KINDS = (".jsonl", ".csv")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_bytes("".join(lines).encode())
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(k for r in rows for k in r)))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", KINDS)
@given(
    rows=st.lists(
        st.tuples(texts.filter(str.strip), st.integers(0, 3), st.floats(0, 1)),
        min_size=1,
        max_size=8,
        unique_by=lambda row: row[0],
    )
)
def test_rows_come_back_as_they_were_written(tmp_path_factory, kind: str, rows) -> None:
    fields = [{"text": t, "label": k, "vote_share": v, "other": "x"} for t, k, v in rows]
    file = tmp_path_factory.mktemp("rows") / f"rows{kind}"
    data = load_rows(write(file, fields), n_classes=4)
    assert data.texts == tuple(text for text, _, _ in rows)
    assert data.labels.tolist() == [label for _, label, _ in rows]
    np.testing.assert_array_equal(data.vote_shares, [share for _, _, share in rows])
    assert (data.n_classes, data.caveats) == (4, ())


def test_numbers_say_how_many_classes_there_are_at_least(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", [{"text": "a", "label": 0}, {"text": "b", "label": 2}])
    assert load_rows(file).n_classes == 3
    one = write(tmp_path / "one.csv", [{"text": "a", "label": 0}])
    assert load_rows(one).n_classes == 2


def test_names_are_in_the_order_that_is_given_else_alphabetical(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}]
    file = write(tmp_path / "rows.jsonl", rows)
    alphabetical, given_order = load_rows(file), load_rows(file, class_names=("pos", "neg"))
    assert alphabetical.labels.tolist() == [1, 0]
    assert alphabetical.caveats == ("Classes: 0 = neg, 1 = pos.",)
    assert given_order.labels.tolist() == [0, 1]
    assert given_order.caveats == ("Classes: 0 = pos, 1 = neg.",)
    with pytest.raises(ValueError, match=r"line 2: `label` must be one of \('pos', 'x'\)"):
        load_rows(file, class_names=("pos", "x"))
    with pytest.raises(ValueError, match="`class_names` must be the 3 names"):
        load_rows(file, n_classes=3)


def test_names_of_outputs_leave_numbers_alone(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    file = write(tmp_path / "rows.csv", rows)
    assert load_rows(file, class_names=("pos", "neg")).labels.tolist() == [1, 0]
    assert load_rows(file, class_names=("1", "0")).labels.tolist() == [0, 1]


def test_of_repeated_texts_in_one_file_the_first_counts(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "a", "label": 0}]
    data = load_rows(write(tmp_path / "rows.csv", rows))
    assert (data.texts, data.labels.tolist()) == (("a", "b"), [1, 0])
    assert data.caveats[0].startswith("1 of the 3 rows of rows.csv repeat a text")
    assert "1 of them with another label" in data.caveats[0]


def test_a_folder_keeps_its_own_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"text": t, "label": "no"} for t in "aab"])
    write(tmp_path / "test.csv", [{"text": t, "label": "yes"} for t in "cd"])
    train, test = load_split(tmp_path)
    assert (train.texts, test.texts) == (("a", "a", "b"), ("c", "d"))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 0], [1, 1])
    assert train.caveats == test.caveats == ("Classes: 0 = no, 1 = yes.",)


def test_rows_in_both_parts_are_told(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [{"text": t, "label": 0} for t in "abc"])
    write(tmp_path / "test.csv", [{"text": t, "label": 1} for t in "xbb"])
    train, test = load_split(tmp_path)
    assert len(test) == 3
    assert train.caveats == test.caveats
    assert test.caveats[0].startswith("2 of the 3 held-out texts also stand in the training rows")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "b"}, "`label` must be"),
        ({"text": "b", "label": None}, "`label` must be"),
        ({"text": "b", "label": " "}, "`label` must be"),
        ({"text": "b", "label": -1}, r"`label` must be in \[0, 2\), got -1"),
        ({"text": "b", "label": 2}, r"`label` must be in \[0, 2\), got 2"),
        ({"text": " ", "label": 0}, "`text` must be"),
        ({"label": 0}, "`text` must be"),
        ({"text": "b", "label": 0, "vote_share": 1.5}, "`vote_share` must be in"),
        ({"text": "b", "label": 0, "vote_share": "many"}, "`vote_share` must be in"),
        ({"text": "b", "label": 0, "vote_share": "nan"}, "`vote_share` must be in"),
        ({"text": "b", "label": 0, "vote_share": 0.5}, "`vote_share` must be in every row"),
        ({"text": "b", "label": 0, "text_pair": "c"}, "pairs of texts are not supported"),
    ],
)
def test_a_row_that_cannot_be_is_named_by_its_line(kind, row, message, tmp_path: Path) -> None:
    file = write(tmp_path / f"rows{kind}", [{"text": "a", "label": 0}, row])
    line = 2 if kind == ".jsonl" else 3
    with pytest.raises(ValueError, match=message) as error:
        load_rows(file, n_classes=2)
    whole_file = "every row" in message
    assert f"rows{kind}, line {line - 1 if whole_file else line}:" in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": 5, "label": 0}', "`text` must be"),
        ('{"text": "b", "label": true}', "`label` must be"),
        ('{"text": "b", "label": 0.5}', "`label` must be"),
        ("[1]", "must be a JSON object"),
        ('{"text": "b"', "must be a JSON object"),
    ],
)
def test_json_of_other_kinds_is_refused(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 1: .*{message}"):
        load_rows(tmp_path / "rows.jsonl")


def test_files_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("text,label\na,0\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.csv").write_bytes("text,label\né,0\n".encode("latin-1"))
    (tmp_path / "open.csv").write_text('text,label\n"a,0\n')
    for name, message in (
        ("rows.txt", r"existing .jsonl or .csv file"),
        ("none.csv", r"existing .jsonl or .csv file"),
        ("empty.jsonl", "at least one row, got none"),
        ("latin.csv", "must be UTF-8 text"),
        ("open.csv", "must be CSV"),
    ):
        with pytest.raises(ValueError, match=message):
            load_rows(tmp_path / name)
    with pytest.raises(ValueError, match=r"must hold train.jsonl or train.csv, got neither"):
        load_split(tmp_path)
    for kind in KINDS:
        write(tmp_path / f"train{kind}", [{"text": "a", "label": 0, "vote_share": 0.5}])
    with pytest.raises(ValueError, match=r"got both"):
        load_split(tmp_path)
    (tmp_path / "train.csv").unlink()
    write(tmp_path / "test.csv", [{"text": "b", "label": 0}])
    with pytest.raises(ValueError, match="`vote_share` must be in train and test"):
        load_split(tmp_path)


def test_one_class_by_name_alone_is_no_classification(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", [{"text": "a", "label": "good"}])
    with pytest.raises(ValueError, match="two or more classes, got 'good' only"):
        load_rows(file)
    with pytest.raises(ValueError, match="two or more distinct names"):
        load_rows(file, class_names=("good", "good"))
