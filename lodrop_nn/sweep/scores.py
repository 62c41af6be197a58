"""The record of a run that was scored along training; readable without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lodrop_theory.records import Estimate, Predictor, PredictorMeasurement, RecordError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class EpochScores:
    """The three predictors after an epoch.

    Attributes:
        epoch: Passes over the training rows so far.
        n_masks: Members of the ensemble.
        predictors: Risks and scores of ``gibbs``, ``ensemble`` and ``mean``.
    """

    epoch: int
    n_masks: int
    predictors: Mapping[Predictor, PredictorMeasurement]


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """What happened in a run of a sweep with ``measure = "scores"``.

    Attributes:
        run_id: Name of the :class:`~lodrop_nn.sweep.grid.SweepRun`.
        created: UTC time of the end of the run, ISO 8601.
        config: The configuration, as JSON.
        method: What the way of training is called.
        environment: Versions, hardware, threads.
        n_parameters: Trained parameters.
        epoch_losses: Mean training loss of each epoch, while the weights moved and with the masks
            on; empty for a run that diverged. Nats.
        scores: Risks and scores along training; those of the end come last.
        diverged_after: Steps done when the loss or a weight stopped being finite; None for a
            run that came to its end. ``scores`` then end before.
        seconds: Wall-clock seconds of "train", "scores" and "stored_states" (what lies below the
            adapter, for all rows); of runs trained together, their share.
        n_together: Runs that were trained in one pass.
        notes: What a reader must know.
    """

    run_id: str
    created: str
    config: Mapping[str, Any]
    method: str
    environment: Mapping[str, Any]
    n_parameters: int
    epoch_losses: tuple[float, ...]
    scores: tuple[EpochScores, ...]
    diverged_after: int | None
    seconds: Mapping[str, float]
    n_together: int
    notes: tuple[str, ...] = field(default=())
    schema: int = SCHEMA

    def as_json(self) -> dict[str, Any]:
        """The record as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ScoreRecord":
        """The inverse of :meth:`as_json`, also after a way through JSON.

        Raises:
            RecordError: If the schema is another, or a field is missing.
        """
        if content.get("schema") != SCHEMA:
            raise RecordError(f"`schema` must be {SCHEMA}, got {content.get('schema')!r}.")
        try:
            scores = tuple(_epoch(each) for each in content["scores"])
            return cls(
                **{
                    **content,
                    "scores": scores,
                    "epoch_losses": tuple(content["epoch_losses"]),
                    "notes": tuple(content["notes"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise RecordError(
                f"a record must hold every field of a score record: {error}."
            ) from None


def _epoch(content: Mapping[str, Any]) -> EpochScores:
    predictors = {name: _measurement(each) for name, each in content["predictors"].items()}
    return EpochScores(epoch=content["epoch"], n_masks=content["n_masks"], predictors=predictors)


def _measurement(content: Mapping[str, Any]) -> PredictorMeasurement:
    restored: dict[str, Any] = {
        k: Estimate(**v) if isinstance(v, Mapping) else v for k, v in content.items()
    }
    return PredictorMeasurement(**restored)
