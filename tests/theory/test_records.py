"""Records: what is written is read back, and nothing else is."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodrop_theory import (
    Estimate,
    RecordError,
    interval_of_estimate,
    read_record,
    write_record,
)
from lodrop_theory.records import content_hash, write_bytes_atomically
from tests.factories import (
    estimate,
    exact,
    full_record,
    posterior_points,
    predictor_scores,
    run_record,
    run_records,
    stability_estimates,
    stability_measurement,
)

COMMITTED = Path(__file__).parents[2] / "paper_figures" / "records" / "movie-reviews"

finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("run", [run_record(), full_record()], ids=["few", "all"])
def test_round_trip(tmp_path, run) -> None:
    write_record(run, tmp_path / "run.json")
    assert read_record(tmp_path / "run.json") == run


@given(run=run_records())
@settings(max_examples=30)
def test_any_record_survives(tmp_path_factory, run) -> None:
    path = tmp_path_factory.mktemp("records") / "run.json"
    write_record(run, path)
    again = read_record(path)
    assert again == run
    assert type(again.posterior) is tuple
    if again.stability is not None:
        assert type(again.stability.trace_gap) is type(run.stability.trace_gap)


@given(value=finite, width=st.floats(0, 1e6), draws=st.integers(1, 10**9))
def test_any_finite_estimate_survives(tmp_path_factory, value, width, draws) -> None:
    low, high = min(value - width, value), max(value + width, value)
    if not (math.isfinite(low) and math.isfinite(high)):
        return
    written = Estimate(value=value, low=low, high=high, level=0.9, n_draws=draws, method="m")
    path = tmp_path_factory.mktemp("records") / "run.json"
    write_record(run_record(hessian_min_eig=written, penalty=None), path)
    again = read_record(path)
    assert again.hessian_min_eig == written
    assert again.penalty is None
    assert (again.hessian_min_eig.lower, again.hessian_min_eig.upper) == (low, high)


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


def _signed(content) -> str:
    content.pop("digest", None)
    return json.dumps({**content, "digest": content_hash(content)})


def _objects(node, at=()):
    """The objects of a record that have fixed fields, by their paths."""
    if isinstance(node, list):
        for key, child in enumerate(node):
            yield from _objects(child, (*at, key))
    elif isinstance(node, dict):
        if at[-1:] in (("config",), ("environment",), ("seconds",)):
            return
        if at[-1:] not in (("predictors",), ("estimates",)):
            yield at
        for key, child in node.items():
            yield from _objects(child, (*at, key))


@given(data=st.data(), lost=st.booleans())
def test_a_nested_field_that_is_missing_or_unknown_is_told(tmp_path_factory, data, lost) -> None:
    path = tmp_path_factory.mktemp("records") / "run.json"
    write_record(full_record(), path)
    content = json.loads(path.read_text())
    del content["digest"]
    node = content
    for key in data.draw(st.sampled_from(sorted(_objects(content), key=str))):
        node = node[key]
    name = data.draw(st.sampled_from(sorted(set(node) - {"schema"}))) if lost else "unheard_of"
    if lost:
        del node[name]
    else:
        node[name] = None
    path.write_text(_signed(content))
    with pytest.raises(RecordError, match=f"every field of schema 2: .*{name}"):
        read_record(path)


@given(data=st.data())
def test_a_value_that_must_be_there_cannot_be_null(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("records") / "run.json"
    write_record(full_record(), path)
    content = json.loads(path.read_text())
    node, kind = data.draw(
        st.sampled_from(
            [
                (content, "lipschitz"),
                (content, "n_train"),
                (content["lipschitz"], "value"),
                (content["stability"], "gradient_norm"),
                (content["stability"]["estimates"]["refit"], "replace_one_gap"),
                (content["posterior"][0], "kl_nats"),
                (content["predictors"]["mean"], "population_risk"),
                (content["predictors"], "gibbs"),
                (content["seconds"], "predict"),
            ]
        )
    )
    node[kind] = None
    path.write_text(_signed(content))
    with pytest.raises(RecordError, match="must hold every field of schema 2"):
        read_record(path)


def test_files_of_the_first_schema_are_read_and_their_hessian_claims_less(tmp_path) -> None:
    paths = sorted(COMMITTED.glob("*.json"))
    assert len(paths) == 16
    for path in paths:
        written, run = json.loads(path.read_text()), read_record(path)
        assert (written["schema"], run.schema) == (1, 2)
        for name in ("hessian_min_eig", "hessian_max_eig"):
            found = getattr(run, name)
            assert found.provenance == "plug-in"
            assert (found.value, found.low, found.high) == tuple(
                written[name][k] for k in ("value", "low", "high")
            )
        assert run.loss_range.provenance == "certified"
        assert run.predictors["mean"].test_accuracy.provenance == "interval"
        assert run.lipschitz.provenance == "plug-in"
        assert (run.stability, run.posterior, run.gauge_dimension) == (None, (), None)
        write_record(run, tmp_path / "again.json")
        assert read_record(tmp_path / "again.json") == run


def test_an_interval_that_misses_a_part_of_the_error_is_no_budget() -> None:
    """The ends of a Ritz value from the first schema look like an enclosure and are none."""
    run = read_record(next(COMMITTED.glob("*.json")))
    assert run.hessian_min_eig.low is not None
    with pytest.raises(ValueError, match="must have an interval"):
        interval_of_estimate(run.hessian_min_eig)
    assert interval_of_estimate(run.loss_range).delta == 0


@pytest.mark.parametrize("name", ["stability", "posterior", "gauge_dimension", "unheard_of"])
def test_the_first_schema_had_no_such_field(tmp_path, name) -> None:
    content = json.loads(next(COMMITTED.glob("*.json")).read_text())
    (tmp_path / "run.json").write_text(_signed({**content, name: None}))
    with pytest.raises(RecordError, match=f"every field of schema 1: .*{name}"):
        read_record(tmp_path / "run.json")


@pytest.mark.parametrize("name", ["lipschitz", "notes", "penalty"])
def test_a_file_of_the_first_schema_lacks_nothing(tmp_path, name) -> None:
    content = json.loads(next(COMMITTED.glob("*.json")).read_text())
    del content[name]
    (tmp_path / "run.json").write_text(_signed(content))
    with pytest.raises(RecordError, match=f"every field of schema 1: .*{name}"):
        read_record(tmp_path / "run.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": {"fine-tune": float("nan")}},
        {"config": {"learning_rate": float("inf")}},
        {"config": {"model": object()}},
        {"environment": {"threads": float("nan")}},
    ],
)
def test_what_is_not_finite_or_no_json_is_never_a_file(tmp_path, changes) -> None:
    with pytest.raises((TypeError, ValueError)):
        write_record(run_record(**changes), tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_nan_is_told(tmp_path) -> None:
    write_record(run_record(), tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace("40.0", "NaN"))
    with pytest.raises(RecordError, match="must hold finite numbers, got NaN"):
        read_record(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lipschitz", None),
        ("n_train", 3.5),
        ("config", None),
        ("notes", "a note"),
        ("penalty", 0.1),
        ("predictors", {**run_record().predictors, "mean": None}),
    ],
)
def test_a_record_with_a_hole_or_a_bare_number_cannot_be_made(name, value) -> None:
    with pytest.raises(TypeError, match=f"`{name}` must be"):
        run_record(**{name: value})


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
    with pytest.raises(RecordError, match=r"`schema` of .* must be one of \(1, 2\), got 99"):
        read_record(path)
    with pytest.raises(RecordError, match="`schema` must be 2"):
        run_record(schema=99)


@pytest.mark.parametrize("name", [f.name for f in fields(run_record()) if f.name != "schema"])
def test_a_missing_field_is_told_although_the_digest_is_right(tmp_path, name: str) -> None:
    path = tmp_path / "run.json"
    write_record(run_record(), path)
    content = json.loads(path.read_text())
    del content[name], content["digest"]
    content["digest"] = content_hash(content)
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match="must hold every field of schema 2"):
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
        ({"level": 0.9}, "`level` must be None without an interval"),
        ({"method": ""}, "`method` must say how"),
        ({"low": 2.0, "high": 3.0}, "`value` must be in the interval that encloses it for sure"),
        ({"provenance": "certified"}, "`provenance` must be 'plug-in' or 'plug-in'"),
        ({"low": 0.0, "high": 2.0, "provenance": "interval"}, "must be 'certified' or 'plug-in'"),
        (
            {"low": 0.0, "high": 2.0, "level": 0.9, "provenance": "certified"},
            "must be 'interval' or 'plug-in'",
        ),
        ({"low": 0.0, "high": 2.0, "provenance": "proved"}, "must be 'certified' or 'plug-in'"),
    ],
)
def test_estimates_outside_their_domain_are_refused(change, error) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        Estimate(**{"value": 1.0, "n_draws": 1, "method": "m", **change})


@given(
    value=finite,
    interval=st.booleans(),
    level=st.none() | st.floats(0.01, 0.99),
    claimed=st.sampled_from((None, "certified", "interval", "plug-in")),
)
def test_no_estimate_claims_more_than_its_interval_gives(value, interval, level, claimed) -> None:
    """Certified needs an enclosure, a confidence interval its level; plug-in may stand anywhere."""
    ends = {"low": value, "high": value, "level": level} if interval else {}
    earned = "plug-in" if not interval else "certified" if level is None else "interval"
    if claimed in (None, "plug-in", earned):
        made = Estimate(value=value, n_draws=1, method="m", provenance=claimed, **ends)
        assert made.provenance == (claimed or earned)
    else:
        with pytest.raises(ValueError, match="`provenance` must be"):
            Estimate(value=value, n_draws=1, method="m", provenance=claimed, **ends)


@pytest.mark.parametrize(
    ("kind", "changes", "error"),
    [
        (full_record(), {"dropout_rate": 1.0}, r"`dropout_rate` must be in \[0, 1\)"),
        (full_record(), {"n_test": 100}, "`n_errors` of 'ensemble' must be at most n_test = 100"),
        (full_record(), {"gauge_dimension": -1}, "`gauge_dimension` must be >= 0"),
        (full_record(), {"lipschitz": estimate(-1.0)}, "`lipschitz` must be >= 0, got -1.0"),
        (full_record(), {"loss_range": exact(0.0)}, "`loss_range` must be > 0"),
        (predictor_scores(0, 1), {"sample_variance": estimate(-1.0)}, "`sample_variance` must be"),
        (full_record(), {"n_masks_test": 0}, "`n_masks_test` must be >= 1"),
        (full_record(), {"posterior": list(posterior_points())}, "`posterior` must be a tuple"),
        (predictor_scores(0, 1), {"n_errors": -1}, "`n_errors` must be >= 0"),
        (predictor_scores(0, 1), {"n_errors": 1.5}, "`n_errors` must be None or a whole number"),
        (stability_measurement(), {"ridge": -1.0}, "`ridge` must be >= 0"),
        (stability_measurement(), {"ridge": float("nan")}, "`ridge` must be a finite number"),
        (stability_measurement(), {"center": "here"}, "`center` must be one of"),
        (stability_measurement(), {"estimates": {}}, "`estimates` must hold some of"),
        (
            stability_measurement(),
            {"estimates": {"guess": stability_estimates()}},
            "`estimates` must be a mapping",
        ),
        (stability_estimates(), {"remove_one_out": estimate(-1.0)}, "`remove_one_out` must be >="),
        (posterior_points()[0], {"noise_std": 0.0}, "`noise_std` must be > 0"),
        (posterior_points()[0], {"kl_nats": exact(-1.0)}, "`kl_nats` must be >= 0"),
        (posterior_points()[0], {"error_rate": estimate(1.5)}, "`error_rate` must be in"),
    ],
)
def test_parts_outside_their_domain_are_refused(kind, changes, error) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        replace(kind, **changes)


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
