"""What the members of an ensemble say about each example, and how sure they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class EnsemblePrediction:
    """What the members of an ensemble say about each example.

    The derived quantities are in float64; entropies are in nats. K is the number of classes (for
    a language model the vocabulary, and each example then has an axis of tokens before it).

    Attributes:
        member_logits: Logits of each member, as the model computed them.

    Example:
        Two members that are sure of opposite answers leave all uncertainty to the masks:

        >>> sure = torch.tensor([[[200.0, 0.0]], [[0.0, 200.0]]])
        >>> prediction = EnsemblePrediction(sure)
        >>> prediction.mean_probabilities.tolist(), prediction.variance.tolist()
        ([[0.5, 0.5]], [[0.25, 0.25]])
        >>> bool(prediction.mutual_information == prediction.predictive_entropy)
        True
    """

    member_logits: Float[Tensor, "n_masks b *tokens K"]

    @property
    def member_probabilities(self) -> Float[Tensor, "n_masks b *tokens K"]:
        """Probabilities of each member."""
        return self.member_logits.double().softmax(-1)

    @property
    def mean_probabilities(self) -> Float[Tensor, "b *tokens K"]:
        """The ensemble's prediction: probabilities averaged over members."""
        return self.member_probabilities.mean(0)

    @property
    def mean_logits(self) -> Float[Tensor, "b *tokens K"]:
        """Logits averaged over members: the geometric instead of the arithmetic mean."""
        return self.member_logits.double().mean(0)

    @property
    def variance(self) -> Float[Tensor, "b *tokens K"]:
        """Variance over members of each probability (divisor N, so 0 for one member)."""
        return self.member_probabilities.var(0, correction=0)

    @property
    def predictive_entropy(self) -> Float[Tensor, "b *tokens"]:
        """Entropy of the averaged prediction, in [0, ln K]: the total uncertainty."""
        return torch.special.entr(self.mean_probabilities).sum(-1)

    @property
    def expected_entropy(self) -> Float[Tensor, "b *tokens"]:
        """The members' mean entropy, in [0, ln K]: the share that no choice of mask removes."""
        return torch.special.entr(self.member_probabilities).sum(-1).mean(0)

    @property
    def mutual_information(self) -> Float[Tensor, "b *tokens"]:
        """Predictive entropy less the members' mean entropy, >= 0: the share due to the masks."""
        # Not negative by Jensen; rounding may say otherwise where members agree.
        return (self.predictive_entropy - self.expected_entropy).clamp_min(0.0)

    @property
    def predicted_class(self) -> Int[Tensor, "b *tokens"]:
        """The class of the largest averaged probability."""
        return self.mean_probabilities.argmax(-1)

    @property
    def variation_ratio(self) -> Float[Tensor, "b *tokens"]:
        """Share of members that do not predict the class most of them predict, in [0, 1)."""
        votes = self.member_logits.argmax(-1)
        most_votes = (votes == votes.mode(0).values).double().mean(0)
        return 1.0 - most_votes

    @classmethod
    def concatenate(cls, predictions: Sequence["EnsemblePrediction"]) -> "EnsemblePrediction":
        """The predictions of several batches as one, example after example.

        Args:
            predictions: At least one, of the same members, and of the same shape but for b.

        Example:
            >>> one, two = (EnsemblePrediction(torch.zeros(4, rows, 3)) for rows in (1, 2))
            >>> EnsemblePrediction.concatenate([one, two]).member_logits.shape
            torch.Size([4, 3, 3])
        """
        return cls(torch.cat([prediction.member_logits for prediction in predictions], dim=1))
