"""What a run of a sweep records, and that runs trained together are runs of their own."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import transformers

from lodrop_nn.config import RunConfig
from lodrop_nn.data import load_base_model
from lodrop_nn.measure.predictions import predict_all
from lodrop_nn.sweep import training
from lodrop_nn.sweep.batching import run_unit, units_of
from lodrop_nn.sweep.grid import SweepConfig, SweepRun
from lodrop_nn.sweep.scores import ScoreRecord
from lodrop_nn.sweep.status import final_scores
from lodrop_nn.sweep.store import RecordStore
from lodrop_nn.train.finetune import build_adapter, fine_tune
from lodrop_theory import RecordError, read_record
from tests.nn.checkpoints import BERT_LIKE, save_checkpoint
from tests.nn.test_compare import tiny_reviews

SCORES = (
    *("train_nll", "test_nll", "train_accuracy", "test_accuracy", "calibration_error"),
    "generalization_gap",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return save_checkpoint(transformers.BertConfig(**BERT_LIKE), folder)


@pytest.fixture(autouse=True)
def _rows(monkeypatch):
    monkeypatch.setattr(training, "load_data", lambda name: tiny_reviews())


def a_run(checkpoint: str, **changes) -> SweepRun:
    fields = {
        **{"model": checkpoint, "target_modules": ("query", "value"), "adapted_layers": (1,)},
        **{"rank": 2, "n_train": 14, "n_test": 12, "batch_size": 4, "epochs": 3},
        **{"n_masks_test": 3, "dropout_rate": 0.3, "learning_rate": 0.05},
    }
    config = RunConfig(**{**fields, **changes})
    return SweepRun(config=config, evaluate_every=2, n_masks_along=2)


def record_of(content) -> ScoreRecord:
    return ScoreRecord.from_json(json.loads(json.dumps(content, allow_nan=False)))


GRID = {
    "dropout_rate": [0.0, 0.3, 0.6],
    "learning_rate": [0.05, 0.01],
    "weight_decay": [0.0, 0.5],
    "rescale": [True, False],
    "train_A": [True, False],
    "mask_law": ["iid", "balanced"],
}


@pytest.mark.parametrize(
    "shared",
    [{}, {"n_masks_train": 2}, {"mask_scope": "example"}, {"adapted_layers": (0, 1), "seed": 3}],
    ids=["one mask", "several masks", "by example", "nothing frozen below"],
)
def test_runs_trained_together_are_runs_of_their_own(checkpoint, shared):
    base = a_run(checkpoint, **shared)
    names = GRID if len(shared) != 1 else ("dropout_rate", "train_A", "mask_law")
    changes = [{name: value} for name in names for value in GRID[name][1:]]
    runs = [
        base,
        *(replace(base, config=replace(base.config, **change)) for change in changes),
    ]
    (unit,) = units_of(runs, max_replicas=20)
    together = [record_of(content) for content in run_unit(unit)]
    apart = [record_of(run_unit([run])[0]) for run in unit]
    assert len({record.epoch_losses for record in apart}) > len(apart) // 2
    for one, other in zip(together, apart, strict=True):
        assert (one.run_id, one.config, one.method) == (other.run_id, other.config, other.method)
        assert one.n_parameters == other.n_parameters
        assert (one.n_together, other.n_together) == (len(unit), 1)
        assert one.epoch_losses == pytest.approx(other.epoch_losses, abs=1e-5)
        assert [(s.epoch, s.n_masks) for s in one.scores] == [(2, 2), (3, 3)]
        for ours, theirs in zip(one.scores, other.scores, strict=True):
            for name, scores in theirs.predictors.items():
                for score in SCORES:
                    found = getattr(ours.predictors[name], score)
                    expected = getattr(scores, score)
                    assert found.value == pytest.approx(expected.value, abs=1e-5), (name, score)
                    assert found.n_draws == expected.n_draws


def test_scores_on_the_way_do_not_change_the_training(checkpoint):
    run = a_run(checkpoint, mask_scope="example", mask_law="balanced")
    record = record_of(run_unit([replace(run, evaluate_every=1)])[0])
    assert [scores.epoch for scores in record.scores] == [1, 2, 3]
    material = training.Material(run.config, "cpu")
    model, bank = build_adapter(run.config, load_base_model(checkpoint, 2, run.config.seed)[0])
    assert fine_tune(model, bank, material.train, run.config).epoch_losses == record.epoch_losses
    assert record.diverged_after is None
    assert record.notes == ("made up",)
    assert set(record.seconds) == {"train", "scores", "stored_states"}


def test_frozen_factors_stay_where_they_began(checkpoint):
    run = a_run(checkpoint, train_A=False)
    model, bank = build_adapter(run.config, load_base_model(checkpoint, 2, 0)[0])
    before = {n: p.clone() for n, p in model.named_parameters()}
    fine_tune(model, bank, training.Material(run.config, "cpu").train, run.config)
    moved = {n for n, p in model.named_parameters() if not p.equal(before[n])}
    assert not any("lora_A" in name for name in moved)
    assert any("lora_B" in name for name in moved)
    assert any("classifier" in name for name in moved)


def test_a_diverging_run_is_recorded_and_spares_the_others(checkpoint):
    calm, wild = a_run(checkpoint), a_run(checkpoint, learning_rate=1e30)
    alone = record_of(run_unit([wild])[0])
    assert alone.diverged_after is not None
    assert 1 <= alone.diverged_after < 12
    assert alone.epoch_losses == ()
    assert all(math.isfinite(s.predictors["mean"].test_nll.value) for s in alone.scores)
    first, second = (record_of(content) for content in run_unit([calm, wild]))
    assert (first.diverged_after, len(first.scores)) == (None, 2)
    assert second.diverged_after == alone.diverged_after
    assert second.epoch_losses == alone.epoch_losses
    assert [s.epoch for s in second.scores] == [s.epoch for s in alone.scores]


def test_progress_is_the_fraction_of_the_training(checkpoint):
    for runs in ([a_run(checkpoint)], [a_run(checkpoint), a_run(checkpoint, dropout_rate=0.0)]):
        seen: list[float] = []
        run_unit(runs, on_progress=seen.append)
        assert seen == [pytest.approx(step / 12) for step in range(1, 13)]


def test_runs_of_several_groups_are_refused(checkpoint):
    runs = [a_run(checkpoint), a_run(checkpoint, seed=1)]
    with pytest.raises(ValueError, match="one group of `units_of`"):
        run_unit(runs)


def test_a_record_of_another_kind_is_refused(checkpoint):
    content = json.loads(json.dumps(run_unit([a_run(checkpoint, epochs=1)])[0]))
    with pytest.raises(RecordError, match="`schema` must be 1, got 7"):
        ScoreRecord.from_json({**content, "schema": 7})
    del content["seconds"]
    with pytest.raises(RecordError, match="every field"):
        ScoreRecord.from_json(content)


@pytest.mark.parametrize("measure", ["full", "stability"])
def test_a_measured_run_is_that_of_a_comparison(checkpoint, monkeypatch, tmp_path, measure):
    from lodrop_nn.compare import run as comparison

    monkeypatch.setattr(comparison, "load_data", lambda name: tiny_reviews())
    config = a_run(checkpoint, epochs=1, train_A=False, mask_law="balanced").config
    sweep = SweepConfig(grid=({**config.as_json(), "dropout_rate": [0.3]},), measure=measure)
    (run,) = sweep.runs()
    assert run.config == config
    assert (run.run_id == config.run_id) == (measure == "full")
    content = run_unit([run])[0]
    store = RecordStore(str(tmp_path))
    store.write(run.run_id, content)
    record = read_record(tmp_path / f"{run.run_id}.json")
    assert record.config == config.as_json()
    expected = {"full": None, "stability": {"gauss-newton", "influence"}}[measure]
    assert (record.stability and set(record.stability.estimates)) == expected
    assert (record.dropout_min_eig is None) == (measure == "full")
    assert (
        final_scores(content)["test_nll"]["value"] == record.predictors["ensemble"].test_nll.value
    )


@pytest.mark.parametrize("n_masks_train", [1, 2])
def test_stored_states_change_neither_steps_nor_scores(checkpoint, n_masks_train):
    run = a_run(checkpoint, n_masks_train=n_masks_train)
    found = []
    for stored in (True, False):
        material = training.Material(run.config, "cpu")
        model, bank = build_adapter(run.config, material.base)
        if stored:
            material.store_prefixes(model)
            assert material.train_prefix is not None
            assert material.train_prefix.n_blocks == 1
        trained = fine_tune(model, bank, material.train, run.config, stored=material.train_prefix)
        predictions = [
            predict_all(model, bank, rows, n_masks=3, seed=0, stored=prefix)
            for rows, prefix in material.scored()
        ]
        found.append((trained.epoch_losses, predictions))
    (losses, ours), (expected_losses, expected) = found
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    for one, other in zip(ours, expected, strict=True):
        for predictor in ("gibbs", "ensemble", "mean"):
            np.testing.assert_allclose(one.of(predictor), other.of(predictor), atol=1e-5)
        assert (one.labels == other.labels).all()
