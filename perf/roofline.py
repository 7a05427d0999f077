"""What each operator's kernels move and compute, and the least time a device needs for it: a model, no measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tokenrt.errors import TargetError
from tokenrt.targets import load

HALF, SINGLE, INDEX, PLACE = 2, 4, 8, 4
"""Bytes of the tokens' elements (fp16), of scores and sizes, of indices (int64), and of positions in lists (int32)."""


@dataclass(frozen=True)
class Launch:
    """One launch. Units: bytes read and written, each once; floating-point operations, a multiply-add being two."""

    kernel: str
    reads: float
    writes: float
    operations: float = 0


@dataclass(frozen=True)
class Work:
    """An operator at one setting. Units: bytes of its inputs and outputs, each once."""

    operator: str
    setting: str
    inputs: float
    outputs: float
    launches: tuple[Launch, ...]

    @property
    def least(self) -> float:
        """Bytes that any implementation moves: inputs read once, outputs written once."""
        return self.inputs + self.outputs

    @property
    def moved(self) -> float:
        """Bytes that these launches move, where caches serve what is read again within one and nothing in between."""
        return sum(launch.reads + launch.writes for launch in self.launches)

    @property
    def operations(self) -> float:
        return sum(launch.operations for launch in self.launches)

    def seconds(self, device: Device) -> float:
        """The roofline: each launch waits for its memory or its arithmetic, whichever takes longer."""
        return sum(
            max((launch.reads + launch.writes) / device.bandwidth, launch.operations / device.operations)
            for launch in self.launches
        )

    def bound(self, device: Device) -> str:
        """What most of that time is spent on."""
        memory = sum(
            (launch.reads + launch.writes) / device.bandwidth
            for launch in self.launches
            if (launch.reads + launch.writes) / device.bandwidth >= launch.operations / device.operations
        )
        return "memory" if 2 * memory >= self.seconds(device) else "arithmetic"


@dataclass(frozen=True)
class Device:
    """Units: bytes a second, fp32 operations a second."""

    name: str
    bandwidth: float
    operations: float


@dataclass(frozen=True)
class Block:
    """A block of a vision transformer, and what is asked of it: K tokens kept by pruning, R removed by merging."""

    tokens: int = 197
    width: int = 768
    heads: int = 12
    head: int = 64
    protect: int = 1
    remove: int = 16
    keep: int = math.ceil(0.7 * 196) + 1


VIT_B = Block()
"""The first block of ViT-B/16 at 224 x 224: `tome --remove 16`, or seven tokens in ten kept, class token apart."""

DEVICES = ("orin-nano", "l4", "a100", "h100")


def device(name: str) -> Device:
    """The device of a target profile. Raises: TargetError where its profile lacks a figure."""
    target = load(name)
    bandwidth, operations = target.fact("bandwidth_gb_s"), target.fact("vector_tflops", {}).get("fp32")
    if not bandwidth or not operations:
        raise TargetError(
            f"target {name} does not state bandwidth_gb_s and vector_tflops.fp32, which a roofline needs"
        )
    return Device(name, bandwidth * 1e9, operations * 1e12)


def select(batch: int, b: Block, order: str) -> Work:
    scores, index, places = batch * b.tokens * SINGLE, batch * b.keep * INDEX, batch * b.keep * PLACE
    if order == "position":
        launches: tuple[Launch, ...] = (Launch("by_position", scores, index),)
    else:
        launches = Launch("by_position", scores, places), Launch("by_score", scores + places, index)
    return Work("TokenSelect", f"{b.keep} of {b.tokens}, by {order}", scores, index, launches)


def match(batch: int, b: Block) -> Work:
    sources = (b.tokens - b.protect + 1) // 2
    destinations = b.tokens - b.protect - sources
    metric, lists = batch * b.tokens * b.head * HALF, b.tokens * PLACE
    value, ranks = batch * sources * SINGLE, batch * sources * PLACE
    keep, pairs = batch * (b.tokens - b.remove) * INDEX, 2 * batch * b.remove * INDEX
    products = 2 * batch * (sources * destinations + b.tokens) * b.head
    return Work(
        "TokenMatch", f"{sources} x {destinations}, {b.remove} leave", metric + lists, value + keep + pairs,
        (
            Launch("similarity", metric + lists, value + ranks, products),
            Launch("rank", value + ranks + sources * PLACE, ranks + pairs),
            Launch("arrange", ranks + lists, keep),
        ),
    )  # fmt: skip


def combine(batch: int, b: Block) -> Work:
    kept = b.tokens - b.remove
    tokens, merged = batch * b.tokens * b.width * HALF, batch * kept * b.width * HALF
    sizes, totals = batch * b.tokens * SINGLE, batch * kept * SINGLE
    lists = batch * (kept + 2 * b.remove) * INDEX
    reads, writes = tokens + sizes + lists, merged + totals
    launch = Launch("merge", reads, writes, 2 * batch * b.tokens * b.width)
    return Work("TokenCombine", f"{b.tokens} to {kept}", reads, writes, (launch,))


def restore(batch: int, b: Block) -> Work:
    kept = b.tokens - b.remove
    reads = batch * (kept * b.width * HALF + b.tokens * INDEX)
    writes = batch * b.tokens * b.width * HALF
    return Work("TokenRestore", f"{kept} to {b.tokens}", reads, writes, (Launch("copy_rows", reads, writes),))


def score(batch: int, b: Block, rows: int) -> Work:
    images = batch * b.heads
    keys, queries = images * b.tokens * b.head * HALF, images * rows * b.head * HALF
    logits, mean = images * rows * b.tokens * SINGLE, batch * b.tokens * SINGLE
    states, sums = 2 * images * rows * SINGLE, images * b.tokens * SINGLE
    products = 2 * images * rows * b.tokens * b.head
    if rows == 1:
        launches: tuple[Launch, ...] = (
            Launch("few", keys + queries, logits + states, products),
            Launch("few_mean", logits + states, mean),
        )
    else:
        launches = (
            Launch("row_statistics", keys + queries, states, products),
            Launch("column_sums", keys + queries + states, sums, products),
            Launch("many_mean", sums, mean),
        )
    return Work("TokenScore", f"{rows} of {b.tokens} rows", keys + queries, mean, launches)


Model = Callable[[int, Block], Work]

WORKS: Mapping[str, Sequence[Model]] = MappingProxyType(
    {
        "TokenSelect": (lambda n, b: select(n, b, "position"), lambda n, b: select(n, b, "score")),
        "TokenMatch": (match,),
        "TokenCombine": (combine,),
        "TokenRestore": (restore,),
        "TokenScore": (lambda n, b: score(n, b, 1), lambda n, b: score(n, b, b.tokens)),
    }
)
"""Operator -> its work for a batch and a block, in each of the ways it is used."""


def works(batch: int, block: Block = VIT_B) -> list[Work]:
    """What every operator does for one block of a model."""
    return [model(batch, block) for models in WORKS.values() for model in models]
