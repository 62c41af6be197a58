"""The whole measurement of a tiny adapter, as a record."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lodrop_nn.measure import environment, measure
from lodrop_nn.measure.settings import CORE, MeasureSettings
from lodrop_theory import evaluate_record
from lodrop_theory.records import PREDICTORS, Estimate, RunRecord, read_record, write_record
from tests.nn.classifiers import adapted_classifier, padded_batches

SETTINGS = MeasureSettings(
    n_masks=4, seed=7, smoothing=0.1, hessian_steps=5, n_refits=3, n_fresh=6, noise_stds=(0.01, 0.1)
)
QUICK = dataclasses.replace(SETTINGS, parts=CORE)


def record(
    settings: MeasureSettings = SETTINGS,
    kind: str = "bert",
    *,
    dropout_rate: float = 0.3,
    rescale: bool = True,
    on_stage: Callable[[str, float], None] | None = None,
) -> RunRecord:
    model, bank = adapted_classifier(kind, dropout_rate, rescale=rescale)
    return measure(
        model,
        bank,
        padded_batches(8),
        padded_batches(9, seed=1),
        settings,
        config={"made": "by hand"},
        run_id="0123456789ab",
        environment=environment(),
        fine_tune_seconds=1.5,
        vote_shares=None,
        on_stage=on_stage,
    )


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_record_survives_its_file(kind: str, tmp_path: Path) -> None:
    written = record(kind=kind)
    write_record(written, tmp_path / "run.json")

    read = read_record(tmp_path / "run.json")

    assert read == written
    assert set(read.predictors) == set(PREDICTORS)
    assert read.run_id == "0123456789ab"
    assert (read.n_train, read.n_test, read.n_masks_test) == (8, 9, 4)
    assert read.seconds["fine-tune"] == 1.5
    assert read.stability is not None
    assert set(read.stability.estimates) == {"gauss-newton", "influence", "newton", "refit"}
    # Without one of its eight rows the random BERT has negative curvature left.
    assert ("and raised" in read.stability.objective) == (kind == "bert")
    assert [point.noise_std for point in read.posterior] == [0.01, 0.1]


def test_parts_can_be_left_out() -> None:
    quick = record(QUICK)

    assert quick.dropout_min_eig is None
    assert quick.penalty_curvature is None
    assert quick.stability is None
    assert quick.posterior == ()
    assert set(quick.seconds) == {
        "fine-tune",
        "predict train",
        "predict test",
        "gradients",
        "curvature",
        "scores",
    }
    whole = record()
    for name in ("lipschitz", "transverse_min_eig", "penalty", "predictors", "jensen_gap"):
        assert getattr(whole, name) == getattr(quick, name), name


def test_every_bound_can_read_the_record() -> None:
    results = evaluate_record(record(), delta=0.05)

    assert len(results) > len(evaluate_record(record(QUICK), delta=0.05))
    assert all(result.rows() for result in results)


def test_the_same_run_measures_the_same() -> None:
    first, second = record(), record()

    unlike = {"created", "seconds"}
    for field in dataclasses.fields(RunRecord):
        if field.name not in unlike:
            assert getattr(first, field.name) == getattr(second, field.name), field.name


def test_without_dropout_there_is_no_penalty() -> None:
    plain = record(dropout_rate=0.0)

    assert plain.penalty is None
    assert plain.penalty_kkt is None
    assert plain.penalty_curvature is None
    assert plain.update_sparsity.value == 0.0
    assert plain.output_covariance.value == plain.jensen_gap.value == 0.0
    risks = [plain.predictors[name].population_risk.value for name in PREDICTORS]
    assert risks == pytest.approx([risks[0]] * 3)


def test_stages_are_reported_in_order_and_end_at_one() -> None:
    seen: list[tuple[str, float]] = []

    found = record(on_stage=lambda stage, fraction: seen.append((stage, fraction)))

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
        padded_batches(8),
        padded_batches(9, seed=1),
        SETTINGS,
        config={},
        run_id="0",
        environment={},
    )

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    fresh, _ = adapted_classifier("bert", 0.3)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in fresh.modules()]


def test_notes_say_how_masks_are_scaled() -> None:
    notes = " ".join(record(QUICK, rescale=False).notes)

    assert "factors (A, B)" in notes
    assert "not rescaled" in notes


@pytest.mark.parametrize(("n_train", "n_test", "name"), [(1, 9, "train"), (8, 1, "test")])
def test_refuses_too_few_rows(n_train: int, n_test: int, name: str) -> None:
    model, bank = adapted_classifier("bert", 0.3)
    with pytest.raises(ValueError, match=f"`{name}` must hold at least 2 rows"):
        measure(
            model,
            bank,
            padded_batches(n_train),
            padded_batches(n_test),
            SETTINGS,
            config={},
            run_id="0",
            environment={},
        )


def test_refuses_what_no_stability_can_be_measured_of_before_anything_is_measured() -> None:
    seen: list[str] = []
    with pytest.raises(ValueError, match="`n_refits` must be at most the 8 examples"):
        record(
            dataclasses.replace(SETTINGS, n_refits=9),
            on_stage=lambda stage, _: seen.append(stage),
        )
    assert seen == []


def test_every_interval_has_the_level_that_was_asked_for() -> None:
    found = record(dataclasses.replace(SETTINGS, level=0.8))

    assert found.stability is not None
    measured = (*vars(found).values(), *vars(found.stability).values())
    levels = {e.level for e in measured if isinstance(e, Estimate) and e.level is not None}
    # The one below holds two enclosures at once.
    assert found.penalty_curvature is not None
    assert levels - {found.penalty_curvature.level} == {0.8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ("predictions",)}, "`parts` must be among"),
        ({"parts": (*CORE, "magic")}, "`parts` must be among"),
        ({"ridge": 0.0}, "`ridge` must be None or finite and > 0"),
        ({"noise_stds": ()}, "`noise_stds` must be one or more"),
        ({"noise_stds": (0.1, float("nan"))}, "`noise_stds` must be one or more"),
        ({"n_refits": 1}, "`n_refits` must be a whole number >= 2"),
        ({"level": 1.0}, r"`level` must be in \(0, 1\)"),
        ({"hessian_steps": True}, "`hessian_steps` must be a whole number >= 2"),
    ],
)
def test_settings_refuse_what_is_outside_their_range(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **changes)


def test_environment_names_versions_and_no_person() -> None:
    found = environment()

    assert found["torch"] == torch.__version__
    assert found["torch_threads"] == torch.get_num_threads()
    assert not any("/" in str(value) for value in found.values())
