"""Tiling batches, by hand and under transformers.Trainer."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from transformers import Trainer, TrainingArguments, default_data_collator

from lodrop_nn.adapter import attach_lora_dropout, mask_bank
from lodrop_nn.train.tiling import tile_batch
from lodrop_nn.train.trainer import LoraDropoutTrainerMixin
from tests.nn.test_saving import config_of, from_config
from tests.nn.tiny import adapted, batch

# peft 0.19 looks for the base model's config on the hub, which models made here do not have.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")

# -- tiling ------------------------------


@given(
    rows=st.integers(0, 4),
    n_masks=st.integers(1, 4),
    trailing=st.lists(st.lists(st.integers(1, 3), max_size=2), min_size=1, max_size=3),
)
def test_tiling_is_instance_major(rows: int, n_masks: int, trailing: list[list[int]]) -> None:
    tensors = {str(i): torch.randn(rows, *shape) for i, shape in enumerate(trailing)}
    whole = {"flag": True, "text": "x", "nothing": None, "scalar": torch.tensor(2.0)}
    tiled = tile_batch({**tensors, **whole}, n_masks)
    assert {name: tiled[name] for name in whole} == whole
    for name, tensor in tensors.items():
        assert tiled[name].shape == (n_masks * rows, *tensor.shape[1:])
        for instance in tiled[name].unflatten(0, (n_masks, rows)):
            assert torch.equal(instance, tensor)


def test_packed_inputs_are_refused() -> None:
    packed = {"input_ids": torch.ones(1, 9), "cu_seq_lens_q": torch.tensor([0, 4, 9])}
    with pytest.raises(ValueError, match=r"'input_ids': 1, 'cu_seq_lens_q': 3.*cannot be tiled"):
        tile_batch(packed, 2)
    with pytest.raises(TypeError, match=r"`batch\['names'\]` must be a tensor.*got list"):
        tile_batch({"names": ["a", "b"]}, 2)
    with pytest.raises(ValueError, match="`n_masks` must be a whole number >= 1, got 0"):
        tile_batch({}, 0)


# -- the trainer ------------------------------


class DropoutTrainer(LoraDropoutTrainerMixin, Trainer):
    """The mixin at work."""


class Rows:
    """Records the rows of each pass, as (training, rows)."""

    def __init__(self, model: PeftModel) -> None:
        self.seen: list[tuple[bool, int]] = []
        model.get_input_embeddings().register_forward_pre_hook(self)

    def __call__(self, module: torch.nn.Module, args: tuple[Tensor]) -> None:
        self.seen.append((module.training, args[0].shape[0]))


def examples(kind: str, n: int = 16) -> list[dict[str, Tensor]]:
    rows = batch(kind, rows=n)
    return [{name: value[i] for name, value in rows.items()} for i in range(n)]


def trainer_of(
    model: PeftModel, folder: Path, *, kind: str, trainer: type[Trainer], **options: object
) -> Trainer:
    arguments = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 0,
    }
    data = examples(kind)
    return trainer(
        model,
        TrainingArguments(**{**arguments, **options}),
        train_dataset=data,
        eval_dataset=data[:4],
        data_collator=default_data_collator,
    )


def first_log(trainer: Trainer) -> tuple[float, float]:
    entry = next(e for e in trainer.state.log_history if "loss" in e)
    return float(entry["loss"]), float(entry["grad_norm"])


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_tiling_changes_neither_loss_nor_gradient_at_rate_zero(kind: str, tmp_path: Path) -> None:
    logs = []
    for n_masks, trainer_class in ((1, Trainer), (4, DropoutTrainer)):
        with torch.random.fork_rng():
            model = adapted(kind)
            attach_lora_dropout(model, 0.0, n_masks=n_masks)
            rows = Rows(model)
            trainer = trainer_of(model, tmp_path, kind=kind, trainer=trainer_class)
            collator = trainer.data_collator
            trainer.train()
            trainer.evaluate()
            logs.append(first_log(trainer))
        assert set(rows.seen) == {(True, 4 * n_masks), (False, 4)}  # evaluation is not tiled
        assert trainer.data_collator is collator
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_masks_are_drawn_once_per_micro_batch(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = adapted("bert")
        bank = attach_lora_dropout(model, 0.4, n_masks=2, seed=0)
        trainer = trainer_of(model, tmp_path, kind="bert", trainer=DropoutTrainer)
        trainer.train()
        trainer.evaluate()
    assert bank.passes.n_drawn == 4  # two steps of two micro-batches


def test_the_trainer_equals_a_plain_loop(tmp_path: Path) -> None:
    kind, rate = "llama", 1e-2
    with torch.random.fork_rng():
        model = adapted(kind)
        attach_lora_dropout(model, 0.4, n_masks=2, seed=3)
        trainer = trainer_of(
            model,
            tmp_path,
            kind=kind,
            trainer=DropoutTrainer,
            learning_rate=rate,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            optim="sgd",
            train_sampling_strategy="sequential",
        )
        trainer.train()
    loop = adapted(kind).train()
    attach_lora_dropout(loop, 0.4, n_masks=2, seed=3)
    optimizer = torch.optim.SGD([p for p in loop.parameters() if p.requires_grad], rate)
    data = examples(kind)
    for step in range(2):
        for micro in range(2):
            start = 4 * (2 * step + micro)
            rows = default_data_collator(data[start : start + 4])
            (loop(**tile_batch(rows, 2)).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in loop.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_a_config_driven_model_gets_its_bank_from_the_trainer(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = from_config("bert", config_of("bert", n_masks=2))
        rows = Rows(model)
        trainer = trainer_of(
            model,
            tmp_path,
            kind="bert",
            trainer=DropoutTrainer,
            save_strategy="steps",
            save_steps=1,
        )
        trainer.train()
        assert set(rows.seen) == {(True, 8)}
        assert mask_bank(model).passes.n_drawn == 4
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        # A checkpoint is an adapter folder; training goes on from it under masks.
        again = from_config("bert", config_of("bert", n_masks=2))
        resumed = trainer_of(again, tmp_path, kind="bert", trainer=DropoutTrainer)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, trained[name])


def test_batches_that_would_be_torn_apart_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted("bert")
    attach_lora_dropout(model, 0.4, n_masks=2)
    with torch.random.fork_rng():
        trainer = trainer_of(model, tmp_path, kind="bert", trainer=DropoutTrainer)
    real = trainer.args
    several = {"world_size": 2, "n_gpu": 0, "accelerator_config": real.accelerator_config}
    real.accelerator_config.dispatch_batches = True
    monkeypatch.setattr(trainer, "args", SimpleNamespace(**several))
    with pytest.raises(ValueError, match="`dispatch_batches` deals the rows"):
        trainer.get_train_dataloader()
    monkeypatch.setattr(trainer, "args", SimpleNamespace(**{**several, "n_gpu": 2}))
    with pytest.raises(ValueError, match="DataParallel"):
        trainer.get_train_dataloader()


def test_a_model_without_masks_is_refused(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        trainer = trainer_of(adapted("bert"), tmp_path, kind="bert", trainer=DropoutTrainer)
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        trainer.get_train_dataloader()
