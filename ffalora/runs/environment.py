"""What a reader needs to repeat a run: versions, device, threads, number formats, backends."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from ffalora_kernels import explain
from ffalora_kernels.dispatch import processor_choices

from .._version import __version__
from ..models import has_fast_bfloat16

_PACKAGES = ("torch", "triton", "transformers", "opacus", "datasets", "numpy", "peft", "dp-accounting")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions and device as plain JSON values; no paths and no names of people or machines."""
    return {
        "ffalora": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "fast_bfloat16": has_fast_bfloat16(device),
        "backends": explain(),
        "processor": processor_choices(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
