"""Tiny random models as local folders, with a tokenizer of a few words."""

from pathlib import Path

import torch
import transformers

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "dull"]
BODY = {"vocab_size": 16, "max_position_embeddings": 16, "pad_token_id": 0}
BERT_LIKE = {
    **BODY,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


def save_checkpoint(config: transformers.PretrainedConfig, folder: Path, *, head: bool = False):
    """A random body (with a head if asked for) and a word tokenizer, as a local folder."""
    auto = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        auto.from_config(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)
