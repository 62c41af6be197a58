"""Finished stages of a certificate on disk, so that an interrupted one continues."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lodrop_theory.records import content_hash, write_bytes_atomically


class Stage(NamedTuple):
    """What a stage hands on.

    Attributes:
        tensors: By name.
        facts: JSON-able values.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def kept_stage(folder: Path, name: str, compute: Callable[[], Stage]) -> Stage:
    """A stage from its file, or computed now and written to it: ``folder/name.safetensors``.

    Args:
        folder: Folder of one configuration.
        name: Name of the stage.
        compute: Runs it.

    Returns:
        Equal values in both cases.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        stage = compute()
        tensors = {key: value.detach().cpu().contiguous() for key, value in stage.tensors.items()}
        facts = json.dumps(dict(stage.facts), sort_keys=True, allow_nan=False)
        metadata = {"facts": facts, "digest": content_hash({"facts": facts, "name": name})}
        write_bytes_atomically(path, save(tensors, metadata=metadata))
    return _read(path, name)


def _read(path: Path, name: str) -> Stage:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            facts = metadata.get("facts", "")
            if metadata.get("digest") != content_hash({"facts": facts, "name": name}):
                raise ValueError("its digest does not match")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- no mapping
            return Stage(tensors, json.loads(facts))
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} must be the finished stage {name!r}, got a damaged file ({error}): delete it "
            "and run again."
        ) from error
