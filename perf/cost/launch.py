"""One launch of a kernel, and how long it and several that depend on each other take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenrt.perf.cost.chip import Chip

RESIDENT_THREADS, RESIDENT_BLOCKS = 1536, 16
"""Threads and blocks that every multiprocessor since 8.6 can hold at once: CUDA C++ Programming Guide, technical
specifications by compute capability. 8.0 and 9.0 hold more."""


@dataclass(frozen=True)
class Launch:
    """One launch.

    Units: threads of a block; cycles from the first to the last instruction of a block that has its multiprocessor for
    itself; bytes read and written, each once; floating-point operations in float32; products: such on tensor cores, those of
    float32 rows counted twice, which take twice as long as those of half ones.
    """

    kernel: str
    blocks: int
    threads: int
    cycles: float
    bytes: float
    operations: float = 0
    products: float = 0

    def waves(self, chip: Chip) -> int:
        """How many times the blocks fill the multiprocessors, the last time perhaps in part."""
        resident = max(min(RESIDENT_BLOCKS, RESIDENT_THREADS // self.threads), 1)
        return -(-self.blocks // (chip.multiprocessors * resident))

    def parts(self, chip: Chip) -> dict[str, float]:
        """Seconds that each limit alone would take, of which the longest counts."""
        busy = min(1.0, self.blocks / chip.multiprocessors)
        return {
            "latency": self.waves(chip) * self.cycles / chip.clock,
            "memory": self.bytes / chip.bandwidth,
            "arithmetic": (self.operations / chip.vector + self.products / chip.products) / busy,
        }

    def seconds(self, chip: Chip) -> float:
        """The start, and then the longest of latency, memory and arithmetic."""
        return chip.launch + max(self.parts(chip).values())


@dataclass(frozen=True)
class Work:
    """What one call of an operator launches, in order, each waiting for the one before."""

    operator: str
    launches: tuple[Launch, ...]

    def longest(self, chip: Chip) -> Launch:
        """The launch that takes the most time."""
        return max(self.launches, key=lambda launch: launch.seconds(chip))

    @property
    def bytes(self) -> float:
        return sum(launch.bytes for launch in self.launches)

    @property
    def operations(self) -> float:
        return sum(launch.operations + launch.products for launch in self.launches)

    def seconds(self, chip: Chip) -> float:
        return sum(launch.seconds(chip) for launch in self.launches)

    def bound(self, chip: Chip) -> str:
        """What most of the time goes into: launches, latency, memory or arithmetic."""
        spent = dict.fromkeys(("launches", "latency", "memory", "arithmetic"), 0.0)
        for launch in self.launches:
            parts = launch.parts(chip)
            longest = max(parts, key=lambda name: parts[name])
            spent["launches"] += chip.launch
            spent[longest] += parts[longest]
        return max(spent, key=lambda name: spent[name])

    def as_dict(self) -> dict[str, Any]:
        return {
            "operator": self.operator,
            "launches": [
                {"kernel": each.kernel, "blocks": each.blocks, "threads": each.threads}
                for each in self.launches
            ],
            "bytes": round(self.bytes),
            "operations": round(self.operations),
        }
