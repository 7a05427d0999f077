"""What the tests of this folder need, said once: they are collected everywhere, and skipped with this reason."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec

import pytest


def _capability() -> int | None:
    """Compute capability of the first GPU, times ten; None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    for number, place in (
        (75, major),
        (76, minor),
    ):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        driver.cuDeviceGetAttribute(ctypes.byref(place), number, 0)
    return 10 * major.value + minor.value


CAPABILITY = _capability()
gpu = pytest.mark.skipif(CAPABILITY is None, reason="no NVIDIA GPU here")
tensorrt = pytest.mark.skipif(
    find_spec("tensorrt") is None, reason="no tensorrt here: pip install 'tokenrt[tensorrt]'"
)
