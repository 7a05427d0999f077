"""A step of `make gpu`: every operator's kernel against its reference, and its time beside that of the model of cost."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from tokenrt.errors import TargetError, TokenrtError
from tokenrt.passes.ops import OPERATORS
from tokenrt.passes.ops.contract import Array
from tokenrt.perf.bench.gpu import memory
from tokenrt.perf.bench.gpu.card import Card
from tokenrt.perf.bench.gpu.deadline import Deadline
from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.cost.jobs import Job, jobs
from tokenrt.perf.cost.model import MODELS, Block
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.launches import INDICES, KERNELS, TYPES
from tokenrt.plugins.toolchain import device

SMALL, TINY = Block(67, 64), {"tiny": Block(35, 32, 16)}
"""What kernels are compared with their references on, and what a dry run times."""

BATCHES = (1, 32)
ALIKE = 0.95
"""Share of equal indices: rounding may turn near ties over, and what is chosen one after the other then differs behind them."""

ERROR = 2e-3
"""Largest difference of numbers of about 1 in float32; the tests of the kernels have the strict rule."""


def values(job: Job, seed: int = 0) -> list[Array]:
    """Inputs of a call, seeded: numbers around 0, sizes and weights above it, positions that exist."""
    random, made = np.random.default_rng(seed), list[Array]()
    for name, shape in zip(OPERATORS[job.operator].inputs, job.shapes, strict=True):
        if name in INDICES:
            made.append(_positions(job, name, shape))
        elif name == "bias":
            made.append(np.zeros(shape, np.float32))
        elif name in ("size", "weight", "importance"):
            made.append(random.integers(1, 5, shape).astype(np.float32))
        else:
            made.append(random.standard_normal(shape).astype({2: np.float16, 4: np.float32}[job.item]))
    return made


def _positions(job: Job, name: str, shape: Sequence[int]) -> Array:
    """Survivors come first, those that leave behind them."""
    batch, count = shape
    kept = job.shapes[2][1] if job.operator == "TokenCombine" else job.shapes[0][1]
    row = np.arange(count, dtype=np.int64)
    row = row + kept if name == "source" else row % kept if name != "keep" else row
    return np.tile(row, (batch, 1))


@contextmanager
def bound(job: Job, library: ctypes.CDLL, *, gpu: bool) -> Iterator[tuple[Callable[[], object], list[Array]]]:
    """A function that starts an operator's launcher once, and the outputs, which hold the result behind the context.

    Raises: DeviceError where CUDA refuses; UnsupportedError for what the kernel refuses.
    """
    launch = KERNELS[job.operator](*values(job), **OPERATORS[job.operator].settle(job.attributes))
    given = [kernels.ready(array) for array in launch.inputs]
    made = [kernels.aligned(shape, kind) for shape, kind in launch.outputs]
    space = [] if launch.space is None else [kernels.aligned((kernels.space(launch),), np.uint8)]
    tensors, kind = [*given, *made, *space], TYPES.get(given[0].dtype.name, 0)
    function = getattr(library, f"host_{launch.name}")

    def starter(pointers: Sequence[int]) -> Callable[[], object]:
        # Strides of a bias are read on the host and are the only array among the numbers.
        places = [
            ctypes.c_void_p(at if tensor.size else None) for at, tensor in zip(pointers, tensors, strict=True)
        ]
        rest = [
            ctypes.c_void_p(item.ctypes.data)
            if isinstance(item, np.ndarray)
            else ctypes.c_float(item)
            if isinstance(item, float)
            else ctypes.c_int(int(item))
            for item in launch.numbers
        ]

        def start() -> None:
            memory.check(int(function(ctypes.c_int(kind), *places, *rest)), f"the launcher of {job.operator}")

        return start

    if not gpu:
        yield starter([tensor.ctypes.data for tensor in tensors]), made
        return
    with memory.on_device(tensors) as pointers:
        yield starter(pointers), made


def agreement(job: Job, library: ctypes.CDLL, *, gpu: bool) -> dict[str, Any]:
    """How far a kernel is from its NumPy reference: the share of equal indices, and the largest difference of numbers."""
    operator = OPERATORS[job.operator]
    with bound(job, library, gpu=gpu) as (start, outputs):
        start()
    wide = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in values(job)]
    wanted = operator.reference(*wide, **operator.settle(job.attributes))
    same, error = 1.0, 0.0
    for found, exact in zip(outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        if found.dtype.kind == "i":
            same = min(same, float(np.mean(found == exact)))
        else:
            error = max(error, float(np.max(np.abs(found.astype(np.float64) - exact), initial=0)))
    return {
        "equal_indices": round(same, 4),
        "largest_error": error,
        "agrees": same >= ALIKE and error <= ERROR,
    }


def run(card: Card | None, deadline: Deadline) -> dict[str, Any]:
    """Every operator: agreement at a small size, then times. card: None runs the host build, at a tiny size, once each."""
    gpu = card is not None
    library = ctypes.CDLL(str(device.library((card.capability,)))) if card is not None else kernels.library()
    compared = [_told(job, partial(agreement, job, library, gpu=gpu)) for job in _single(SMALL)]
    chip = _chip(card)
    timed = [
        {"model": name, "batch": batch, **_told(job, partial(_time, job, library, gpu, chip))}
        for name, block in (MODELS if gpu else TINY).items()
        for batch in (BATCHES if gpu else BATCHES[:1])
        for job in jobs(block, batch)
        if not deadline.over()
    ]
    failed = [each for each in (*compared, *timed) if "error" in each or each.get("agrees") is False]
    return {"failed": len(failed), "complete": not deadline.over(), "agreement": compared, "times": timed}


def _single(block: Block) -> Iterator[Job]:
    """All jobs in float32, in which near ties are rare."""
    for job in jobs(block, 2):
        yield Job(job.operator, job.setting, job.shapes, _in_float(job.attributes), 4)


def _in_float(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**attributes, **({"type": 1} if "type" in attributes else {})}


def _told(job: Job, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    try:
        found = measure()
    except TokenrtError as error:
        found = {"error": str(error)}
    return {"operator": job.operator, "setting": job.setting, **found}


def _time(job: Job, library: ctypes.CDLL, gpu: bool, chip: Chip | None) -> dict[str, Any]:
    with bound(job, library, gpu=gpu) as (start, _):
        if gpu:
            taken = memory.seconds(start, 20)
        else:
            begin = time.perf_counter()
            start()
            taken = time.perf_counter() - begin
    work = job.on(chip)
    model = None if chip is None else round(1e6 * work.seconds(chip), 2)
    return {"us": round(1e6 * taken, 2), "model_us": model, "launches": len(work.launches)}


def _chip(card: Card | None) -> Chip | None:
    target = None if card is None else card.target
    try:
        return None if target is None else Chip.of(target)
    except TargetError:
        return None
