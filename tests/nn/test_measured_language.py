"""Language models measured by sequences, under ``Trainer`` and under TRL."""

import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import log_softmax

if importlib.util.find_spec("trl") is None:
    pytest.skip("needs trl, which the extra [test] installs", allow_module_level=True)

from datasets import Dataset
from trl import SFTTrainer

from lodrop_nn import MeasureCallback
from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.cli import report
from lodrop_nn.language_record import (
    LanguageRecord,
    language_bounds,
    read_language_record,
    write_language_record,
)
from lodrop_nn.measure.language import language_jensen_gap, language_measurement
from lodrop_nn.measure.language_losses import SequenceLosses, sequence_losses
from lodrop_theory.losses import smoothed_loss_range
from lodrop_theory.records import PREDICTORS, RecordError
from tests.nn.test_measured_callback import SMALL, logged, run, training
from tests.nn.test_trl import TEXTS, sft
from tests.nn.tiny import VOCABULARY, adapted, batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
]

SMOOTHING = 0.05
RANGE = float(smoothed_loss_range(SMOOTHING, VOCABULARY))

# -- the losses ------------------------------


@settings(max_examples=8)
@given(data=st.data(), n_masks=st.integers(1, 3), seed=st.integers(0, 3))
def test_losses_are_those_of_each_member_by_hand(
    data: st.DataObject, n_masks: int, seed: int
) -> None:
    model = adapted("llama")
    bank = attach_lora_dropout(model, 0.4)
    rows = batch("llama", rows=3, seed=seed)
    for row in rows["labels"]:
        row[: data.draw(st.integers(0, 5))] = -100
    found = sequence_losses(model, bank, [rows], n_masks=n_masks, seed=seed, smoothing=SMOOTHING)
    labels = rows["labels"][:, 1:]
    scored = labels != -100
    inputs = {k: v for k, v in rows.items() if k != "labels"}

    def probabilities() -> torch.Tensor:
        logs = log_softmax(model(**inputs).logits[:, :-1].double(), -1)
        return logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0].exp()

    members = []
    model.eval()
    with torch.no_grad(), bank.fixed(n_masks, seed):
        for member in range(n_masks):
            with bank.members(member, member + 1):
                members.append(probabilities())
        with bank.off():
            mean = probabilities()
    pool = torch.stack(members)
    for name, each in (("gibbs", pool), ("ensemble", pool.mean(0)[None]), ("mean", mean[None])):
        smoothed = -(each * (1 - SMOOTHING) + SMOOTHING / VOCABULARY).log()
        for losses, values in ((found.nll, -each.log()), (found.smoothed, smoothed)):
            expected = torch.where(scored, values, 0.0).sum(-1) / scored.sum(-1)
            np.testing.assert_allclose(losses[name], expected.numpy(), rtol=2e-5)
    assert found.n_tokens.tolist() == scored.sum(-1).tolist()


@st.composite
def losses_of_members(draw: st.DrawFn) -> SequenceLosses:
    """Losses that can be: the ensemble's follow from token probabilities of one-token rows."""
    n_masks, n_rows = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    stream = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    members = stream.uniform(1e-6, 1.0, (n_masks, n_rows))
    mean = stream.uniform(1e-6, 1.0, (1, n_rows))
    by_name = {"gibbs": members, "ensemble": members.mean(0, keepdims=True), "mean": mean}
    return SequenceLosses(
        nll={k: -np.log(v) for k, v in by_name.items()},
        smoothed={
            k: -np.log((1 - SMOOTHING) * v + SMOOTHING / VOCABULARY) for k, v in by_name.items()
        },
        n_tokens=np.ones(n_rows, dtype=np.int64),
    )


@given(train=losses_of_members(), test=losses_of_members(), all_train=st.booleans())
def test_measurements_obey_their_laws(
    train: SequenceLosses, test: SequenceLosses, all_train: bool
) -> None:
    found = {
        name: language_measurement(train, test, name, all_train=all_train) for name in PREDICTORS
    }
    for name, each in found.items():
        gap = each.generalization_gap
        assert gap.value == each.population_risk.value - each.empirical_risk.value
        assert each.test_perplexity.value == pytest.approx(np.exp(test.nll[name].mean()))
        assert each.sample_variance.value <= RANGE**2 / 4 * len(test) / (len(test) - 1) + 1e-12
        if not all_train:  # both risks vary
            assert each.empirical_risk.provenance == "interval"
            assert gap.high - gap.low >= each.population_risk.high - each.population_risk.low - 1e-9
        elif name != "gibbs":
            assert each.empirical_risk.provenance == "plug-in"
    gain = language_jensen_gap(test, RANGE)
    difference = found["gibbs"].population_risk.value - found["ensemble"].population_risk.value
    assert gain.value == pytest.approx(difference, abs=1e-12)
    assert 0 <= gain.low <= gain.value <= gain.high <= RANGE


def test_a_number_that_is_not_finite_is_refused() -> None:
    losses = {"mean": np.array([[1.0, np.nan]])}
    with pytest.raises(ValueError, match=r"finite log-probabilities \(mean\).*row 1"):
        SequenceLosses(nll=losses, smoothed=losses, n_tokens=np.array([1, 1]))


# -- the record ------------------------------


@pytest.mark.parametrize("rate", [None, 0.4])
def test_the_record_of_a_language_model(
    rate: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = training("llama", tmp_path, rate=rate, disable_tqdm=False)
    # One row has nothing to predict.
    trainer.eval_dataset[1]["labels"] = torch.full_like(trainer.eval_dataset[1]["labels"], -100)
    callback = MeasureCallback(trainer, tmp_path / "mine", settings=SMALL, measured_rows=(8, 6))
    run(trainer, callback)
    assert "measuring: predict test" in capsys.readouterr().err
    assert callback.record_path is not None
    assert callback.report_path is not None
    record = read_language_record(callback.record_path)
    assert record == callback.record
    assert (record.n_train, record.n_train_measured, record.n_test) == (12, 8, 5)
    assert any("1 held-out rows have no token" in note for note in record.notes)
    last = logged(trainer)[-1]
    assert record.predictors["mean"].population_risk.value == pytest.approx(last["test_risk"])
    assert record.predictors["mean"].test_perplexity.value == pytest.approx(last["test_perplexity"])
    bounds = language_bounds(record, delta=0.05)
    assert all(each.kind == "certificate" for each in bounds)
    for each in bounds:
        assert float(each.risk) > record.predictors[each.predictor].population_risk.value
        assert "sample" in each.caveats[-1]
    assert {each.predictor for each in bounds} == set(PREDICTORS)
    members = record.predictors["gibbs"].population_risk.value
    ensemble = record.predictors["ensemble"].population_risk.value
    assert record.jensen_gap.value == pytest.approx(members - ensemble, abs=1e-12)
    assert record.jensen_gap.value >= 0
    assert (record.jensen_gap.value == 0) == (rate is None)
    assert record.run_id in callback.report_path.read_text()
    report(callback.record_path)
    assert f"Record: {record.run_id}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageRecord, Path]:
    folder = tmp_path_factory.mktemp("language")
    trainer = training("llama", folder, rate=0.4)
    callback = MeasureCallback(trainer, folder, settings=SMALL, every=None)
    run(trainer, callback)
    assert isinstance(callback.record, LanguageRecord)
    assert callback.record_path is not None
    return callback.record, callback.record_path


def test_a_record_that_cannot_be_trusted_is_refused(
    written: tuple[LanguageRecord, Path], tmp_path: Path
) -> None:
    record, path = written
    content = json.loads(path.read_text())
    for change, text in (
        ({"n_test": record.n_test + 1}, "was edited"),
        ({"schema": "language/0"}, "`schema` of .* must be 'language/1', got 'language/0'"),
        ({"seconds": None}, "must hold every field"),
    ):
        edited = tmp_path / "edited.json"
        edited.write_text(json.dumps({**content, **change}))
        with pytest.raises(RecordError, match=text):
            read_language_record(edited)
    edited.write_text(path.read_text()[:-20])
    with pytest.raises(RecordError, match="complete JSON record"):
        read_language_record(edited)
    with pytest.raises(RecordError, match="complete and finite"):
        write_language_record(replace(record, config={"x": float("nan")}), tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()
    with pytest.raises(ValueError, match="`delta` must be in"):
        language_bounds(record, delta=0.0)


# -- TRL ------------------------------


def sft_training(folder: Path, rate: float | None, **options: Any) -> SFTTrainer:
    model = adapted("llama")
    if rate is not None:
        attach_lora_dropout(model, rate)
    held_out = Dataset.from_dict({"text": TEXTS[::-1]})
    return sft(
        model,
        folder,
        trainer=partial(SFTTrainer, eval_dataset=held_out),
        **{"max_steps": 6, "logging_strategy": "steps", "logging_steps": 3, **options},
    )


@pytest.mark.parametrize("rate", [None, 0.4])
def test_supervised_fine_tuning_is_measured(rate: float | None, tmp_path: Path) -> None:
    plain = sft_training(tmp_path, rate)
    without = run(plain, None)
    trainer = sft_training(tmp_path, rate)
    callback = MeasureCallback(trainer, tmp_path / "mine", settings=SMALL)
    weights = run(trainer, callback)
    assert all(torch.equal(value, without[name]) for name, value in weights.items())
    assert callback.record_path is not None
    record = read_language_record(callback.record_path)
    assert (record.n_train, record.n_test) == (12, 12)
    assert logged(trainer)
    # What TRL collects for its own log entries stays theirs.
    for ours, theirs in zip(
        [e for e in trainer.state.log_history if "loss" in e],
        [e for e in plain.state.log_history if "loss" in e],
        strict=True,
    ):
        assert ours == theirs
    assert not any("entropy" in entry for entry in logged(trainer))


@pytest.mark.filterwarnings("ignore")  # TRL warns of attention kernels that mix the texts
@pytest.mark.parametrize(
    "options",
    [
        {"packing": True, "packing_strategy": "bfd", "padding_free": True},
        {"padding_free": True, "max_length": None},
    ],
)
def test_packed_rows_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    trainer = sft_training(tmp_path, None, **options)
    with pytest.raises(ValueError, match="must be off to measure"):
        run(trainer, MeasureCallback(trainer, tmp_path / "mine", settings=SMALL))


def test_a_collator_that_packs_is_refused(tmp_path: Path) -> None:
    trainer = training("llama", tmp_path)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: {
        name: value.reshape(1, -1) for name, value in collate(rows).items()
    }
    trainer.train_dataset = trainer.train_dataset[:3]
    with pytest.raises(ValueError, match="packed rows are not independent"):
        run(trainer, MeasureCallback(trainer, tmp_path / "mine", settings=SMALL))
