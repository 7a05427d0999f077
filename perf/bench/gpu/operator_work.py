"""What each operator's kernels move and compute for a block of a vision transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tokenrt.perf.bench.gpu.roofline import Launch, Work

HALF, SINGLE, INDEX, PLACE = 2, 4, 8, 4
"""Bytes of the tokens' elements (fp16), of scores and sizes, of indices (int64), and of positions in lists (int32)."""

GROUPS, ROUNDS, TILE = 4, 3, 32
"""Of TokenGroupSelect; rounds of the methods that move centres; rows of the tiles they compare."""


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


def select(batch: int, b: Block, order: str) -> Work:
    scores, index, places = batch * b.tokens * SINGLE, batch * b.keep * INDEX, batch * b.keep * PLACE
    if order == "position":
        launches: tuple[Launch, ...] = (Launch("by_position", scores, index),)
    else:
        launches = Launch("by_position", scores, places), Launch("by_score", scores + places, index)
    return Work("TokenSelect", f"{b.keep} of {b.tokens}, by {order}", scores, index, launches)


def group_select(batch: int, b: Block) -> Work:
    scores, lists, index = batch * b.tokens * SINGLE, 2 * GROUPS * PLACE, batch * b.keep * INDEX
    launch = Launch("by_group", scores + lists, index)
    return Work(
        "TokenGroupSelect", f"{b.keep} of {b.tokens}, {GROUPS} groups", scores + lists, index, (launch,)
    )


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


def _choices(batch: int, b: Block) -> tuple[int, int, int, int]:
    """Bytes of all tokens, of a number each and of the index, and the operations of a row of cosines a choice."""
    turns = 2 * batch * b.keep * b.tokens * b.width
    return batch * b.tokens * b.width * HALF, batch * b.tokens * SINGLE, batch * b.keep * INDEX, turns


def greedy(batch: int, b: Block) -> Work:
    metric, each, index, turns = _choices(batch, b)
    return Work(
        "TokenGreedySelect", f"{b.keep} of {b.tokens}, the farthest first", metric + each, index,
        (
            Launch("isolation", metric, each, 2 * batch * b.tokens**2 * b.width),
            Launch("choose", metric + 2 * each, 3 * each + index, turns),
        ),
    )  # fmt: skip


def cover(batch: int, b: Block) -> Work:
    """At least one row of cosines a choice; how many more the bounds let through depends on the tokens."""
    metric, each, index, turns = _choices(batch, b)
    return Work(
        "TokenCoverSelect", f"{b.keep} of {b.tokens}, a row each", metric + each, index,
        (
            Launch("bounds", metric + each, 3 * each, 2 * batch * b.tokens**2 * b.width),
            Launch("choose", metric + 4 * each, 4 * each + index, turns),
        ),
    )  # fmt: skip


def cluster(batch: int, b: Block) -> Work:
    points, kept = b.tokens - b.protect, b.tokens - b.protect - b.remove
    metric, like = batch * points * b.head * HALF, batch * points**2 * SINGLE
    center, assign, state = batch * kept * INDEX, batch * points * INDEX, 4 * batch * points * SINGLE
    return Work(
        "TokenCluster", f"{points} to {kept}", metric, center + assign,
        (
            Launch("compare", metric, like, batch * points**2 * b.head),
            Launch("merge", like, state + center + assign),
        ),
    )  # fmt: skip


def _points(batch: int, b: Block) -> tuple[int, int, int, int]:
    """Free tokens, how many of them stay, and the bytes of all tokens and of a number each: points are fp32."""
    points = b.tokens - b.protect
    return points, b.keep - b.protect, batch * points * b.width * SINGLE, batch * points * SINGLE


def peaks(batch: int, b: Block) -> Work:
    points, kept, metric, each = _points(batch, b)
    center, assign, places = batch * kept * INDEX, batch * points * INDEX, batch * kept * PLACE
    pairs = 3 * batch * points**2 * b.width
    return Work(
        "TokenPeaks", f"{kept} of {points}", metric, center + assign,
        (
            Launch("density", metric, each, pairs),
            Launch("gaps", metric + each, 2 * each, pairs),
            Launch("rate", 3 * each, each),
            Launch("by_position", each, places),
            Launch("by_score", each + places, center),
            Launch("center", metric + center, assign, 3 * batch * points * kept * b.width),
            Launch("own", center, center),
        ),
    )  # fmt: skip


def means(batch: int, b: Block) -> Work:
    points, kept, metric, weight = _points(batch, b)
    start, assign, order = batch * kept * INDEX, batch * points * INDEX, 2 * batch * points * PLACE
    center = batch * kept * b.width * SINGLE
    rounds = (
        Launch("join", metric + center, assign, 3 * batch * points * kept * b.width),
        Launch("arrange", assign, order),
        Launch("move", metric + weight + order + center, center, 3 * batch * points * b.width),
    )
    return Work(
        "TokenMeans", f"{kept} of {points}, {ROUNDS} rounds", metric + weight + start, center + assign,
        (Launch("begin", center + start, center), *rounds * ROUNDS),
    )  # fmt: skip


def medoids(batch: int, b: Block) -> Work:
    """A tile of costs for each 32 tokens, the least: clusters that reach over its end add the tiles they reach into."""
    points, kept, metric, weight = _points(batch, b)
    start, assign, order = batch * kept * INDEX, batch * points * INDEX, 2 * batch * points * PLACE
    join = Launch("center", metric + start, assign, 3 * batch * points * kept * b.width)
    rounds = (
        join,
        Launch("arrange", assign, order),
        Launch("costs", metric + weight + order, weight, 3 * batch * points * TILE * b.width),
        Launch("move", order + weight, start),
    )
    return Work(
        "TokenMedoids", f"{kept} of {points}, {ROUNDS} rounds", metric + weight + start, start + assign,
        (Launch("begin", start, start), *rounds * ROUNDS, join),
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
        "TokenGroupSelect": (group_select,),
        "TokenGreedySelect": (greedy,),
        "TokenCoverSelect": (cover,),
        "TokenMatch": (match,),
        "TokenCluster": (cluster,),
        "TokenPeaks": (peaks,),
        "TokenMeans": (means,),
        "TokenMedoids": (medoids,),
        "TokenCombine": (combine,),
        "TokenRestore": (restore,),
        "TokenScore": (lambda n, b: score(n, b, 1), lambda n, b: score(n, b, b.tokens)),
    }
)
"""Operator -> its work for a batch and a block, in each of the ways it is used."""


def works(batch: int, block: Block = VIT_B) -> list[Work]:
    """What every operator does for one block of a model."""
    return [model(batch, block) for models in WORKS.values() for model in models]
