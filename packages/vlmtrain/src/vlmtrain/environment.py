"""What a result depends on besides its inputs: versions and device."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["describe_environment"]

_PACKAGES = (
    "vlmtrain",
    "vlmdata",
    "torch",
    "transformers",
    "trl",
    "peft",
    "unsloth",
    "unsloth_zoo",
    "bitsandbytes",
    "datasets",
)


def describe_environment() -> dict[str, Any]:
    """Versions of the packages that shape a run, and the device it ran on."""
    import torch

    return {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"cpu ({platform.machine()})",
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
