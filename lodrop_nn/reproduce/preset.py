"""One of the paper's experiments: its task, and the protocol that its runs follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

Family = Literal["glue", "squad", "mmlu"]
Selection = Literal["last", "best"]
Precision = Literal["fp32", "bf16"]

GIVEN = "given by the user"
DEBERTA_MATRICES = (
    "query_proj",
    "key_proj",
    "value_proj",
    "intermediate.dense",
    "output.dense",  # of the attention and of the feed-forward layer
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One task of the paper's tables with the protocol of its runs.

    Attributes:
        task: Its name on the command line.
        table: The paper's table that it belongs to.
        family: What kind of task it is.
        model: Base model on the hub, or a local folder.
        data: Data set on the hub, and its configuration after a colon.
        n_train: Training rows, as published; the real ones are counted when they are there.
        n_eval: Evaluation rows, likewise.
        metrics: Names of the scores; the first is the one that epochs are chosen by.
        n_matrix_weights: Weights of the linear maps that each token passes: what FLOPs count.
        max_length: Longest input in tokens, >= 1.
        epochs: Passes over the training rows, >= 1.
        published_steps: Optimizer steps that ``warmup_steps``, ``warm_steps``, ``final_steps`` and
            ``allocation_interval`` are shares of.
        batch_size: Rows per optimizer step, >= 1.
        learning_rate: Peak rate of the adapters' AdamW (linear decay), > 0.
        full_learning_rate: The same where all weights are trained.
        bitfit_learning_rate: The same where biases are trained.
        warmup_steps: Optimizer steps of linear warm-up, >= 0.
        weight_decay: AdamW's decoupled decay, >= 0.
        head_dropout: Dropout probability before DeBERTa's classifier; None leaves the checkpoint's.
        target_modules: Suffixes of the adapted modules.
        rank: LoRA's r, and the mean rank that AdaLoRA ends with, >= 1.
        initial_rank: AdaLoRA's rank at the start, > ``rank``.
        lora_alpha: Numerator of PEFT's scaling, > 0.
        orthogonality: Weight gamma of AdaLoRA's orthogonality loss, >= 0.
        warm_steps: AdaLoRA's t_i: steps before ranks fall.
        final_steps: Its t_f: steps at the final ranks.
        allocation_interval: Its Delta_T: steps between allocations.
        seeds: Number of seeds, from 0 on, >= 1.
        dropout_rate: p in [0, 1) of LoRA Dropout.
        n_masks_train: N, mask draws per training step, >= 1.
        n_masks_test: Members of the test-time ensemble, >= 1.
        rescale: Whether kept coordinates are divided by 1 - p.
        precision: Arithmetic of the training steps.
        select: Evaluate the last epoch, or the one that is best on the evaluation rows.
        doc_stride: Tokens that two windows of a long SQuAD context share; a third of a window at
            most.
        shots: Solved questions before an MMLU question, in [0, 5].
        sources: Where each setting comes from.
    """

    task: str
    table: str
    family: Family
    model: str = "microsoft/deberta-v3-base"
    data: str
    n_train: int
    n_eval: int
    metrics: tuple[str, ...]
    n_matrix_weights: int = 84_934_656  # 12 x (4 x 768^2 + 2 x 768 x 3072)
    max_length: int
    epochs: int
    published_steps: int
    batch_size: int
    learning_rate: float
    full_learning_rate: float = 2e-5
    bitfit_learning_rate: float = 1e-3
    warmup_steps: int
    weight_decay: float = 0.0
    head_dropout: float | None = None
    target_modules: tuple[str, ...] = DEBERTA_MATRICES
    rank: int = 8
    initial_rank: int = 12
    lora_alpha: float = 16.0
    orthogonality: float = 0.1
    warm_steps: int
    final_steps: int
    allocation_interval: int
    seeds: int = 5
    dropout_rate: float = 0.5
    n_masks_train: int = 4
    n_masks_test: int = 4
    rescale: bool = False
    precision: Precision = "fp32"
    select: Selection = "last"
    doc_stride: int = 128
    shots: int = 0
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "rank", "seeds", "n_masks_train", "n_masks_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)!r}.")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"`dropout_rate` must be in [0, 1), got {self.dropout_rate!r}.")
        if self.initial_rank <= self.rank:
            raise ValueError(
                f"`initial_rank` must be > rank = {self.rank} (AdaLoRA gives ranks up), "
                f"got {self.initial_rank!r}."
            )
        if not 0 <= self.shots <= 5:
            raise ValueError(f"`shots` must be in [0, 5], got {self.shots!r}.")
        for name, choices in (("select", ("last", "best")), ("precision", ("fp32", "bf16"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")

    def with_settings(self, **settings: Any) -> "Preset":
        """The preset with some settings of the user's own, and said to be so.

        A rank without an initial rank keeps AdaLoRA's ratio of 3 to 2 between the two.

        Raises:
            ValueError: If a setting is unknown or outside its range.
        """
        unknown = set(settings) - {each.name for each in fields(self)}
        if unknown:
            raise ValueError(f"`settings` must name fields of a preset, got {sorted(unknown)}.")
        if "rank" in settings and "initial_rank" not in settings:
            settings["initial_rank"] = max(settings["rank"] + 1, round(1.5 * settings["rank"]))
        given = dict.fromkeys(settings, GIVEN)
        return replace(self, **settings, sources={**self.sources, **given})
