"""The parts that a run's time is made of: attention and the rest of each block, each reduction, and what is around the blocks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.checking.check_data import Feed
from tokenrt.passes.graph.ancestry import between
from tokenrt.perf.planner.workbench import Workbench
from tokenrt.perf.profile.groups import REDUCTION, groups_of
from tokenrt.perf.profile.node_profile import labelled, named_kernels, read, split

ATTENTION = ", attention"
WARM_UP = 2


def parts_of(prepared: Prepared) -> dict[str, str]:
    """The part of every named node of an unreduced model: its block up to the sum behind attention, the rest of it, or around."""
    found = groups_of(prepared)
    for block in prepared.structure.blocks:
        if block.attended is not None:
            for node in between(block.entry, block.attended):
                if str(node.name) in found:
                    found[str(node.name)] = attention(block.index)
    return found


def attention(block: int) -> str:
    """The part of a block that runs before its attention is added."""
    return f"block {block}{ATTENTION}"


def feedforward(block: int) -> str:
    """The rest of a block."""
    return f"block {block}"


def reduction(block: int) -> str:
    """What a site at a block put in."""
    return f"block {block}{REDUCTION}"


@dataclass(frozen=True)
class Times:
    """Shares of an unreduced run: of a whole run, and of each part in it; milliseconds of the unreduced run itself.

    Parts add up to the whole run.
    """

    whole: float
    parts: Mapping[str, float]
    milliseconds: float


def measure(bench: Workbench, model: ir.Model, known: Mapping[str, str], feed: Feed, rounds: int) -> Times:
    """Time a model and its parts in rounds with the unreduced model, one after the other.

    The whole run is timed without a profiler. Its parts are of a profiled run, from which is taken, for each kernel alike, by
    what the profiler has made the run longer. Raises: TokenrtError where the profile holds other runs.
    """
    with tempfile.TemporaryDirectory(prefix="tokenrt-") as folder:
        named, order = labelled(model, known)
        profiled = bench.profiled(named, Path(folder) / "nodes")
        sessions = [bench.original(), bench.session(model), profiled]
        taken = np.array([[_seconds(each, feed) for each in sessions] for _ in range(WARM_UP + rounds)])
        events = read(Path(profiled.end_profiling()))
    runs, groups = split(events, len(order))
    if len(runs) != len(taken):
        raise TokenrtError(f"ONNX Runtime's profile holds {len(runs)} runs, and {len(taken)} were made")
    base, own = taken[WARM_UP:, 0], taken[WARM_UP:, 1]
    shares = np.median(np.asarray(groups)[WARM_UP:] * 1e-6 / base[:, None], axis=0)
    whole = float(np.median(own / base))
    kernels = named_kernels(events, len(order), len(runs))
    longer = (shares.sum() - whole) / max(sum(kernels), 1)
    corrected = np.maximum(shares - longer * np.asarray(kernels), 0)
    corrected *= whole / corrected.sum()
    parts = {name: float(share) for name, share in zip(order, corrected, strict=True)}
    return Times(whole, parts, float(np.median(base)) * 1e3)


def _seconds(session: Any, feed: Feed) -> float:
    start = time.perf_counter()
    session.run(None, feed)
    return time.perf_counter() - start


def total(times: Times, blocks: Sequence[int]) -> float:
    """The share of a run that is in no block and no reduction at one."""
    own = {name(block) for block in blocks for name in (attention, feedforward, reduction)}
    return sum(share for part, share in times.parts.items() if part not in own)
