"""The command line, the commands that other packages add, and what importing costs."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import lodrop_theory
from lodrop_theory import (
    CurvatureInputs,
    TailInputs,
    audit,
    bound_table,
    cli,
    curvature_bounds,
    looseness,
    write_record,
)
from tests.factories import full_record, run_record

RTE = {
    "--n-train": "2490",
    "--dropout-rate": "0,.1,.3",
    "--lipschitz": "1",
    "--hessian-min-eig": "0",
    "--penalty": "1",
    "--loss-range": "1",
    "--delta": ".05",
}


def run(*more: str, **changes: str | None):
    flags = RTE | {f"--{k.replace('_', '-')}": v for k, v in changes.items()}
    words = [w for flag, value in flags.items() if value is not None for w in (flag, value)]
    return CliRunner().invoke(cli.app, ["bound", *words, *more])


def test_json_says_what_the_library_says() -> None:
    result = run("--json", empirical_risk="0.1")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    direct = curvature_bounds(
        CurvatureInputs(
            n_train=2490, dropout_rate=[0, 0.1, 0.3], lipschitz=1, hessian_min_eig=0, penalty=1
        ),
        TailInputs(n_train=2490, loss_range=1, delta=0.05, empirical_risk=0.1),
    )
    assert len(rows) == 15
    for i, bound in enumerate(direct):
        for row, gap in zip(rows[3 * i : 3 * i + 3], bound.gap, strict=True):
            assert row["bound"] == bound.bound
            assert row["gap"] == (None if gap == float("inf") else gap)
    keys = {"bound", "gap", "risk", "predictor", "kind", "vacuous", "source", "dropout_rate"}
    assert keys | {"n_train"} <= set(rows[0])


def test_table_has_a_row_per_bound_and_rate_and_the_reason_beneath() -> None:
    result = run()
    lines = result.stdout.splitlines()
    table = [line for line in lines if line.startswith("lin2024")]
    assert [line.split()[1:3] for line in table] == [
        ["0", "inf"],
        ["0.1", "0.5076"],
        ["0.3", "0.3139"],
    ]
    assert "not applicable at p = 0: it needs strong convexity" in " ".join(lines)
    assert "raise `dropout_rate` above 0" in " ".join(lines)
    assert "risk" not in lines[0]
    assert "risk" in run(empirical_risk="0.1").stdout.splitlines()[0]


def test_certified_is_the_users_word() -> None:
    assert "certificate" not in {r["kind"] for r in json.loads(run("--json").stdout)}
    kinds = [r["kind"] for r in json.loads(run("--json", "--certified").stdout)]
    assert kinds[:3] == ["not applicable", "certificate", "certificate"]


def test_lists_of_one_length_run_together() -> None:
    result = run("--json", n_train="10,20,30", penalty="1,2,3")
    rows = json.loads(result.stdout)[:3]
    assert [(r["n_train"], r["dropout_rate"], r["penalty"]) for r in rows] == [
        (10, 0.0, 1.0),
        (20, 0.1, 2.0),
        (30, 0.3, 3.0),
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"dropout_rate": "1"}, "lodrop bound: `dropout_rate` must be in [0, 1), got 1.0."),
        ({"delta": "0"}, "lodrop bound: `delta` must be in (0, 1), got 0.0."),
        ({"delta": "nan"}, "`delta` must not contain NaN"),
        ({"n_train": "2.5"}, "`n_train` must be a whole number >= 1, got 2.5."),
        (
            {"penalty": "a"},
            "`--penalty` must be a number, or numbers separated by commas, got 'a'.",
        ),
        ({"penalty": ""}, "`--penalty` must be a number"),
        ({"penalty": "1,2"}, "lists must have one length: --dropout-rate has 3, --penalty has 2."),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(changes, line) -> None:
    result = run(**changes)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_delta_has_no_default() -> None:
    result = run(delta=None)
    assert result.exit_code == 2
    assert "--delta" in result.stderr


def test_version_and_help() -> None:
    runner = CliRunner()
    version = runner.invoke(cli.app, ["--version"])
    assert version.stdout.split() == ["lodrop", lodrop_theory.__version__]
    assert "bound" in runner.invoke(cli.app, ["--help"]).stdout


@pytest.fixture
def record_path(tmp_path):
    write_record(full_record(), tmp_path / "run.json")
    return str(tmp_path / "run.json")


def audited(path: str, *more: str, delta: str = ".05", columns: int = 80):
    words = ["audit", path, "--delta", delta, *more]
    return CliRunner().invoke(cli.app, words, env={"COLUMNS": str(columns)})


def test_audit_as_json_is_what_the_library_says(record_path: str) -> None:
    content = json.loads(audited(record_path, "--json").stdout)
    run = full_record()
    # estimates of a record that was read come in another order, which changes no entry
    assert content["hypotheses"] == audit(run).rows()
    assert content["bounds"] == bound_table(run, delta=0.05).rows()
    assert content["looseness"] == looseness(run, delta=0.05).rows()
    assert (content["run_id"], content["delta"]) == (run.run_id, 0.05)


@pytest.mark.parametrize("columns", [80, 120])
def test_audit_fits_the_terminal_and_says_everything(record_path: str, columns: int) -> None:
    result = audited(record_path, columns=columns)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in result.stdout
    text = " ".join(result.stdout.split())
    for hypothesis in audit(full_record()):
        assert hypothesis.status in text
    for link in looseness(full_record(), delta=0.05):
        assert any(line.startswith(link.level) for line in lines)
    for source in bound_table(full_record(), delta=0.05):
        assert any(line.split()[:1] == [source.name] for line in lines)
    assert "->" not in text
    assert "-> freeze A" in " ".join(audited(record_path, "--remedies").stdout.split())


@pytest.mark.parametrize(
    ("path", "delta", "line"),
    [
        ("none.json", ".05", "No such file"),
        (None, "2", "`delta` must be in (0, 1), got 2.0."),
        ("pyproject.toml", ".05", "must be a complete JSON record"),
    ],
)
def test_audit_refuses_in_one_line(record_path: str, path, delta, line) -> None:
    result = audited(path or record_path, delta=delta)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert line in result.stderr
    assert result.stderr.startswith("lodrop audit: ")
    assert len(result.stderr.splitlines()) == 1


def test_audit_of_a_run_with_few_measurements(tmp_path) -> None:
    write_record(run_record(), tmp_path / "run.json")
    text = audited(str(tmp_path / "run.json"), columns=120).stdout
    assert "not measured: the run has no bounds /transverse" in text
    assert "passed over: not measured" in text


class FakeEntry:
    def __init__(self, name, load):
        self.name, self.load = name, load


def test_commands_of_other_packages_are_found_and_a_broken_one_says_why(monkeypatch) -> None:
    def hello() -> None:
        typer.echo("hello")

    def broken():
        raise ImportError("install it with `pip install 'lodrop[nn]'`")

    def offered(group):
        assert group == "lodrop.commands"
        return [FakeEntry("hello", lambda: hello), FakeEntry("broken", broken)]

    monkeypatch.setattr(cli, "entry_points", offered)
    app = typer.Typer()
    cli.add_commands(app)
    runner = CliRunner()
    assert runner.invoke(app, ["hello"]).stdout == "hello\n"
    result = runner.invoke(app, ["broken"])
    assert result.exit_code == 2
    assert "not available: install it with `pip install 'lodrop[nn]'`" in result.stderr


def test_importing_the_theory_loads_numpy_and_nothing_heavier() -> None:
    heavy = "{'torch', 'matplotlib', 'typer', 'rich', 'transformers', 'pandas', 'lodrop_nn'}"
    code = f"import sys, lodrop_theory; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_module_runs_before_installation() -> None:
    words = [w for pair in RTE.items() for w in pair]
    done = subprocess.run(
        [sys.executable, "-m", "lodrop_theory.cli", "bound", *words, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert round(json.loads(done.stdout)[1]["gap"], 3) == 0.508


def test_the_door_is_sound() -> None:
    assert len(set(lodrop_theory.__all__)) == len(lodrop_theory.__all__)
    for name in lodrop_theory.__all__:
        assert getattr(lodrop_theory, name) is not None
