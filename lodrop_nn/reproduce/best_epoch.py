"""The epoch that scores best, given back at the end of training."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


@dataclass
class BestEpoch(TrainerCallback):
    """Scores the model after each epoch, and gives it back as it was after the best one.

    The rows that choose the epoch must not be called unseen afterwards.

    Attributes:
        score: Scores of a model.
        metric: The one that must be largest.
        scores: Those of the epochs so far.
    """

    score: Callable[[nn.Module], Mapping[str, float]]
    metric: str
    scores: list[Mapping[str, float]] = field(default_factory=list)
    _kept: dict[str, Tensor] = field(default_factory=dict)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Score, and keep the trained weights if no earlier epoch was as good."""
        assert model is not None
        earlier = [self._value(scores) for scores in self.scores]
        self.scores.append(self.score(model))
        if all(self._value(self.scores[-1]) > each for each in earlier):
            self._kept = {n: p.detach().to("cpu", copy=True) for n, p in _trained(model)}

    def _value(self, scores: Mapping[str, float]) -> float:
        value = scores[self.metric]
        return -math.inf if math.isnan(value) else value

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the kept weights back."""
        assert model is not None
        with torch.no_grad():
            for name, parameter in _trained(model):
                parameter.copy_(self._kept[name])


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in model.named_parameters() if p.requires_grad)
