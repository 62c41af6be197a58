"""AdaLoRA's ranks under transformers.Trainer."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.train.adalora_callback import IMPORTANCE_NAME, AdaLoraCallback
from lodrop_nn.train.callbacks import LoraDropoutCallback
from tests.nn import tiny

pytestmark = [
    # peft 0.19 looks for the base model's config on the hub, which models made here do not have.
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    # peft 0.21 takes AdaLoRA's `rank_pattern` for LoRA's and says that its keys match nothing.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match"),
]

STEPS = 12


def adapted(**options: Any) -> PeftModel:
    values: dict[str, Any] = {"init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AdaLoraConfig(
            **{**values, "total_step": STEPS, **options},
            target_modules=["query", "value"],
            task_type="SEQ_CLS",
        )
        return get_peft_model(tiny.bert(), config)


def trainer(model: nn.Module, folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    values: dict[str, Any] = {
        "max_steps": STEPS,
        "save_strategy": "no",
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    arguments = TrainingArguments(str(folder), **{**values, **options})
    rows = tiny.batch("bert", rows=64)
    examples = [{name: values[i] for name, values in rows.items()} for i in range(64)]
    return Trainer(
        model,
        arguments,
        train_dataset=examples,
        eval_dataset=examples[:4],
        data_collator=default_data_collator,
        callbacks=list(callbacks),
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: x for name, x in model.named_parameters() if "lora_" in name}


def ranks(model: nn.Module) -> int:
    return sum(int((x != 0).sum()) for name, x in weights(model).items() if "lora_E" in name)


@pytest.mark.parametrize("tfinal", [0, 3])
def test_ranks_come_down_to_the_budget(tfinal: int, tmp_path: Path) -> None:
    alone, model = adapted(tfinal=tfinal), adapted(tfinal=tfinal)
    trainer(alone, tmp_path).train()
    assert ranks(alone) == 4 * 6  # the trainer alone never allocates
    trainer(model, tmp_path, AdaLoraCallback()).train()
    assert ranks(model) == 4 * 2
    pattern = model.peft_config["default"].rank_pattern
    assert sum(map(sum, pattern.values())) == 4 * 2


def test_allocation_is_that_of_peft_s_loop(tmp_path: Path) -> None:
    """The loop of PEFT's documentation, with the batches and the optimizer of the trainer."""
    model, expected = adapted(), adapted()
    batches: list[dict[str, Tensor]] = []

    def recorded(examples: list[Any]) -> dict[str, Tensor]:
        batches.append(default_data_collator(examples))
        return batches[-1]

    run = trainer(model, tmp_path, AdaLoraCallback(), max_grad_norm=0.0)
    run.data_collator = recorded
    run.train()
    other = trainer(expected, tmp_path, max_grad_norm=0.0)
    other.create_optimizer_and_scheduler(STEPS)
    expected.train()
    for step in range(1, STEPS + 1):
        for batch in batches[2 * step - 2 : 2 * step]:
            # Summed: the trainer leaves the division to models that take `**kwargs`, BERT does not.
            expected(**batch).loss.backward()
        other.optimizer.step()
        expected.base_model.update_and_allocate(step)
        other.lr_scheduler.step()
        expected.zero_grad()
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(model)[name], value)
    assert model.peft_config["default"].rank_pattern == expected.peft_config["default"].rank_pattern


@pytest.mark.parametrize("step", [1, 5, 11], ids=["before", "while pruning", "after"])
def test_a_resumed_training_is_the_same(step: int, tmp_path: Path) -> None:
    whole, resumed = adapted(), adapted()
    options = {"save_strategy": "steps", "save_steps": step, "save_total_limit": None}
    for model in (whole, resumed):
        attach_lora_dropout(model, 0.5, seed=0)
    callbacks = AdaLoraCallback(), LoraDropoutCallback()
    trainer(whole, tmp_path, *callbacks, **options).train()
    callbacks = AdaLoraCallback(), LoraDropoutCallback()
    folder = tmp_path / f"checkpoint-{step}"
    trainer(resumed, tmp_path, *callbacks).train(resume_from_checkpoint=str(folder))
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    assert ranks(resumed) == 4 * 2


def test_plain_peft_cannot_resume_a_pruned_checkpoint(tmp_path: Path) -> None:
    """Why checkpoints hold all ranks."""

    class Bare(AdaLoraCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None: ...
        def on_save(self, *args: Any, **kwargs: Any) -> None: ...

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["model"].base_model.update_and_allocate(state.global_step + 1)

    trainer(adapted(), tmp_path, Bare(), save_strategy="steps", save_steps=6).train()
    with pytest.raises(RuntimeError, match=r"size mismatch for .*lora_A"):
        trainer(adapted(), tmp_path, Bare()).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-6")
        )


def test_checkpoints_and_the_final_adapter_load_in_plain_peft(tmp_path: Path) -> None:
    model = adapted()
    options = {"save_strategy": "steps", "save_steps": 6}
    run = trainer(model, tmp_path, AdaLoraCallback(), **options)
    run.train()
    expected = model.eval()(**tiny.inputs("bert")).logits
    run.save_model(str(tmp_path / "final"))
    for folder, n_ranks in ("checkpoint-12", 4 * 6), ("final", 4 * 2):
        plain = PeftModel.from_pretrained(tiny.bert(), tmp_path / folder).eval()
        torch.testing.assert_close(plain(**tiny.inputs("bert")).logits, expected)
        kept = [x.shape[0] for name, x in weights(plain).items() if "lora_E" in name]
        assert sum(kept) == n_ranks
    config = json.loads((tmp_path / "checkpoint-6" / "adapter_config.json").read_text())
    assert config["rank_pattern"] is None


def test_the_best_checkpoint_keeps_its_ranks(tmp_path: Path) -> None:
    model = adapted(tinit=6)
    run = trainer(
        model,
        tmp_path,
        AdaLoraCallback(),
        save_strategy="steps",
        save_steps=4,
        eval_strategy="steps",
        eval_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=False,
    )
    run.compute_metrics = lambda _: {"score": run.state.global_step}  # the first is the best
    run.train()
    assert ranks(model) == 4 * 6  # of step 4, before any was pruned
    assert model.peft_config["default"].rank_pattern is None


def test_importance_of_ranks_that_is_gone_is_averaged_anew(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 5}
    trainer(adapted(), tmp_path, AdaLoraCallback(), **options).train()
    (tmp_path / "checkpoint-5" / IMPORTANCE_NAME).unlink()
    model = adapted()
    with pytest.warns(UserWarning, match="averaged anew from here"):
        trainer(model, tmp_path, AdaLoraCallback()).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-5")
        )
    assert ranks(model) == 4 * 2


def test_skipped_steps_do_not_spoil_the_importance() -> None:
    model = adapted()
    model(**tiny.batch("bert")).loss.backward()
    for parameter in weights(model).values():
        parameter.grad = torch.full_like(parameter, torch.inf)
    state, callback = TrainerState(max_steps=STEPS), AdaLoraCallback()
    event = SimpleNamespace(), state, TrainerControl()
    callback.on_optimizer_step(
        *event, model=model, optimizer=SimpleNamespace(step_was_skipped=True)
    )
    assert not model.base_model.rankallocator.ipt
    callback.on_optimizer_step(
        *event, model=model, optimizer=SimpleNamespace(step_was_skipped=False)
    )
    assert model.base_model.rankallocator.ipt


def test_set_ups_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a PeftModel with an AdaLoRA adapter.*got Bert"):
        trainer(tiny.bert(), tmp_path, AdaLoraCallback()).train()
    with pytest.raises(ValueError, match=r"at step `total_step - tfinal` = 40 - 3.*after 12 steps"):
        trainer(adapted(total_step=40), tmp_path, AdaLoraCallback()).train()
    frozen = adapted(inference_mode=True)
    with pytest.raises(ValueError, match="that is trainable, got AdaLoraModel"):
        AdaLoraCallback().on_train_begin(
            SimpleNamespace(), TrainerState(), TrainerControl(), model=frozen
        )
