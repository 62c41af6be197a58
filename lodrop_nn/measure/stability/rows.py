"""Single rows of batches, put together anew: any row can be left out, replaced or looked at."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import pad

from lodrop_nn.data.examples import Examples
from lodrop_nn.measure.evaluation import Batch, model_inputs
from lodrop_nn.train.prefix_cache import PrefixCache

_CHUNK = 16


class Rows:
    """The training rows 0, ..., n - 1 and behind them the fresh ones.

    Padding at the end of a row is cut off and put on again as a new batch needs it.

    Args:
        model: Adapted classifier, for its padding token.
        train: The training examples.
        fresh: Held-out examples.

    Attributes:
        n_train: n.
        labels: One class per row.
    """

    def __init__(self, model: PeftModel, train: Sequence[Batch], fresh: Sequence[Batch]) -> None:
        token = getattr(getattr(model, "config", None), "pad_token_id", None)
        self._padding = {"input_ids": token if isinstance(token, int) else 0}
        self._model = model
        self.n_train = sum(len(batch["labels"]) for batch in train)
        self._rows = [row for batch in (*train, *fresh) for row in _split(batch)]
        self.labels = torch.stack([row["labels"] for row in self._rows]).cpu()
        self._states: PrefixCache | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def keep(self, fresh: Sequence[int]) -> None:
        """Forget all fresh rows but some, which get the numbers n, n + 1, ... in their order."""
        kept = [*range(self.n_train), *fresh]
        self._rows = [self._rows[row] for row in kept]
        self.labels = self.labels[kept]

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Some rows as a batch, with their numbers as ``index``."""
        some = [self._rows[row] for row in rows]
        batch = {name: self._stacked(name, [row[name] for row in some]) for name in some[0]}
        return {**batch, "index": torch.tensor(list(rows))}

    def by_length(self, rows: Sequence[int], size: int = _CHUNK) -> list[list[int]]:
        """Rows of like length together, in groups of a size."""
        order = sorted(rows, key=lambda row: max(t.numel() for t in self._rows[row].values()))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def store_states(self) -> bool:
        """Compute once what lies below the adapter, where the model has such a part."""
        if any(set(row) != {"input_ids", "attention_mask", "labels"} for row in self._rows):
            return False
        if not all(bool(row["attention_mask"].all()) for row in self._rows):
            return False  # padded on the left
        examples = Examples(
            input_ids=tuple(tuple(row["input_ids"].tolist()) for row in self._rows),
            labels=tuple(self.labels.tolist()),
            pad_token_id=self._padding["input_ids"],
        )
        try:
            self._states = PrefixCache(self._model, examples)
        except (ValueError, NotImplementedError):  # nothing lies below, or it is not constant
            return False
        return True

    @contextmanager
    def replayed(self, batch: Batch) -> Iterator[None]:
        """Let passes over a batch of :meth:`batch` start from the stored states, if any."""
        if self._states is None:
            yield
        else:
            with self._states.replay(batch):
                yield

    def logits(self, rows: Sequence[int], point: dict[str, Tensor] | None = None) -> Tensor:
        """Logits of some rows in their order, without a graph; the caller sets the mode.

        Args:
            rows: Their numbers.
            point: Values of parameters that stand in for the model's own.
        """
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for group in self.by_length(rows):
                batch = self.batch(group)
                with self.replayed(batch):
                    inputs = model_inputs(self._model, batch)
                    logits = functional_call(self._model, point or {}, (), inputs).logits
                found.update(zip(group, logits.to("cpu", torch.float64), strict=True))
        return torch.stack([found[row] for row in rows])

    def check(self, batches: Sequence[Batch]) -> None:
        """Refuse a model to which padding matters: single rows are then not what it was given.

        Raises:
            ValueError: If logits of the rows put together anew are others, or one is not finite.
        """
        with torch.no_grad():
            given = [self._model(**model_inputs(self._model, batch)).logits for batch in batches]
        expected = torch.cat(given).to("cpu", torch.float64)
        found = self.logits(range(len(expected)))
        bad = (~torch.isfinite(expected).all(-1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"`model` must give finite logits, got others for row {bad[0]}.")
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            raise ValueError(
                "`model` must map each row by itself, whatever its padding; logits changed when "
                "rows were put into other batches."
            )

    def _stacked(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        if tensors[0].dim() == 0:
            return torch.stack(list(tensors))
        width, value = max(len(tensor) for tensor in tensors), self._padding.get(name, 0)
        return torch.stack(
            [
                pad(t, (0, 0) * (t.dim() - 1) + (0, width - len(t)), value=value)
                if len(t) < width
                else t
                for t in tensors
            ]
        )


def _split(batch: Batch) -> list[dict[str, Tensor]]:
    """The rows of a batch, without padding at the end and without their numbers."""
    named = {name: tensor for name, tensor in batch.items() if name != "index"}
    mask = named.get("attention_mask")
    rows = []
    for number in range(len(named["labels"])):
        row = {name: tensor[number] for name, tensor in named.items()}
        if mask is not None and mask.dim() == 2:
            seen = mask[number].nonzero()
            width = int(seen.max()) + 1 if len(seen) else mask.shape[1]
            row = {
                name: t[:width] if t.dim() and len(t) == mask.shape[1] else t
                for name, t in row.items()
            }
        rows.append(row)
    return rows
