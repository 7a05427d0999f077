"""The machine that measures."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from tokenrt.version import __version__

COMPUTING = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu")
"""Packages whose versions decide what comes out."""


def processor() -> str:
    """Its processor's name, as the maker gives it where that is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def about() -> dict[str, dict[str, str]]:
    """The versions of what computes, and the machine it does so on, as manifests tell them."""
    found = {name: metadata.version(name) for name in COMPUTING if _there(name)}
    return {
        "versions": {"tokenrt": __version__, "python": platform.python_version(), **found},
        "machine": {
            "processor": processor(),
            "processors": str(os.cpu_count()),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def _there(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
