"""Times on a GPU, each beside another of the same minute; none is compared with a number written down."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.gpu.helpers import needs
from tests.passes.ops.helpers.cases import alternate
from tokenrt.perf.bench.gpu import memory
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.launches import TYPES
from tokenrt.plugins.toolchain import device

pytestmark = needs.gpu


def launch(name: str, arguments: list[Any]) -> tuple[Any, Callable[[], object]]:
    """A context that holds the arrays on the GPU, and what launches on them."""
    assert needs.CAPABILITY is not None
    library = ctypes.CDLL(str(device.library((needs.CAPABILITY,))))
    arrays = [item for item in arguments if isinstance(item, np.ndarray)]
    held = memory.on_device(arrays)
    pointers = iter(held.__enter__())
    passed = [
        ctypes.c_void_p(next(pointers)) if isinstance(item, np.ndarray) else kernels._passed(item)
        for item in arguments
    ]
    return held, lambda: memory.check(getattr(library, f"host_{name}")(*passed), name)


def gather(width: int) -> list[Any]:
    rows, index = np.zeros((32, 197, width), np.float16), np.zeros((32, 577), np.int64)
    return [
        TYPES["float16"],
        rows,
        index,
        np.zeros((32, 577, width), np.float16),
        32,
        197,
        577,
        width,
    ]


def test_rows_of_whole_vectors_are_copied_faster_than_odd_ones() -> None:
    times = {}
    for width in (768, 767):
        held, run = launch("token_gather", gather(width))
        times[width] = min(memory.seconds(run) for _ in range(5))
        held.__exit__(None, None, None)
    assert times[768] < times[767]


def matching(batch: int, tokens: int) -> list[Any]:
    attributes = alternate(tokens, 1, 16, 0)
    lists = [np.array(attributes[name], np.int32) for name in ("sources", "destinations", "others")]
    counts = [len(listed) for listed in lists]
    metric = np.random.default_rng(0).standard_normal((batch, tokens, 64)).astype(np.float16)
    value, space = np.zeros((batch, counts[0]), np.float32), np.zeros(8 * batch * counts[0], np.uint8)
    outputs = [np.zeros((batch, count), np.int64) for count in (tokens - 16, 16, 16)]
    sizes = (batch, tokens, 64, *counts, 16, 0)
    return [TYPES["float16"], metric, *lists, value, *outputs, space, *sizes]


def test_a_full_gpu_matches_an_image_in_less_time_than_an_empty_one() -> None:
    times = {}
    for batch in (1, 256):
        held, run = launch("token_match", matching(batch, 197))
        times[batch] = min(memory.seconds(run) for _ in range(5)) / batch
        held.__exit__(None, None, None)
    assert times[256] < times[1]
