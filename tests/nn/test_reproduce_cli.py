"""`lodrop reproduce`: what it prints before it starts, that it asks, and what it leaves behind."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lodrop_nn.reproduce.cli import reproduce
from tests.nn.benchmark_files import Home, deberta_folder, write_glue

pytestmark = [
    # peft 0.19 looks for the base model's config on the hub, which models made here do not have.
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match"),
]

app = typer.Typer()
app.command()(reproduce)


def invoke(*arguments: str, answer: str | None = None):
    return CliRunner(env={"COLUMNS": "200"}).invoke(
        app, list(map(str, arguments)), input=answer, catch_exceptions=False
    )


def test_the_plan_needs_neither_data_nor_model_and_asks() -> None:
    result = invoke("table1", "--task", "mrpc", answer="n\n")
    assert result.exit_code == 1
    text = result.output
    assert "Zhang et al. (2023), arXiv:2303.10512" in text
    assert "mrpc, lora+dropout: 5 runs x 3450 steps of 32 rows" in text
    assert "5 x 3450 x 32 x 320 tokens x 4 masks = 7.07e+08 tokens" in text
    assert text.count(": 5 runs x 3450 steps") == 6  # one per method
    assert "No time is given: --estimate measures it here, --tflops X computes it." in text
    assert text.rstrip().endswith("Start? [y/N]: n")


def test_a_speed_gives_a_time() -> None:
    result = invoke("table3", "--tflops", "400", "--seeds", "1", answer="")
    assert result.exit_code == 1  # no one answered
    assert "mmlu, lora: 1 run x 1215 steps of 128 rows" in result.output
    assert "mmlu, full" not in result.output  # the paper's table has two methods
    assert "/ (400 x 1e12 per s, as given) =" in result.output
    assert "In all: " in result.output


def test_without_data_it_refuses_and_names_both_ways(tmp_path: Path) -> None:
    result = invoke("table1", "--task", "rte", "--files", tmp_path, "--yes")
    assert result.exit_code == 2
    assert "lodrop reproduce: " in result.output
    assert "must hold the train rows of rte" in result.output
    assert "`datasets`" in result.output
    assert "`--files`" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table4"], "`table` must be one of table1, table2, table3, got 'table4'"),
        (["table1", "--task", "mmlu"], "`task` must be some of mnli, "),
        (["table1", "--methods", "dora"], "`methods` must be some of full, "),
        (["table1", "--dropout-rate", "1"], "`dropout_rate` must be in [0, 1), got 1.0"),
        (["table1", "--task", "rte", "--tflops", "0"], "`tflops` must be > 0, got 0.0"),
        (["table1", "--select", "first"], "`select` must be one of"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_from_files_to_records_and_tables(tmp_path: Path) -> None:
    files = write_glue(tmp_path / "data", "rte")
    command = [
        "table1", "--task", "rte", "--methods", "lora,adalora+dropout", "--seeds", "2",
        "--files", files, "--model", deberta_folder(tmp_path / "model"), "--out", tmp_path / "out",
        "--batch-size", "4", "--max-steps", "2", "--n-masks-train", "2", "--n-masks-test", "2",
    ]  # fmt: skip
    result = invoke(*command, "--estimate", answer="y\n")
    assert result.exit_code == 0, result.output
    assert "rte, lora: 2 runs x 2 steps of 4 rows (counted)" in result.output
    assert "s per step (mean of 3, from" in result.output
    assert "In all: " in result.output
    assert "rte: measured, in percent, mean (sd) over seeds" in result.output
    assert "rte: published, quoted and not measured here" in result.output
    records = [json.loads(p.read_text()) for p in (tmp_path / "out" / "records").glob("*.json")]
    assert {(r["config"]["method"], r["config"]["seed"]) for r in records} == {
        (method, seed) for method in ("lora", "adalora+dropout") for seed in (0, 1)
    }
    assert all(r["settings_from"]["batch_size"] == "given by the user" for r in records)
    assert str(tmp_path) not in json.dumps(records)  # no path of this machine
    again = invoke(*command, "--yes")
    assert again.exit_code == 0
    assert "rte, lora: 0 runs x 2 steps" in again.output  # all were finished
    assert "rte: measured" in again.output
    assert "LoRA Dropout in Lin et al. (2024) are images" in again.output


@pytest.mark.slow
@pytest.mark.parametrize("family", ["squad", "mmlu"])
def test_the_other_tables_from_files(family: str, tmp_path: Path) -> None:
    Home.made(tmp_path)
    table, task = {"squad": ("table2", "squad-v2.0"), "mmlu": ("table3", "mmlu")}[family]
    result = invoke(
        table, "--task", task, "--methods", "lora,lora+dropout", "--seeds", "1", "--yes",
        "--files", tmp_path / f"{family}-data", "--model", tmp_path / family,
        "--out", tmp_path / "out", "--batch-size", "4", "--max-steps", "2", "--precision", "fp32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"{task}: measured" in result.output
    assert len(list((tmp_path / "out" / "records").glob("*.json"))) == 2
