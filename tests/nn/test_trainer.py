"""N masks, schedules and checkpoints under transformers.Trainer."""

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from lodrop_nn.adapter import attach_lora_dropout, mask_bank
from lodrop_nn.train.callbacks import LoraDropoutCallback, data_rank
from lodrop_nn.train.schedule import PiecewiseLinear, linear_warmup
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


class TiledTrainer(DropoutTrainer):
    mask_passes = "tiled"


class MicroTrainer(DropoutTrainer):
    mask_passes = "micro"


WAYS = {"tiled": TiledTrainer, "micro": MicroTrainer}


class Rows:
    """Records the rows of each pass, as (training, rows)."""

    def __init__(self, model: PeftModel) -> None:
        self.seen: list[tuple[bool, int]] = []
        model.get_input_embeddings().register_forward_pre_hook(self)

    def __call__(self, module: torch.nn.Module, args: tuple[Tensor]) -> None:
        self.seen.append((module.training, args[0].shape[0]))


def examples(kind: str, n: int = 16) -> list[dict[str, Tensor]]:
    """Language models are to predict a different number of tokens of each example."""
    rows = batch(kind, rows=n)
    if kind == "llama":
        for i in range(n):
            rows["labels"][i, : i % 5] = -100
    return [{name: value[i] for name, value in rows.items()} for i in range(n)]


def trainer_of(
    model: PeftModel, folder: Path, *, kind: str, trainer: type[Trainer], **options: Any
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
    callbacks = options.pop("callbacks", None)
    data = options.pop("train_dataset", None) or examples(kind)
    return trainer(
        model,
        TrainingArguments(**{**arguments, **options}),
        train_dataset=data,
        eval_dataset=data[:4],
        data_collator=default_data_collator,
        callbacks=callbacks,
    )


def first_log(trainer: Trainer) -> tuple[float, float]:
    entry = next(e for e in trainer.state.log_history if "loss" in e)
    return float(entry["loss"]), float(entry["grad_norm"])


def assert_equal_weights(one: PeftModel, other: PeftModel) -> None:
    expected = other.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_more_masks_change_neither_loss_nor_gradient_at_rate_zero(
    kind: str, way: str, tmp_path: Path
) -> None:
    logs = []
    for n_masks, trainer_class in ((1, Trainer), (4, WAYS[way])):
        with torch.random.fork_rng():
            model = adapted(kind)
            attach_lora_dropout(model, 0.0, n_masks=n_masks)
            rows = Rows(model)
            trainer = trainer_of(model, tmp_path, kind=kind, trainer=trainer_class)
            trainer.train()
            trainer.evaluate()
            logs.append(first_log(trainer))
        expected = 4 * n_masks if way == "tiled" else 4
        assert set(rows.seen) == {(True, expected), (False, 4)}  # evaluation is not tiled
        assert sum(training for training, _ in rows.seen) == (4 if expected > 4 else 4 * n_masks)
        assert "backward" not in vars(trainer.accelerator)
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_masks_are_drawn_once_per_batch(way: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = adapted("bert")
        bank = attach_lora_dropout(model, 0.4, n_masks=2, seed=0)
        trainer = trainer_of(model, tmp_path, kind="bert", trainer=WAYS[way])
        trainer.train()
        trainer.evaluate()
    assert bank.passes.n_drawn == 4  # two steps of two accumulated batches


PLAIN_SGD = {
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "optim": "sgd",
    "train_sampling_strategy": "sequential",
}


def loop_with_every_mask_by_itself(kind: str, n_masks: int, **settings: Any) -> PeftModel:
    """The reference: each mask an adapter of its own, losses and divisors by hand."""
    model = adapted(kind).train()
    bank = attach_lora_dropout(model, 0.4, n_masks=n_masks, **settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, PLAIN_SGD["learning_rate"])
    data = examples(kind)
    for step in range(2):
        batches = [
            default_data_collator(data[start : start + 4]) for start in (8 * step, 8 * step + 4)
        ]
        if kind == "bert":  # transformers adds up the means of the accumulated batches
            n_items = [4, 4]
        else:  # the mean over the tokens of all accumulated batches
            n_items = [sum(int((x["labels"][:, 1:] != -100).sum()) for x in batches)] * 2
        for rows, items in zip(batches, n_items, strict=True):
            for index in range(n_masks):
                with bank.micro_pass(index):
                    logits = model(**rows).logits
                    labels = rows["labels"]
                    if kind == "llama":
                        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
                    total = cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
                    (total / items / n_masks).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_trainer_equals_a_plain_loop(kind: str, way: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = adapted(kind)
        attach_lora_dropout(model, 0.4, n_masks=2, seed=3)
        trainer_of(model, tmp_path, kind=kind, trainer=WAYS[way], **PLAIN_SGD).train()
    assert_equal_weights(model, loop_with_every_mask_by_itself(kind, 2, seed=3))


def checkpointing(**options: bool) -> dict[str, Any]:
    """Arguments under the names that the installed transformers has for them."""
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation" if "activation_checkpointing" in known else "gradient"
    return {f"{name}_checkpointing": True, f"{name}_checkpointing_kwargs": options}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("preserve_rng_state", [False, True])
def test_the_trainer_under_checkpointing(
    preserve_rng_state: bool, reentrant: bool, way: str, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        model = adapted("llama")
        bank = attach_lora_dropout(model, 0.4, n_masks=2, seed=3)
        trainer_of(
            model,
            tmp_path,
            kind="llama",
            trainer=WAYS[way],
            **checkpointing(use_reentrant=reentrant, preserve_rng_state=preserve_rng_state),
            **PLAIN_SGD,
        ).train()
    assert bank.passes.n_drawn == 4
    assert_equal_weights(model, loop_with_every_mask_by_itself("llama", 2, seed=3))


def test_a_loss_of_ones_own_is_averaged_too(tmp_path: Path) -> None:
    """A `compute_loss` above the mixin never reaches that of the trainer."""

    class Own(MicroTrainer):
        def compute_loss(
            self, model: PeftModel, inputs: dict[str, Tensor], **kwargs: object
        ) -> Tensor:
            return model(**inputs).loss

    with torch.random.fork_rng():
        model = adapted("bert")
        attach_lora_dropout(model, 0.4, n_masks=2, seed=3)
        trainer_of(model, tmp_path, kind="bert", trainer=Own, **PLAIN_SGD).train()
    assert_equal_weights(model, loop_with_every_mask_by_itself("bert", 2, seed=3))


def test_a_training_step_that_goes_its_own_way_is_noticed(tmp_path: Path) -> None:
    class Astray(Trainer):
        def training_step(self, model: PeftModel, inputs: dict[str, Tensor], _: object) -> Tensor:
            loss = model(**inputs).loss
            loss.backward()  # not accelerator.backward
            return loss.detach()

    class Own(LoraDropoutTrainerMixin, Astray):
        mask_passes = "micro"

    with torch.random.fork_rng():
        model = adapted("bert")
        attach_lora_dropout(model, 0.4, n_masks=2)
        trainer = trainer_of(model, tmp_path, kind="bert", trainer=Own)
        with pytest.raises(RuntimeError, match=r"calls `accelerator\.backward`.*Own does not"):
            trainer.train()


def test_auto_takes_micro_steps_for_long_batches_only(tmp_path: Path) -> None:
    rows_of = {}
    for n_rows in (40, 60):  # of six tokens each
        with torch.random.fork_rng():
            model = adapted("bert")
            attach_lora_dropout(model, 0.4, n_masks=2)
            rows = Rows(model)
            trainer_of(
                model,
                tmp_path,
                kind="bert",
                trainer=DropoutTrainer,
                train_dataset=examples("bert", 60),
                per_device_train_batch_size=n_rows,
                gradient_accumulation_steps=1,
                max_steps=1,
            ).train()
        rows_of[n_rows] = [n for _, n in rows.seen]
    assert rows_of == {40: [80], 60: [60, 60]}


def test_auto_takes_micro_steps_in_several_processes() -> None:
    """A short batch on one rank and a long one on another must not pass differently often."""
    running = object.__new__(DropoutTrainer)
    chosen = []
    for world_size in (1, 2):
        running.args = SimpleNamespace(world_size=world_size)
        chosen.append(running._passes_of(batch("bert"), 2))
    assert chosen == ["tiled", "micro"]


@pytest.mark.parametrize("way", WAYS)
def test_operations_are_counted_for_every_mask(way: str, tmp_path: Path) -> None:
    counts = []
    for n_masks in (1, 3):
        with torch.random.fork_rng():
            model = adapted("bert")
            attach_lora_dropout(model, 0.4, n_masks=n_masks)
            trainer = trainer_of(model, tmp_path, kind="bert", trainer=WAYS[way])
            trainer.train()
        counts.append(trainer.state.total_flos)
    assert counts[1] == 3 * counts[0] > 0


# -- resuming ------------------------------


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def train_until(
    last: int, folder: Path, *, trainer: type[Trainer], resume: bool = False, **masks: Any
) -> tuple[PeftModel, int]:
    """Steps of a training of six, in new objects; a checkpoint lies after the third."""
    with torch.random.fork_rng():
        model = adapted("llama")
        bank = attach_lora_dropout(model, 0.4, **masks)
        trainer_of(
            model,
            folder,
            kind="llama",
            trainer=trainer,
            max_steps=6,
            learning_rate=1e-2,
            save_strategy="steps",
            save_steps=3,
            callbacks=[LoraDropoutCallback(linear_warmup(1.0)), StopAt(last)],
        ).train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return model, bank.passes.n_drawn


@pytest.mark.parametrize(
    ("trainer", "masks"),
    [
        (MicroTrainer, {"n_masks": 2, "seed": 3}),
        (MicroTrainer, {"n_masks": 2, "seed": None, "mask_law": "balanced"}),
        (DropoutTrainer, {"mask_scope": "example", "seed": 3}),
        (Trainer, {"mask_scope": "example", "seed": None}),  # the callback alone
    ],
)
def test_a_resumed_training_goes_on_with_its_masks(
    trainer: type[Trainer], masks: dict[str, Any], tmp_path: Path
) -> None:
    whole, n_drawn = train_until(6, tmp_path / "whole", trainer=trainer, **masks)
    half, _ = train_until(3, tmp_path / "parts", trainer=trainer, **masks)
    resumed, n_drawn_resumed = train_until(
        6, tmp_path / "parts", trainer=trainer, resume=True, **masks
    )
    assert n_drawn_resumed == n_drawn == 12
    assert_equal_weights(resumed, whole)
    with pytest.raises(AssertionError):
        assert_equal_weights(half, whole)


def test_without_its_callback_a_resumed_training_would_repeat_masks(tmp_path: Path) -> None:
    """The control of the test above: it can fail."""
    whole, _ = train_until(6, tmp_path / "whole", trainer=Trainer, seed=3)
    train_until(3, tmp_path / "parts", trainer=Trainer, seed=3)
    state = tmp_path / "parts" / "checkpoint-3" / "trainer_state.json"
    content = json.loads(state.read_text())
    assert content["stateful_callbacks"].pop("lora_dropout") == {"n_drawn": 6, "n_alone": 0}
    state.write_text(json.dumps(content))
    resumed, n_drawn = train_until(6, tmp_path / "parts", trainer=Trainer, resume=True, seed=3)
    assert n_drawn == 6
    with pytest.raises(AssertionError):
        assert_equal_weights(resumed, whole)


# -- the callback ------------------------------


def test_a_schedule_sets_the_rates_of_each_step(tmp_path: Path) -> None:
    seen = []
    schedule = PiecewiseLinear(((0.0, 0.0), (0.5, 1.0), (0.75, 0.5)))

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((bank.rate_multiplier, float((bank.passes.draw.masks).double().mean())))

    with torch.random.fork_rng():
        model = adapted("bert")
        bank = attach_lora_dropout(model, 0.4, seed=0)
        trainer_of(
            model,
            tmp_path,
            kind="bert",
            trainer=Trainer,
            max_steps=4,
            callbacks=[LoraDropoutCallback(schedule), Watch()],
        ).train()
    assert [multiplier for multiplier, _ in seen] == [0.0, 0.5, 1.0, 0.5]
    kept = [share for _, share in seen]
    assert kept[0] == 1.0
    assert kept[1:] == pytest.approx([0.8, 0.6, 0.8], abs=0.1)
    assert bank.rate_multiplier == 1.0  # full again after training


def assert_refused(message: str, model: PeftModel, folder: Path, **options: Any) -> None:
    callbacks = [LoraDropoutCallback(**options)]
    with torch.random.fork_rng():
        trainer = trainer_of(model, folder, kind="bert", trainer=Trainer, callbacks=callbacks)
        with pytest.raises(ValueError, match=message):
            trainer.train()


def test_what_a_callback_cannot_do_is_refused(tmp_path: Path) -> None:
    model = adapted("bert")
    assert_refused("has no LoRA Dropout", model, tmp_path)
    attach_lora_dropout(model, 0.4, n_masks=2)
    message = r"cannot make the passes of n_masks=2 masks: use `class MyTrainer\(LoraDropoutTra"
    assert_refused(message, model, tmp_path)
    model = adapted("bert")
    attach_lora_dropout(model, 0.4, rescale=False)
    message = "`schedule` needs rescaled masks"
    assert_refused(message, model, tmp_path, schedule=linear_warmup(0.5))


def test_a_paper_form_training_takes_the_callback_without_a_schedule(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = adapted("bert")
        bank = attach_lora_dropout(model, 0.4, rescale=False, seed=0)
        trainer_of(
            model, tmp_path, kind="bert", trainer=Trainer, callbacks=[LoraDropoutCallback()]
        ).train()
    assert bank.passes.n_drawn == 4


@pytest.mark.parametrize("trainer", [Trainer, DropoutTrainer])
@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"n_gpu": 2}, "DataParallel"),
        ({"fsdp_plugin_args": {"fsdp_version": 1}}, "FSDP1 does not gather them"),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "ZeRO-3 does not gather them"),
    ],
)
def test_devices_that_layers_cannot_work_on_are_refused(
    setting: dict[str, Any], error: str, trainer: type[Trainer]
) -> None:
    model = adapted("bert")
    attach_lora_dropout(model, 0.4)
    usual = {"n_gpu": 1, "fsdp_plugin_args": None, "deepspeed_plugin": None}
    args = SimpleNamespace(**{**usual, **setting})
    running = object.__new__(DropoutTrainer)
    running.args, running.model = args, model
    begin = {
        Trainer: lambda: LoraDropoutCallback().on_train_begin(
            args, TrainerState(max_steps=1), TrainerControl(), model=model
        ),
        DropoutTrainer: running.get_train_dataloader,
    }
    with pytest.raises((ValueError, NotImplementedError), match=error):
        begin[trainer]()


@pytest.mark.parametrize(
    ("sizes", "expected"), [(None, 5), ((1, 1, 1), 5), ((2, 1, 1), 2), ((1, 2, 2), 1)]
)
def test_ranks_that_split_one_model_train_on_the_same_share(
    sizes: tuple[int, int, int] | None, expected: int
) -> None:
    names = ("tp_size", "cp_size", "sp_size")
    parallelism = None if sizes is None else SimpleNamespace(**dict(zip(names, sizes, strict=True)))
    args = SimpleNamespace(parallelism_config=parallelism, process_index=5)
    assert data_rank(args) == expected


# -- models and set-ups ------------------------------


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


def test_micro_steps_under_deepspeed_are_refused() -> None:
    model = adapted("bert")
    running = object.__new__(MicroTrainer)
    running._lora_dropout_bank = attach_lora_dropout(model, 0.4, n_masks=2)
    running.args = SimpleNamespace(world_size=1)
    running.is_deepspeed_enabled = True
    with pytest.raises(NotImplementedError, match="does not work under DeepSpeed"):
        running.training_step(model, batch("bert"))


def test_an_unknown_way_is_refused(tmp_path: Path) -> None:
    class Unknown(DropoutTrainer):
        mask_passes = "both"

    model = adapted("bert")
    attach_lora_dropout(model, 0.4, n_masks=2)
    with torch.random.fork_rng():
        trainer = trainer_of(model, tmp_path, kind="bert", trainer=Unknown)
    with pytest.raises(ValueError, match="`mask_passes` must be 'tiled', 'micro' or 'auto'"):
        trainer.train()


def test_a_model_without_masks_is_refused(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        trainer = trainer_of(adapted("bert"), tmp_path, kind="bert", trainer=DropoutTrainer)
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        trainer.get_train_dataloader()
