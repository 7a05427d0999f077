"""The GPU that is here, asked of its driver, and the target whose profile it is."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass

from tokenrt.targets import Target, targets

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the driver's header."""


@dataclass(frozen=True)
class Card:
    """The first GPU: its name, compute capability times ten, and the CUDA release of its driver times a thousand."""

    name: str
    capability: int
    driver: int

    @property
    def target(self) -> Target | None:
        """The target of the same compute capability that is named after it, as h100 is after NVIDIA H100 80GB HBM3."""
        words = re.findall(r"[a-z0-9]+", self.name.lower())
        own = f"{self.capability // 10}.{self.capability % 10}"
        named = (each for each in targets() if each.compute_capability == own)
        return next((each for each in named if set(each.name.split("-")) <= set(words)), None)


def card() -> Card | None:
    """The first GPU, or None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, version, number = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(number), 0)
    driver.cuDeviceGetName(name, len(name), number)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return Card(
        name.value.decode(), 10 * _attribute(driver, MAJOR) + _attribute(driver, MINOR), version.value
    )


def _attribute(driver: ctypes.CDLL, which: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, 0)
    return value.value
