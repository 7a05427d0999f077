"""Arrays on the GPU and back, and times measured on its own clock, by the CUDA runtime of the toolkit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tokenrt.errors import DeviceError
from tokenrt.plugins.toolchain import nvcc

TO_DEVICE, TO_HOST = 1, 2


def runtime() -> ctypes.CDLL:
    """The CUDA runtime of the toolkit that compiled the kernels."""
    root = nvcc.toolkit().root
    found = [path for folder in ("lib64", "lib") for path in sorted((root / folder).glob("libcudart.so*"))]
    library = ctypes.CDLL(str(found[0]) if found else "libcudart.so")
    library.cudaMalloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.cudaMemcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.cudaFree.argtypes = [ctypes.c_void_p]
    return library


def check(status: int, what: str) -> None:
    """Raises: DeviceError where a call of CUDA returned an error."""
    if status:
        raise DeviceError(f"{what}: CUDA error {status}")


@contextmanager
def on_device(arrays: Sequence[Any], fence: int = 256) -> Iterator[list[int]]:
    """Copies of the arrays on the GPU, copied back at the end; what lies just behind each must stay as it was.

    Raises: DeviceError where CUDA refuses, or something was written behind a tensor.
    """
    cuda, pointers = runtime(), []
    guard = np.full(fence, 0xA5, np.uint8)
    try:
        for array in arrays:
            place = ctypes.c_void_p()
            check(cuda.cudaMalloc(ctypes.byref(place), array.nbytes + fence), "cudaMalloc")
            pointers.append(place.value or 0)
            check(cuda.cudaMemcpy(pointers[-1], array.ctypes.data, array.nbytes, TO_DEVICE), "cudaMemcpy")
            behind = pointers[-1] + array.nbytes
            check(cuda.cudaMemcpy(behind, guard.ctypes.data, fence, TO_DEVICE), "cudaMemcpy")
        yield pointers
        check(cuda.cudaDeviceSynchronize(), "the kernel")
        found = np.zeros(fence, np.uint8)
        for array, pointer in zip(arrays, pointers, strict=True):
            check(cuda.cudaMemcpy(array.ctypes.data, pointer, array.nbytes, TO_HOST), "cudaMemcpy")
            check(cuda.cudaMemcpy(found.ctypes.data, pointer + array.nbytes, fence, TO_HOST), "cudaMemcpy")
            if not (found == guard).all():
                raise DeviceError(
                    f"something was written behind a tensor of shape {list(array.shape)}: a kernel is at fault"
                )
    finally:
        for pointer in pointers:
            cuda.cudaFree(pointer)


def seconds(run: Callable[[], object], times: int = 50) -> float:
    """The time of one run, out of `times` in a row, between two events on the GPU."""
    cuda = runtime()
    start, end, passed = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_float()
    for event in (start, end):
        check(cuda.cudaEventCreate(ctypes.byref(event)), "cudaEventCreate")
    run()
    check(cuda.cudaEventRecord(start, None), "cudaEventRecord")
    for _ in range(times):
        run()
    check(cuda.cudaEventRecord(end, None), "cudaEventRecord")
    check(cuda.cudaEventSynchronize(end), "cudaEventSynchronize")
    check(cuda.cudaEventElapsedTime(ctypes.byref(passed), start, end), "cudaEventElapsedTime")
    return passed.value / 1e3 / times
