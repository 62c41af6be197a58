"""What a declared grid stands for, and the names of its runs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_nn.config import MaskLaw, RunConfig
from lodrop_nn.sweep.batching import MAY_DIFFER, units_of
from lodrop_nn.sweep.grid import METHODS, SweepConfig, SweepRun, method_of
from lodrop_theory import read_record

RECORDS = Path(__file__).parents[2] / "paper_figures" / "records" / "movie-reviews"
DECLARED = """
measure = "scores"
evaluate_every = 2

[common]
data = ["movie-reviews", "trec"]
seed = [0, 1, 2]
adapted_layers = "all"

[[grid]]
method = "lora"
rank = [2, 4]

[[grid]]
method = ["lora-dropout", "frozen-A-dropout"]
dropout_rate = [0.1, 0.5]
target_modules = [["query"], ["query", "value"]]
"""


def test_committed_records_keep_their_names():
    paths = sorted(RECORDS.glob("*.json"))
    assert paths
    for path in paths:
        record = read_record(path)
        config = RunConfig.from_json(record.config)
        assert config.run_id == record.run_id == path.stem
        assert SweepRun(config=config, measure="full").run_id == path.stem


def test_a_field_that_came_later_counts_where_it_is_set():
    plain = RunConfig(dropout_rate=0.1)
    changed = [
        RunConfig(dropout_rate=0.1, mask_law="balanced"),
        RunConfig(dropout_rate=0.1, train_A=False),
    ]
    assert len({config.run_id for config in (plain, *changed)}) == 3
    assert all(RunConfig.from_json(config.as_json()) == config for config in changed)
    with pytest.raises(ValueError, match="`mask_law` must be"):
        RunConfig(dropout_rate=0.1, mask_law="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`train_A` must be"):
        RunConfig(dropout_rate=0.1, train_A=1)  # type: ignore[arg-type]


def test_a_file_stands_for_the_products_of_its_tables(tmp_path: Path):
    file = tmp_path / "grid.toml"
    file.write_text(DECLARED)
    sweep = SweepConfig.from_file(file)
    runs = sweep.runs()
    assert len(runs) == len({run.run_id for run in runs}) == 6 * 2 + 6 * 2 * 2 * 2
    assert {run.evaluate_every for run in runs} == {2}
    assert {run.config.adapted_layers for run in runs} == {None}
    assert {method_of(run.config) for run in runs} == {"lora", "lora-dropout", "frozen-A-dropout"}
    assert {run.config.target_modules for run in runs[12:]} == {("query",), ("query", "value")}
    as_json = tmp_path / "grid.json"
    as_json.write_text(json.dumps(sweep.as_json()))
    assert SweepConfig.from_file(as_json) == sweep
    assert SweepConfig.from_file(as_json).sweep_id == sweep.sweep_id


def test_without_masks_there_is_no_law_of_masks():
    laws: list[MaskLaw] = ["iid", "balanced"]
    sweep = SweepConfig(
        grid=({"method": list(METHODS), "dropout_rate": 0.5, "mask_law": laws, "rank": 4},)
    )
    found = [(method_of(run.config), run.config.mask_law) for run in sweep.runs()]
    assert found == [
        ("lora", "iid"),
        ("lora-dropout", "iid"),
        ("lora-dropout", "balanced"),
        ("frozen-A", "iid"),
        ("frozen-A-dropout", "iid"),
        ("frozen-A-dropout", "balanced"),
    ]


@given(st.permutations(["dropout_rate", "seed", "rank"]), st.booleans())
def test_names_depend_on_values_only(order, as_float):
    values = {"dropout_rate": [0, 0.5], "seed": [0, 1], "rank": [2, 4], "weight_decay": 0}
    if as_float:
        values["dropout_rate"], values["weight_decay"] = [0.0, 0.5], 0.0
    table = {name: values[name] for name in [*order, "weight_decay"]}
    expected = {
        SweepRun(config=RunConfig(dropout_rate=p, seed=s, rank=r)).run_id
        for p in (0.0, 0.5)
        for s in (0, 1)
        for r in (2, 4)
    }
    assert {run.run_id for run in SweepConfig(grid=(table,)).runs()} == expected


def test_what_is_measured_is_part_of_the_name():
    config = RunConfig(dropout_rate=0.1)
    runs = [
        SweepRun(config=config),
        SweepRun(config=config, evaluate_every=1),
        SweepRun(config=config, n_masks_along=8),
        SweepRun(config=config, measure="full"),
    ]
    assert len({run.run_id for run in runs}) == 4


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"grid": ()}, "at least one table"),
        ({"grid": ({"p": 0.1},)}, r"must be 'method' or one of .* got \['p'\]"),
        ({"grid": ({"rank": 2},)}, "`dropout_rate` must be given"),
        ({"grid": ({"dropout_rate": []},)}, "`dropout_rate` must have at least one value"),
        ({"grid": ({"dropout_rate": 1.5},)}, r"`dropout_rate` must be in \[0, 1\)"),
        ({"grid": ({"dropout_rate": "0.1"},)}, "`dropout_rate` must be a number"),
        ({"grid": ({"method": "dora"},)}, "`method` must be one of"),
        ({"grid": ({"method": "lora-dropout", "dropout_rate": [0, 0.1]},)}, "must be > 0 for"),
        ({"grid": ({"method": "lora", "train_A": False},)}, "left to `method`"),
        ({"grid": ({"dropout_rate": 0.1, "rescale": 1},)}, "`rescale` must be a bool"),
        ({"grid": ({"dropout_rate": 0.1, "target_modules": "query"},)}, "must be a list"),
        ({"grid": ({"dropout_rate": 0.1},), "measure": "all"}, "`measure` must be"),
        ({"grid": ({"dropout_rate": 0.1},), "evaluate_every": 0}, "`evaluate_every` must be"),
    ],
)
def test_what_is_not_accepted_is_refused_before_anything_runs(declared, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig(**declared)


@pytest.mark.parametrize("text", ["grid = 1", "grids = []", "a ="])
def test_a_file_of_another_kind_is_refused(text, tmp_path: Path):
    file = tmp_path / "grid.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"grid\.toml must be|`grid` of"):
        SweepConfig.from_file(file)


def test_units_agree_in_all_that_replicas_share():
    table = {
        "dropout_rate": [0.0, 0.3],
        "learning_rate": [1e-3, 1e-2],
        "weight_decay": [0, 0.1],
        "rescale": [True, False],
        "train_A": [True, False],
        "rank": [2, 4],
        "mask_scope": ["batch", "example"],
        "seed": [0, 1],
    }
    runs = SweepConfig(grid=(table,)).runs()
    units = units_of(runs, max_replicas=10)
    assert sorted(run.run_id for unit in units for run in unit) == sorted(r.run_id for r in runs)
    assert max(map(len, units)) == 10
    for unit in units:
        shared = [
            {k: v for k, v in vars(run.config).items() if k not in MAY_DIFFER} for run in unit
        ]
        assert all(each == shared[0] for each in shared)
    full = SweepConfig(grid=(table,), measure="full").runs()
    assert all(len(unit) == 1 for unit in units_of(full))
    with pytest.raises(ValueError, match="`max_replicas`"):
        units_of(runs, max_replicas=0)
