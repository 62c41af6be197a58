"""Tiny random models and batches: all shapes differ, all initial factors are nonzero."""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

VOCABULARY, N_CLASSES = 31, 3
TARGETS = {
    "bert": ["query", "value", "output.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
}
TASKS = {"bert": "SEQ_CLS", "llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM"}


def bert() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                max_position_embeddings=16,
                num_labels=N_CLASSES,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )


def llama() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=24,
                max_position_embeddings=32,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )


def gpt2() -> nn.Module:
    """Adapted layers are transformers' Conv1D, which store their weight transposed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_layer=2,
                n_head=2,
                n_embd=16,
                n_positions=16,
                attn_pdrop=0.0,
                embd_pdrop=0.0,
                resid_pdrop=0.0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )


BASES = {"bert": bert, "llama": llama, "gpt2": gpt2}


def lora_config(kind: str, **options: Any) -> LoraConfig:
    settings: dict[str, Any] = {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": TARGETS[kind],
        "task_type": TASKS[kind],
        "init_lora_weights": False,  # B is random, not zero
        "fan_in_fan_out": kind == "gpt2",
    }
    return LoraConfig(**{**settings, **options})


def adapted(kind: str, **options: Any) -> PeftModel:
    """A tiny model with a random LoRA adapter; the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(BASES[kind](), lora_config(kind, **options))


def batch(kind: str, rows: int = 4, tokens: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """A batch with labels: classes for BERT, the tokens themselves for the others."""
    stream = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=stream)
    classes = torch.randint(0, N_CLASSES, (rows,), generator=stream)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": classes if kind == "bert" else ids.clone(),
    }


def inputs(kind: str, rows: int = 4, tokens: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """The batch without its labels."""
    return {k: v for k, v in batch(kind, rows, tokens, seed).items() if k != "labels"}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def enable_checkpointing(model: PeftModel, **options: Any) -> None:
    """Gradient checkpointing under the name that the installed transformers has for it."""
    base = model.get_base_model()
    enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
    enable(options)
