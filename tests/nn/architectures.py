"""Tiny random models of several architectures, with all their linear layers adapted."""

import warnings
from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers as tf
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

VOCABULARY = 31
_OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_WORDS = {"vocab_size": VOCABULARY, "intermediate_size": 24, "max_position_embeddings": 16}
_LLAMA = _SIZE | _WORDS | {"num_key_value_heads": 1, "pad_token_id": 0}


def _bert() -> nn.Module:
    return tf.BertForSequenceClassification(tf.BertConfig(**_SIZE, **_WORDS, **_OFF, num_labels=3))


def _albert() -> nn.Module:
    """All blocks share the weights of one."""
    config = tf.AlbertConfig(
        **_SIZE, **_WORDS, **_OFF, embedding_size=8, classifier_dropout_prob=0.0, num_labels=3
    )
    return tf.AlbertForSequenceClassification(config)


def _deberta() -> nn.Module:
    config = tf.DebertaV2Config(
        **_SIZE,
        **_WORDS,
        **_OFF,
        pooler_dropout=0.0,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        position_buckets=4,
        num_labels=3,
    )
    return tf.DebertaV2ForSequenceClassification(config)


def _llama() -> nn.Module:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**_LLAMA))


def _mixtral() -> nn.Module:
    config = tf.MixtralConfig(**_LLAMA, num_local_experts=3, num_experts_per_tok=2)
    return tf.MixtralForCausalLM(config)


def _gpt2() -> nn.Module:
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    size = {"vocab_size": VOCABULARY, "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16}
    return tf.GPT2LMHeadModel(tf.GPT2Config(**size, **off, bos_token_id=1, eos_token_id=2))


def _t5() -> nn.Module:
    config = tf.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return tf.T5ForConditionalGeneration(config)


def _vit() -> nn.Module:
    config = tf.ViTConfig(
        **_SIZE, **_OFF, intermediate_size=24, image_size=8, patch_size=4, num_labels=3
    )
    return tf.ViTForImageClassification(config)


BASES: dict[str, Callable[[], nn.Module]] = {
    "bert": _bert,
    "albert": _albert,
    "deberta": _deberta,
    "llama": _llama,
    "mixtral": _mixtral,
    "gpt2": _gpt2,
    "t5": _t5,
    "vit": _vit,
}
# Mixtral's other weights are tensors of experts, which are another kind of layer.
TARGETS = {"mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"]}
TASKS: dict[str, str | None] = dict.fromkeys(("llama", "mixtral", "gpt2"), "CAUSAL_LM")
# peft 0.19 looks for a method that transformers 5 has no more.
TASKS |= {
    "vit": None,
    "t5": "SEQ_2_SEQ_LM" if Version(peft.__version__) >= Version("0.20") else None,
}


def base(kind: str) -> nn.Module:
    """The model with random weights; the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BASES[kind]().eval()


def adapted(kind: str, **options: Any) -> PeftModel:
    """The model with a random adapter on all its linear layers; the same at every call."""
    settings: dict[str, Any] = {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": TARGETS.get(kind, "all-linear"),
        "task_type": TASKS.get(kind, "SEQ_CLS"),
        "init_lora_weights": False,
        "fan_in_fan_out": kind == "gpt2",
    }
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT writes patterns for Mixtral's experts into any config, and warns if they are idle.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
        torch.manual_seed(1)
        return get_peft_model(base(kind), LoraConfig(**settings | options))


def inputs(kind: str, rows: int = 3, tokens: int = 5) -> dict[str, Tensor]:
    """A batch without labels."""
    stream = torch.Generator().manual_seed(0)
    if kind == "vit":
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=stream)}
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=stream)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "t5":
        batch["decoder_input_ids"] = ids.flip(1)[:, :3].contiguous()
    return batch
