"""Each operator as methods use it at a block of a model: the rows of the table of costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.cost.choosing import GRAM_MOST
from tokenrt.perf.cost.launch import Work
from tokenrt.perf.cost.model import Block
from tokenrt.perf.cost.operators import work

PROTECT, REMOVE, ROUNDS, NEIGHBOURS, GROUPS = 1, 16, 3, 5, 4
"""A class token; tokens that leave by merging; rounds and neighbours of the clusterings; groups of TokenGroupSelect."""

SINGLE = 4


@dataclass(frozen=True)
class Job:
    """A call of an operator. setting: in words. item: bytes of an element of what keeps its own type."""

    operator: str
    setting: str
    shapes: Sequence[Sequence[int]]
    attributes: Mapping[str, Any]
    item: int = 2

    @property
    def work(self) -> Work:
        """What every GPU can launch."""
        return self.on(None)

    def on(self, chip: Chip | None) -> Work:
        """What this GPU launches."""
        return work(self.operator, self.shapes, self.attributes, self.item, chip)


def jobs(block: Block, batch: int) -> Iterator[Job]:
    """Every operator, in each of the ways it is used: one class token, 16 tokens merged away, 0.7 of the others chosen."""
    yield from _choosing(block, batch)
    yield from _merging(block, batch)
    yield from _clustering(block, batch)


def _kept(tokens: int, ratio: float) -> int:
    return math.ceil(ratio * (tokens - PROTECT)) + PROTECT


def _choosing(block: Block, batch: int) -> Iterator[Job]:
    b, n, c, h, d = batch, block.tokens, block.width, block.heads, block.head
    keep, some = _kept(n, 0.7), _kept(n, 0.25)
    sizes = {"keep": [keep], "protect": [PROTECT]}
    for order, told in enumerate(("position", "score")):
        yield Job("TokenSelect", f"0.7, by {told}", [(b, n)], {**sizes, "order": order}, SINGLE)
    each = (n - PROTECT) // GROUPS
    lengths = [each] * (GROUPS - 1) + [n - PROTECT - each * (GROUPS - 1)]
    quotas = [math.ceil(0.7 * length) for length in lengths]
    groups = {"keep": [sum(quotas) + PROTECT], "protect": [PROTECT], "lengths": lengths, "quotas": quotas}
    yield Job("TokenGroupSelect", "0.7 of 4 groups", [(b, n)], groups, SINGLE)
    heads, bias = (b, h, n, d), (1, 1, 1, 1)
    for rows, told in ((1, "one row"), (n, "all rows")):
        asked = {"scale": d**-0.5, "first_row": [0], "end_row": [rows]}
        yield Job("TokenScore", told, [heads, heads, bias], asked)
    few = {"keep": [some], "protect": [PROTECT], "order": 0, "power": 1.0, "mix": 0.5}
    rows_of = [(b, n, c), (b, n)]
    yield Job("TokenGreedySelect", "0.25, farthest first", rows_of, {**few, "objective": 0, "seed": 0})
    yield Job("TokenCoverSelect", "0.25", rows_of, few)
    if n <= GRAM_MOST:
        damped = {**sizes, "keep": [some], "order": 0, "mix": 0.5, "epsilon": 1e-6}
        yield Job("TokenDeterminantSelect", "0.25", rows_of, damped)


def _merging(block: Block, batch: int) -> Iterator[Job]:
    b, n, c, d = batch, block.tokens, block.width, block.head
    kept = n - REMOVE
    match = {
        "sources": [*range(PROTECT, n, 2)],
        "destinations": [*range(PROTECT + 1, n, 2)],
        "others": [*range(PROTECT)],
        "keep": [kept],
        "remove": [REMOVE],
        "order": 0,
    }
    metrics = ((d, "mean keys"), (c, "all channels"))
    for width, told in metrics:
        yield Job("TokenMatch", f"16 leave, {told}", [(b, n, width)], match)
    lists = [(b, n, c), (b, n, 1), (b, kept), (b, REMOVE), (b, REMOVE)]
    yield Job("TokenCombine", "16 leave", lists, {"type": 10})
    for width, told in metrics:
        yield Job("TokenMerge", f"16 leave, {told}", [*lists[:2], (b, n, width)], {**match, "type": 10})
    yield Job("TokenRestore", "16 come back", [(b, kept, c), (b, n)], {})


def _clustering(block: Block, batch: int) -> Iterator[Job]:
    b, points, c = batch, block.tokens - PROTECT, block.width
    keep = math.ceil(0.7 * points)
    merged = {"keep": [keep], "remove": [points - keep], "linkage": 2}
    yield Job("TokenCluster", "0.7, mean keys", [(b, points, block.head)], merged)
    rows, weight, start = (b, points, c), (b, points), (b, keep)
    yield Job("TokenPeaks", "0.7", [rows], {"keep": [keep], "neighbours": [NEIGHBOURS]}, SINGLE)
    yield Job("TokenMeans", "0.7, 3 rounds", [rows, weight, start], {"rounds": ROUNDS}, SINGLE)
    yield Job("TokenMedoids", "0.7, 3 rounds", [rows, weight, start], {"rounds": ROUNDS, "power": 2}, SINGLE)
