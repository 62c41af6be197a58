"""From a configuration to a certificate: a kill loses nothing, and rows stay apart."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import typer
from typer.testing import CliRunner

from lodrop_nn.certify import build as building
from lodrop_nn.certify import run as running
from lodrop_nn.certify.build import three_ways
from lodrop_nn.certify.cli import certify as command
from lodrop_nn.certify.config import N_PRIORS, NOISE_STDS, CertifyConfig, nearest_std
from lodrop_nn.certify.pooling import center_on, pool_by_mean
from lodrop_nn.certify.record import read_certificate
from lodrop_nn.certify.run import certify, record_path
from lodrop_nn.data import load_base_model, tokenize
from lodrop_theory import RecordError
from tests.nn.checkpoints import BERT_LIKE, save_checkpoint
from tests.nn.test_compare import tiny_reviews

SMALL = {"n_train": 24, "n_test": 16, "n_reference": 8, "epochs": 2, "n_passes": 2, "n_members": 3}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return save_checkpoint(transformers.BertConfig(**BERT_LIKE), tmp_path / "model")


@pytest.fixture
def reviews(monkeypatch) -> None:
    monkeypatch.setattr(building, "load_data", lambda name: ordered_reviews())


def ordered_reviews():
    """The same rows in every process; those of `tiny_reviews` come in the order of a set."""
    data = tiny_reviews()
    return data.take(np.argsort(np.array(data.texts)))


def same(first, second) -> bool:
    """Equal records but for the clock."""
    clock = {"created": "", "seconds": {}}
    return replace(first, **clock) == replace(second, **clock)


@pytest.mark.usefixtures("reviews")
@pytest.mark.parametrize(
    "change", [{}, {"pooling": "model", "dropout_rate": 0.0, "targets": "values"}]
)
def test_the_record_says_what_was_certified(folder: str, tmp_path: Path, change: dict) -> None:
    config = CertifyConfig(model=folder, **SMALL, **change)
    stages = []

    record = certify(config, tmp_path, on_stage=lambda *told: stages.append(told[0]))

    assert list(dict.fromkeys(stages)) == [
        *("prior", "features", "training", "training risk"),
        *("held-out risk",),
    ]
    assert read_certificate(record_path(config, tmp_path)) == record
    assert record.n_population == len(tiny_reviews()) - 8
    assert record.kl_nats.value == pytest.approx(sum(record.kl_by_parameter.values()))
    assert all("lora_A" not in name for name in record.kl_by_parameter)
    assert set(record.noise_std.values()) <= set(NOISE_STDS)
    gibbs = record.bound("pac-bayes-kl", "0-1", "gibbs")
    assert gibbs["kind"] == "certificate"
    assert gibbs["n_priors"] == N_PRIORS
    assert gibbs["n_draws"] == 48
    assert record.training["error_rate"].high < gibbs["risk"] <= 1.0
    ensemble = record.bound("pac-bayes-kl+jensen", "smoothed cross-entropy", "ensemble")
    alone = record.bound("pac-bayes-kl", "smoothed cross-entropy", "gibbs")
    assert ensemble["risk"] == alone["risk"]
    vote = record.bound("pac-bayes-kl+vote", "0-1, majority vote", "ensemble")
    assert vote["risk"] == pytest.approx(2 * gibbs["risk"])
    assert record.bound("pac-bayes-kl+unseen", "0-1", "gibbs")["risk"] >= gibbs["risk"]
    assert {row["kind"] for row in record.bounds if row["bound"] == "hold-out-kl"} == {
        "certificate"
    }
    assert {row["kind"] for row in record.bounds if row["bound"] == "clopper-pearson"} == {
        "plug-in"
    }


@pytest.mark.usefixtures("reviews")
def test_a_prior_may_be_trained_on_rows_outside_the_sample(folder: str, tmp_path: Path) -> None:
    config = CertifyConfig(model=folder, **SMALL, prior_epochs=1)
    record = certify(config, tmp_path)
    assert "fine-tuned on the 8 reference rows" in " ".join(record.notes)
    # The divergence counts from the trained center: a posterior that has not moved has none.
    frozen = certify(replace(config, learning_rate=1e-12), tmp_path)
    assert frozen.kl_nats.value < 1e-12


@pytest.mark.usefixtures("reviews")
@pytest.mark.parametrize("stage", ["train", "_sample_risk", "_held_out"])
def test_an_interrupt_loses_no_finished_stage(
    folder: str, tmp_path: Path, monkeypatch, stage: str
) -> None:
    config = CertifyConfig(model=folder, **SMALL)
    whole = certify(config, tmp_path / "whole")
    name = "_train" if stage == "train" else stage

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, name, stop)
        with pytest.raises(KeyboardInterrupt):
            certify(config, tmp_path / "parts")
    assert not record_path(config, tmp_path / "parts").exists()
    assert same(certify(config, tmp_path / "parts"), whole)


_KILLED = """
import sys, time
from pathlib import Path
from lodrop_nn.certify import build, run
from lodrop_nn.certify.config import CertifyConfig
from tests.nn.test_certify_run import SMALL, ordered_reviews

build.load_data = lambda name: ordered_reviews()
run._held_out = lambda *_: time.sleep(600)
run.certify(CertifyConfig(model=sys.argv[1], **SMALL), Path(sys.argv[2]))
"""


@pytest.mark.usefixtures("reviews")
def test_a_kill_leaves_whole_stages_only(folder: str, tmp_path: Path) -> None:
    config, out = CertifyConfig(model=folder, **SMALL), tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, folder, str(out)], cwd=os.getcwd())
    last = out / config.run_id / "training-risk.safetensors"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last.exists()
    assert same(certify(config, out), certify(config, tmp_path / "whole"))


@pytest.mark.usefixtures("reviews")
def test_damaged_files_are_refused(folder: str, tmp_path: Path) -> None:
    config = CertifyConfig(model=folder, **SMALL)
    certify(config, tmp_path)
    path = record_path(config, tmp_path)
    content = json.loads(path.read_text())
    content["kl_nats"]["value"] = 0.0
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match="was edited"):
        certify(config, tmp_path)
    path.unlink()
    stage = tmp_path / config.run_id / "training-risk.safetensors"
    stage.write_bytes(stage.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"training-risk.* damaged file"):
        certify(config, tmp_path)


def test_sample_held_out_and_reference_rows_are_disjoint() -> None:
    data = tiny_reviews()
    config = CertifyConfig(n_train=60, n_test=30, n_reference=20)
    parts = three_ways(data, config)
    assert [len(part) for part in parts] == [60, 30, 20]
    assert len({text for part in parts for text in part.texts}) == 110
    smaller = three_ways(data, replace(config, n_train=40))
    assert smaller[0].texts == parts[0].texts[:40]
    assert [part.texts for part in smaller[1:]] == [part.texts for part in parts[1:]]
    with pytest.raises(ValueError, match=r"`n_train` \+ `n_test` \+ `n_reference` must be <="):
        three_ways(data, replace(config, n_train=len(data)))


def test_the_head_reads_the_centered_mean_of_the_tokens(folder: str) -> None:
    base, tokenizer = load_base_model(folder, 2, 0)
    data = tiny_reviews().take(range(9))
    rows = tokenize(data, tokenizer)
    pool_by_mean(base)
    center_on(base, rows, batch_size=4)
    features = []
    with torch.no_grad():
        for ids in rows.input_ids:  # one by one: no padding
            hidden = base.bert(torch.tensor([ids])).last_hidden_state
            features.append(hidden[0].mean(0))
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(ids) for ids in rows.input_ids], batch_first=True
        )
        present = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(ids), dtype=torch.long) for ids in rows.input_ids], batch_first=True
        )
        pooled = base.bert(padded, attention_mask=present).pooler_output
    expected = torch.stack(features) - torch.stack(features).mean(0)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled.mean(0), torch.zeros(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout_rate": 0.2}, "`dropout_rate` must be on the grid of priors"),
        ({"rank": 3}, "`rank` must be on the grid"),
        ({"targets": "all"}, "`targets` must be on the grid"),
        ({"pooling": "max"}, "`pooling` must be on the grid"),
        ({"n_train": 1}, "`n_train` must be >= 2"),
        ({"n_passes": 0}, "`n_passes` must be a whole number >= 1"),
        ({"seed": -1}, "`seed` must be a whole number >= 0"),
        ({"prior_epochs": -1}, "`prior_epochs` must be a whole number >= 0"),
        ({"delta": 1.0}, r"`delta` must be in \(0, 1\)"),
        ({"delta_draws": 0.025}, r"`delta_draws` must be in \(0, 0.025\)"),
        ({"head_std": float("nan")}, "`head_std` must be finite and > 0"),
        ({"kl_weight": 0.0}, "`kl_weight` must be finite and > 0"),
    ],
)
def test_configurations_outside_their_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CertifyConfig(**change)


def test_the_grid_holds_what_training_ends_on() -> None:
    assert all(nearest_std(std) == std for std in NOISE_STDS)
    assert nearest_std(1e-9) == NOISE_STDS[-1]
    assert np.allclose(np.diff(np.log(NOISE_STDS)), -np.log(2) / 2)


def test_the_command_has_the_defaults_of_the_configuration() -> None:
    given = {k: v.default for k, v in inspect.signature(command).parameters.items()}
    given["n_blocks"] = given.pop("blocks")
    del given["out"]
    assert given == {name: getattr(CertifyConfig(), name) for name in given}


@pytest.mark.usefixtures("reviews")
def test_the_command_ends_with_a_table(folder: str, tmp_path: Path, monkeypatch) -> None:
    app = typer.Typer()
    app.command()(command)
    monkeypatch.setenv("COLUMNS", "140")
    arguments = [
        *("--model", folder, "--out", str(tmp_path / "out"), "--n-train", "24", "--n-test", "16"),
        *("--n-reference", "8", "--epochs", "1"),
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "PAC-Bayes, kl inverse" in result.output
    assert "nats over" in result.output
    refused = CliRunner().invoke(app, [*arguments, "--rank", "3"])
    assert refused.exit_code == 2
    assert "`rank` must be on the grid of priors" in refused.output
