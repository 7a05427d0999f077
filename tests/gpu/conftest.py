"""The kernels' launchers called on the GPU instead of on the CPU, with everything else as it is."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.gpu.helpers import needs
from tokenrt.perf.bench.gpu import memory
from tokenrt.plugins.host import kernels
from tokenrt.plugins.toolchain import device

STAYS = {"token_score": (-1,)}
"""Launcher -> arguments that it reads on the host: the strides of a bias."""


@pytest.fixture
def launchers_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kernels.run` and all that builds on it runs the library compiled by nvcc, on device memory."""
    assert needs.CAPABILITY is not None
    library = ctypes.CDLL(str(device.library((needs.CAPABILITY,))))

    def call(name: str, *arguments: Any) -> None:
        stays = {place % len(arguments) for place in STAYS.get(name, ())}
        moved = {
            place: item
            for place, item in enumerate(arguments)
            if isinstance(item, np.ndarray) and item.size and place not in stays
        }
        with memory.on_device(list(moved.values())) as pointers:
            passed = [kernels._passed(item) for item in arguments]
            for place, pointer in zip(moved, pointers, strict=True):
                passed[place] = ctypes.c_void_p(pointer)
            status = int(getattr(library, f"host_{name}")(*passed))
        kernels._check(name, status, arguments)

    monkeypatch.setattr(kernels, "library", lambda: library)
    monkeypatch.setattr(kernels, "call", call)
