"""One split of one data set, with what the frozen blocks make of every row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lodrop_nn.data import Batch, Examples, batches, load_base_model, load_data, split, tokenize
from lodrop_nn.data.classification import TextClassificationData

N_TRAIN, N_VALIDATION, N_TEST = 256, 128, 384
MAX_LENGTH = 48
FROZEN = ("states", "query", "key", "value")
EVALUATION_BATCH = 32  # larger ones leave the cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Tokenized rows and all of the first adapted block that does not depend on the adapter.

    Attributes:
        examples: Token ids and labels.
        frozen: One tensor (tokens, 4 width) per row: the hidden states that enter the block, and
            the frozen query, key and value that it makes of them.
    """

    examples: Examples
    frozen: tuple[Tensor, ...]

    @property
    def labels(self) -> Tensor:
        """Shape (n,)."""
        return torch.tensor(self.examples.labels)

    def batches(self, size: int, generator: torch.Generator | None = None) -> list[Batch]:
        """Batches of like length that also hold the padded frozen tensors."""
        made = batches(self.examples, size, order="length", generator=generator)
        for batch in made:
            frozen = [self.frozen[row] for row in batch["index"].tolist()]
            padded = torch.nn.utils.rnn.pad_sequence(frozen, batch_first=True)
            for name, part in zip(FROZEN, padded.chunk(4, -1), strict=True):
                batch[name] = part.contiguous()
        return made


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Training, validation and test rows of one data set and seed.

    Attributes:
        data: Name of the data set.
        seed: Seed of the split.
        n_classes: K.
        blocks: The adapted blocks; all below the first of them is frozen.
        train: 256 rows.
        validation: 128 rows.
        test: 384 rows.
    """

    data: str
    seed: int
    n_classes: int
    blocks: tuple[int, ...]
    train: Rows
    validation: Rows
    test: Rows

    def base(self, head_seed: int) -> PreTrainedModel:
        """A fresh classifier whose head depends on the seed."""
        return load_base_model("minilm-l6", self.n_classes, head_seed)[0]


def load_problem(data: str, seed: int, blocks: Sequence[int]) -> Problem:
    """Split a data set and run the frozen blocks once over all its rows."""
    texts = load_data(data)
    train, held_out = split(texts, N_TRAIN, N_TEST + N_VALIDATION, seed)
    test = held_out.take(range(N_TEST))
    validation = held_out.take(range(N_TEST, N_TEST + N_VALIDATION))
    base, tokenizer = load_base_model("minilm-l6", texts.n_classes, seed)

    def rows(part: TextClassificationData) -> Rows:
        examples = tokenize(part, tokenizer, max_length=MAX_LENGTH)
        return Rows(examples=examples, frozen=frozen_parts(base, examples, min(blocks)))

    return Problem(
        data=data,
        seed=seed,
        n_classes=texts.n_classes,
        blocks=tuple(blocks),
        train=rows(train),
        validation=rows(validation),
        test=rows(test),
    )


@torch.no_grad()
def frozen_parts(base: PreTrainedModel, examples: Examples, first: int) -> tuple[Tensor, ...]:
    """What :class:`Rows` holds of each row when ``first`` is the first adapted block."""
    attention = base.bert.encoder.layer[first].attention.self
    frozen: dict[int, Tensor] = {}
    for batch in batches(examples, EVALUATION_BATCH, order="length"):
        states = base.bert(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
        ).hidden_states[first]
        maps = (attention.query, attention.key, attention.value)
        parts = torch.cat([states, *(layer(states) for layer in maps)], -1)
        for row, index in enumerate(batch["index"].tolist()):
            frozen[index] = parts[row, : int(batch["attention_mask"][row].sum())].clone()
    return tuple(frozen[row] for row in range(len(examples)))
