"""The declared protocol, its steps and its cost: every number can be recomputed."""

from dataclasses import fields, replace

import pytest
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st

from lodrop_nn.reproduce.cost import (
    UnitCost,
    Workload,
    count_lines,
    flops_lines,
    measured_lines,
    measured_seconds,
    padded_tokens,
)
from lodrop_nn.reproduce.models import count_matrix_weights
from lodrop_nn.reproduce.plan import METHODS, Run, Schedule, check_method, schedule
from lodrop_nn.reproduce.preset import GIVEN, Preset
from lodrop_nn.reproduce.presets import ADALORA, OURS, PRESETS, TABLES, preset
from lodrop_nn.reproduce.tables import protocol_table

# -- the protocol ------------------------------

# Zhang et al. (2023): learning rate, epochs, gamma.
PUBLISHED_BY_ADALORA = {
    "mnli": (5e-4, 7, 0.1),
    "rte": (1.2e-3, 50, 0.3),
    "qnli": (1.2e-3, 5, 0.1),
    "mrpc": (1e-3, 30, 0.1),
    "qqp": (5e-4, 5, 0.1),
    "sst2": (8e-4, 24, 0.1),
    "cola": (5e-4, 25, 0.5),
    "stsb": (2.2e-3, 25, 0.1),
    "squad-v1.1": (1e-3, 10, 0.1),
    "squad-v2.0": (1e-3, 12, 0.1),
}


@pytest.mark.parametrize("task", PUBLISHED_BY_ADALORA)
def test_the_protocol_is_adaloras(task: str) -> None:
    each = preset(task)
    assert (each.learning_rate, each.epochs, each.orthogonality) == PUBLISHED_BY_ADALORA[task]
    assert (each.batch_size, each.seeds, each.rank, each.initial_rank) == (
        16 if each.family == "squad" else 32,
        5,
        8,
        12,
    )
    assert each.sources["epochs"] == ADALORA


def test_all_tables_are_declared_and_every_setting_has_a_source() -> None:
    assert {name: len(tasks) for name, tasks in TABLES.items()} == {
        "table1": 8,
        "table2": 2,
        "table3": 1,
    }
    described = {
        "task", "table", "family", "model", "data", "n_train", "n_eval", "metrics", "sources",
        "n_matrix_weights", "published_steps",
    }  # fmt: skip
    for each in PRESETS.values():
        settings = {field.name for field in fields(Preset)} - described
        only = {"doc_stride": "squad", "shots": "mmlu", "head_dropout": "glue"}
        settings -= {name for name, family in only.items() if family != each.family}
        assert settings <= set(each.sources), each.task


def test_what_the_paper_does_not_state_says_so() -> None:
    for each in PRESETS.values():
        for name in ("dropout_rate", "n_masks_train", "full_learning_rate"):
            assert each.sources[name].startswith("not stated")
    assert preset("mmlu").sources["rank"].startswith("not stated")
    assert preset("mmlu").shots == 0


def test_settings_of_the_user_are_marked() -> None:
    own = preset("rte").with_settings(rank=4, epochs=2)
    assert (own.rank, own.initial_rank, own.epochs) == (4, 6, 2)  # b(0) = 1.5 b(T)
    assert own.sources["epochs"] == GIVEN
    assert own.sources["select"] == OURS
    with pytest.raises(ValueError, match=r"must name fields of a preset, got \['ranks'\]"):
        preset("rte").with_settings(ranks=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout_rate": 1.0}, r"`dropout_rate` must be in \[0, 1\), got 1.0"),
        ({"rank": 4, "initial_rank": 4}, r"`initial_rank` must be > rank = 4"),
        ({"shots": 6}, r"`shots` must be in \[0, 5\], got 6"),
        ({"select": "first"}, r"`select` must be one of \('last', 'best'\), got 'first'"),
        ({"seeds": 0}, "`seeds` must be >= 1, got 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset("mrpc").with_settings(**settings)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`task` must be one of mnli, .*, got 'wnli'"):
        preset("wnli")
    with pytest.raises(ValueError, match=r"`methods` must be some of full, .*, got 'dora'"):
        check_method("dora")


def test_the_protocol_is_printed_with_its_sources() -> None:
    table, sources = protocol_table([preset("rte"), preset("mrpc")])
    names, *columns = (list(column.cells) for column in table.columns)
    rows = dict(zip(names, zip(*columns, strict=True), strict=True))
    assert rows["epochs"] == ("50", "30", "a")
    assert sources[0] == f"a  {ADALORA}"
    assert rows["learning_rate"][:2] == ("0.0012", "0.001")
    assert "shots" not in rows


# -- steps ------------------------------


@pytest.mark.parametrize("task", PRESETS)
def test_the_published_rows_give_the_published_schedule(task: str) -> None:
    each = preset(task)
    steps = schedule(each, each.n_train)
    assert steps == Schedule(
        n_steps=each.published_steps,
        warmup_steps=each.warmup_steps,
        warm_steps=each.warm_steps,
        final_steps=each.final_steps,
        allocation_interval=each.allocation_interval,
    )
    assert steps.warm_steps + steps.final_steps < steps.n_steps


@given(
    task=st.sampled_from(sorted(PRESETS)),
    n_train=st.integers(1, 500_000),
    epochs=st.integers(1, 60),
    max_steps=st.none() | st.integers(1, 99),
)
def test_adaloras_schedule_fits_into_any_training(task, n_train, epochs, max_steps) -> None:
    steps = schedule(preset(task).with_settings(epochs=epochs), n_train, max_steps)
    before_final = steps.n_steps - steps.final_steps
    assert 0 <= steps.warm_steps < before_final <= steps.n_steps
    assert before_final >= min(2, steps.n_steps)  # one to weigh ranks, one to allocate them
    assert steps.allocation_interval >= 1
    assert max_steps is None or steps.n_steps <= max_steps


# -- what names a run ------------------------------


def run_of(method: str = "lora", **settings) -> Run:
    chosen = preset("rte").with_settings(**settings)
    return Run(preset=chosen, method=check_method(method), seed=0, rows="r", model="m")


def test_settings_that_a_method_does_not_read_do_not_rename_its_runs() -> None:
    for method in METHODS:
        same = run_of(method).run_id
        assert (run_of(method, dropout_rate=0.3).run_id == same) is ("dropout" not in method)
        assert (run_of(method, orthogonality=0.7).run_id == same) is ("adalora" not in method)
        assert (run_of(method, lora_alpha=7.0).run_id == same) is (method in ("full", "bitfit"))
        assert (run_of(method, full_learning_rate=1.0).run_id == same) is (method != "full")
        assert run_of(method, seeds=2).run_id == same
        assert run_of(method, epochs=2).run_id != same


def test_runs_of_other_data_models_seeds_and_methods_are_others() -> None:
    one = run_of()
    others = [replace(one, seed=1), replace(one, rows="s"), replace(one, model="n"),
              replace(one, max_steps=3), run_of("adalora")]  # fmt: skip
    assert len({one.run_id, *(each.run_id for each in others)}) == 6


# -- cost ------------------------------


def workload(method: str, **options) -> Workload:
    each = options.pop("preset", preset("mrpc"))
    values = {
        "preset": each,
        "method": check_method(method),
        "schedule": schedule(each, each.n_train),
        "n_runs": 5,
        "n_eval": 408,
        "train_tokens": 320.0,
        "eval_tokens": 320.0,
        "is_counted": False,
    }
    return Workload(**{**values, **options})


def test_the_cost_of_mrpc_by_hand() -> None:
    work = workload("lora+dropout")
    trained, evaluated = 5 * 3450 * 32 * 320 * 4, 5 * 408 * 320 * (1 + 4)
    assert (work.tokens_trained, work.tokens_evaluated) == (trained, evaluated)
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert work.flops == pytest.approx(trained * 4 * weights + evaluated * 2 * weights)
    assert workload("full").train_flops == 6 * weights


def test_the_arithmetic_is_shown_and_adds_up() -> None:
    lines = [*count_lines(workload("lora+dropout")), *flops_lines(workload("lora+dropout"), 100.0)]
    assert lines == [
        "mrpc, lora+dropout: 5 runs x 3450 steps of 32 rows "
        "(published rows, longest inputs: at most)",
        "  trained:   5 x 3450 x 32 x 320 tokens x 4 masks = 7.07e+08 tokens",
        "  evaluated: 5 x 408 rows x 320 tokens x (5 passes) = 3.26e+06 tokens",
        "  FLOPs:     7.07e+08 x 4 x 84.93M + 3.26e+06 x 2 x 84.93M = 2.41e+17",
        "  time:      2.41e+17 / (100 x 1e12 per s, as given) = 2.41e+03 s = 40.1 min",
    ]
    with pytest.raises(ValueError, match=r"`tflops` must be > 0, got 0"):
        list(flops_lines(workload("lora"), 0.0))


def test_measured_unit_costs_are_multiplied_and_summed() -> None:
    unit = UnitCost(step_seconds=(1.0, 3.0), row_seconds=0.5, hardware="this")
    work = workload("lora")
    assert measured_seconds(work, unit) == 5 * (3450 * 2.0 + 408 * 0.5)
    assert list(measured_lines(work, unit))[-1] == (
        "  time:      5 x (3450 x 2 + 408 x 0.5) s = 3.55e+04 s = 9.87 h"
    )
    best = workload("lora", preset=preset("mrpc").with_settings(select="best"))
    assert measured_seconds(best, unit) == 5 * (3450 * 2.0 + 408 * 31 * 0.5)


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 9))
def test_padding_only_adds_tokens(lengths: list[int], batch_size: int) -> None:
    padded = padded_tokens(lengths, batch_size)
    assert sum(lengths) / len(lengths) - 1e-9 <= padded <= max(lengths)


@pytest.mark.parametrize(
    ("task", "config"),
    [
        (
            "mrpc",
            tf.DebertaV2Config(
                vocab_size=8, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                intermediate_size=3072,
            ),
        ),
        (
            "mmlu",
            tf.LlamaConfig(
                vocab_size=32_000, hidden_size=4096, intermediate_size=11_008,
                num_hidden_layers=32, num_attention_heads=32,
            ),
        ),
    ],
)  # fmt: skip
def test_the_declared_weights_are_those_of_the_architecture(task, config, tmp_path) -> None:
    config.save_pretrained(tmp_path)
    own = preset(task).with_settings(model=str(tmp_path))
    assert count_matrix_weights(own) == own.n_matrix_weights
