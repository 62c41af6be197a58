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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from lodrop_theory._record_types import check_nonnegative, check_types, restored

SCHEMA = 2
READABLE = (1, 2)
Predictor = Literal["gibbs", "ensemble", "mean"]
PREDICTORS: tuple[Predictor, ...] = get_args(Predictor)
Provenance = Literal["certified", "interval", "plug-in"]
StabilityMethod = Literal["newton", "gauss-newton", "influence", "refit", "retrain"]
STABILITY_METHODS: tuple[StabilityMethod, ...] = get_args(StabilityMethod)
# By the schema of a file, the fields that it does not have.
_ABSENT: dict[int, dict[str, frozenset[str]]] = {
    1: {
        "Estimate": frozenset({"provenance"}),
        "PredictorMeasurement": frozenset(
            {
                "debiased_calibration_error",
                "smooth_calibration_error",
                "vote_distance",
                "sample_variance",
                "n_errors",
            }
        ),
        "RunRecord": frozenset(
            {
                "lipschitz_bound",
                "dropout_lipschitz",
                "dropout_min_eig",
                "transverse_min_eig",
                "gauge_dimension",
                "gauge_residual",
                "penalty_curvature",
                "output_covariance",
                "jensen_gap",
                "stability",
                "posterior",
            }
        ),
    },
    SCHEMA: {},
}


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
        provenance: What the number may be used for: ``"certified"`` (exact, or enclosed for sure),
            ``"interval"`` (a confidence interval of the stated level), ``"plug-in"`` (neither, or
            an interval that misses a part of the error). None is settled by the other fields:
            plug-in without an interval, else interval with a level and certified without one.
    """

    value: float
    low: float | None = None
    high: float | None = None
    level: float | None = None
    n_draws: int
    method: str
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        settled = (
            "plug-in" if self.low is None else "certified" if self.level is None else "interval"
        )
        if self.provenance is None:
            object.__setattr__(self, "provenance", settled)
        elif self.provenance not in ("plug-in", settled):
            raise ValueError(
                f"`provenance` must be {settled!r} or 'plug-in' for this interval, "
                f"got {self.provenance!r}."
            )
        if self.provenance == "certified" and not self.lower <= self.value <= self.upper:
            raise ValueError(
                "`value` must be in the interval that encloses it for sure, "
                f"[{self.low!r}, {self.high!r}], got {self.value!r}."
            )
        if not self.method or not isinstance(self.method, str):
            raise ValueError(f"`method` must say how it was measured, got {self.method!r}.")

    def _check_numbers(self) -> None:
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
        if self.level is not None and self.low is None:
            raise ValueError(f"`level` must be None without an interval, got {self.level!r}.")
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
        debiased_calibration_error: The same error with the bias of its bins taken off.
        smooth_calibration_error: Calibration error of a kernel estimate instead of bins, in [0, 1].
        vote_distance: Mean total variation distance, on the held-out rows, between the predicted
            probabilities and the shares of the human votes, in [0, 1]; None without votes.
        sample_variance: Variance of the smoothed losses on the held-out rows, divisor n_test - 1.
            Nats^2.
        n_errors: Number of held-out rows with a wrong top class; None for a predictor that draws
            several times per row.
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
    debiased_calibration_error: Estimate | None = None
    smooth_calibration_error: Estimate | None = None
    vote_distance: Estimate | None = None
    sample_variance: Estimate | None = None
    n_errors: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_nonnegative(self, "sample_variance", "n_errors")


@dataclass(frozen=True, kw_only=True)
class StabilityEstimates:
    """How far the loss moves when one training example is left out or replaced, by one method.

    All in the smoothed cross-entropy, nats. "Removed" is the training example that is left out,
    "fresh" are held-out rows.

    Attributes:
        pointwise_stability: Mean |change of the loss| at the removed example.
        hypothesis_stability: Mean |change of the loss| at a fresh one.
        remove_one_out: Root mean square change at a fresh one, one example removed.
        replace_one_out: Root mean square change at a fresh one, one example replaced.
        replace_one_in: Root mean square change at the replaced example.
        leave_one_out_risk: Mean loss at the removed example of what is learned without it.
        replace_one_gap: Mean signed change at the replaced example; its expectation is that of the
            generalization gap.
    """

    pointwise_stability: Estimate
    hypothesis_stability: Estimate
    remove_one_out: Estimate
    replace_one_out: Estimate
    replace_one_in: Estimate
    leave_one_out_risk: Estimate
    replace_one_gap: Estimate

    def __post_init__(self) -> None:
        check_types(self)
        check_nonnegative(
            self,
            "pointwise_stability",
            "hypothesis_stability",
            "remove_one_out",
            "replace_one_out",
            "replace_one_in",
        )


@dataclass(frozen=True, kw_only=True)
class StabilityMeasurement:
    """Stabilities of the minimizer of a stated objective near the solution, by several methods.

    Attributes:
        objective: What is minimized, in words.
        ridge: Weight tau >= 0 of its squared distance to ``center``. Nats per parameter^2.
        center: ``"origin"`` for a plain ridge, ``"solution"`` for one around the trained point,
            with the gradient there taken off (the point is then stationary by construction).
        n_parameters: Dimension of its coordinates.
        gradient_norm: Norm of its gradient at the solution. Nats per parameter norm.
        objective_min_eig: Smallest eigenvalue of its Hessian at the solution.
        loss_variance: Variance of the smoothed loss at fresh rows. Nats^2.
        lipschitz_segment: Largest gradient norm of one example found on the segments between the
            solution and the solutions without one example.
        trace_gap: Expected gap of a minimizer to first order, tr(H^-1 G) / n with G the covariance
            of the example gradients (Takeuchi's correction). Of the training loss, nats.
        newton_ratio: Mean over the refits of Newton's |change| over the true one; None without.
        influence_ratio: The same for classical influence functions.
        estimates: One entry per method that was run; ``retrain`` is about the training run itself,
            the others are about the minimizer of ``objective``.
    """

    objective: str
    ridge: float
    center: Literal["origin", "solution"]
    n_parameters: int
    gradient_norm: Estimate
    objective_min_eig: Estimate
    loss_variance: Estimate
    lipschitz_segment: Estimate
    trace_gap: Estimate | None
    newton_ratio: Estimate | None
    influence_ratio: Estimate | None
    estimates: Mapping[StabilityMethod, StabilityEstimates]

    def __post_init__(self) -> None:
        check_types(self)
        check_nonnegative(self, "ridge", "gradient_norm", "loss_variance", "lipschitz_segment")
        if self.n_parameters < 1:
            raise ValueError(f"`n_parameters` must be >= 1, got {self.n_parameters!r}.")
        if not self.estimates:
            raise RecordError(f"`estimates` must hold some of {STABILITY_METHODS}, got none.")


@dataclass(frozen=True, kw_only=True)
class PosteriorPoint:
    """The randomized adapter of the PAC-Bayes bounds at one scale of its noise.

    Attributes:
        noise_std: sigma > 0 of the normal noise on each entry of the trained parameters that the
            masks keep, before they rescale it.
        kl_nats: Divergence of the posterior from the prior, summed over parameters. Nats.
        empirical_risk: Mean smoothed loss on the training rows over masks and noise. Nats. Its
            ``n_draws`` is the number of *independent* draws from the posterior, each as heavy in
            the mean: passes where a pass has one draw, rows times passes where each row has its
            own. The bounds pay for the draws by that number.
        error_rate: Mean 0-1 loss of the same draws, in [0, 1]; the same ``n_draws``.
    """

    noise_std: float
    kl_nats: Estimate
    empirical_risk: Estimate
    error_rate: Estimate

    def __post_init__(self) -> None:
        check_types(self)
        if self.noise_std <= 0:
            raise ValueError(f"`noise_std` must be > 0, got {self.noise_std!r}.")
        check_nonnegative(self, "kl_nats")
        if not 0 <= self.error_rate.value <= 1:
            raise ValueError(f"`error_rate` must be in [0, 1], got {self.error_rate.value!r}.")


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
        lipschitz_bound: Proved Lipschitz constant of the loss of every training example over all
            parameters, where the model has one; None where it has none.
        dropout_lipschitz: Largest norm over training examples of the gradient of the loss under
            masks (a mean over draws).
        dropout_min_eig: Smallest Hessian eigenvalue of the training risk under masks.
        transverse_min_eig: Smallest Hessian eigenvalue of the training risk, masks off, across the
            gauge directions (XA, -BX).
        gauge_dimension: Number of gauge directions.
        gauge_residual: Largest norm of the Hessian times a unit gauge direction; 0 at a stationary
            point.
        penalty_curvature: lambda by the curvature estimator; None at p = 0.
        output_covariance: Trace of the covariance of the logits over masks, mean over held-out
            rows.
        jensen_gap: Mean member loss minus ensemble loss on the held-out rows; its lower end is a
            confidence bound on the gain over the population. Nats.
        stability: Stabilities near the solution; None where they were not measured.
        posterior: The randomized adapter over a grid of noise scales.
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
    lipschitz_bound: Estimate | None = None
    dropout_lipschitz: Estimate | None = None
    dropout_min_eig: Estimate | None = None
    transverse_min_eig: Estimate | None = None
    gauge_dimension: int | None = None
    gauge_residual: Estimate | None = None
    penalty_curvature: Estimate | None = None
    output_covariance: Estimate | None = None
    jensen_gap: Estimate | None = None
    stability: StabilityMeasurement | None = None
    posterior: tuple[PosteriorPoint, ...] = field(default=())
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise RecordError(f"`schema` must be {SCHEMA}, got {self.schema!r}.")
        if set(self.predictors) != set(PREDICTORS):
            raise RecordError(
                f"`predictors` must be exactly {sorted(PREDICTORS)}, got {sorted(self.predictors)}."
            )
        check_types(self)
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"`dropout_rate` must be in [0, 1), got {self.dropout_rate!r}.")
        for name in ("n_train", "n_test", "n_parameters", "n_masks_train", "n_masks_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)!r}.")
        check_nonnegative(
            self,
            "lipschitz",
            "lipschitz_bound",
            "dropout_lipschitz",
            "gradient_norm",
            "delta_weight_norm",
            "gauge_dimension",
            "gauge_residual",
            "output_covariance",
        )
        if self.loss_range.value <= 0:
            raise ValueError(f"`loss_range` must be > 0, got {self.loss_range.value!r}.")
        for name, scores in self.predictors.items():
            if scores.n_errors is not None and scores.n_errors > self.n_test:
                raise ValueError(
                    f"`n_errors` of {name!r} must be at most n_test = {self.n_test}, "
                    f"got {scores.n_errors!r}."
                )


def _from_schema_1(record: RunRecord) -> RunRecord:
    """What version 1 meant, in the words of version 2."""
    # Their intervals were residuals of Ritz values that need not belong to the extreme ones.
    smallest, largest = (
        replace(each, provenance="plug-in")
        for each in (record.hessian_min_eig, record.hessian_max_eig)
    )
    return replace(record, hessian_min_eig=smallest, hessian_max_eig=largest)


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
    """Write a record as JSON with its digest, atomically.

    Raises:
        RecordError: If what is in it has no place in JSON, or could not be read back: then there
            is no file.
    """
    try:
        content = json.loads(_canonical(asdict(record)))
        restored(RunRecord, content)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"`record` must be complete and finite: {error}.") from error
    content["digest"] = content_hash(content)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_bytes_atomically(path, text.encode("utf-8"))


def _not_finite(word: str) -> NoReturn:
    raise RecordError(f"a record must hold finite numbers, got {word}.")


def read_record(path: str | os.PathLike[str]) -> RunRecord:
    """Read and verify a record.

    Raises:
        RecordError: If the file is truncated, has been edited, has a schema that this version
            does not know, or lacks a field.
        FileNotFoundError: If there is no such file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_not_finite)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} must be a complete JSON record, got {error}.") from error
    if not isinstance(content, dict):
        raise RecordError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    schema = content.get("schema")
    if isinstance(schema, bool) or schema not in READABLE:
        raise RecordError(
            f"`schema` of {path} must be one of {READABLE}, got {schema!r}; "
            "read it with the version of lodrop that wrote it."
        )
    digest = content.pop("digest", None)
    if digest != content_hash(content):
        raise RecordError(f"{path} was edited after it was written: its `digest` does not match.")
    try:
        record: RunRecord = restored(RunRecord, {**content, "schema": SCHEMA}, _ABSENT[schema])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path} must hold every field of schema {schema}: {error}.") from error
    return _from_schema_1(record) if schema == 1 else record
