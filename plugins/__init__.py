"""CUDA kernels of the operators, the TensorRT plugins around them, and their host build.

`build`, `info` and `load` are about the TensorRT plugin library; they load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenrt.plugins.library import build as build
    from tokenrt.plugins.library import info as info
    from tokenrt.plugins.library import load as load

__all__ = ["build", "info", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tokenrt.plugins import library

    return getattr(library, name)
