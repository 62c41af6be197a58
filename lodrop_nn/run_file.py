"""The file beside an adapter of a comparison that says which run trained it, and on which rows."""

import json
from pathlib import Path

from lodrop_nn.config import RunConfig
from lodrop_theory.records import write_bytes_atomically

RUN_NAME = "run.json"


def write_run(folder: Path, config: RunConfig) -> None:
    """Describe the run of the adapter saved in ``folder``; written after everything else."""
    text = json.dumps(config.as_json(), indent=1) + "\n"
    write_bytes_atomically(folder / RUN_NAME, text.encode())


def read_run(folder: Path) -> RunConfig | None:
    """The run of the adapter in ``folder``, or None where nothing tells.

    Raises:
        ValueError: If the file is there and does not describe a run.
    """
    path = folder / RUN_NAME
    if not path.is_file():
        return None
    try:
        return RunConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must describe a run of `lodrop compare`: {error}") from error
