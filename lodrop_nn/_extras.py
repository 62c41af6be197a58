"""One clear line for an optional dependency that is not installed."""

from importlib.util import find_spec

MODULES_OF_EXTRA: dict[str, tuple[str, ...]] = {
    "nn": (
        "torch",
        "transformers",
        "peft",
        "safetensors",
        "jaxtyping",
        "platformdirs",
        "torchmetrics",
        "fsspec",
    ),
    "figures": ("matplotlib", "jinja2", "pandas"),
    "notebooks": ("ipywidgets", "ipykernel", "nbclient"),
    "distributed": ("ray",),
    "smollm2": ("gguf",),
}


def require(extra: str) -> None:
    """Refuse to go on when a module of an extra is missing; imports none of them.

    Args:
        extra: Name of an extra of this distribution: 'nn', 'figures', 'notebooks',
            'distributed' or 'smollm2'.

    Raises:
        ImportError: If a module is missing; the text holds the line that installs it.
        ValueError: If there is no such extra.

    Example:
        >>> require("nn")
    """
    if extra not in MODULES_OF_EXTRA:
        raise ValueError(f"`extra` must be one of {sorted(MODULES_OF_EXTRA)}, got {extra!r}.")
    missing = [name for name in MODULES_OF_EXTRA[extra] if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"This part of lodrop needs {', '.join(missing)}: pip install 'lodrop[{extra}]'",
            name=missing[0],
        )
