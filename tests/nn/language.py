"""Tiny language models in float64 with random adapters in chosen blocks, and padded prompts."""

from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.masks import MaskBank

VOCABULARY, PAD, EOS = 23, 0, 1
KINDS = ("llama", "gpt2", "t5")
TARGETS = {
    "llama": r".*layers\.({})\..*(q_proj|v_proj|down_proj)",
    "gpt2": r".*h\.({})\..*(c_attn|c_proj)",
    "t5": r".*{}\..*\.(q|v|wo)",
}


def _base(kind: str) -> nn.Module:
    ends = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}
    if kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=8,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=12,
                max_position_embeddings=32,
                initializer_range=0.4,
                **ends,
            )
        )
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=8,
                n_layer=3,
                n_head=2,
                n_positions=32,
                initializer_range=0.4,
                **ends,
            )
        )
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=8,
            d_kv=4,
            d_ff=12,
            num_layers=2,
            num_heads=2,
            initializer_factor=3.0,
            decoder_start_token_id=PAD,
            **ends,
        )
    )


def adapted_language_model(
    kind: str, where: str = "(1|2)", *, dropout_rate: float = 0.4, seed: int = 0
) -> tuple[PeftModel, MaskBank]:
    """A language model with a random adapter; the same at every call.

    ``where`` is a pattern: of block numbers, or of parts of T5, as in 'decoder' or 'block.1'.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        config = LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=TARGETS[kind].format(where),
            task_type="SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM",
            init_lora_weights=False,
            fan_in_fan_out=kind == "gpt2",
        )
        model = get_peft_model(_base(kind), config).to(torch.float64)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.4)
    return model.eval(), attach_lora_dropout(model, dropout_rate)


def prompts(
    lengths: Sequence[int] = (5, 3, 4), *, side: str = "left", seed: int = 0
) -> dict[str, Tensor]:
    """Random prompts, padded on one side."""
    stream = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), width), generator=stream)
    place = torch.arange(width)
    present = torch.stack([place < n if side == "right" else place >= width - n for n in lengths])
    return {"input_ids": torch.where(present, ids, PAD), "attention_mask": present.long()}
