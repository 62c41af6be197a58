"""What happened in a run: one JSON file per run, readable without torch.

A record is written once, atomically, and never changed; ``schema`` names the meaning of its
fields and ``digest`` is the SHA-256 of everything else in the file, so a truncated or edited
record is told from a sound one.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

SCHEMA = 1
Predictor = Literal["gibbs", "ensemble", "mean"]
PREDICTORS: tuple[Predictor, ...] = get_args(Predictor)


class RecordError(ValueError):
    """A record file that cannot be trusted: unknown schema, truncated, edited or malformed."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured number.

    Attributes:
        value: The point estimate, finite.
        low: Lower end of the interval, or None when no interval is claimed.
        high: Upper end of the interval, or None when no interval is claimed.
        level: Coverage of the interval in (0, 1); None for a deterministic enclosure
            (an exact number, an eigenvalue with its residual) or when there is no interval.
        n_draws: Number of examples, mask draws or iterations behind the value, >= 1.
        method: How it was measured, in a few words.
    """

    value: float
    low: float | None = None
    high: float | None = None
    level: float | None = None
    n_draws: int
    method: str

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is None and name != "value":
                continue
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise TypeError(f"`{name}` must be a real number, got {number!r}.")
            if not math.isfinite(number):
                raise ValueError(f"`{name}` must be finite, got {number!r}.")
        if (self.low is None) != (self.high is None):
            raise ValueError(
                "`low` and `high` must be given together, got "
                f"low={self.low!r}, high={self.high!r}."
            )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"`low` must be <= `high`, got {self.low!r} > {self.high!r}.")
        if self.level is not None and not 0 < self.level < 1:
            raise ValueError(f"`level` must be in (0, 1), got {self.level!r}.")
        if isinstance(self.n_draws, bool) or not isinstance(self.n_draws, int) or self.n_draws < 1:
            raise ValueError(f"`n_draws` must be a whole number >= 1, got {self.n_draws!r}.")

    @property
    def upper(self) -> float:
        """The conservative end for a quantity that loosens a bound as it grows."""
        return self.value if self.high is None else self.high

    @property
    def lower(self) -> float:
        """The conservative end for a quantity that tightens a bound as it grows."""
        return self.value if self.low is None else self.low


@dataclass(frozen=True, kw_only=True)
class PredictorMeasurement:
    """Risks and scores of one predictor on the training and the held-out rows.

    The risks are means of the smoothed cross-entropy (bounded, so that ``loss_range`` exists); the
    negative log-likelihoods are those of the unsmoothed probabilities. Both in nats.

    Attributes:
        empirical_risk: Mean smoothed loss on the training rows. Nats.
        population_risk: Mean smoothed loss on the held-out rows. Nats.
        generalization_gap: population_risk - empirical_risk. Nats.
        train_accuracy: Fraction correct on the training rows, in [0, 1].
        test_accuracy: Fraction correct on the held-out rows, in [0, 1].
        train_nll: Mean negative log-likelihood on the training rows. Nats.
        test_nll: Mean negative log-likelihood on the held-out rows. Nats.
        calibration_error: Expected calibration error on the held-out rows, 15 equal-width
            bins of the top probability, in [0, 1]. Biased upward on few rows.
        brier_score: Mean squared distance between the probability vector and the one-hot
            label on the held-out rows, in [0, 2].
    """

    empirical_risk: Estimate
    population_risk: Estimate
    generalization_gap: Estimate
    train_accuracy: Estimate
    test_accuracy: Estimate
    train_nll: Estimate
    test_nll: Estimate
    calibration_error: Estimate
    brier_score: Estimate


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that one fine-tuning run measured.

    Fields that a theorem reads bear the names of :mod:`lodrop_theory.inputs`.

    Attributes:
        run_id: Content hash of ``config``; the file is named after it.
        created: UTC time of the end of the run, ISO 8601.
        config: The run's configuration, as JSON.
        environment: Versions, hardware, threads, precision.
        n_train: Training examples.
        n_test: Held-out examples.
        n_parameters: Trained parameters.
        dropout_rate: p, in [0, 1).
        n_masks_train: Mask draws per training step.
        n_masks_test: Members of the test-time ensemble.
        loss_range: C, length of the interval of the smoothed loss. Nats.
        lipschitz: Largest gradient norm of the training loss of one example at the solution
            (a lower estimate of what the proof needs). Nats per parameter norm.
        hessian_min_eig: Smallest eigenvalue of the Hessian of the training risk at the
            solution, masks off. Nats per parameter^2.
        hessian_max_eig: Largest eigenvalue of the same Hessian.
        gradient_norm: Norm of the gradient of the training risk at the solution, masks off.
        delta_weight_norm: Frobenius norm of the update s B A over all adapted layers.
        penalty: lambda by the energy estimator; None at p = 0, where it has no weight.
        penalty_kkt: lambda by the stationarity estimator; None at p = 0.
        update_sparsity: Realized zero fraction of the masked update, against 2p - p^2.
        predictors: One measurement per predictor (gibbs, ensemble, mean).
        seconds: Wall-clock seconds of each stage.
        notes: What a reader must know: what did not converge, what was left out.
    """

    run_id: str
    created: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    n_train: int
    n_test: int
    n_parameters: int
    dropout_rate: float
    n_masks_train: int
    n_masks_test: int
    loss_range: Estimate
    lipschitz: Estimate
    hessian_min_eig: Estimate
    hessian_max_eig: Estimate
    gradient_norm: Estimate
    delta_weight_norm: Estimate
    penalty: Estimate | None
    penalty_kkt: Estimate | None
    update_sparsity: Estimate
    predictors: Mapping[str, PredictorMeasurement]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = field(default=())
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise RecordError(f"`schema` must be {SCHEMA}, got {self.schema!r}.")
        if set(self.predictors) != set(PREDICTORS):
            raise RecordError(
                f"`predictors` must be exactly {sorted(PREDICTORS)}, got {sorted(self.predictors)}."
            )


_ESTIMATES = (
    "loss_range",
    "lipschitz",
    "hessian_min_eig",
    "hessian_max_eig",
    "gradient_norm",
    "delta_weight_norm",
    "penalty",
    "penalty_kkt",
    "update_sparsity",
)


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able mapping in canonical form, as 64 hexadecimal digits.

    Example:
        >>> content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
        True
    """
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def write_bytes_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_record(record: RunRecord, path: str | os.PathLike[str]) -> None:
    """Write a record as JSON with its digest, atomically."""
    content = json.loads(_canonical(asdict(record)))
    content["digest"] = content_hash(content)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_bytes_atomically(path, text.encode("utf-8"))


def read_record(path: str | os.PathLike[str]) -> RunRecord:
    """Read and verify a record.

    Raises:
        RecordError: If the file is truncated, has been edited, has a schema that this version
            does not know, or lacks a field.
        FileNotFoundError: If there is no such file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} must be a complete JSON record, got {error}.") from error
    if not isinstance(content, dict):
        raise RecordError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    if content.get("schema") != SCHEMA:
        raise RecordError(
            f"`schema` of {path} must be {SCHEMA}, got {content.get('schema')!r}; "
            "read it with the version of lodrop that wrote it."
        )
    digest = content.pop("digest", None)
    if digest != content_hash(content):
        raise RecordError(f"{path} was edited after it was written: its `digest` does not match.")
    try:
        for name in _ESTIMATES:
            content[name] = None if content[name] is None else Estimate(**content[name])
        content["predictors"] = {
            name: PredictorMeasurement(**{k: Estimate(**v) for k, v in scores.items()})
            for name, scores in content["predictors"].items()
        }
        content["notes"] = tuple(content["notes"])
        return RunRecord(**content)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} must hold every field of schema {SCHEMA}: {error}.") from error
