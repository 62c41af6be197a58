"""What defines a run: its configuration and the content hash that names its record."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lodrop_theory.records import content_hash

MaskScope = Literal["batch", "example"]
MaskLaw = Literal["iid", "balanced", "orthogonal"]
Precision = Literal["fp32", "bf16"]
PROTOCOL = 1  # raise when the meaning of a configuration changes: old records then no longer match
_LATER_FIELDS = ("mask_law", "train_A")


def _positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One fine-tuning run and its measurement.

    Attributes:
        dropout_rate: p in [0, 1), for the input and the output coordinates.
        seed: Seed >= 0 of the split, the initialization, the order and the masks.
        model: Name of a base model in :mod:`lodrop_nn.data.models`.
        data: Name of a data set in :mod:`lodrop_nn.data`.
        n_train: Training examples, >= 2.
        n_test: Held-out examples, >= 2.
        rank: LoRA rank r >= 1.
        lora_alpha: Numerator of PEFT's scaling lora_alpha / r, > 0.
        target_modules: Suffixes of the adapted modules.
        adapted_layers: Indices of the adapted transformer blocks; None adapts all.
        epochs: Passes over the training examples, >= 1.
        batch_size: Examples per step, before masks are tiled, >= 1.
        learning_rate: Peak rate of AdamW (linear decay, no warm-up), > 0.
        weight_decay: AdamW's decoupled decay, >= 0.
        n_masks_train: N, mask draws averaged per training step, >= 1.
        mask_scope: One mask per draw for the whole batch, or one per example.
        rescale: Whether kept coordinates are divided by 1 - p (inverted scaling).
        n_masks_test: Members of the test-time ensemble, >= 1.
        smoothing: a in (0, 1) of the smoothed cross-entropy that risks are measured in.
        hessian_steps: Lanczos steps for the extreme Hessian eigenvalues, >= 2.
        precision: Arithmetic of the training steps; measurements are in fp32.
        mask_law: How the masks of one training pass depend on each other.
        train_A: Whether the factors A are trained; without, B and the head are (LoRA-FA).
    """

    dropout_rate: float
    seed: int = 0
    model: str = "minilm-l6"
    data: str = "movie-reviews"
    n_train: int = 256
    n_test: int = 512
    rank: int = 8
    lora_alpha: float = 16.0
    target_modules: tuple[str, ...] = ("query", "key", "value", "attention.output.dense")
    adapted_layers: tuple[int, ...] | None = (3, 4, 5)
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    n_masks_train: int = 1
    mask_scope: MaskScope = "batch"
    rescale: bool = True
    n_masks_test: int = 16
    smoothing: float = 0.05
    hessian_steps: int = 12
    precision: Precision = "fp32"
    mask_law: MaskLaw = "iid"
    train_A: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"`dropout_rate` must be in [0, 1), got {self.dropout_rate!r}.")
        for name in ("n_train", "n_test", "rank", "epochs", "batch_size"):
            _positive_int(name, getattr(self, name))
        for name in ("n_masks_train", "n_masks_test"):
            _positive_int(name, getattr(self, name))
        for name in ("n_train", "n_test", "hessian_steps"):
            if getattr(self, name) < 2:
                raise ValueError(f"`{name}` must be >= 2, got {getattr(self, name)!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"`seed` must be a whole number >= 0, got {self.seed!r}.")
        for name in ("learning_rate", "lora_alpha"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be finite and > 0, got {getattr(self, name)!r}.")
        if not 0.0 <= self.weight_decay < float("inf"):
            raise ValueError(f"`weight_decay` must be finite and >= 0, got {self.weight_decay!r}.")
        if not 0.0 < self.smoothing < 1.0:
            raise ValueError(f"`smoothing` must be in (0, 1), got {self.smoothing!r}.")
        if self.mask_scope not in ("batch", "example"):
            raise ValueError(f"`mask_scope` must be 'batch' or 'example', got {self.mask_scope!r}.")
        if self.mask_scope == "example" and self.n_masks_train != 1:
            raise ValueError(
                "`n_masks_train` must be 1 when `mask_scope` is 'example' (each example already "
                f"has a mask of its own), got {self.n_masks_train!r}."
            )
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"`precision` must be 'fp32' or 'bf16', got {self.precision!r}.")
        if self.mask_law not in get_args(MaskLaw):
            raise ValueError(
                f"`mask_law` must be one of {get_args(MaskLaw)}, got {self.mask_law!r}."
            )
        if not isinstance(self.train_A, bool):
            raise ValueError(f"`train_A` must be True or False, got {self.train_A!r}.")

    def as_json(self) -> dict[str, Any]:
        """The configuration as JSON-able values (tuples become lists).

        Fields that came later are left out at their defaults: earlier runs keep their names.
        """
        values = dataclasses.asdict(self)
        for name in _LATER_FIELDS:
            if values[name] == getattr(RunConfig, name):
                del values[name]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunConfig":
        """The inverse of :meth:`as_json`."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**fields)

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits that name the run; equal configurations share them."""
        return content_hash({"protocol": PROTOCOL, **self.as_json()})[:12]
