"""What runs will cost: counts from the protocol, times unit costs, with the arithmetic shown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from lodrop_nn.reproduce.plan import Method, Schedule, has_masks, is_adapter
from lodrop_nn.reproduce.preset import Preset

_UNCOUNTED = {
    "glue": "published rows, longest inputs: at most",
    "squad": "published questions, one window of the longest input each",
    "mmlu": "published rows, longest training inputs; prompts assumed as long",
}
_SECONDS_OF = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))


@dataclass(frozen=True, kw_only=True)
class UnitCost:
    """Measured seconds of the parts of a run.

    Attributes:
        step_seconds: Of each timed optimizer step.
        row_seconds: Of one evaluated row, by all predictors of the method.
        hardware: Where they were measured.
    """

    step_seconds: tuple[float, ...]
    row_seconds: float
    hardware: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The runs of one task by one method.

    Attributes:
        preset: The task.
        method: The method.
        schedule: Steps of one run.
        n_runs: Runs to do.
        n_eval: Evaluated features.
        train_tokens: Tokens of a training row, padding included.
        eval_tokens: Tokens of an evaluated row.
        is_counted: Whether rows and tokens were counted in the data; else rows are the published
            ones and tokens the most that a training input may have.
    """

    preset: Preset
    method: Method
    schedule: Schedule
    n_runs: int
    n_eval: int
    train_tokens: float
    eval_tokens: float
    is_counted: bool

    @property
    def n_masks(self) -> int:
        """Passes of a training row."""
        return self.preset.n_masks_train if has_masks(self.method) else 1

    @property
    def eval_passes(self) -> int:
        """Passes of an evaluated row: masks off, and one per member."""
        return 1 + (self.preset.n_masks_test if has_masks(self.method) else 0)

    @property
    def evaluations(self) -> int:
        """How often the mean predictor sees the evaluation rows beyond the last time."""
        return self.preset.epochs if self.preset.select == "best" else 0

    @property
    def tokens_trained(self) -> float:
        """Tokens that pass forward and backward, in all runs."""
        rows = self.schedule.n_steps * self.preset.batch_size
        return self.n_runs * rows * self.train_tokens * self.n_masks

    @property
    def tokens_evaluated(self) -> float:
        """Tokens that pass forward only, in all runs."""
        passes = self.eval_passes + self.evaluations
        return self.n_runs * self.n_eval * self.eval_tokens * passes

    @property
    def train_flops(self) -> float:
        """Operations of a token in training: 6 per weight, 4 where weights get no gradient."""
        per_weight = 4.0 if is_adapter(self.method) or self.method == "bitfit" else 6.0
        return per_weight * self.preset.n_matrix_weights

    @property
    def flops(self) -> float:
        """Floating-point operations of all runs."""
        forward = 2.0 * self.preset.n_matrix_weights
        return self.tokens_trained * self.train_flops + self.tokens_evaluated * forward


def count_lines(work: Workload) -> Iterator[str]:
    """The counts of a workload, as sentences that can be recomputed."""
    preset, steps = work.preset, work.schedule
    source = "counted" if work.is_counted else _UNCOUNTED[preset.family]
    yield (
        f"{preset.task}, {work.method}: {_counted(work.n_runs, 'run')} x {steps.n_steps} steps "
        f"of {preset.batch_size} rows ({source})"
    )
    masks = f" x {work.n_masks} masks" if work.n_masks > 1 else ""
    yield (
        f"  trained:   {work.n_runs} x {steps.n_steps} x {preset.batch_size} x "
        f"{work.train_tokens:.4g} tokens{masks} = {work.tokens_trained:.3g} tokens"
    )
    often = f" + {work.evaluations} epochs" if work.evaluations else ""
    yield (
        f"  evaluated: {work.n_runs} x {work.n_eval} rows x {work.eval_tokens:.4g} tokens x "
        f"({_counted(work.eval_passes, 'pass')}{often}) = {work.tokens_evaluated:.3g} tokens"
    )


def _counted(number: int, thing: str) -> str:
    plural = "es" if thing.endswith("s") else "s"
    return f"{number} {thing}{'' if number == 1 else plural}"


def flops_lines(work: Workload, tflops: float | None) -> Iterator[str]:
    """Operations of a workload, and its time at a given speed.

    Left out: attention scores, the head, the adapter's own products, and DeBERTa's projections of
    relative positions.

    Args:
        work: The workload.
        tflops: Speed that the hardware reaches, in 10^12 operations per second, > 0; None shows
            operations only.

    Raises:
        ValueError: If ``tflops`` is outside its range.
    """
    if tflops is not None and not tflops > 0.0:
        raise ValueError(f"`tflops` must be > 0, got {tflops!r}.")
    weights = work.preset.n_matrix_weights
    yield (
        f"  FLOPs:     {work.tokens_trained:.3g} x {work.train_flops / weights:g} x "
        f"{weights / 1e6:.4g}M + {work.tokens_evaluated:.3g} x 2 x {weights / 1e6:.4g}M "
        f"= {work.flops:.3g}"
    )
    if tflops is not None:
        seconds = work.flops / (tflops * 1e12)
        yield (
            f"  time:      {work.flops:.3g} / ({tflops:g} x 1e12 per s, as given) = "
            f"{seconds:.3g} s = {duration(seconds)}"
        )


def measured_seconds(work: Workload, unit: UnitCost) -> float:
    """Expected seconds of a workload by measured unit costs."""
    # The mean predictor alone is one of the passes that were timed.
    evaluated = 1.0 + work.evaluations / work.eval_passes
    training = work.schedule.n_steps * fmean(unit.step_seconds)
    return work.n_runs * (training + work.n_eval * evaluated * unit.row_seconds)


def measured_lines(work: Workload, unit: UnitCost) -> Iterator[str]:
    """The time of a workload by measured unit costs."""
    step = fmean(unit.step_seconds)
    often = f" x {1.0 + work.evaluations / work.eval_passes:.3g}" if work.evaluations else ""
    seconds = measured_seconds(work, unit)
    yield (
        f"  measured:  {step:.4g} s per step (mean of {len(unit.step_seconds)}, from "
        f"{min(unit.step_seconds):.4g} to {max(unit.step_seconds):.4g}), "
        f"{unit.row_seconds:.4g} s per evaluated row, on {unit.hardware}"
    )
    yield (
        f"  time:      {work.n_runs} x ({work.schedule.n_steps} x {step:.4g} + {work.n_eval}"
        f"{often} x {unit.row_seconds:.4g}) s = {seconds:.3g} s = {duration(seconds)}"
    )


def padded_tokens(lengths: Sequence[int], batch_size: int) -> float:
    """Mean tokens of a row where batches in the given order are padded to their longest row.

    Args:
        lengths: Tokens of each row, in the order of the batches; >= 1 row.
        batch_size: Rows per batch, >= 1.

    Example:
        >>> padded_tokens([2, 4, 3], 2)
        3.6666666666666665
    """
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return sum(max(batch) * len(batch) for batch in batches) / len(lengths)


def duration(seconds: float) -> str:
    """A time in the largest unit of which it has one.

    Example:
        >>> duration(90.0), duration(7200.0), duration(3.2)
        ('1.5 min', '2 h', '3.2 s')
    """
    for unit, size in _SECONDS_OF:
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
