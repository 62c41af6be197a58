"""A trainer's own training, measured: numbers in its log, records at its end, weights untouched."""

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerState, default_data_collator

from lodrop_nn import MeasureCallback
from lodrop_nn.adapter import attach_lora_dropout, mask_bank
from lodrop_nn.measure import CORE, MeasureSettings
from lodrop_nn.train import measure_callback, measured_training
from lodrop_nn.train.measure_callback import MeasurementError
from lodrop_theory.evaluate import evaluate_record
from lodrop_theory.records import RunRecord, read_record
from tests.nn.test_trainer import DropoutTrainer, examples, trainer_of
from tests.nn.tiny import adapted, bert

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")

SMALL = MeasureSettings(parts=CORE, hessian_steps=3, n_masks=3, n_gradient_masks=1)
# The Hessian of few parameters is quick.
FEW = {"r": 1, "target_modules": ["query", "q_proj"], "layers_to_transform": [1]}
GAPS = {"train_risk", "test_risk", "gap"}
ENSEMBLE_GAPS = {f"ensemble_{name}" for name in GAPS}


def training(
    kind: str, folder: Path, *, rate: float | None = None, n_test: int = 6, **options: Any
) -> Trainer:
    """Two epochs of 12 rows; plain LoRA draws dropout from torch, as unseeded masks do."""
    if rate is None:
        model = adapted(kind, lora_dropout=0.3, **FEW)
    else:
        model = adapted(kind, **FEW)
        attach_lora_dropout(model, rate, mask_scope="example")
    rows = examples(kind, 12 + n_test)
    settings = {"max_steps": -1, "num_train_epochs": 2, "learning_rate": 1e-2}
    settings |= {"per_device_eval_batch_size": 8, **options}
    trainer = trainer_of(
        model,
        folder / "out",
        kind=kind,
        trainer=Trainer,
        train_dataset=rows[:12],
        **settings,
    )
    trainer.eval_dataset = rows[12:] or None
    return trainer


def run(trainer: Trainer, callback: MeasureCallback | None) -> dict[str, Tensor]:
    """The weights after training."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if callback is not None:
            trainer.add_callback(callback)
        trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def logged(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "train_risk" in entry]


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("rate", [None, 0.4])
def test_training_stays_as_it_is_to_the_last_bit(
    kind: str, rate: float | None, tmp_path: Path
) -> None:
    strategy = {"logging_strategy": "steps" if rate is None else "epoch"}
    plain = training(kind, tmp_path, rate=rate, **strategy)
    without = run(plain, None)
    trainer = training(kind, tmp_path, rate=rate, **strategy)
    hooks = len(trainer.model._forward_pre_hooks)
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    callback = MeasureCallback(trainer, tmp_path, settings=SMALL)
    weights = run(trainer, callback)
    assert weights.keys() == without.keys()
    assert all(torch.equal(weights[name], without[name]) for name in weights)
    other = [e["loss"] for e in plain.state.log_history if "loss" in e]
    assert [e["loss"] for e in trainer.state.log_history if "loss" in e] == other  # none is lost
    assert len(other) == (4 if rate is None else 2)
    assert len(trainer.model._forward_pre_hooks) == hooks
    assert [name for name, p in trainer.model.named_parameters() if p.requires_grad] == trained
    if rate is None:
        with pytest.raises(ValueError, match="has no LoRA Dropout"):
            mask_bank(trainer.model)
    more = ENSEMBLE_GAPS if rate else set()
    assert [e["epoch"] for e in logged(trainer)] == [1.0, 2.0]
    for entry in logged(trainer):
        found = {name for name in entry if name.endswith(("risk", "gap"))}
        assert found == GAPS | more
        assert entry["gap"] == pytest.approx(entry["test_risk"] - entry["train_risk"])


def drawing(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A collator that hides tokens at random, by each of the global generators."""
    collated = default_data_collator(rows)
    of_numpy = np.random.randint(6)  # noqa: NPY002
    hidden = int(torch.randint(6, ())), of_numpy, random.randrange(6)
    collated["attention_mask"][:, list(hidden)] = 0
    return collated


def test_a_collator_that_draws_goes_on_where_it_was(tmp_path: Path) -> None:
    seen = []
    for measured in (False, True):
        trainer = training("bert", tmp_path)
        trainer.data_collator = drawing
        callback = MeasureCallback(trainer, tmp_path, settings=SMALL) if measured else None
        seen.append(run(trainer, callback))
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[0].items())


@pytest.mark.parametrize("rate", [None, 0.4])
def test_the_record_of_a_classifier(rate: float | None, tmp_path: Path) -> None:
    trainer = training("bert", tmp_path, rate=rate)
    callback = MeasureCallback(trainer, tmp_path / "mine", settings=SMALL)
    run(trainer, callback)
    assert callback.record_path is not None
    assert callback.report_path is not None
    record = read_record(callback.record_path)
    assert record == callback.record
    assert callback.record_path.stem == record.run_id
    assert (record.n_train, record.n_test, record.dropout_rate) == (12, 6, rate or 0.0)
    assert record.config["training"]["steps"] == trainer.state.global_step
    assert record.config["lora"]["r"] == 1
    last = logged(trainer)[-1]  # all rows are below the limits: the numbers are those of the end
    for prefix, name in (("", "mean"), ("ensemble_", "ensemble")) if rate else (("", "mean"),):
        measured = record.predictors[name]
        assert measured.empirical_risk.value == pytest.approx(last[f"{prefix}train_risk"])
        assert measured.generalization_gap.value == pytest.approx(last[f"{prefix}gap"])
    assert any(bound.kind == "certificate" for bound in evaluate_record(record, delta=0.05))
    assert record.run_id in callback.report_path.read_text()
    saved = tmp_path / "mine" / "adapter"
    assert (saved / "lora_dropout.json").is_file() == (rate is not None)
    assert str(tmp_path) not in callback.record_path.read_text()
    again = PeftModel.from_pretrained(bert(), str(saved))
    inputs = {k: torch.stack([r[k] for r in trainer.eval_dataset]) for k in ("input_ids",)}
    with torch.no_grad():
        ours = trainer.model.eval()(**inputs).logits
        torch.testing.assert_close(again.eval()(**inputs).logits, ours)


def test_a_sample_of_the_training_rows_is_marked_as_one(tmp_path: Path) -> None:
    trainer = training("bert", tmp_path, rate=0.4)
    callback = MeasureCallback(trainer, tmp_path, settings=SMALL, measured_rows=(8, 4), every=None)
    run(trainer, callback)
    record = callback.record
    assert isinstance(record, RunRecord)
    assert (record.n_train, record.n_test) == (12, 4)
    assert "random sample of 8 of the 12 training rows" in record.notes[0]
    assert any("4 of 6 evaluation rows" in note for note in record.notes)
    assert not logged(trainer)
    for name in measured_training._OF_TRAINING_ROWS:
        estimate = getattr(record, name)
        assert estimate is None or estimate.provenance == "plug-in", name
    for scores in record.predictors.values():
        assert scores.empirical_risk.provenance == "plug-in"
        assert scores.generalization_gap.provenance == "plug-in"
        assert scores.population_risk.provenance == "interval"
    evaluate_record(record, delta=0.05)
    needs_all = MeasureCallback(
        training("bert", tmp_path), tmp_path, settings=MeasureSettings(), measured_rows=(8, 4)
    )
    with pytest.raises(ValueError, match=r"8 of 12.*raise the first of `measured_rows`"):
        run(needs_all.trainer, needs_all)


def test_numbers_at_evaluations(tmp_path: Path) -> None:
    trainer = training("bert", tmp_path, eval_strategy="steps", eval_steps=1, max_steps=3)
    run(trainer, MeasureCallback(trainer, tmp_path, settings=SMALL, every="evaluate"))
    steps = [e["step"] for e in logged(trainer)]
    assert steps == [e["step"] for e in trainer.state.log_history if "eval_loss" in e] == [1, 2, 3]
    trainer.evaluate()  # after training nothing is measured
    assert len(logged(trainer)) == 3


def test_a_loss_of_its_own_is_noted(tmp_path: Path) -> None:
    for smoothing in (0.0, 0.1):
        trainer = training("bert", tmp_path, label_smoothing_factor=smoothing, max_steps=1)
        callback = MeasureCallback(trainer, tmp_path, settings=SMALL, every=None)
        run(trainer, callback)
        assert callback.record is not None
        noted = any("a loss of its own" in note for note in callback.record.notes)
        assert noted == (smoothing > 0)


def test_the_micro_steps_of_the_mixin_are_measured_too(tmp_path: Path) -> None:
    model = adapted("bert", **FEW)
    bank = attach_lora_dropout(model, 0.4, n_masks=2, seed=0)
    trainer = trainer_of(model, tmp_path, kind="bert", trainer=DropoutTrainer, max_steps=2)
    callback = MeasureCallback(trainer, tmp_path, settings=SMALL)
    run(trainer, callback)
    assert isinstance(callback.record, RunRecord)
    assert callback.record.n_masks_train == 2
    assert bank.passes.n_drawn == 4  # measuring draws none of the training's masks


def test_only_the_main_process_measures(tmp_path: Path) -> None:
    trainer = training("bert", tmp_path)
    callback = MeasureCallback(trainer, tmp_path / "mine", settings=SMALL)
    state = TrainerState(is_world_process_zero=False)
    callback.on_train_begin(trainer.args, state, trainer.control)
    callback.on_epoch_end(trainer.args, state, trainer.control)
    callback.on_train_end(trainer.args, state, trainer.control)
    assert callback.record is None
    assert not (tmp_path / "mine").exists()
    assert not trainer.state.log_history


def test_autocast_is_off_while_measuring(tmp_path: Path) -> None:
    """The numbers are those of the weights as stored, not of a pass in bfloat16."""
    trainer = training("bert", tmp_path, rate=0.4, bf16=True)
    callback = MeasureCallback(trainer, tmp_path / "mine", settings=SMALL)
    run(trainer, callback)
    assert isinstance(callback.record, RunRecord)
    rows = default_data_collator(trainer.eval_dataset)
    again = PeftModel.from_pretrained(bert(), str(tmp_path / "mine" / "adapter")).eval()
    with torch.no_grad():
        loss = float(again(**rows).loss)
        rounded = float(trainer.model.eval()(**rows).loss)
    found = callback.record.predictors["mean"].test_nll.value
    assert found == pytest.approx(loss, rel=1e-6)
    assert found != pytest.approx(rounded, rel=1e-6)  # the trainer's own pass is still under it


# -- no record, and why ------------------------------


def test_without_held_out_rows_there_are_training_numbers_alone(tmp_path: Path) -> None:
    trainer = training("bert", tmp_path, rate=0.4, n_test=0)
    callback = MeasureCallback(trainer, tmp_path / "mine", settings=SMALL)
    with pytest.warns(UserWarning, match=r"no record: there are no held-out rows.*eval_dataset"):
        run(trainer, callback)
    found = {name for name in logged(trainer)[-1] if name.endswith(("risk", "gap"))}
    assert found == {"train_risk", "ensemble_train_risk"}
    assert callback.record is None
    assert not (tmp_path / "mine").exists()


CHOOSERS = {
    "load_best_model_at_end": {
        "load_best_model_at_end": True,
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "metric_for_best_model": "loss",
    },
    "reduce_lr_on_plateau": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "eval_strategy": "epoch",
        "metric_for_best_model": "loss",
    },
}


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_rows_that_choose_the_model_certify_nothing(chooser: str, tmp_path: Path) -> None:
    trainer = training("bert", tmp_path, **CHOOSERS[chooser])
    callback = MeasureCallback(trainer, tmp_path, settings=SMALL)
    with pytest.warns(UserWarning, match=rf"`{chooser}` lets the evaluation rows choose"):
        run(trainer, callback)
    assert callback.record is None
    assert "gap" in logged(trainer)[-1]
    trainer = training("bert", tmp_path, **CHOOSERS[chooser])
    others = examples("bert", 30)[18:]
    callback = MeasureCallback(trainer, tmp_path, settings=SMALL, test_dataset=others)
    run(trainer, callback)
    assert isinstance(callback.record, RunRecord)
    assert callback.record.n_test == 12


def test_half_precision_gives_no_curvature(tmp_path: Path) -> None:
    trainer = training("bert", tmp_path)
    trainer.model.bfloat16()
    callback = MeasureCallback(trainer, tmp_path, settings=SMALL)
    with pytest.warns(UserWarning, match=r"no record: weights are in torch\.bfloat16"):
        run(trainer, callback)
    assert "gap" in logged(trainer)[-1]


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(examples("bert", 12))


def refused(rows: Any, tmp_path: Path, **options: Any) -> None:
    trainer = training("bert", tmp_path, max_steps=2, **options)
    trainer.train_dataset = rows
    run(trainer, MeasureCallback(trainer, tmp_path, settings=SMALL))


def test_rows_without_classes_are_refused_before_the_first_step(tmp_path: Path) -> None:
    rows = examples("bert", 8)
    with pytest.raises(ValueError, match=r"`batches\[0\]\['labels'\]` must be whole numbers"):
        refused([{**r, "labels": r["labels"].float()} for r in rows], tmp_path)
    with pytest.raises(ValueError, match=r"must be in \[0, K\), got -100"):
        refused([{**r, "labels": torch.tensor(-100)} for r in rows], tmp_path)
    with pytest.raises(ValueError, match="must be one class per row or the tokens"):
        refused([{**r, "labels": r["input_ids"]} for r in rows], tmp_path)
    with pytest.raises(TypeError, match=r"rows by number.*Stream"):
        refused(Stream(), tmp_path)
    with pytest.raises(ValueError, match=r"`train_dataset` must hold at least 2 rows"):
        refused(rows[:1], tmp_path)


def test_models_and_arguments_that_are_refused(tmp_path: Path) -> None:
    trainer = training("bert", tmp_path)
    for options, text in (
        ({"every": "step"}, "`every` must be None or one of .*got 'step'"),
        ({"logged_rows": 3}, "`logged_rows` must be a pair"),
        ({"measured_rows": (0, 3)}, "`measured_rows` must be a whole number >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            MeasureCallback(trainer, tmp_path, **options)
    trainer = trainer_of(bert(), tmp_path, kind="bert", trainer=Trainer)
    with pytest.raises(TypeError, match=r"must be a peft.PeftModel, got Bert"):
        run(trainer, MeasureCallback(trainer, tmp_path))
    model = adapted("bert")
    attach_lora_dropout(model, (0.1, 0.2))
    trainer = trainer_of(model, tmp_path, kind="bert", trainer=Trainer)
    with pytest.raises(ValueError, match="`dropout_rate` must be one number"):
        run(trainer, MeasureCallback(trainer, tmp_path))
    trainer = training("bert", tmp_path)
    trainer.eval_dataset = {"one": trainer.eval_dataset, "two": trainer.eval_dataset}
    with pytest.raises(ValueError, match=r"`test_dataset` must be one data set.*\['one', 'two'\]"):
        run(trainer, MeasureCallback(trainer, tmp_path))


# -- failures ------------------------------


def broken(*args: object, **kwargs: object) -> None:
    raise RuntimeError("out of paper")


def test_a_failure_at_the_end_keeps_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(training("bert", tmp_path), None)
    monkeypatch.setattr(measure_callback, "classifier_record", broken)
    trainer = training("bert", tmp_path)
    with pytest.raises(MeasurementError, match=r"intact .*saved in .*RuntimeError: out of paper"):
        run(trainer, MeasureCallback(trainer, tmp_path))
    assert all(torch.equal(v, expected[n]) for n, v in trainer.model.state_dict().items())
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "records").exists()
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        mask_bank(trainer.model)


def test_a_failure_on_the_way_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(training("bert", tmp_path), None)
    monkeypatch.setattr(measure_callback, "logged_numbers", broken)
    trainer = training("bert", tmp_path)
    callback = MeasureCallback(trainer, tmp_path, settings=SMALL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weights = run(trainer, callback)
    found = [str(w.message) for w in caught if "could not measure" in str(w.message)]
    assert len(found) == 2
    assert "training goes on: RuntimeError: out of paper" in found[0]
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert isinstance(callback.record, RunRecord)
