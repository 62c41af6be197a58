"""LoRA Dropout in TRL's supervised fine-tuning."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast

if importlib.util.find_spec("trl") is None:
    pytest.skip("needs trl, which the extra [test] installs", allow_module_level=True)

from datasets import Dataset, disable_progress_bars
from trl import SFTConfig, SFTTrainer

from lodrop_nn.adapter import attach_lora_dropout, mask_bank
from lodrop_nn.adapter.config import LoraDropoutConfig
from lodrop_nn.masks import MaskBank
from lodrop_nn.train.callbacks import LoraDropoutCallback
from lodrop_nn.train.schedule import linear_warmup
from lodrop_nn.train.trainer import LoraDropoutTrainerMixin
from tests.nn.tiny import TARGETS, adapted, llama

# TRL 1.16 sets an argument by the name that transformers 5.23 has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]

WORDS = ["a", "red", "fox", "and", "one", "blue", "bird", "see", "the", "dog", "ran", "to", "us"]
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 3 + i % 5]) for i in range(12)]  # of different lengths


class DropoutSFT(LoraDropoutTrainerMixin, SFTTrainer):
    """The mixin at work."""


class TiledSFT(DropoutSFT):
    mask_passes = "tiled"


class MicroSFT(DropoutSFT):
    mask_passes = "micro"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    disable_progress_bars()


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", *WORDS]
    words_alone = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    words_alone.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=words_alone, **special)


def sft(
    model: Any, folder: Path, *, trainer: type[SFTTrainer], callbacks: Any = None, **options: Any
) -> SFTTrainer:
    """A trainer of two steps of two accumulated batches of three texts."""
    peft_config = options.pop("peft_config", None)
    arguments = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "max_length": 16,
    }
    return trainer(
        model,
        SFTConfig(**{**arguments, **options}),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer(),
        peft_config=peft_config,
        callbacks=callbacks,
    )


def attached(**options: Any) -> tuple[PeftModel, MaskBank]:
    model = adapted("llama")
    return model, attach_lora_dropout(model, 0.4, **{"seed": 3, **options})


def rows(start: int) -> dict[str, Tensor]:
    """A batch of three texts, as SFT makes it."""
    return tokenizer()(
        [f"{text} </s>" for text in TEXTS[start : start + 3]], return_tensors="pt", padding=True
    )


def loop(n_masks: int, **options: Any) -> PeftModel:
    """The reference: each mask a pass by itself, divided by the tokens of all its batches."""
    model, bank = attached(n_masks=n_masks, **options)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-2)
    for step in range(2):
        batches = [rows(start) for start in (6 * step, 6 * step + 3)]
        n_tokens = sum(int(x["attention_mask"][:, 1:].sum()) for x in batches)
        for x in batches:
            labels = x["input_ids"].masked_fill(x["attention_mask"] == 0, -100)
            ids = {"input_ids": x["input_ids"], "attention_mask": x["attention_mask"]}
            for index in range(n_masks):
                with bank.micro_pass(index):
                    logits = model(**ids).logits[:, :-1].flatten(0, 1)
                    total = torch.nn.functional.cross_entropy(
                        logits, labels[:, 1:].flatten(), reduction="sum"
                    )
                    (total / n_tokens / n_masks).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def assert_equal_weights(one: PeftModel, other: PeftModel) -> None:
    expected = other.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("trainer", "n_masks"), [(SFTTrainer, 1), (DropoutSFT, 1), (TiledSFT, 2), (MicroSFT, 2)]
)
def test_fine_tuning_equals_a_plain_loop(
    trainer: type[SFTTrainer], n_masks: int, tmp_path: Path
) -> None:
    """Under TRL's own loss and its default of gradient checkpointing."""
    with torch.random.fork_rng():
        model, bank = attached(n_masks=n_masks)
        sft(model, tmp_path, trainer=trainer).train()
    assert bank.passes.n_drawn == 4
    assert_equal_weights(model, loop(n_masks))


def config(**options: Any) -> LoraDropoutConfig:
    return LoraDropoutConfig(
        r=3,
        target_modules=TARGETS["llama"],
        task_type="CAUSAL_LM",
        dropout_rate=0.4,
        mask_seed=3,
        **options,
    )


@pytest.mark.parametrize(("trainer", "n_masks"), [(SFTTrainer, 1), (TiledSFT, 2), (MicroSFT, 2)])
def test_a_config_is_all_that_fine_tuning_takes(
    trainer: type[SFTTrainer], n_masks: int, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        running = sft(
            llama(),
            tmp_path,
            trainer=trainer,
            peft_config=config(n_masks=n_masks),
            callbacks=[LoraDropoutCallback(linear_warmup(0.5))],
            save_strategy="steps",
            save_steps=2,
        )
        start = {n: p.detach().clone() for n, p in running.model.named_parameters()}
        running.train()
    bank = mask_bank(running.model)
    assert bank.passes.n_drawn == 4
    moved = [n for n, p in running.model.named_parameters() if not torch.equal(p, start[n])]
    assert moved
    assert all("lora_" in name for name in moved)
    # What it saved is an ordinary adapter, with the masks beside it.
    again = PeftModel.from_pretrained(llama(), str(tmp_path / "checkpoint-2"))
    x = {k: v for k, v in rows(0).items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**x).logits, running.model.eval()(**x).logits)
    assert (tmp_path / "checkpoint-2" / "lora_dropout.json").is_file()


def test_a_config_without_the_mixin_and_more_masks_is_refused(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        running = sft(llama(), tmp_path, trainer=SFTTrainer, peft_config=config(n_masks=2))
        with pytest.raises(ValueError, match="must be a multiple of the 2 masks of this pass"):
            running.train()


# -- packed batches: one row holds many texts ------------------------------

PACKED = {"packing": True, "packing_strategy": "bfd", "padding_free": True}


@pytest.mark.filterwarnings("ignore")  # TRL warns of attention kernels that mix the texts
@pytest.mark.parametrize("options", [PACKED, {"padding_free": True, "max_length": None}])
def test_packed_batches_take_micro_steps(options: dict[str, Any], tmp_path: Path) -> None:
    passes = []
    with torch.random.fork_rng():
        for trainer in (MicroSFT, DropoutSFT):
            model, bank = attached(n_masks=2)
            sft(model, tmp_path, trainer=trainer, **options).train()
            passes.append({n: v.clone() for n, v in model.state_dict().items()})
            assert bank.passes.n_drawn >= 2
        torch.testing.assert_close(passes[0], passes[1])  # what "auto" takes
        model, _ = attached(n_masks=2)
        with pytest.raises(ValueError, match=r"cannot be tiled.*mask_passes='micro'"):
            sft(model, tmp_path, trainer=TiledSFT, **options).train()
        model, _ = attached(mask_scope="example")
        with pytest.raises(ValueError, match="`mask_scope='example'` needs one row per example"):
            sft(model, tmp_path, trainer=DropoutSFT, **options).train()


def test_a_model_adapted_before_and_a_config_agree(tmp_path: Path) -> None:
    """`get_peft_model` with the config, then the trainer without one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(llama(), config(n_masks=2))
        sft(model, tmp_path, trainer=DropoutSFT).train()
    assert mask_bank(model).passes.n_drawn == 4
