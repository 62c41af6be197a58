"""Where a run took place: versions and hardware, for its record."""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

_DISTRIBUTIONS = ("lodrop", "torch", "transformers", "peft", "numpy", "scipy", "torchmetrics")


def environment(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """Versions, processor, threads and platform, as JSON-able values.

    Args:
        device: The device that the model runs on.

    Returns:
        Distribution names map to their versions; ``cpu``, ``device``, ``platform`` and ``python``
        to names; ``logical_cpus`` and ``torch_threads`` to counts. Nothing in it names the user,
        the machine or a path.

    Example:
        >>> environment()["torch"] == torch.__version__
        True
    """
    chosen = torch.device(device)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "device": name,
        "logical_cpus": os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
        **{each: _version(each) for each in _DISTRIBUTIONS},
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    """The marketing name where the system tells it; `platform.processor` is empty on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
