"""What a run leaves on disk: a record, the logits that its scores come from, the weights."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from lodrop_nn.measure.environment import environment
from lodrop_theory.records import content_hash, write_bytes_atomically

SCHEMA = 1
ROOT = Path(__file__).parents[3]
RUNS = ROOT / "runs" / "quality"
Logits = Mapping[str, NDArray[np.float32]]


def run_id(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of a configuration; files are named after them."""
    return content_hash({"schema": SCHEMA, **config})[:12]


def source_hash() -> str:
    """SHA-256 over the packages and this benchmark, as they were run."""
    digest = hashlib.sha256()
    for folder in ("lodrop_nn", "lodrop_theory", "tests/benchmarks/quality"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def write(
    folder: Path,
    config: Mapping[str, Any],
    results: Mapping[str, Any],
    logits: Logits,
    weights: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
) -> Path:
    """Write a finished run; the record comes last, so a record means that all is there."""
    name = run_id(config)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **logits)
    write_bytes_atomically(folder / "logits" / f"{name}.npz", buffer.getvalue())
    tensors = {key: value.contiguous() for key, value in weights.items()}
    write_bytes_atomically(folder / "weights" / f"{name}.safetensors", save(tensors))
    content = {
        "schema": SCHEMA,
        "run_id": name,
        "config": dict(config),
        "environment": {**environment(), **provenance},
        **results,
    }
    content = json.loads(json.dumps(content, allow_nan=False))
    content["digest"] = content_hash(content)
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    path = folder / "records" / f"{name}.json"
    write_bytes_atomically(path, text.encode())
    return path


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """A record, or None where there is none that can be trusted."""
    try:
        content = json.loads((folder / "records" / f"{name}.json").read_text(encoding="utf-8"))
        digest = content.pop("digest")
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
    sound = digest == content_hash(content) and content["schema"] == SCHEMA
    return content if sound else None


def read_all(folder: Path) -> Iterator[dict[str, Any]]:
    """All records that can be trusted, by file name."""
    for path in sorted((folder / "records").glob("*.json")):
        content = read(folder, path.stem)
        if content is not None:
            yield content


def read_logits(folder: Path, name: str) -> dict[str, NDArray[np.float32]]:
    """The logits of a finished run."""
    with np.load(folder / "logits" / f"{name}.npz") as archive:
        return dict(archive)
