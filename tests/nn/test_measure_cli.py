"""`lodrop measure`: from an adapter's folder and rows to a record, once, and whole."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import typer
from rich.console import Console
from typer.testing import CliRunner

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.adapter.saving import save_adapter
from lodrop_nn.cli import compare, report
from lodrop_nn.cli_measure import measure
from lodrop_nn.compare import run as grid
from lodrop_nn.measure import saved
from lodrop_nn.measure.saved import prepare
from lodrop_nn.measure.saved_rows import Rows
from lodrop_nn.measure.settings import MeasureSettings
from lodrop_nn.predict.ensemble import mean_predict
from lodrop_theory import read_record
from lodrop_theory.losses import smoothed_cross_entropy
from tests.factories import full_record
from tests.nn.checkpoints import BERT_LIKE, save_checkpoint
from tests.nn.test_compare import tiny_reviews
from tests.nn.test_loading import new_adapter

# peft 0.19 looks for the base model's config on the hub, which models made here do not have.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")

app = typer.Typer()
for command in (compare, measure, report):
    app.command()(command)
QUICK = ("--refits", "0", "--skip", "dropout-curvature,stability,posterior", "--n-masks", "2")


def write_rows(folder: Path, n_train: int = 8, n_test: int = 6) -> Path:
    """A folder of train.jsonl and test.jsonl in the words of the tiny tokenizer."""
    folder.mkdir()
    words = ("film", "dull", "good", "bad")
    texts = [f"{('bad', 'good')[k % 2]} {words[k // 2 % 4]} {words[k // 8]}" for k in range(32)]
    rows = [
        json.dumps({"text": text, "label": ("neg", "pos")[k % 2]}) + "\n"
        for k, text in enumerate(texts)
    ]
    (folder / "train.jsonl").write_text("".join(rows[:n_train]))
    (folder / "test.jsonl").write_text("".join(rows[n_train : n_train + n_test]))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    return save_checkpoint(transformers.BertConfig(**BERT_LIKE), folder)


@pytest.fixture
def adapter(base: str, tmp_path: Path) -> Path:
    model = new_adapter(base, n_classes=2)
    attach_lora_dropout(model, 0.3, seed=0)
    return save_adapter(model, tmp_path / "adapter")


@pytest.fixture
def stub(monkeypatch):
    """A measurement that takes no time; the list of the calls."""
    calls = []

    def fake(model, bank, train, test, settings, *, config, run_id, on_stage, **others):
        calls.append({"config": config, "train": train, "test": test, **others})
        on_stage("predictions", 0.5)
        return full_record(run_id=run_id, config=config)

    monkeypatch.setattr(saved, "measure", fake)
    return calls


def invoke(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


# -- the command ------------------------------


def test_a_record_is_written_once_and_printed_twice(stub, adapter: Path, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows"), tmp_path / "out"
    first = invoke("measure", adapter, "--data", rows, "--out", out)
    assert first.exit_code == 0, first.output
    (path,) = (out / "records").iterdir()
    record = read_record(path)
    assert path.name == f"{record.run_id}.json"
    assert "Classes: 0 = neg, 1 = pos." in record.notes
    assert (len(stub), stub[0]["vote_shares"], stub[0]["n_masks_train"]) == (1, None, 1)
    second = invoke("measure", adapter, "--data", rows, "--out", out)
    assert second.exit_code == 0
    assert len(stub) == 1
    assert "Already measured" in second.output
    assert "Already measured" not in first.output
    again = invoke("report", path)
    for title in ("Risks", "calibration", "theorems read", "Stabilities", "Certificates", "Time"):
        assert all(title in result.output for result in (first, second, again))


def test_the_whole_way_without_a_stub(adapter: Path, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows"), tmp_path / "out"
    arguments = ("measure", adapter, "--data", rows, "--out", out, *QUICK, "--ridge", 0.1)
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    (path,) = (out / "records").iterdir()
    record = read_record(path)
    assert (record.n_train, record.n_test, record.dropout_rate) == (8, 6, 0.3)
    assert (record.stability, record.posterior) == (None, ())
    assert record.config["measurement"]["ridge"] == 0.1
    assert record.predictors["ensemble"].n_errors is not None
    assert "Already measured" in invoke(*arguments).output


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_leaves_nothing(error, monkeypatch, adapter: Path, tmp_path: Path) -> None:
    def interrupted(*_, **__):
        raise error

    monkeypatch.setattr(saved, "measure", interrupted)
    out = tmp_path / "out"
    arguments = ["measure", adapter, "--data", write_rows(tmp_path / "rows"), "--out", out]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert not list(out.rglob("*"))
    if error is KeyboardInterrupt:
        assert result.exit_code == 130
        assert "nothing was kept" in result.output
    else:
        assert isinstance(result.exception, error)


def test_a_record_that_was_edited_is_not_taken(stub, adapter: Path, tmp_path: Path) -> None:
    arguments = ["measure", adapter, "--data", write_rows(tmp_path / "rows"), "--out", tmp_path]
    invoke(*arguments)
    (path,) = (tmp_path / "records").iterdir()
    path.write_text(path.read_text().replace('"n_train": 256', '"n_train": 255'))
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "was edited" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "--data", "trec"], "/nowhere must be the folder of an adapter"),
        (["{adapter}"], "`data` must name the rows"),
        (["{adapter}", "--data", "imdb"], "`data` must be one of"),
        (["{adapter}", "--data", "{rows}", "--n-train", "4"], "must be left out"),
        (["{adapter}", "--data", "{rows}", "--base", "bert"], "`name` must be 'minilm-l6' or"),
        (["{adapter}", "--data", "{rows}", "--classes", "neg,good"], "`label` must be one of"),
        (["{adapter}", "--data", "{rows}", "--classes", "a,b,c"], "`class_names` must be the 2"),
        (["{adapter}", "--data", "{rows}", "--dropout-rate", "1"], "`dropout_rate` must be"),
        (["{adapter}", "--data", "{rows}", "--skip", "gradients"], "`skip` must be among"),
        (["{adapter}", "--data", "{rows}", "--coordinates", "A"], "`coordinates` must be"),
        (["{adapter}", "--data", "{rows}", "--ridge", "-1"], "`ridge` must be"),
        (["{adapter}", "--data", "{rows}", "--delta", "0"], "`delta` must be in (0, 1)"),
        (["{adapter}", "--data", "{rows}/train.jsonl"], "must be <= 8, the distinct rows"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, message, adapter: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows")
    filled = [each.format(adapter=adapter, rows=rows) for each in arguments]
    result = invoke("measure", *filled, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


# -- what names a measurement ------------------------------


def test_the_content_names_a_measurement_and_not_the_folders(
    base: str, adapter: Path, tmp_path: Path
) -> None:
    rows, settings = Rows(data=str(write_rows(tmp_path / "rows"))), MeasureSettings()
    run_id = prepare(adapter, rows, settings).run_id
    moved, elsewhere, also = (tmp_path / name for name in ("moved", "elsewhere", "also"))
    shutil.copytree(adapter, moved)
    shutil.copytree(rows.data, elsewhere)
    shutil.copytree(base, also)
    there = prepare(moved, Rows(data=str(elsewhere)), settings, base=str(also))
    assert there.run_id == run_id
    other = new_adapter(base, n_classes=2, lora_alpha=4)  # the same weights, another scale
    attach_lora_dropout(other, 0.3, seed=0)
    save_adapter(other, tmp_path / "other")
    names = {
        prepare(adapter, rows, replace(settings, seed=1)).run_id,
        prepare(adapter, rows, settings, dropout_rate=0.1).run_id,
        prepare(adapter, rows, settings, train_A=False).run_id,
        prepare(adapter, Rows(data=str(write_rows(tmp_path / "fewer", 7))), settings).run_id,
        prepare(adapter, replace(rows, class_names=("pos", "neg")), settings).run_id,
        prepare(tmp_path / "other", rows, settings).run_id,
    }
    assert len(names | {run_id}) == 7


def test_the_names_of_the_outputs_say_what_a_label_means(adapter: Path, base: str, tmp_path: Path):
    rows = Rows(data=str(write_rows(tmp_path / "rows")))
    alphabetical = prepare(adapter, rows, MeasureSettings())
    shutil.copytree(base, tmp_path / "named")
    config = json.loads((tmp_path / "named" / "config.json").read_text())
    config |= {"id2label": {"0": "pos", "1": "neg"}, "label2id": {"pos": 0, "neg": 1}}
    (tmp_path / "named" / "config.json").write_text(json.dumps(config))
    named = prepare(adapter, rows, MeasureSettings(), base=str(tmp_path / "named"))
    assert named.notes == ("Classes: 0 = pos, 1 = neg.",)
    for one, other in zip(alphabetical.test, named.test, strict=True):
        assert torch.equal(one["labels"], 1 - other["labels"])


def test_several_rates_are_refused(base: str, tmp_path: Path) -> None:
    model = new_adapter(base, n_classes=2)
    attach_lora_dropout(model, (0.3, 0.1), seed=0)
    save_adapter(model, tmp_path / "adapter")
    rows = Rows(data=str(write_rows(tmp_path / "rows")))
    with pytest.raises(ValueError, match="one number for all layers"):
        prepare(tmp_path / "adapter", rows, MeasureSettings())
    assert prepare(tmp_path / "adapter", rows, MeasureSettings(), dropout_rate=0.2)


def test_texts_are_cut_to_what_the_model_can_read(adapter: Path, tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "rows")
    long = json.dumps({"text": "film " * 40, "label": "pos"}) + "\n"
    (folder / "test.jsonl").write_text(long)
    prepared = prepare(adapter, Rows(data=str(folder)), MeasureSettings())
    assert prepared.test[0]["input_ids"].shape == (1, 16)
    assert torch.isfinite(prepared.model(**without_index(prepared.test[0])).loss)


def without_index(batch):
    return {name: value for name, value in batch.items() if name != "index"}


# -- from a comparison to a measurement ------------------------------


@pytest.fixture(scope="module")
def comparison(base: str, tmp_path_factory: pytest.TempPathFactory):
    """A comparison of two rates that keeps its adapters."""
    out = tmp_path_factory.mktemp("comparison")
    arguments = [
        *("compare", "--model", base, "--out", out, "--dropout-rates", ".5", "--save-adapters"),
        *("--n-train", 16, "--n-test", 24, "--epochs", 2, "--n-masks-test", 2, "--rank", 2),
        *("--adapted-layers", "1", "--target-modules", "query,value"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "load_data", lambda name: tiny_reviews())
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
    return out, result.output


def test_an_adapter_of_a_comparison_knows_its_rows(comparison, monkeypatch) -> None:
    out, printed = comparison
    monkeypatch.setattr(saved, "load_data", lambda name: tiny_reviews())
    (folder,) = (out / "adapters").iterdir()
    assert f"lodrop measure {folder}" in printed.replace("\n", "")
    record = read_record(out / "records" / f"{folder.name}.json")
    prepared = prepare(folder, Rows(), MeasureSettings())
    for part, name in ((prepared.train, "empirical_risk"), (prepared.test, "population_risk")):
        losses = [
            smoothed_cross_entropy(
                mean_predict(prepared.model, without_index(batch)).softmax(-1).double().numpy(),
                batch["labels"].numpy(),
                record.config["smoothing"],
            )
            for batch in part
        ]
        expected = getattr(record.predictors["mean"], name).value
        assert float(np.mean(np.concatenate(losses))) == pytest.approx(expected, rel=1e-5)
    assert prepared.config["dropout_rate"] == 0.5
    with pytest.raises(ValueError, match=r"`seed` must be 0, as in the run that trained"):
        prepare(folder, Rows(seed=1), MeasureSettings())
    with pytest.raises(ValueError, match=r"`n_test` must be 24, .* got 25"):
        prepare(folder, Rows(n_test=25), MeasureSettings())
    with pytest.raises(ValueError, match=r"`data` must be 'movie-reviews'"):
        prepare(folder, Rows(data="trec"), MeasureSettings())


def test_where_the_run_is_known_it_can_be_repeated(comparison, monkeypatch) -> None:
    out, _ = comparison
    monkeypatch.setattr(saved, "load_data", lambda name: tiny_reviews())
    (folder,) = (out / "adapters").iterdir()
    settings = MeasureSettings(
        n_masks=2, n_refits=0, n_retrained=2, n_fresh=4, noise_stds=(0.1,), hessian_steps=2
    )
    seen: list[str] = []
    with pytest.raises(ValueError, match="`n_retrained` must be at most the"):
        prepare(folder, Rows(), replace(settings, n_retrained=1000))
    prepared = prepare(folder, Rows(), settings)

    record = prepared.measure(lambda stage, fraction: seen.append(stage))

    assert record.stability is not None
    again = record.stability.estimates["retrain"]
    assert again.pointwise_stability.n_draws == 2
    assert seen[-1] == "retraining"
    assert record.seconds["retraining"] > 0
    # The prior stands where the training began, not at 0.
    without = replace(prepared, run=None).measure()
    assert record.posterior[0].kl_nats.value < without.posterior[0].kl_nats.value / 2


def test_an_unknown_run_cannot_be_repeated(adapter: Path, tmp_path: Path) -> None:
    rows = Rows(data=str(write_rows(tmp_path / "rows")))
    with pytest.raises(ValueError, match="`n_retrained` must be 0 for"):
        prepare(adapter, rows, MeasureSettings(n_retrained=2))


def test_a_comparison_without_its_adapter_is_run_again_and_keeps_its_record(
    comparison, monkeypatch, tmp_path: Path
) -> None:
    out, _ = comparison
    (folder,) = (out / "adapters").iterdir()
    shutil.copytree(out / "records", tmp_path / "records")
    config = saved.read_run(folder)
    record = tmp_path / "records" / f"{folder.name}.json"
    before = record.read_bytes()
    asked = []
    monkeypatch.setattr(
        grid, "run", lambda config, save_to, **_: (asked.append(save_to), full_record())[1]
    )
    quiet = Console(quiet=True)
    grid.compare_runs([config], out, console=quiet, save_adapters=True)
    assert not asked
    grid.compare_runs([config], tmp_path, console=quiet, save_adapters=True)
    assert asked == [tmp_path / "adapters" / folder.name]
    assert record.read_bytes() == before
    grid.compare_runs([config], tmp_path, console=quiet)
    assert len(asked) == 1


def test_a_run_file_that_says_nothing_is_named(comparison, tmp_path: Path) -> None:
    out, _ = comparison
    (folder,) = (out / "adapters").iterdir()
    shutil.copytree(folder, tmp_path / "adapter")
    (tmp_path / "adapter" / "run.json").write_text('{"dropout_rate": 2}')
    with pytest.raises(ValueError, match=r"run\.json must describe a run"):
        prepare(tmp_path / "adapter", Rows(), MeasureSettings())


def test_an_interrupted_comparison_ends_as_one(monkeypatch, tmp_path: Path) -> None:
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "run", interrupted)
    result = invoke("compare", "--out", tmp_path)
    assert result.exit_code == 130
    assert "run again to continue" in " ".join(result.output.split())
