"""Reviews as rows of tokens, of which those of the sentence and the label word are predicted."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lodrop_nn.data import Batch, Examples, TextClassificationData, split

BEFORE, AFTER, WORDS = "Review:", "\nSentiment:", (" negative", " positive")
# Sentences of so many tokens: short ones, since the head costs as much as eight blocks a token.
SHORTEST, LONGEST = 6, 20
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Rows:
    r"""Rows "Review: ...\nSentiment: positive" and where their parts lie.

    Attributes:
        examples: The tokens of whole rows, label word last, and the classes.
        start: First token of the sentence.
        n_after: Tokens between the sentence and the end of the row, label word included.
        words: Token of each class's label word.
    """

    examples: Examples
    start: int
    n_after: int
    words: tuple[int, int]

    def targets(self, batch: Batch) -> Tensor:
        """Labels of a batch as a causal model reads them: the sentence's tokens and the word."""
        ids, lengths = batch["input_ids"], batch["attention_mask"].sum(1, keepdim=True)
        place = torch.arange(ids.shape[1], device=ids.device)
        sentence = (place >= self.start) & (place < lengths - self.n_after)
        return torch.where(sentence | (place == lengths - 1), ids, IGNORED)


def rows_of(data: TextClassificationData, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The rows of a data set; parts are tokenized by themselves, so none merges with another.

    Raises:
        ValueError: If a label word is more than one token.
    """
    before, after = (tuple(tokenizer(part)["input_ids"]) for part in (BEFORE, AFTER))
    words = [tokenizer(word)["input_ids"] for word in WORDS]
    if any(len(word) != 1 for word in words):
        raise ValueError(f"the label words {WORDS} must be one token each, got {words}.")
    sentences = tokenizer([f" {text}" for text in data.texts])["input_ids"]
    labels = data.labels.tolist()
    examples = Examples(
        input_ids=tuple(
            (*before, *sentence, *after, *words[label])
            for sentence, label in zip(sentences, labels, strict=True)
        ),
        labels=tuple(labels),
        pad_token_id=int(tokenizer.pad_token_id),
    )
    (negative,), (positive,) = words
    return Rows(
        examples=examples,
        start=len(before),
        n_after=len(after) + 1,
        words=(negative, positive),
    )


def short_sentences(
    data: TextClassificationData, tokenizer: PreTrainedTokenizerBase
) -> TextClassificationData:
    """The rows whose sentence has SHORTEST to LONGEST tokens."""
    lengths = [len(ids) for ids in tokenizer([f" {text}" for text in data.texts])["input_ids"]]
    return data.take([row for row, n in enumerate(lengths) if SHORTEST <= n <= LONGEST])


def divided(
    data: TextClassificationData,
    tokenizer: PreTrainedTokenizerBase,
    n_train: int,
    n_test: int,
    seed: int,
) -> dict[str, Rows]:
    """Training and held-out rows of a seed."""
    parts = split(data, n_train, n_test, seed)
    return {
        name: rows_of(part, tokenizer) for name, part in zip(("train", "test"), parts, strict=True)
    }
