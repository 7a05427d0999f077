"""The memory that ONNX Runtime's own arena says a run holds, node by node."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenrt.errors import TokenrtError
from tokenrt.passes.checking.check_data import Feed
from tokenrt.perf.profile.node_profile import KERNEL, read

HELD, GAINED = "mem_bytes_requested_in_use", "mem_requested_in_use_delta"
"""What the profiler of ONNX Runtime 1.31 notes behind each kernel: bytes the arena has handed out, and how many more by it."""


def peak(make: Callable[[Any], Any], options: Any, feed: Feed, *, reuse: bool = False) -> int:
    """The most bytes handed out behind a kernel, without what was there before the first: weights, and inputs that are fed.

    make: a session of the model with these options, which are changed. reuse: let the runtime keep the buffers of dead tensors
    for later ones of the same shape, as it does by default; it then holds more than is alive. The pattern of the first run,
    which later runs allocate at once, is off.

    Raises: TokenrtError where the runtime's profile says nothing of memory.
    """
    options.enable_mem_pattern = False
    options.enable_mem_reuse = reuse
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="tokenrt-") as folder:
        options.profile_file_prefix = str(Path(folder) / "memory")
        session = make(options)
        session.run(None, feed)
        events = read(Path(session.end_profiling()))
    kernels = [event["args"] for event in events if str(event["name"]).endswith(KERNEL)]
    if not kernels or HELD not in kernels[0]:
        raise TokenrtError("this ONNX Runtime's profile says nothing of memory: 1.31 does")
    before = _number(kernels[0], HELD) - _number(kernels[0], GAINED)
    return max(_number(each, HELD) for each in kernels) - before


def _number(told: Mapping[str, Any], name: str) -> int:
    return int(told[name])
