"""The record of a certificate: one JSON file with a digest, readable without torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lodrop_theory.records import Estimate, RecordError, content_hash, write_bytes_atomically

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class CertificateRecord:
    """What was certified, and everything that the number depends on.

    Attributes:
        run_id: Names the configuration.
        created: UTC time of the end, ISO 8601.
        config: The configuration, as JSON.
        environment: Versions, hardware, threads.
        n_pool: Distinct rows of the data set.
        n_population: Rows of the pool that the sample was drawn from: without reference rows.
        n_parameters: Parameters that the posterior moves and adds noise to.
        n_priors: Priors on the grid, all of them paid for.
        noise_std: Scale of the noise by trained parameter, in stored entries.
        kl_by_parameter: Divergence of each trained parameter's law from its prior. Nats.
        kl_nats: Their sum.
        training: Mean losses of the posterior over the sample: ``error_rate`` and
            ``empirical_risk`` (smoothed cross-entropy, nats).
        held_out: Measured risks on the held-out rows, by predictor and loss.
        bounds: One row per bound, as :meth:`~lodrop_theory.results.BoundResult.rows` gives it, with
            ``loss`` and ``hypotheses`` beside; each holds with probability 1 - delta by itself.
        epoch_losses: Mean cross-entropy of each training epoch, while the posterior moved. Nats.
        seconds: Wall-clock seconds of each stage.
        notes: What a reader must know.
    """

    run_id: str
    created: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    n_pool: int
    n_population: int
    n_parameters: int
    n_priors: int
    noise_std: Mapping[str, float]
    kl_by_parameter: Mapping[str, float]
    kl_nats: Estimate
    training: Mapping[str, Estimate]
    held_out: Mapping[str, Mapping[str, Estimate]]
    bounds: tuple[Mapping[str, Any], ...]
    epoch_losses: tuple[float, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    schema: int = SCHEMA

    def bound(self, bound: str, loss: str, predictor: str) -> Mapping[str, Any]:
        """The row of one bound.

        Args:
            bound: Such as ``"pac-bayes-kl"``.
            loss: ``"0-1"``, ``"0-1, majority vote"`` or ``"smoothed cross-entropy"``.
            predictor: ``"gibbs"``, ``"ensemble"`` or ``"mean"``.

        Raises:
            KeyError: If there is no such row.
        """
        for row in self.bounds:
            if (row["bound"], row["loss"], row["predictor"]) == (bound, loss, predictor):
                return row
        raise KeyError((bound, loss, predictor))


def write_certificate(record: CertificateRecord, path: str | os.PathLike[str]) -> None:
    """Write a record as JSON with its digest, atomically.

    Args:
        record: The record.
        path: The file; folders are made.
    """
    content = json.loads(json.dumps(asdict(record), allow_nan=False))
    content["digest"] = content_hash(content)
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_bytes_atomically(path, text.encode("utf-8"))


def read_certificate(path: str | os.PathLike[str]) -> CertificateRecord:
    """Read and verify a record.

    Args:
        path: The file.

    Raises:
        RecordError: If it is truncated, edited, or of another schema.
        FileNotFoundError: If there is no such file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        digest = content.pop("digest", None)
    except (ValueError, AttributeError) as error:
        raise RecordError(f"{path} must be a complete JSON record, got {error}.") from error
    if digest != content_hash(content):
        raise RecordError(f"{path} was edited after it was written: its `digest` does not match.")
    if content.get("schema") != SCHEMA or set(content) != {
        f.name for f in fields(CertificateRecord)
    }:
        raise RecordError(
            f"{path} must hold a certificate of schema {SCHEMA}, got {content.get('schema')!r}."
        )
    content["kl_nats"] = Estimate(**content["kl_nats"])
    content["training"] = {k: Estimate(**v) for k, v in content["training"].items()}
    content["held_out"] = {
        predictor: {loss: Estimate(**value) for loss, value in losses.items()}
        for predictor, losses in content["held_out"].items()
    }
    for name in ("bounds", "epoch_losses", "notes"):
        content[name] = tuple(content[name])
    return CertificateRecord(**content)
