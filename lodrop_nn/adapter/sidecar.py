"""The file beside a saved adapter that says how its masks were drawn."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodrop_nn.masks import MaskSettings
from lodrop_theory.records import content_hash, write_bytes_atomically

FILE_NAME = "lora_dropout.json"
WEIGHTS_NAME = "adapter_model.safetensors"
SCHEMA = 2  # raise when the meaning of a field changes


class AdapterFileError(ValueError):
    """A saved adapter that cannot be trusted: missing, unknown, edited or mixed-up files."""


@dataclass(frozen=True, kw_only=True)
class SideCar:
    """Content of the side-car file.

    Attributes:
        settings: The law of the adapter's masks.
        is_folded: Whether each lora_B was multiplied by the mean factor of its masks when it was
            saved, so that plain PEFT loads the mean predictor.
        alpha_as_trained: ``lora_alpha`` and ``alpha_pattern`` of the adapter where the config
            beside it has the mean factor in these instead; else None.
        weights_sha256: SHA-256 of the weights file saved with it, or None if there was none.
    """

    settings: MaskSettings
    is_folded: bool = False
    alpha_as_trained: Mapping[str, Any] | None = None
    weights_sha256: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.is_folded, bool):
            raise ValueError(f"`is_folded` must be True or False, got {self.is_folded!r}.")
        alpha = self.alpha_as_trained
        if alpha is not None and set(alpha) != {"lora_alpha", "alpha_pattern"}:
            raise ValueError(
                "`alpha_as_trained` must be None or have `lora_alpha` and `alpha_pattern`, "
                f"got {alpha!r}."
            )


def write_sidecar(
    folder: Path,
    settings: MaskSettings,
    *,
    is_folded: bool,
    alpha_as_trained: Mapping[str, Any] | None = None,
) -> None:
    """Describe the adapter saved in a folder; written atomically, after the weights.

    Args:
        folder: Holds the adapter's files.
        settings: The law of the adapter's masks.
        is_folded: Whether each lora_B was multiplied by the mean factor of its masks.
        alpha_as_trained: What the config had where the factor was multiplied into that instead.
    """
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "method": "LoRA Dropout (Lin et al. 2024, arXiv:2404.09610)",
        "masks": settings.as_json(),
        "is_folded": is_folded,
        "alpha_as_trained": None if alpha_as_trained is None else dict(alpha_as_trained),
        "weights_sha256": weights_sha256(folder),
    }
    content["digest"] = content_hash(content)
    text = json.dumps(content, indent=2) + "\n"
    write_bytes_atomically(folder / FILE_NAME, text.encode())


def read_sidecar(folder: Path) -> SideCar:
    """Read and verify the side-car of a saved adapter.

    Args:
        folder: Holds the adapter's files.

    Returns:
        Its content.

    Raises:
        AdapterFileError: If the file is missing, of an unknown schema, truncated or edited, or
            was written for other weights than those beside it.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise AdapterFileError(f"{path} does not exist: no LoRA Dropout adapter was saved there.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema, digest = content["schema"], content.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterFileError(f"{path} is truncated or no side-car of LoRA Dropout.") from error
    if schema != SCHEMA:
        raise AdapterFileError(
            f"{path} must have schema {SCHEMA}, got {schema!r}: it comes from another version."
        )
    if digest != _digest(content):
        raise AdapterFileError(f"{path} was edited: its digest does not match its content.")
    try:
        sidecar = SideCar(
            settings=MaskSettings(**content["masks"]),
            is_folded=content["is_folded"],
            alpha_as_trained=content.get("alpha_as_trained"),
            weights_sha256=content["weights_sha256"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterFileError(f"{path} does not describe masks: {error}") from error
    if sidecar.weights_sha256 != weights_sha256(folder):
        raise AdapterFileError(
            f"{path} was not written for the {WEIGHTS_NAME} beside it: the weights are missing, "
            "were replaced, or saving was interrupted."
        )
    return sidecar


def _digest(content: dict[str, Any]) -> str | None:
    """Content hash, or None for content that has none."""
    try:
        return content_hash(content)
    except ValueError:  # NaN or infinity, which were never written
        return None


def weights_sha256(folder: Path) -> str | None:
    """SHA-256 of the weights of a saved adapter, or None if there are none."""
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
