"""The record of a measured language model: one JSON file with a digest, readable without torch.

The example is the sequence: its loss is the mean over its scored tokens, so that sequences that
are drawn independently make independent losses, whatever binds the tokens of one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lodrop_theory._record_types import check_nonnegative, check_types, restored
from lodrop_theory.bounds.hold_out import hold_out_bound
from lodrop_theory.bounds.lin2024 import ensemble_bound
from lodrop_theory.bounds.maurer2009 import empirical_bernstein_bound
from lodrop_theory.inputs import BernsteinHoldOutInputs, HoldOutInputs
from lodrop_theory.records import (
    PREDICTORS,
    Estimate,
    RecordError,
    content_hash,
    write_bytes_atomically,
)
from lodrop_theory.results import BoundResult

SCHEMA = "language/1"
CAVEATS = (
    "each row is one example and must be drawn by itself: rows cut from one text are not "
    "independent",
    "the risk is that of rows as they were prepared: cut off at the trainer's length",
)
SAMPLE_CAVEAT = "the gap is counted from the training risk of a sample of the training rows"


@dataclass(frozen=True, kw_only=True)
class LanguageMeasurement:
    """Risks of one predictor of a language model, a mean over sequences each.

    Attributes:
        empirical_risk: Smoothed loss on the training rows. Nats per token.
        population_risk: Smoothed loss on the held-out rows. Nats per token.
        generalization_gap: Their difference, held-out less training. Nats per token.
        train_nll: Negative log-likelihood on the training rows. Nats per token.
        test_nll: Negative log-likelihood on the held-out rows. Nats per token.
        train_perplexity: Over all scored tokens of the training rows, >= 1.
        test_perplexity: Over all scored tokens of the held-out rows, >= 1.
        sample_variance: Variance of the smoothed losses of the held-out rows, divisor n_test - 1.
    """

    empirical_risk: Estimate
    population_risk: Estimate
    generalization_gap: Estimate
    train_nll: Estimate
    test_nll: Estimate
    train_perplexity: Estimate
    test_perplexity: Estimate
    sample_variance: Estimate

    def __post_init__(self) -> None:
        check_types(self)
        check_nonnegative(self, "sample_variance")


@dataclass(frozen=True, kw_only=True)
class LanguageRecord:
    r"""What was measured of a fine-tuned language model.

    Attributes:
        run_id: Content hash of ``config``; the file is named after it.
        created: UTC time of the end of the measurement, ISO 8601.
        config: What made the adapter and how it is measured, as JSON.
        environment: Versions, hardware, threads.
        n_train: Training rows.
        n_train_measured: Training rows that the training risk is a mean over.
        n_test: Held-out rows that were measured.
        n_train_tokens: Scored tokens of the measured training rows.
        n_test_tokens: Scored tokens of the held-out rows.
        n_parameters: Trained parameters.
        dropout_rate: p, in [0, 1).
        n_masks_test: Members of the ensemble.
        smoothing: a in (0, 1) of the smoothed loss :math:`-\ln((1-a) \pi_y + a / V)` of a token.
        loss_range: C = ln(1 + (1 - a) V / a) of the interval of that loss, and so of its mean over
            the tokens of a row. Nats per token.
        predictors: One measurement per predictor: ``gibbs`` (one mask per row), ``ensemble``
            (probabilities of each token averaged over masks), ``mean`` (masks off).
        jensen_gap: Mean member loss less ensemble loss on the held-out rows. Nats per token.
        seconds: Wall-clock seconds of each stage.
        notes: What a reader must know.
    """

    run_id: str
    created: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    n_train: int
    n_train_measured: int
    n_test: int
    n_train_tokens: int
    n_test_tokens: int
    n_parameters: int
    dropout_rate: float
    n_masks_test: int
    smoothing: float
    loss_range: Estimate
    predictors: Mapping[str, LanguageMeasurement]
    jensen_gap: Estimate
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise RecordError(f"`schema` must be {SCHEMA!r}, got {self.schema!r}.")
        check_types(self)
        if set(self.predictors) != set(PREDICTORS):
            raise RecordError(
                f"`predictors` must be exactly {sorted(PREDICTORS)}, got {sorted(self.predictors)}."
            )
        for name in ("n_train_measured", "n_test"):
            if getattr(self, name) < 2:
                raise ValueError(f"`{name}` must be >= 2, got {getattr(self, name)!r}.")
        if self.n_train < self.n_train_measured:
            raise ValueError(
                f"`n_train` must be >= n_train_measured = {self.n_train_measured}, "
                f"got {self.n_train!r}."
            )


def language_bounds(record: LanguageRecord, *, delta: float) -> list[BoundResult]:
    """The hold-out bounds of a language model.

    Certificates as long as the held-out rows are independent and no choice has seen them; each
    holds with probability at least 1 - delta by itself. They are about the smoothed loss, of which
    the range is known; the plain negative log-likelihood is not bounded and gets none.

    Args:
        record: A measured language model.
        delta: Failure probability of each bound, in (0, 1).

    Returns:
        Hoeffding's bound of each predictor, that of ``gibbs`` carried to the ensemble by Jensen's
        inequality, and the empirical Bernstein bound of each predictor.

    Raises:
        ValueError: If ``delta`` is outside (0, 1).
    """
    hoeffding, bernstein = {}, []
    for predictor in PREDICTORS:
        scores = record.predictors[predictor]
        given: dict[str, Any] = {
            "n_test": record.n_test,
            "loss_range": record.loss_range.upper,
            "delta": delta,
            "held_out_risk": scores.population_risk.value,
            "empirical_risk": scores.empirical_risk.value,
        }
        hoeffding[predictor] = hold_out_bound(
            HoldOutInputs(**given), predictor=predictor, certified=True
        )
        # The statistic itself is what the theorem reads; it may exceed its range by a rounding.
        largest = record.loss_range.upper**2 / 4.0 * record.n_test / (record.n_test - 1.0)
        inputs = BernsteinHoldOutInputs(
            **given, sample_variance=min(scores.sample_variance.value, largest)
        )
        bernstein.append(empirical_bernstein_bound(inputs, predictor=predictor, certified=True))
    results = [
        *hoeffding.values(),
        # The loss is convex in the averaged probabilities, and both predictors share their masks.
        ensemble_bound(hoeffding["gibbs"], certified=True),
        *bernstein,
    ]
    sampled = (SAMPLE_CAVEAT,) if record.n_train_measured < record.n_train else ()
    return [replace(r, caveats=(*r.caveats, *CAVEATS, *sampled)) for r in results]


def write_language_record(record: LanguageRecord, path: str | os.PathLike[str]) -> None:
    """Write a record as JSON with its digest, atomically.

    Args:
        record: The record.
        path: The file; folders are made.

    Raises:
        RecordError: If what is in it has no place in JSON, or could not be read back: then there
            is no file.
    """
    try:
        content = json.loads(json.dumps(asdict(record), allow_nan=False))
        restored(LanguageRecord, content)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"`record` must be complete and finite: {error}.") from error
    content["digest"] = content_hash(content)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_bytes_atomically(path, text.encode("utf-8"))


def is_language_record(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is such a record; nothing else about it is checked."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("schema") == SCHEMA


def read_language_record(path: str | os.PathLike[str]) -> LanguageRecord:
    """Read and verify a record.

    Args:
        path: The file.

    Raises:
        RecordError: If it is truncated, edited, of another schema, or lacks a field.
        FileNotFoundError: If there is no such file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        digest = content.pop("digest", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise RecordError(f"{path} must be a complete JSON record, got {error}.") from error
    if content.get("schema") != SCHEMA:
        raise RecordError(f"`schema` of {path} must be {SCHEMA!r}, got {content.get('schema')!r}.")
    try:
        unchanged = digest == content_hash(content)
        record: LanguageRecord = restored(LanguageRecord, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path} must hold every field of {SCHEMA}: {error}.") from error
    if not unchanged:
        raise RecordError(f"{path} was edited after it was written: its `digest` does not match.")
    return record
