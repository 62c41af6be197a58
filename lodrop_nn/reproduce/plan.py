"""What one run will do: its method, its steps, and what its record is named after."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lodrop_nn.reproduce.preset import Preset
from lodrop_theory.records import content_hash

Method = Literal["full", "bitfit", "lora", "adalora", "lora+dropout", "adalora+dropout"]
METHODS: tuple[Method, ...] = get_args(Method)
PROTOCOL = 1  # raise when the meaning of a configuration changes: old records then no longer match

_ADAPTER_SETTINGS = ("target_modules", "rank", "lora_alpha")
_ADALORA_SETTINGS = (
    "initial_rank", "orthogonality", "warm_steps", "final_steps", "allocation_interval",
)  # fmt: skip
_DROPOUT_SETTINGS = ("dropout_rate", "n_masks_train", "n_masks_test", "rescale")
_RATES = ("learning_rate", "full_learning_rate", "bitfit_learning_rate")
# What describes the published task, not the run.
_DESCRIPTIONS = ("table", "n_train", "n_eval", "metrics", "n_matrix_weights", "seeds", "sources")


def is_adapter(method: Method) -> bool:
    """Whether a method adds low-rank factors and freezes the rest."""
    return method not in ("full", "bitfit")


def is_adalora(method: Method) -> bool:
    """Whether a method allocates ranks."""
    return method.startswith("adalora")


def has_masks(method: Method) -> bool:
    """Whether a method is LoRA Dropout."""
    return method.endswith("+dropout")


def check_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: If there is none.
    """
    for method in METHODS:
        if method == name:
            return method
    raise ValueError(f"`methods` must be some of {', '.join(METHODS)}, got {name!r}.")


def peak_learning_rate(preset: Preset, method: Method) -> float:
    """The learning rate of a method."""
    if method == "full":
        return preset.full_learning_rate
    return preset.bitfit_learning_rate if method == "bitfit" else preset.learning_rate


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Numbers of optimizer steps.

    Attributes:
        n_steps: All of them.
        warmup_steps: With a rising learning rate.
        warm_steps: Before AdaLoRA's ranks fall.
        final_steps: At its final ranks.
        allocation_interval: Between two allocations.
    """

    n_steps: int
    warmup_steps: int
    warm_steps: int
    final_steps: int
    allocation_interval: int


def schedule(preset: Preset, n_train: int, max_steps: int | None = None) -> Schedule:
    """The steps of a run over so many training features.

    AdaLoRA's schedule and the warm-up are published in steps. Where a run is more than 5% longer
    or shorter than the published one, they keep their share of it.

    Args:
        preset: The task.
        n_train: Training features, >= 1 (SQuAD: windows, of which a question may have several).
        max_steps: Stop after so many steps; None trains all epochs.

    Raises:
        ValueError: If ``n_train`` or ``max_steps`` is below 1.

    Example:
        >>> from lodrop_nn.reproduce.presets import preset
        >>> steps = schedule(preset("mrpc"), 3668)
        >>> steps.n_steps, steps.warm_steps, steps.final_steps
        (3450, 600, 1800)
    """
    for name, value in (("n_train", n_train), ("max_steps", max_steps)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be >= 1, got {value!r}.")
    n_steps = preset.epochs * math.ceil(n_train / preset.batch_size)
    if max_steps is not None:
        n_steps = min(n_steps, max_steps)
    share = n_steps / preset.published_steps
    if abs(share - 1.0) <= 0.05:
        share = 1.0
    # AdaLoRA weighs its ranks in a step before it allocates the final ones.
    final_steps = max(0, min(round(share * preset.final_steps), n_steps - 2))
    return Schedule(
        n_steps=n_steps,
        warmup_steps=round(share * preset.warmup_steps),
        warm_steps=min(round(share * preset.warm_steps), n_steps - final_steps - 1),
        final_steps=final_steps,
        allocation_interval=max(1, round(share * preset.allocation_interval)),
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one task.

    Attributes:
        preset: The task and its settings.
        method: What is trained.
        seed: Seed >= 0 of the head, the adapter, the order and the masks.
        rows: Digest of the data (:attr:`~lodrop_nn.reproduce.benchmark_rows.BenchmarkRows.digest`).
        model: Name of the base model on the hub, or digest of a local one.
        max_steps: Stop after so many steps; None trains all epochs.
    """

    preset: Preset
    method: Method
    seed: int
    rows: str
    model: str
    max_steps: int | None = None

    def as_json(self) -> Mapping[str, Any]:
        """Everything that decides what the run does, and nothing else, as JSON-able values."""
        settings = asdict(self.preset)
        left_out: set[str] = {*_DESCRIPTIONS, *_RATES, "model", "data"}
        if not is_adapter(self.method):
            left_out |= {*_ADAPTER_SETTINGS}
        if not is_adalora(self.method):
            left_out |= {*_ADALORA_SETTINGS}
        if not has_masks(self.method):
            left_out |= {*_DROPOUT_SETTINGS}
        kept = {name: value for name, value in settings.items() if name not in left_out}
        return {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()},
            "learning_rate": peak_learning_rate(self.preset, self.method),
            "method": self.method,
            "seed": self.seed,
            "rows": self.rows,
            "model": self.model,
            "max_steps": self.max_steps,
        }

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits that name the run; equal runs share them."""
        return content_hash({"protocol": PROTOCOL, **self.as_json()})[:12]
