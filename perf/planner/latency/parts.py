"""The parts that a run's time is made of: attention and the rest of each block, each reduction, and what is around the blocks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
LEAST = 0.2
"""Of a part's time, what is left of it at the least when the profiler's own is taken from it."""


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
    """Shares of an unreduced run: of a whole run without a profiler, and of each part of a profiled one.

    kernels: how many each part starts. milliseconds: of the unreduced run itself.
    """

    whole: float
    parts: Mapping[str, float]
    milliseconds: float
    kernels: Mapping[str, int] = field(default_factory=dict)

    @property
    def noted(self) -> float:
        """By how much of an unreduced run the profiler has made this one longer, a kernel."""
        return (sum(self.parts.values()) - self.whole) / max(sum(self.kernels.values()), 1)

    def without(self, noted: float) -> Times:
        """The same with so much taken from each kernel, as far as LEAST of a part is left; parts add up to the whole run."""
        left = {
            name: max(share - noted * self.kernels.get(name, 0), LEAST * share)
            for name, share in self.parts.items()
        }
        scale = self.whole / sum(left.values())
        return replace(self, parts={name: share * scale for name, share in left.items()})


def measure(bench: Workbench, model: ir.Model, known: Mapping[str, str], feed: Feed, rounds: int) -> Times:
    """Time a model and its parts in rounds with the unreduced model, one after the other.

    The whole run is timed without a profiler, its parts with one. Raises: TokenrtError where the profile holds other runs.
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
    kernels = named_kernels(events, len(order), len(runs))
    return Times(
        float(np.median(own / base)),
        {name: float(share) for name, share in zip(order, shares, strict=True)},
        float(np.median(base)) * 1e3,
        dict(zip(order, kernels, strict=True)),
    )


def _seconds(session: Any, feed: Feed) -> float:
    start = time.perf_counter()
    session.run(None, feed)
    return time.perf_counter() - start


def total(times: Times, blocks: Sequence[int]) -> float:
    """The share of a run that is in no block and no reduction at one."""
    own = {name(block) for block in blocks for name in (attention, feedforward, reduction)}
    return sum(share for part, share in times.parts.items() if part not in own)
