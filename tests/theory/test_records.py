"""Records: what is written is read back, and nothing else is."""

import json
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory import Estimate, RecordError, read_record, write_record
from lodrop_theory.records import content_hash, write_bytes_atomically
from tests.factories import estimate, run_record

finite = st.floats(allow_nan=False, allow_infinity=False)


def test_round_trip(tmp_path) -> None:
    run = run_record()
    write_record(run, tmp_path / "run.json")
    assert read_record(tmp_path / "run.json") == run


@given(value=finite, width=st.floats(0, 1e6), draws=st.integers(1, 10**9))
def test_any_finite_estimate_survives(tmp_path_factory, value, width, draws) -> None:
    low, high = min(value - width, value), max(value + width, value)
    if not (math.isfinite(low) and math.isfinite(high)):
        return
    written = Estimate(value=value, low=low, high=high, level=0.9, n_draws=draws, method="m")
    path = tmp_path_factory.mktemp("records") / "run.json"
    write_record(run_record(lipschitz=written, penalty=None), path)
    again = read_record(path)
    assert again.lipschitz == written
    assert again.penalty is None
    assert (again.lipschitz.lower, again.lipschitz.upper) == (low, high)


def test_without_an_interval_both_ends_are_the_value() -> None:
    assert estimate(2.0).lower == estimate(2.0).upper == 2.0


@given(share=st.floats(0, 1))
def test_a_truncated_record_is_told(tmp_path_factory, share: float) -> None:
    path = tmp_path_factory.mktemp("records") / "run.json"
    write_record(run_record(), path)
    text = path.read_text().rstrip()
    path.write_text(text[: int(share * (len(text) - 1))])
    with pytest.raises(RecordError, match="must be a complete JSON record"):
        read_record(path)


def _paths(node, at=()):
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _paths(child, (*at, key))
    elif isinstance(node, list):
        for key, child in enumerate(node):
            yield from _paths(child, (*at, key))
    else:
        yield at


@given(data=st.data())
def test_an_edit_of_any_single_value_is_told(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("records") / "run.json"
    write_record(run_record(), path)
    content = json.loads(path.read_text())
    *parents, last = data.draw(st.sampled_from(sorted(_paths(content), key=str)))
    node = content
    for key in parents:
        node = node[key]
    node[last] = "edited" if node[last] != "edited" else "again"
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"schema|edited"):
        read_record(path)


def test_an_unknown_schema_is_told_before_anything_else(tmp_path) -> None:
    path = tmp_path / "run.json"
    write_record(run_record(), path)
    content = json.loads(path.read_text())
    content["schema"] = 99
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"`schema` of .* must be 1, got 99"):
        read_record(path)
    with pytest.raises(RecordError, match="`schema` must be 1"):
        run_record(schema=99)


@pytest.mark.parametrize("name", [f.name for f in fields(run_record()) if f.name != "schema"])
def test_a_missing_field_is_told_although_the_digest_is_right(tmp_path, name: str) -> None:
    path = tmp_path / "run.json"
    write_record(run_record(), path)
    content = json.loads(path.read_text())
    del content[name], content["digest"]
    content["digest"] = content_hash(content)
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match="must hold every field of schema 1"):
        read_record(path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"'])
def test_json_that_is_no_object_is_told(tmp_path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RecordError, match="must hold a JSON object"):
        read_record(path)


def test_a_missing_file_is_a_missing_file(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"value": float("nan")}, "`value` must be finite"),
        ({"value": float("inf")}, "`value` must be finite"),
        ({"value": True}, "`value` must be a real number"),
        ({"value": "1"}, "`value` must be a real number"),
        ({"low": 0.0}, "must be given together"),
        ({"low": 3.0, "high": 2.0}, "`low` must be <= `high`"),
        ({"low": float("-inf"), "high": 2.0}, "`low` must be finite"),
        ({"low": 0.0, "high": 2.0, "level": 1.0}, "`level` must be in"),
        ({"n_draws": 0}, "`n_draws` must be a whole number"),
        ({"n_draws": 1.5}, "`n_draws` must be a whole number"),
        ({"n_draws": True}, "`n_draws` must be a whole number"),
    ],
)
def test_estimates_outside_their_domain_are_refused(change, error) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        Estimate(**{"value": 1.0, "n_draws": 1, "method": "m", **change})


def test_all_three_predictors_are_needed() -> None:
    only = {k: v for k, v in run_record().predictors.items() if k != "gibbs"}
    with pytest.raises(RecordError, match="`predictors` must be exactly"):
        run_record(predictors=only)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "run.json"
    write_bytes_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_bytes_atomically(path, "text is no bytes")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
