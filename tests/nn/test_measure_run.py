"""The whole measurement of a tiny adapter, as a record."""

import dataclasses
from pathlib import Path

import pytest
import torch

from lodrop_nn.config import RunConfig
from lodrop_nn.measure import environment, measure
from lodrop_theory.records import PREDICTORS, RunRecord, read_record, write_record
from tests.nn.classifiers import adapted_classifier, padded_batches

CONFIG = RunConfig(
    dropout_rate=0.3,
    seed=7,
    n_train=6,
    n_test=9,
    rank=2,
    lora_alpha=3.0,
    adapted_layers=(1, 2),
    n_masks_test=4,
    hessian_steps=5,
    smoothing=0.1,
)


def record(config: RunConfig = CONFIG, kind: str = "bert") -> RunRecord:
    model, bank = adapted_classifier(kind, config.dropout_rate, rescale=config.rescale)
    return measure(
        model,
        bank,
        padded_batches(6),
        padded_batches(9, seed=1),
        config,
        fine_tune_seconds=1.5,
        environment=environment(),
    )


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_record_survives_its_file(kind: str, tmp_path: Path) -> None:
    written = record(kind=kind)
    write_record(written, tmp_path / "run.json")

    read = read_record(tmp_path / "run.json")

    assert read == written
    assert set(read.predictors) == set(PREDICTORS)
    assert read.run_id == CONFIG.run_id
    assert (read.n_train, read.n_test, read.n_masks_test) == (6, 9, 4)
    assert read.seconds["fine-tune"] == 1.5


def test_the_same_run_measures_the_same() -> None:
    first, second = record(), record()

    unlike = {"created", "seconds"}
    for field in dataclasses.fields(RunRecord):
        if field.name not in unlike:
            assert getattr(first, field.name) == getattr(second, field.name), field.name


def test_without_dropout_there_is_no_penalty() -> None:
    plain = record(dataclasses.replace(CONFIG, dropout_rate=0.0))

    assert plain.penalty is None
    assert plain.penalty_kkt is None
    assert plain.update_sparsity.value == 0.0
    risks = [plain.predictors[name].population_risk.value for name in PREDICTORS]
    assert risks == pytest.approx([risks[0]] * 3)


def test_stages_are_reported_in_order_and_end_at_one() -> None:
    model, bank = adapted_classifier("bert", 0.3)
    seen: list[tuple[str, float]] = []

    found = measure(
        model,
        bank,
        padded_batches(6),
        padded_batches(9),
        CONFIG,
        fine_tune_seconds=0.0,
        environment={},
        on_stage=lambda stage, fraction: seen.append((stage, fraction)),
    )

    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == pytest.approx(1.0)
    assert list(dict.fromkeys(stage for stage, _ in seen)) == list(found.seconds)[1:]
    assert all(seconds >= 0 for seconds in found.seconds.values())


def test_the_model_is_left_as_it_was() -> None:
    model, bank = adapted_classifier("bert", 0.3)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name: p.requires_grad for name, p in model.named_parameters()}

    measure(
        model,
        bank,
        padded_batches(6),
        padded_batches(9),
        CONFIG,
        fine_tune_seconds=0.0,
        environment={},
    )

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    fresh, _ = adapted_classifier("bert", 0.3)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in fresh.modules()]


def test_notes_say_what_did_not_converge_and_how_masks_are_scaled() -> None:
    few = dataclasses.replace(CONFIG, hessian_steps=2, rescale=False)
    notes = " ".join(record(few).notes)

    assert "factors (A, B)" in notes
    assert "not rescaled" in notes
    # Tiny problems are solved densely, so that nothing is left to converge.
    assert "did not converge" not in notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_train": 5}, "`train` must hold config.n_train = 5 rows, got 6"),
        ({"n_test": 8}, "`test` must hold config.n_test = 8 rows, got 9"),
        ({"dropout_rate": 0.2}, "`bank` must have config.dropout_rate = 0.2, got 0.3"),
    ],
)
def test_refuses_what_the_configuration_does_not_say(changes: dict, message: str) -> None:
    model, bank = adapted_classifier("bert", 0.3)
    with pytest.raises(ValueError, match=message):
        measure(
            model,
            bank,
            padded_batches(6),
            padded_batches(9),
            dataclasses.replace(CONFIG, **changes),
            fine_tune_seconds=0.0,
            environment={},
        )


def test_environment_names_versions_and_no_person() -> None:
    found = environment()

    assert found["torch"] == torch.__version__
    assert found["torch_threads"] == torch.get_num_threads()
    assert not any("/" in str(value) for value in found.values())
