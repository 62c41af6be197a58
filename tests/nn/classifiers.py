"""Tiny adapted classifiers in float64 with padded batches: enough blocks for a frozen prefix."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.masks import MaskBank

VOCABULARY, N_CLASSES, N_BLOCKS = 23, 3, 3
KINDS = ("bert", "llama")
TARGETS = {
    "bert": ["query", "attention.output.dense"],
    "llama": ["q_proj", "o_proj"],
}
BLOCK_LISTS = {"bert": "layer", "llama": "layers"}


def _base(kind: str) -> nn.Module:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "num_hidden_layers": N_BLOCKS,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 16,
        "num_labels": N_CLASSES,
        "pad_token_id": 0,
        "initializer_range": 0.4,  # far from the linear regime
    }
    if kind == "bert":
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForSequenceClassification(BertConfig(**sizes, **off))
    return LlamaForSequenceClassification(LlamaConfig(**sizes, num_key_value_heads=1))


def adapted_classifier(
    kind: str,
    dropout_rate: float,
    *,
    adapted_layers: Sequence[int] | None = (1, 2),
    rescale: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[PeftModel, MaskBank]:
    """A classifier with a random adapter (B is not zero); the same at every call."""
    config = LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=TARGETS[kind],
        layers_to_transform=None if adapted_layers is None else list(adapted_layers),
        layers_pattern=None if adapted_layers is None else BLOCK_LISTS[kind],
        task_type="SEQ_CLS",
        init_lora_weights=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = get_peft_model(_base(kind), config).to(dtype)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.4)
    return model, attach_lora_dropout(model, dropout_rate, rescale=rescale)


def padded_batches(
    n_rows: int, *, batch_size: int = 4, seed: int = 0, shuffle: bool = False
) -> list[dict[str, Tensor]]:
    """Rows of 2 to 6 tokens, padded on the right within each batch; some order, with ``index``."""
    stream = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (n_rows,), generator=stream).tolist()
    tokens = torch.randint(3, VOCABULARY, (n_rows, 6), generator=stream)
    labels = torch.randint(0, N_CLASSES, (n_rows,), generator=stream)
    order = torch.randperm(n_rows, generator=stream) if shuffle else torch.arange(n_rows)
    batches = []
    for rows in order.split(batch_size):
        width = max(lengths[row] for row in rows.tolist())
        present = torch.tensor([[k < lengths[row] for k in range(width)] for row in rows.tolist()])
        batches.append(
            {
                "input_ids": torch.where(present, tokens[rows, :width], 0),
                "attention_mask": present.long(),
                "labels": labels[rows],
                "index": rows,
            }
        )
    return batches
